"""Sliding windows and causal layer stacks on the CPU: planned paths against one dense call per layer.

    python benchmarks/attention_window.py [--length S] [--layers N] [--out FOLDER]

Two measurements, each against what MLX does without a plan: a window of 512 at 4,096 tokens (one call with a dense
window mask), and a causal stack of attention layers at S tokens with 2 heads (one lazy graph of MLX calls).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx

from archport.attention import attend, builtin_backends, choose
from archport.attention.local import local_device, mlx_version
from archport.contract import AttentionCall

HEAD_DIM = 64


def timed(run: Callable[[], mx.array], repeats: int) -> tuple[float, int, mx.array]:
    """(best seconds, peak bytes above what is live before, last result), after one warm-up."""
    mx.eval(run())
    times: list[float] = []
    peak = 0
    out = mx.array(0)
    for _ in range(repeats):
        mx.synchronize()
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        start = time.perf_counter()
        out = run()
        mx.eval(out)
        times.append(time.perf_counter() - start)
        peak = max(peak, mx.get_peak_memory() - before)
    return min(times), peak, out


def window(length: int, width: int, heads: int, dtype: mx.Dtype, name: str, repeats: int) -> dict[str, object]:
    """A causal window of `width` tokens, banded against one call with a dense bool mask."""
    q, k, v = (mx.random.normal((1, heads, length, HEAD_DIM)).astype(dtype) for _ in range(3))
    mx.eval(q, k, v)
    reach = (width - 1, 0)
    call = AttentionCall(1, heads, heads, length, length, HEAD_DIM, HEAD_DIM, name, "window", reach=reach)  # type: ignore[arg-type]
    path = choose(call, local_device(), builtin_backends())

    def dense() -> mx.array:
        at = mx.arange(length)
        shown = mx.logical_and(at[None] <= at[:, None], at[None] > at[:, None] - width)
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=0.125, mask=shown)

    slow, slow_peak, expected = timed(dense, repeats)
    fast, fast_peak, got = timed(lambda: attend(path, q, k, v, scale=0.125), repeats)
    return {
        "what": f"window {width} at {length}, {heads} heads, {name}",
        "backend": path.backend.name,
        "q_tile": path.price.q_tile,
        "dense_seconds": slow,
        "planned_seconds": fast,
        "times_faster": slow / fast,
        "dense_peak": slow_peak,
        "planned_peak": fast_peak,
        "largest_difference": float(mx.abs(expected.astype(mx.float32) - got.astype(mx.float32)).max()),
    }


def stack(length: int, layers: int, heads: int, repeats: int) -> dict[str, object]:
    """Causal layers x + attention(x W): planned tiles against one lazy graph of MLX calls."""
    width = heads * HEAD_DIM
    x = mx.random.normal((1, length, width))
    weights = [mx.random.normal((3, width, width)) * width**-0.5 for _ in range(layers)]
    mx.eval(x, weights)
    call = AttentionCall(1, heads, heads, length, length, HEAD_DIM, HEAD_DIM, "float32", "causal")
    path = choose(call, local_device(), builtin_backends())

    def forward(attention: Callable[[mx.array, mx.array, mx.array], mx.array]) -> mx.array:
        h = x
        for weight in weights:
            q, k, v = (mx.contiguous((h @ w).reshape(1, length, heads, HEAD_DIM).swapaxes(1, 2)) for w in weight)
            h = h + attention(q, k, v).swapaxes(1, 2).reshape(1, length, width)
        return h

    def unplanned() -> mx.array:
        return forward(lambda q, k, v: mx.fast.scaled_dot_product_attention(q, k, v, scale=0.125, mask="causal"))

    slow, slow_peak, expected = timed(unplanned, repeats)
    fast, fast_peak, got = timed(lambda: forward(lambda q, k, v: attend(path, q, k, v, scale=0.125)), repeats)
    return {
        "what": f"{layers} causal layers at {length}, {heads} heads, float32",
        "backend": path.backend.name,
        "q_tile": path.price.q_tile,
        "unplanned_seconds": slow,
        "planned_seconds": fast,
        "times_faster": slow / fast,
        "unplanned_peak": slow_peak,
        "planned_peak": fast_peak,
        "peak_share": fast_peak / slow_peak,
        "largest_difference": float(mx.abs(expected - got).max()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--length", type=int, default=16_384)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    results: list[dict[str, object]] = []
    for heads, dtype, name in ((2, mx.float32, "float32"), (2, mx.bfloat16, "bfloat16")):
        results.append(window(4096, 512, heads, dtype, name, options.repeats))
        print(json.dumps(results[-1]), flush=True)
    # Minutes long: one timed run after the warm-up.
    results.append(stack(options.length, options.layers, 2, 1))
    print(json.dumps(results[-1]), flush=True)
    device = local_device()
    record = {
        "machine": {"device": device.name, "architecture": device.architecture, "cores": os.cpu_count()},
        "mlx": mlx_version(),
        "python": platform.python_version(),
        "results": results,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"attention_window_{device.kind}.json").write_text(json.dumps(record, indent=1) + os.linesep)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
