"""On a GPU: 32 texts of 32,768 tokens in 40 GB, what evaluation costs, and padding masks that cost no memory.

    python benchmarks/gpu_embedding.py [--write]

Random weights in the shape of Qwen3-Embedding-0.6B, bfloat16. Prints medians of three runs after a warm-up, and MLX's
peak counter. Exits 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import platform
import runpy
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

import archport
from archport.attention import attend
from archport.contract import AttentionCall, AttentionLayer, EmbeddingHead, MaskPolicy
from archport.device.evaluation import Stretches
from archport.device.facts import this_device
from archport.loading import path_chooser
from archport.running.encode import Encoder
from archport.running.pool import VectorHead
from archport.testing.plans import planned

memory: dict[str, Any] = runpy.run_path(str(Path(__file__).with_name("model_memory.py")))
GB = 10**9


def embed(encoder: Encoder, lengths: list[int], runs: int) -> tuple[Any, int, float]:
    """(plan, measured peak, median seconds) of embedding rows of these lengths."""
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, encoder.spec.vocab_size, length).astype(np.int32) for length in lengths]
    head, plan = VectorHead(EmbeddingHead(("last",), normalize=True)), planned(encoder.plan, lengths)
    times: list[float] = []
    for _ in range(runs):
        mx.synchronize()
        mx.clear_cache()
        mx.reset_peak_memory()
        started = time.perf_counter()
        stretches = Stretches()
        for batch in plan.batches:
            rows = encoder.pooled(plan, batch, [ids[row] for row in batch.rows], head, 0, stretches)
        assert np.isfinite(np.array(rows)).all()
        mx.synchronize()
        times.append(time.perf_counter() - started)
    return plan, mx.get_peak_memory(), statistics.median(times[1:] or times)


def masked_memory(B: int, L: int, hooks: Any) -> tuple[int, int]:
    """Peak bytes above the inputs of one bidirectional D=64 call: all rows equally long, and one row shorter."""
    layer, device = AttentionLayer("bidirectional", 16, 16, 64), this_device()
    q, k, v = (mx.random.normal((B, 16, L, 64)).astype(mx.bfloat16) for _ in range(3))
    mx.eval(q, k, v)
    peaks: list[int] = []
    for kind, lengths in (("none", ()), ("key_padding", (L,) * (B - 1) + (L - 100,))):
        call = AttentionCall.of(
            layer, MaskPolicy(kind), device, B=B, q_len=L, kv_len=L, dtype="bfloat16", lengths=lengths
        )
        path = path_chooser(hooks)(call, device)
        for _ in range(2):
            mx.synchronize()
            mx.clear_cache()
            mx.reset_peak_memory()
            before = mx.get_active_memory()
            mx.eval(attend(path, q, k, v, scale=0.125, zero_padding=False))
            mx.synchronize()
        peaks.append(mx.get_peak_memory() - before)
    return peaks[0], peaks[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the output to benchmarks/results too")
    arguments = parser.parse_args()
    device = this_device()
    lines = [
        f"archport {archport.__version__}, mlx {device.mlx_version}, python {platform.python_version()}, {device.name}"
    ]
    missed: list[str] = []
    trunk, spec, hooks = memory["built"](memory["QWEN"], mx.bfloat16)

    encoder = Encoder(trunk, spec, memory["planner_for"](trunk, spec, hooks, 40 * GB))
    plan, peak, seconds = embed(encoder, [32768] * 32, 2)
    lines.append(
        f"32 x 32,768 tokens in a budget of 40 GB: peak {peak:,} bytes (predicted {plan.peak:,}), {seconds:.1f} s, "
        f"{32 * 32768 / seconds:,.0f} tokens/s, {len(plan.batches)} batches, chunk {plan.chunk:,}"
    )
    if peak > min(plan.peak, 40 * GB):
        missed.append("32 x 32,768 above its plan")

    for lengths in ([512] * 32, [2048] * 8, [32768]):
        free = Encoder(trunk, spec, memory["planner_for"](trunk, spec, hooks, device.default_budget))
        least = planned(free.plan, lengths).minimum
        tight = Encoder(trunk, spec, memory["planner_for"](trunk, spec, hooks, 2 * least))
        (_, wide_peak, wide), (tight_plan, tight_peak, narrow) = embed(free, lengths, 4), embed(tight, lengths, 4)
        lines.append(
            f"{len(lengths)} x {lengths[0]:,}: unlimited {wide:.4f} s, {wide_peak:,} bytes, "
            f"{sum(lengths) / wide:,.0f} tokens/s; twice the minimum ({2 * least:,}) {narrow:.4f} s, "
            f"{tight_peak:,} bytes, {tight_plan.evaluations} evaluations: {narrow / wide - 1:+.1%} time"
        )
        if tight_peak > tight_plan.peak:
            missed.append(f"{len(lengths)} x {lengths[0]} above its plan")
        if narrow > 1.03 * wide:
            missed.append(f"{len(lengths)} x {lengths[0]} costs more than 3 % at twice the minimum")

    for B, L in ((32, 512), (8, 2048)):
        plain, masked = masked_memory(B, L, hooks)
        lines.append(
            f"bidirectional D=64, {B} x {L}: {plain:,} bytes unmasked, {masked:,} with padding ({masked / plain:.3f}x)"
        )
        if masked > 1.1 * plain:
            missed.append(f"padding mask at {B} x {L}")
    lines.append("all bars met" if not missed else "MISSED: " + "; ".join(missed))
    print(*lines, sep="\n")
    if arguments.write:
        (Path(__file__).parent / "results" / f"gpu_embedding_{device.kind}.txt").write_text("\n".join(lines) + "\n")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
