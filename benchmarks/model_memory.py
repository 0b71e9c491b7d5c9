"""Whole models: does the peak that a plan predicts hold, and how close is it? Random weights, real shapes.

    python benchmarks/model_memory.py [--write]

Every case plans rows of given lengths within a budget, runs the plan, and compares MLX's peak counter (after a warm-up
of the same plan) with the plan's. On a CPU the highest of ten runs counts: MLX hands its worker ten operations at a
time, and which arrays coexist depends on where a ten ends. On a GPU the shapes are those of Qwen3-Embedding-0.6B and
BERT-base; on a CPU small.
Exits 1 when a plan was too low, or too high where more than 32 MB moves (1.25x on a CPU, 1.5x on a GPU).
"""

from __future__ import annotations

# First, because it loads the BLAS that MLX uses on a CPU.
import archport

# isort: split
import argparse
import gc
import platform
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from archport.checkpoint import normalise_config
from archport.contract import AdmissionRefused, EmbeddingHead
from archport.contract.hooks import Hooks, Speaker
from archport.contract.plugins import claim, discover
from archport.contract.sizes import format_bytes
from archport.device.facts import this_device
from archport.loading import path_chooser
from archport.planning import Planner
from archport.running.encode import Encoder
from archport.running.pool import VectorHead
from archport.running.steps import hidden_dtype, parameter_bytes
from archport.testing.measure import peaks, run_plan
from archport.testing.plans import planned

QWEN = {
    "architectures": ["Qwen3Model"],
    "model_type": "qwen3",
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "intermediate_size": 3072,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "vocab_size": 151669,
    "max_position_embeddings": 32768,
}
BERT = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "vocab_size": 30522,
    "max_position_embeddings": 8192,
    "type_vocab_size": 2,
}
SMALL_QWEN = {**QWEN, "hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 768, "num_attention_heads": 4,
              "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 4000}  # fmt: skip
WIDE_QWEN = {**SMALL_QWEN, "head_dim": 256, "num_attention_heads": 2, "num_key_value_heads": 1}
SMALL_BERT = {**BERT, "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024,
              "vocab_size": 4000}  # fmt: skip

SMALL_MODERN = {
    "architectures": ["ModernBertModel"],
    "model_type": "modernbert",
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 384,
    "hidden_activation": "gelu",
    "local_attention": 128,
    "global_attn_every_n_layers": 3,
    "vocab_size": 4000,
    "max_position_embeddings": 8192,
    "pad_token_id": 0,
}
SMALL_GEMMA = {
    "architectures": ["Gemma3TextModel"],
    "model_type": "gemma3_text",
    "use_bidirectional_attention": True,
    "hidden_size": 384,
    "num_hidden_layers": 4,
    "intermediate_size": 576,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 128,
    "sliding_window": 512,
    "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
    "query_pre_attn_scalar": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "vocab_size": 4000,
    "max_position_embeddings": 8192,
    "pad_token_id": 0,
}
HYBRID = {**SMALL_QWEN, "architectures": ["Qwen3_5ForCausalLM"], "model_type": "qwen3_5_text",
          "linear_num_key_heads": 4, "linear_num_value_heads": 8, "linear_key_head_dim": 64,
          "linear_value_head_dim": 64, "linear_conv_kernel_dim": 4, "full_attention_interval": 4}  # fmt: skip

# Measured runs of each case.
RUNS = {"cpu": 10, "cuda": 1, "metal": 1}


def built(config: dict[str, Any], dtype: mx.Dtype) -> tuple[Any, Any, Hooks]:
    """A trunk with random weights, its spec and its hooks."""
    normal = normalise_config({**config, "dtype": str(dtype).removeprefix("mlx.core.")})
    plugin, spec = claim(normal, discover())
    assert plugin.module is not None
    hooks = Hooks([Speaker(plugin.label, plugin.module)])
    trunk: Any = hooks.build(spec, normal)
    trunk.update(tree_map(lambda array: (mx.random.normal(array.shape) * 0.02).astype(dtype), trunk.parameters()))
    mx.eval(trunk.parameters())
    from archport.layers import merge_projections

    merge_projections(trunk)
    gc.collect()
    mx.clear_cache()
    return trunk, spec, hooks


def cases(gpu: bool) -> Iterator[tuple[str, dict[str, Any], list[list[int]]]]:
    rng = random.Random(0)
    mixed = [int(min(8000, max(8, rng.lognormvariate(5.2, 0.9)))) for _ in range(256)]
    short = [int(min(512, max(4, rng.lognormvariate(4.4, 0.8)))) for _ in range(64)]
    if gpu:
        even = [(1, 16), (1, 512), (32, 128), (32, 512), (8, 2048), (1, 8192), (4, 8192), (1, 32768), (8, 32768)]
        yield "qwen3 0.6B", QWEN, [*([L] * B for B, L in even), mixed]
        yield "bert base", BERT, [[512] * 32, [8192] * 4, [128] * 64, [min(n, 512) for n in mixed], [8000, 4000, 100]]
    else:
        even = [(1, 64), (1, 512), (4, 512), (1, 2048), (2, 2048), (1, 4096)]
        yield "qwen3 small", SMALL_QWEN, [*([L] * B for B, L in even), short]
        yield "qwen3 head_dim 256", WIDE_QWEN, [[2048], [512] * 4]
        yield "qwen35 small", HYBRID, [[64], [512] * 4, [2048, 2000, 90], [4096], [128] * 16]
        yield "bert small", SMALL_BERT, [[512] * 8, [2048, 2000, 90], [1024] * 2, short]
        for name, config in (("modernbert small", SMALL_MODERN), ("gemma small", SMALL_GEMMA)):
            yield name, config, [[512] * 8, [4096], [2048, 2000, 90], short]


def measure(encoder: Encoder, head: VectorHead, lengths: list[int]) -> tuple[int, int, int, float, int]:
    """(predicted peak, measured peak, bytes that moved, seconds, batches) of one request."""
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, encoder.spec.vocab_size, length).astype(np.int32) for length in lengths]
    plan, seconds = planned(encoder.plan, lengths), 0.0

    def run() -> None:
        nonlocal seconds
        started = time.perf_counter()
        run_plan(encoder, plan, ids, head)
        seconds = time.perf_counter() - started

    weights = plan.bytes["weights"]
    # The first run warms up.
    _, *found = peaks(run, weights=weights, runs=1 + RUNS[encoder.plan.device.kind])
    return plan.peak, max(found), max(found) - weights, seconds, len(plan.batches)


