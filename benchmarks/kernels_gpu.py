"""archport's CUDA kernels against what MLX runs in their place, one operation at a time, and how exact they are.

    python benchmarks/kernels_gpu.py [--write]

Microseconds per call, the least of four times twenty calls that are evaluated together, in bfloat16. Attention over
documents is compared with cuDNN on rows of equal length, which it needs, and with float32 on documents of any length.
Exits 1 where a kernel is further off than its bar, or slower than the operations it replaces.
"""

from __future__ import annotations

import archport  # isort: skip  (before mlx, which it prepares)

import argparse
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from archport.device.facts import this_device
from archport.kernels import activation as activating
from archport.kernels import sum_norm
from archport.kernels import varlen as varlen_kernel
from archport.layers import Embedding
from archport.layers import merging as onto
from archport.layers.activations import gated

CALLS, TURNS = 20, 4
TOKENS = 32768
# Largest difference from float32 of attention's output, whose elements are about 1.
OFF = {mx.bfloat16: 0.02, mx.float16: 0.002}
Reach = tuple[int | None, int | None]


def microseconds(make: Callable[[], mx.array]) -> float:
    best = float("inf")
    for _ in range(TURNS):
        made = [make() for _ in range(CALLS)]
        started = time.perf_counter()
        mx.eval(made)
        mx.synchronize()
        best = min(best, time.perf_counter() - started)
    return best / CALLS * 1e6


def normal(*shape: int, dtype: mx.Dtype = mx.bfloat16) -> mx.array:
    made = mx.random.normal(shape).astype(dtype)
    mx.eval(made)
    return made


def heads(tokens: int, n_heads: int, n_kv_heads: int, width: int, dtype: mx.Dtype) -> list[mx.array]:
    """q, k and v (1, H, L, Dh) as a merged projection leaves them."""
    product = normal(1, tokens, (n_heads + 2 * n_kv_heads) * width, dtype=dtype)
    parts = mx.split(product, [n_heads * width, (n_heads + n_kv_heads) * width], axis=-1)
    return [part.reshape(1, tokens, -1, width).transpose(0, 2, 1, 3) for part in parts]


def documents(lengths: list[int], parts: list[mx.array], scale: float, reach: Reach) -> Callable[[], mx.array]:
    table = mx.array(varlen_kernel.tiles(lengths, parts[0].shape[2]))
    mx.eval(table)
    q, k, v = parts
    return lambda: varlen_kernel.attend(q, k, v, table, scale=scale, reach=reach)


def difference(lengths: list[int], parts: list[mx.array], scale: float, reach: Reach) -> float:
    """Largest difference of the kernel's output from attention in float32, document by document."""
    found, start, worst = documents(lengths, parts, scale, reach)().astype(mx.float32), 0, 0.0
    left, right = reach
    repeat = parts[0].shape[1] // parts[1].shape[1]
    for length in lengths:
        here = slice(start, start + length)
        apart = mx.arange(length)[None] - mx.arange(length)[:, None]
        shown = (apart >= (-length if left is None else -left)) & (apart <= (length if right is None else right))
        q, k, v = (part[:, :, here].astype(mx.float32) for part in parts)
        k, v = mx.repeat(k, repeat, axis=1), mx.repeat(v, repeat, axis=1)
        weights = mx.softmax(mx.where(shown, (q * scale) @ k.swapaxes(-1, -2), -mx.inf), axis=-1)
        worst = max(worst, float(np.abs(np.array(found[:, :, here] - weights @ v)).max()))
        start += length
    return worst


def exactness(say: Callable[[str], None], missed: list[str]) -> None:
    lengths = [1, 63, 64, 65, 130, 500, 7, 900]
    shapes: list[tuple[int, int, int, Reach, mx.Dtype]] = [
        (64, 12, 12, (None, None), mx.bfloat16),
        (64, 12, 12, (64, 64), mx.bfloat16),
        (128, 16, 8, (None, 0), mx.bfloat16),
        (96, 4, 4, (None, None), mx.float16),
        (80, 4, 4, (0, 70), mx.bfloat16),
        (32, 12, 12, (None, None), mx.float16),
    ]
    for width, n_heads, n_kv_heads, reach, dtype in shapes:
        parts = heads(sum(lengths) + 30, n_heads, n_kv_heads, width, dtype)
        worst = difference(lengths, parts, width**-0.5, reach)
        name = f"{n_heads}/{n_kv_heads} heads of {width}, reach {reach}, {dtype}"
        say(f"  {name}: {worst:.4f} from float32")
        if not worst <= OFF[dtype]:
            missed.append(f"documents, {name}: {worst:.4f} off")


