"""Attention on one CUDA device: archport's kernels and its drop-in against MLX's call, and torch's where there is one.

    python benchmarks/attention_gpu.py [--write] [--torch PYTHON] [--only prefill|decode|drop-in|packed]

Medians of five turns of calls that are evaluated together, MLX's and archport's in turn; torch runs the same shapes in
a process of its own, cuDNN and FlashAttention apart. TFLOP/s count half of a causal square; TB/s are what is read of
keys and values.
"""

# ruff: noqa: B023  (every call is run before the loop goes on)
from __future__ import annotations

import argparse
import importlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

# (head_dim, heads, key heads, tokens), causal and not.
PREFILL = [(D, 16, 8, L) for D in (192, 256) for L in (4096, 32_768)]
# (head_dim, heads, key heads, rows, keys), one query a row.
DECODE = [
    (256, 16, 2, 1, 65_536),
    (256, 16, 4, 1, 65_536),
    (192, 16, 4, 1, 65_536),
    (256, 16, 2, 8, 65_536),
    (256, 16, 4, 8, 16_384),
    (256, 16, 4, 1, 4096),
    (256, 16, 4, 1, 512),
]
# (rows, queries, keys) of the drop-in, each with heads of 64, 128 and 256.
DROP_IN = [(1, 512, 512), (1, 4096, 4096), (1, 32_768, 32_768), (32, 512, 512), (1, 1, 65_536), (8, 1, 16_384)]
# (head_dim, heads, key heads) of packed documents of 512, 256 and 128 tokens.
PACKED = [(64, 12, 12), (128, 16, 8)]
PARTS = ("prefill", "decode", "drop-in", "packed")
TURNS, SCALE = 5, 0.1


def calls_of(work: float) -> int:
    """Calls per turn, so that each takes some milliseconds."""
    return max(2, min(20, int(4e12 / work)))


def prefill_work(D: int, heads: int, L: int, causal: bool) -> float:
    return 4.0 * heads * D * L * L * (0.5 if causal else 1.0)