def planner_for(trunk: Any, spec: Any, hooks: Hooks, budget: int) -> Planner:
    return Planner.of(
        spec,
        this_device(),
        path_chooser(hooks),
        budget=budget,
        dtype=hidden_dtype(trunk, spec),
        weight_bytes=parameter_bytes(trunk),
        pins=hooks,
        plugin="benchmark",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the output to benchmarks/results too")
    arguments = parser.parse_args()
    device = this_device()
    gpu = device.kind != "cpu"
    limit = 1.5 if gpu else 1.25
    dtype = mx.bfloat16 if gpu else mx.float32
    lines = [
        f"archport {archport.__version__}, mlx {device.mlx_version}, python {platform.python_version()}, {device.name}"
    ]
    lines.append(f"{'model':<20}{'rows':>6}{'longest':>9}{'budget':>10}{'batches':>9}{'predicted':>12}{'measured':>12}"
                 f"{'moved':>11}{'ratio':>7}{'tokens/s':>11}")  # fmt: skip
    bad = 0
    for name, config, requests in cases(gpu):
        trunk, spec, hooks = built(config, dtype)
        head = VectorHead(EmbeddingHead(("last",) if spec.semantics == "causal" else ("mean",)))
        for lengths in requests:
            for share in (None, 2.0, 1.2):
                planner = planner_for(trunk, spec, hooks, device.default_budget)
                if share is not None:
                    planner = planner_for(trunk, spec, hooks, int(share * planned(planner, lengths).minimum))
                try:
                    predicted, measured, moved, seconds, batches = measure(Encoder(trunk, spec, planner), head, lengths)
                except AdmissionRefused as refused:
                    lines.append(f"{name:<20}{len(lengths):>6}{max(lengths):>9}  refused: {refused}")
                    print(lines[-1])
                    continue
                ratio = predicted / measured
                wrong = measured > predicted or (moved > 32e6 and ratio > limit)
                bad += wrong
                lines.append(
                    f"{name:<20}{len(lengths):>6}{max(lengths):>9}{format_bytes(planner.budget):>10}{batches:>9}"
                    f"{format_bytes(predicted):>12}{format_bytes(measured):>12}{format_bytes(moved):>11}{ratio:>7.2f}"
                    f"{sum(lengths) / seconds:>11,.0f}{'  WRONG' if wrong else ''}"
                )
                print(lines[-1], flush=True)
        del trunk
        gc.collect()
        mx.clear_cache()
    lines.append(f"{bad} wrong")
    print(lines[0], lines[1], lines[-1], sep="\n")
    if arguments.write:
        target = Path(__file__).parent / "results" / f"model_memory_{device.kind}.txt"
        target.write_text("\n".join(lines) + "\n")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