def attention(say: Callable[[str], None]) -> None:
    parts = heads(TOKENS, 12, 12, 64, mx.bfloat16)
    drawn = np.clip(np.exp(np.random.default_rng(1).normal(5.0, 0.9, 4096)), 8, 512).astype(int)
    mixed = drawn[: int(np.searchsorted(np.cumsum(drawn), TOKENS))].tolist()
    for reach in ((None, None), (64, 64)):
        own = microseconds(documents(mixed, parts, 0.125, reach))
        say(f"  documents of mixed length, reach {reach}: {own:.1f} us")
    for B, L in ((64, 512), (128, 256), (256, 128)):
        rows = [part.reshape(12, B, L, 64).transpose(1, 0, 2, 3) for part in (each[0] for each in parts)]
        mask = mx.zeros((B, 1, 1, L), mx.bfloat16)
        mx.eval(rows, mask)
        plain = microseconds(lambda rows=rows: mx.fast.scaled_dot_product_attention(*rows, scale=0.125))
        masked = microseconds(
            lambda rows=rows, mask=mask: mx.fast.scaled_dot_product_attention(*rows, scale=0.125, mask=mask)
        )
        own = microseconds(documents([L] * B, parts, 0.125, (None, None)))
        say(f"  {B} x {L}: {own:.1f} us, cuDNN {plain:.1f}, with a mask for padding {masked:.1f}")


def passes(say: Callable[[str], None], missed: list[str]) -> None:
    def compare(name: str, own: Callable[[], mx.array], other: Callable[[], mx.array]) -> None:
        found, replaced = microseconds(own), microseconds(other)
        say(f"  {name}: {found:.1f} us, MLX's {replaced:.1f}")
        if found > replaced:
            missed.append(f"{name}: {found:.1f} us, MLX's {replaced:.1f}")

    x, y, norm = normal(1, TOKENS, 768), normal(1, TOKENS, 768), nn.LayerNorm(768)
    norm.set_dtype(mx.bfloat16)
    compare("norm of a sum, 32,768 x 768", lambda: sum_norm.sum_norm(norm, x, y), lambda: norm(x + y))
    wide, halves, act = normal(1, TOKENS, 3072), normal(1, TOKENS // 2, 6144), gated(nn.silu)
    compare("GELU, 32,768 x 3,072", lambda: activating.activate(wide, "gelu"), lambda: nn.gelu(wide))
    compare(
        "SiLU of halves, 16,384 x 6,144",
        lambda: activating.activate(halves, "silu", halves=True),
        lambda: act(*mx.split(halves, 2, axis=-1)),
    )
    inner, linear = normal(1, TOKENS, 1152), nn.Linear(1152, 768, bias=False)
    linear.set_dtype(mx.bfloat16)
    compare("product and sum, 1,152 to 768", lambda: onto.linear_onto(linear, inner, x), lambda: x + linear(inner))
    table, ids = Embedding(30522, 768), mx.random.randint(0, 30522, (1, TOKENS // 2)).astype(mx.int32)
    table.set_dtype(mx.bfloat16)
    mx.eval(table.parameters(), ids)
    compare("rows of a table, 16,384 x 768", lambda: table(ids), lambda: table["weight"][ids])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the output to benchmarks/results too")
    write = parser.parse_args().write
    if not mx.cuda.is_available():
        raise SystemExit("these kernels are written for CUDA; install archport[cuda] on a machine with such a GPU")
    lines: list[str] = []
    missed: list[str] = []

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    device = this_device()
    say(f"archport {archport.__version__}, mlx {device.mlx_version}, python {platform.python_version()}, {device.name}")
    say("attention over documents, 1 to 900 tokens long")
    exactness(say, missed)
    say("attention over 32,768 tokens, 12 heads of 64")
    attention(say)
    say("passes over memory")
    passes(say, missed)
    say("MISSED: " + "; ".join(missed) if missed else "all bars met")
    if write:
        (Path(__file__).parent / "results" / "kernels_gpu_cuda.txt").write_text("\n".join(lines) + "\n")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