def torch_lines() -> Iterator[str]:
    """The peer's figures, in an environment that has torch."""
    torch: Any = importlib.import_module("torch")
    kernels: Any = importlib.import_module("torch.nn.attention")
    sdpa = torch.nn.functional.scaled_dot_product_attention
    backends = {
        "cuDNN": kernels.SDPBackend.CUDNN_ATTENTION,
        "FlashAttention": kernels.SDPBackend.FLASH_ATTENTION,
    }
    yield f"torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}, {torch.cuda.get_device_name()}"

    def normal(*shape: int) -> Any:
        return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)

    def seconds(backend: Any, call: Callable[[], Any], calls: int) -> float | None:
        try:
            with kernels.sdpa_kernel(backend):
                call()
                took: list[float] = []
                for _ in range(TURNS):
                    torch.cuda.synchronize()
                    started = time.perf_counter()
                    for _ in range(calls):
                        call()
                    torch.cuda.synchronize()
                    took.append((time.perf_counter() - started) / calls)
                return statistics.median(took)
        except RuntimeError:
            return None

    for D, heads, kv_heads, L in PREFILL:
        # Its kernels take grouped heads, but not every release of torch hands them over.
        q, k, v = normal(1, heads, L, D), *(normal(1, kv_heads, L, D).repeat_interleave(heads // kv_heads, 1),) * 2
        for causal in (True, False):
            work = prefill_work(D, heads, L, causal)
            for name, backend in backends.items():
                took = seconds(backend, lambda c=causal: sdpa(q, k, v, is_causal=c), calls_of(work))
                if took:
                    yield f"prefill D{D} {L} {'causal' if causal else 'full'}: {name} {work / took / 1e12:.0f} TFLOP/s"
    for D, heads, kv_heads, B, S in DECODE:
        q, k, v = normal(B, heads, 1, D), normal(B, kv_heads, S, D), normal(B, kv_heads, S, D)
        size = 4.0 * k.numel()
        for name, backend in backends.items():
            took = seconds(backend, lambda: sdpa(q, k, v, enable_gqa=True), 20)
            if took:
                rate = size / took / 1e12
                yield f"decode D{D} {heads}/{kv_heads} {B} x {S}: {name} {took * 1e6:.1f} us, {rate:.2f} TB/s"


def archport_lines(parts: Sequence[str]) -> Iterator[str]:
    import archport  # isort: skip  (before mlx, which it prepares)

    import mlx.core as mx

    from archport.attention import attend, builtin_backends, choose, scaled_dot_product_attention
    from archport.contract import AttentionCall
    from archport.device.facts import this_device
    from archport.kernels import flash, varlen

    device = this_device()
    yield f"archport {archport.__version__}, mlx {device.mlx_version}, {device.name}"
    fast = mx.fast.scaled_dot_product_attention

    def normal(*shape: int) -> Any:
        made = mx.random.normal(shape).astype(mx.bfloat16)
        mx.eval(made)
        return made

    def turn(call: Callable[[], mx.array], calls: int) -> float:
        started = time.perf_counter()
        made = [call() for _ in range(calls)]
        mx.eval(made)
        mx.synchronize()
        return (time.perf_counter() - started) / calls

    def in_turn(calls: int, *ways: Callable[[], mx.array]) -> list[float]:
        for call in ways:
            turn(call, 2)
        took = [[turn(call, calls) for call in ways] for _ in range(TURNS)]
        return [statistics.median(of_one) for of_one in zip(*took, strict=True)]

    for D, heads, kv_heads, L in PREFILL if "prefill" in parts else ():
        q, k, v = normal(1, heads, L, D), normal(1, kv_heads, L, D), normal(1, kv_heads, L, D)
        for causal in (True, False):
            mask, work = "causal" if causal else "none", prefill_work(D, heads, L, causal)
            path = choose(
                AttentionCall(1, heads, kv_heads, L, L, D, D, "bfloat16", mask=mask), device, builtin_backends()
            )
            (took,) = in_turn(calls_of(work), lambda p=path: attend(p, q, k, v, scale=SCALE))
            mx.clear_cache()
            before = mx.get_active_memory()
            mx.reset_peak_memory()
            out = attend(path, q, k, v, scale=SCALE)
            mx.eval(out)
            mx.synchronize()
            held = max(0, mx.get_peak_memory() - before - out.nbytes)
            yield (
                f"prefill D{D} {L} {mask}: {path.backend.name} {work / took / 1e12:.0f} TFLOP/s, {took * 1e3:.3f} ms, "
                f"{held} bytes above inputs and output, {path.price.transient} planned"
            )
    for D, heads, kv_heads, B, S in DECODE if "decode" in parts else ():
        q, k, v = normal(B, heads, 1, D), normal(B, kv_heads, S, D), normal(B, kv_heads, S, D)
        path = choose(AttentionCall(B, heads, kv_heads, 1, S, D, D, "bfloat16"), device, builtin_backends())
        ours, theirs = in_turn(20, lambda p=path: attend(p, q, k, v, scale=SCALE), lambda: fast(q, k, v, scale=SCALE))
        size = 2.0 * k.nbytes
        yield (
            f"decode D{D} {heads}/{kv_heads} {B} x {S}: {path.backend.name} {ours * 1e6:.1f} us, "
            f"{size / ours / 1e12:.2f} TB/s, MLX {theirs * 1e6:.1f} us"
        )
    for D in (64, 128, 256) if "drop-in" in parts else ():
        for B, L, S in DROP_IN:
            if D == 256 and L == 32_768:
                continue  # MLX holds 34 GB of scores
            mask = "causal" if L > 1 else None
            q, k, v = normal(B, 16, L, D), normal(B, 8, S, D), normal(B, 8, S, D)
            calls = calls_of(4.0 * 16 * D * B * L * S)
            ours, theirs = in_turn(
                calls,
                lambda: scaled_dot_product_attention(q, k, v, scale=SCALE, mask=mask),
                lambda: fast(q, k, v, scale=SCALE, mask=mask),
            )
            yield f"drop-in D{D} {B} x {L} on {S}: {ours * 1e6:.1f} us, MLX {theirs * 1e6:.1f} us, {ours / theirs:.3f}"
    for D, heads, kv_heads in PACKED if "packed" in parts else ():
        for L in (512, 256, 128):
            B, how = 32_768 // L, flash.Tiling("wgmma", 128, 64)
            q, k, v = (normal(1, n, B * L, D) for n in (heads, kv_heads, kv_heads))
            rows = [mx.contiguous(x.reshape(-1, B, L, D).transpose(1, 0, 2, 3)) for x in (q, k, v)]
            for right in (None, 0):
                documents = [flash.Document(0, i * L, L, i * L, L, 0) for i in range(B)]
                tables = mx.array(flash.tiles(documents, how, (None, right))), mx.array(varlen.tiles([L] * B, B * L))
                mx.eval(rows, tables)
                took = in_turn(
                    20,
                    lambda t=tables: flash.attend(q, k, v, t[0], how, scale=SCALE),
                    lambda t=tables, r=right: varlen.attend(q, k, v, t[1], scale=SCALE, reach=(None, r)),
                    lambda r=right: fast(rows[0], rows[1], rows[2], scale=SCALE, mask=None if r is None else "causal"),
                )
                names = zip(("wgmma", "varlen", "cuDNN on rows"), took, strict=True)
                kind = "full" if right is None else "causal"
                yield f"{B} x {L} packed D{D} {kind}: " + ", ".join(f"{name} {t * 1e6:.1f} us" for name, t in names)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the output to benchmarks/results too")
    parser.add_argument("--torch", default=sys.executable, metavar="PYTHON", help="an environment that has torch")
    parser.add_argument("--only", choices=PARTS, help="one part, and no peer")
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        for line in torch_lines():
            print(line, flush=True)
        return 0
    lines: list[str] = []
    for line in archport_lines(PARTS if options.only is None else (options.only,)):
        print(line, flush=True)
        lines.append(line)
    if options.only:
        return 0
    peer = subprocess.run([options.torch, __file__, "--peer"], capture_output=True, text=True, check=False)
    lines.append(peer.stdout.strip() or f"torch was not run: {peer.stderr.strip()[-200:]}")
    print(lines[-1])
    if options.write:
        (Path(__file__).parent / "results" / "attention_gpu_cuda.txt").write_text("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
