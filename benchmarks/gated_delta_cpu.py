"""On a CPU: one gated delta rule of 2,048 tokens, 16 key and 32 value heads of 128, against mlx-lm's.

    python benchmarks/gated_delta_cpu.py [--write] [--tokens N]

Both run on the same inputs with the same BLAS, and are compared with each other. Prints every run; the medians count.
Exits 1 below 8 times mlx-lm's speed, above an eighth of its extra memory, or when they differ.
"""

from __future__ import annotations

# First, because it loads the BLAS that MLX uses on a CPU.
import archport

# isort: split
import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx

from archport.contract import DeltaHeads, RecurrentLayer
from archport.device.facts import this_device
from archport.device.mlx_lm import reused
from archport.layers.gated_delta import run_rule
from archport.planning.steps import choose_form

Hk, Hv, D = 16, 32, 128
FASTER, SMALLER, CLOSE = 8.0, 1 / 8, 1e-5
Rule = Callable[[], tuple[mx.array, mx.array]]


def inputs(T: int) -> tuple[mx.array, ...]:
    """q, k, v, log g, beta and a state, as a layer hands them over."""
    q, k = (mx.random.normal((1, T, Hk, D)) for _ in range(2))
    q, k = (each / mx.sqrt((each * each).sum(-1, keepdims=True)) for each in (q, k))
    v, decay = mx.random.normal((1, T, Hv, D)), -mx.random.uniform(shape=(1, T, Hv))
    found = (q * D**-0.5, k, v, decay, mx.random.uniform(shape=(1, T, Hv)), mx.zeros((1, Hv, D, D)))
    mx.eval(*found)
    return found


def measured(rule: Rule, runs: int) -> tuple[list[float], int, mx.array]:
    """(seconds per run, extra bytes at the peak, answer)."""
    times: list[float] = []
    extra, y = 0, mx.zeros(())
    for _ in range(runs):
        del y
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        started = time.perf_counter()
        y, state = rule()
        mx.eval(y, state)
        times.append(time.perf_counter() - started)
        extra = mx.get_peak_memory() - before
        del state
    return times, extra, y


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the output to benchmarks/results too")
    parser.add_argument("--tokens", type=int, default=2048)
    T = parser.parse_args().tokens
    mx.random.seed(0)
    mx.set_default_device(mx.cpu)
    q, k, v, decay, beta, state = inputs(T)
    device = this_device()
    layer = RecurrentLayer.gated_delta(DeltaHeads(Hk, Hv, D, D), 4)
    path = choose_form(layer, device, B=1, tokens=T, dtype="float32")
    peer, gates = reused("models.gated_delta.gated_delta_ops"), mx.exp(decay)
    mx.eval(gates)
    ours, our_bytes, y = measured(lambda: run_rule(path, q, k, v, decay, beta, state), 5)
    theirs, their_bytes, other = measured(lambda: peer(q, k, v, gates, beta, state.swapaxes(-1, -2)), 2)
    faster = statistics.median(theirs) / statistics.median(ours)
    gap = float(mx.abs(y - other).max() / mx.abs(other).max())
    lines = [
        f"archport {archport.__version__}, mlx {device.mlx_version}, python {platform.python_version()}, {device.name}",
        f"one gated delta rule, {T} tokens, {Hk} key and {Hv} value heads of {D}, float32",
        f"archport ({path.form}, {path.chunk} tokens): {', '.join(f'{each:.3f}' for each in ours)} s, "
        f"{our_bytes:,} bytes above its inputs (priced {path.price.transient + path.price.output:,})",
        f"mlx-lm: {', '.join(f'{each:.3f}' for each in theirs)} s, {their_bytes:,} bytes above its inputs",
        f"{faster:.1f} times as fast ({FASTER} required), {our_bytes / their_bytes:.3f} of the memory "
        f"({SMALLER} allowed), largest difference {gap:.1e} ({CLOSE:.0e} allowed)",
    ]
    met = faster >= FASTER and our_bytes <= SMALLER * their_bytes and gap <= CLOSE
    lines.append("all bars met" if met else "MISSED")
    print(*lines, sep="\n")
    if parser.parse_args().write:
        (Path(__file__).parent / "results" / "gated_delta_cpu.txt").write_text("\n".join(lines) + "\n")
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()
