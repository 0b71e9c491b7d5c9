"""Where the time of a token of one row goes on a GPU, and what one operation of an evaluation costs the host.

    python benchmarks/decode_step_gpu.py [--write] [--tiny]

`generate` of 200 tokens behind 15, random weights in the shape of Qwen3's 0.6B: a token's time, and how much of it is
spent inside MLX's calls that launch and that wait. Then chains of 300 small operations of (1, 1, 1024) each, in one
evaluation: microseconds to describe and to evaluate one, each kind as it is and inside compiled functions of ten. No
bars: what they say goes into LOG.md.
"""

from __future__ import annotations

import archport  # isort: skip  (before mlx, which it prepares)

import argparse
import runpy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from archport import engine

shape: dict[str, Any] = runpy.run_path(str(Path(__file__).with_name("pool_gpu.py")))
PROMPT, TOKENS, CHAIN, TRACED, WIDTH = 15, 200, 300, 10, 1024
KERNEL = """
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < x_shape[2]) y[i] = static_cast<Out>(static_cast<float>(x[i]) * static_cast<float>(w[i]));
"""
Step = Callable[[mx.array], mx.array]


def tokens(tiny: bool) -> list[str]:
    """Lines about a token's time."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        config = {**shape["SHAPE"], **(shape["TINY"] if tiny else {}), "architectures": ["Qwen3ForCausalLM"]}
        shape["write_checkpoint"](folder, config)
        (folder / "modules.json").unlink()
        model = engine.load(folder, dtype="float32" if tiny else "bfloat16")
    ids = np.arange(5, 5 + PROMPT)
    model.generate(ids, max_tokens=TOKENS)
    lines: list[str] = []
    for _ in range(3):
        begin = time.perf_counter()
        model.generate(ids, max_tokens=TOKENS)
        lines.append(f"us per token: {1e6 * (time.perf_counter() - begin) / TOKENS:.0f}")
    spent = {"async_eval": 0.0, "eval": 0.0}
    real = {name: getattr(mx, name) for name in spent}

    def timed(name: str) -> Callable[..., None]:
        def call(*arrays: Any) -> None:
            begin = time.perf_counter()
            real[name](*arrays)
            spent[name] += time.perf_counter() - begin

        return call

    try:
        for name in spent:
            setattr(mx, name, timed(name))
        begin = time.perf_counter()
        model.generate(ids, max_tokens=TOKENS)
        whole = time.perf_counter() - begin
    finally:
        for name, call in real.items():
            setattr(mx, name, call)
    inside = ", ".join(f"mx.{name} {1e6 * each / TOKENS:.0f}" for name, each in spent.items())
    return [*lines, f"of {1e6 * whole / TOKENS:.0f} us per token: {inside}"]


def operations(dtype: mx.Dtype) -> dict[str, Step]:
    """What a chain is made of, by name."""
    scale = mx.ones((WIDTH,)).astype(dtype)
    matrix = (0.03 * mx.random.normal((WIDTH, WIDTH))).astype(dtype)
    mx.eval(scale, matrix)
    found: dict[str, Step] = {
        "a norm": lambda x: mx.fast.rms_norm(x, scale, 1e-6),
        "a product of elements": lambda x: x * scale,
        "a row times a matrix": lambda x: x @ matrix.T,
        "that and a sum": lambda x: x + x @ matrix.T,
        "both as one addmm": lambda x: mx.addmm(x, x, matrix.T),
    }
    if mx.cuda.is_available():
        kernel: Any = mx.fast.cuda_kernel(name="probe", input_names=["x", "w"], output_names=["y"], source=KERNEL)
        found["a kernel of our own"] = lambda x: kernel(
            inputs=[x, scale], template=[("Out", dtype)], grid=(WIDTH, 1, 1), threadgroup=(256, 1, 1),
            output_shapes=[x.shape], output_dtypes=[dtype],
        )[0]  # fmt: skip
    return found


def repeated(step: Step, times: int) -> Step:
    """A step so many times."""

    def run(x: mx.array) -> mx.array:
        for _ in range(times):
            x = step(x)
        return x

    return run


def cost(run: Step, dtype: mx.Dtype, runs: int) -> tuple[float, float]:
    """(microseconds to describe, to evaluate) one operation of a chain, medians."""
    taken: list[tuple[float, float]] = []
    for _ in range(runs + 4):
        x = mx.random.normal((1, 1, WIDTH)).astype(dtype)
        mx.eval(x)
        mx.synchronize()
        begin = time.perf_counter()
        y = run(x)
        described = time.perf_counter()
        mx.eval(y)
        mx.synchronize()
        taken.append((described - begin, time.perf_counter() - described))
    describing, evaluating = (1e6 * statistics.median(each) / CHAIN for each in zip(*taken[4:], strict=True))
    return describing, evaluating


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the output to benchmarks/results too")
    parser.add_argument("--tiny", action="store_true", help="small shapes, for a look at the script")
    given = parser.parse_args()
    dtype = mx.float32 if given.tiny else mx.bfloat16
    lines = [f"archport {archport.__version__}, mlx {mx.__version__}, {mx.default_device()}", *tokens(given.tiny)]
    for name, step in operations(dtype).items():
        for where, run in (
            ("", repeated(step, CHAIN)),
            (" in a trace", repeated(mx.compile(repeated(step, TRACED)), CHAIN // TRACED)),
        ):
            describing, evaluating = cost(run, dtype, 3 if given.tiny else 15)
            lines.append(f"{name}{where}: {describing:.2f} us to describe, {evaluating:.2f} to evaluate")
    print("\n".join(lines))
    if given.write:
        Path(__file__).with_name("results").joinpath("decode_step_cuda.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
