"""Predicted against measured peak memory of attention calls, on whatever device MLX runs on.

For every case: plan, run once to warm up, then compare MLX's peak counter above the live inputs with the price
(scratch plus output): the peak of twelve runs on a GPU, which may be more or less ahead of the host, of one on a CPU.
Prints a table and writes it under benchmarks/results/.

    python benchmarks/attention_memory.py [--every N] [--rss N] [--out FOLDER]

--rss measures N of the larger cases by the resident size of a process of their own as well (Linux).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import mlx.core as mx

from archport.attention import ProbedRoutes, TableRoutes, attend, builtin_backends, choose
from archport.attention.local import local_device, mlx_version
from archport.contract import AttentionCall, AttentionLimits, DeviceFacts, InputError

MB = 1_000_000
LARGE = 32 * MB
SCALE = 0.1


@dataclass(frozen=True)
class Case:
    """One call under one backend; `mask_shape` in the call stands for an array that the caller brings."""

    call: AttentionCall
    backend: str

    @property
    def name(self) -> str:
        call = self.call
        extra = "".join(
            (
                f" reach={call.reach}" if call.reach != (None, None) else "",
                f" lengths={min(call.lengths)}..{max(call.lengths)}" if call.lengths else "",
                f" array={call.mask_shape}{'+' if call.additive else ''}" if call.mask_shape else "",
                " sinks" if call.sinks else "",
            )
        )
        return (
            f"{call.dtype} B{call.B} H{call.n_heads}/{call.n_kv_heads} q{call.q_len} k{call.kv_len} "
            f"D{call.head_dim},{call.v_head_dim} {call.mask}{extra}"
        )


@dataclass(frozen=True)
class Result:
    name: str
    backend: str
    route: str
    q_tile: int
    k_chunk: int
    evaluations: int
    predicted: int
    measured: int

    @property
    def ratio(self) -> float:
        return self.predicted / max(1, self.measured)

    @property
    def large(self) -> bool:
        return max(self.predicted, self.measured) > LARGE

    @property
    def right(self) -> bool:
        """Never less than measured, and at most a quarter more where it matters."""
        return self.predicted >= self.measured and (not self.large or self.ratio <= 1.25)


def masks(B: int, H: int, L: int, S: int, rng: random.Random) -> list[dict[str, object]]:
    """The kinds of visibility a case may have, as fields of an AttentionCall."""
    lengths = (S, *(rng.randint(S // 4, S) for _ in range(B - 1)))
    return [
        {"mask": "none"},
        {"mask": "causal"},
        {"mask": "causal", "sinks": True},
        {"mask": "window", "reach": (S // 8, 0)},
        {"mask": "window", "reach": (S // 16, S // 16)},
        {"mask": "window", "reach": (None, 30), "sinks": True},
        {"mask": "key_padding", "lengths": lengths, "q_lengths": tuple(min(L, n) for n in lengths)},
        {"mask": "documents", "lengths": lengths, "q_lengths": tuple(min(L, n) for n in lengths), "reach": (None, 0)},
        {"mask": "documents", "lengths": lengths, "q_lengths": tuple(min(L, n) for n in lengths)},
        {"mask": "dense", "mask_shape": (B, 1, L, S)},
        {"mask": "dense", "mask_shape": (1, H, L, S), "additive": True},
        {"mask": "dense", "mask_shape": (B, 1, 1, S), "reach": (S // 8, S // 8)},
    ]


def shapes(kind: str) -> list[tuple[int, int, int, int, int, int, int]]:
    """(B, H, K, L, S, D, Dv) per device: sized so that a CPU takes seconds and a GPU moves what matters."""
    if kind == "cpu":
        return [
            (1, 4, 2, 1024, 2048, 64, 64),
            (2, 4, 1, 512, 2048, 80, 80),
            (1, 2, 2, 1024, 4096, 192, 256),
            (4, 8, 2, 512, 512, 128, 128),
            (1, 16, 1, 8, 32_768, 64, 64),
        ]
    return [
        (1, 16, 8, 4096, 4096, 128, 128),
        (1, 16, 4, 2048, 16_384, 256, 256),
        (8, 16, 16, 2048, 2048, 64, 64),
        (4, 16, 2, 1024, 8192, 192, 192),
        (4, 16, 4, 1, 32_768, 256, 256),
    ]


def cases(device: DeviceFacts, wanted: list[tuple[int, int, int, int, int, int, int]] | None = None) -> list[Case]:
    """Every backend that accepts a call, over shapes, types, masks and budgets of this kind of device."""
    rng = random.Random(7)
    cpu = device.kind == "cpu"
    limits = [
        AttentionLimits(transient_bytes=(48 if cpu else 2048) * MB, chunk_threshold=2048, chunk_size=2048),
        AttentionLimits(transient_bytes=(6 if cpu else 256) * MB, chunk_threshold=1024, chunk_size=1024),
    ]
    tried = {"bfloat16": range(12), "float16": (0, 4, 8), "float32": (0, 1, 2, 4, 8)}
    found: list[Case] = []
    for B, H, K, L, S, D, Dv in wanted or shapes(device.kind):
        for dtype in ("float32", "bfloat16") if cpu else ("bfloat16", "float16", "float32"):
            for number, fields in enumerate(masks(B, H, L, S, rng)):
                # The types share most of their formulas; 16-bit products are slow on a CPU.
                if (dtype == "bfloat16" and (number % 3 or D > 128)) if cpu else number not in tried[dtype]:
                    continue
                for index, limit in enumerate(limits):
                    array = {"additive": True} if device.kind == "cuda" else {}
                    call = AttentionCall(
                        B, H, K, L, S, D, Dv, dtype, limits=limit, **{**array, **fields}  # type: ignore[arg-type]
                    )  # fmt: skip
                    for backend in builtin_backends(TableRoutes()):
                        # One call in one piece has no budget to vary with.
                        single = backend.name in ("fused", "composite")
                        if not (single and index) and not backend.reasons_against(call, device):
                            found.append(Case(call, backend.name))
    return found


def measure(case: Case, device: DeviceFacts, routes: ProbedRoutes | TableRoutes) -> Result | None:
    """Predicted and measured bytes of one case; None when the probed backend refuses what the table accepted."""
    call = case.call
    try:
        path = choose(call, device, builtin_backends(routes), case.backend)
    except InputError:
        return None
    dtype = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}[call.dtype]
    q = mx.random.normal((call.B, call.n_heads, call.q_len, call.head_dim)).astype(dtype)
    k = mx.random.normal((call.B, call.n_kv_heads, call.kv_len, call.head_dim)).astype(dtype)
    v = mx.random.normal((call.B, call.n_kv_heads, call.kv_len, call.v_head_dim)).astype(dtype)
    sinks = mx.zeros((call.n_heads,), dtype) if call.sinks else None
    mask = None
    if call.mask_shape:
        mask = mx.random.uniform(shape=call.mask_shape) > 0.3
        if call.additive:
            mask = mx.where(mask, mx.array(0, dtype), mx.array(-1e4, dtype))

    def run() -> mx.array:
        if mask is None:
            return attend(path, q, k, v, scale=SCALE, sinks=sinks, zero_padding=False)
        return path.backend.run(call, path.price, q, k, v, scale=SCALE, mask=mask, sinks=sinks)

    mx.eval([x for x in (q, k, v, sinks, mask) if x is not None])
    mx.eval(run())
    mx.synchronize()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    # How far the device is ahead differs from run to run; the price is for the worst.
    for _ in range(1 if device.kind == "cpu" else 12):
        mx.eval(run())
        mx.synchronize()
    price = path.price
    return Result(
        case.name,
        case.backend,
        price.route,
        price.q_tile,
        price.k_chunk,
        price.evaluations,
        price.transient + price.output,
        mx.get_peak_memory() - before,
    )


def resident(index: int) -> int:
    """Growth of the resident size at its peak over one case, in this process, which must run nothing else."""
    device = local_device()
    call = cases(device)[index].call
    path = choose(call, device, builtin_backends(), cases(device)[index].backend)
    dtype = {"float32": mx.float32, "bfloat16": mx.bfloat16}[call.dtype]
    q = mx.random.normal((call.B, call.n_heads, call.q_len, call.head_dim)).astype(dtype)
    k = mx.random.normal((call.B, call.n_kv_heads, call.kv_len, call.head_dim)).astype(dtype)
    v = mx.random.normal((call.B, call.n_kv_heads, call.kv_len, call.v_head_dim)).astype(dtype)
    # Freed buffers go back to the system at once, and code, threads and their stacks are there before counting.
    mx.set_cache_limit(0)
    mx.eval(q, k, v)
    mx.eval(attend(path, q, k, v, scale=SCALE, zero_padding=False))
    mx.synchronize()
    # Sets the peak back to the present size.
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    mx.eval(attend(path, q, k, v, scale=SCALE, zero_padding=False))
    return _status("VmHWM") - before


def _status(field: str) -> int:
    return int(Path("/proc/self/status").read_text().partition(f"{field}:")[2].split()[0]) * 1024


def measure_resident(wanted: int, device: DeviceFacts) -> list[dict[str, object]]:
    """`wanted` cases with large scratch, spread over the backends, each in its own process."""
    found: list[dict[str, object]] = []
    every = cases(device)
    heavy: dict[str, list[int]] = {}
    for index, case in enumerate(every):
        if case.call.mask_shape or case.call.sinks:
            continue
        price = choose(case.call, device, builtin_backends(), case.backend).price
        if price.transient + price.output > LARGE:
            heavy.setdefault(case.backend, []).append(index)
    turns = [index for row in zip(*(v * wanted for v in heavy.values()), strict=False) for index in row]
    for index in list(dict.fromkeys(turns))[:wanted]:
        case = every[index]
        price = choose(case.call, device, builtin_backends(), case.backend).price
        line = subprocess.run(
            [sys.executable, __file__, "--resident", str(index)], capture_output=True, text=True, check=True
        ).stdout
        predicted, grown = price.transient + price.output, int(line)
        found.append({"name": case.name, "backend": case.backend, "predicted": predicted, "resident": grown})
        print(
            f"resident {predicted / MB:9.1f} {grown / MB:9.1f} {predicted / grown:6.3f}  {case.backend:9} {case.name}"
        )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="measure every N-th case")
    parser.add_argument("--rss", type=int, default=0, help="also measure N cases by resident size")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--only-rss", action="store_true", help="measure nothing but --rss, and keep the other results")
    parser.add_argument("--resident", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--backend", action="append", help="only cases of this backend, printed and not written")
    options = parser.parse_args()
    if options.resident is not None:
        print(resident(options.resident))
        return 0
    device = local_device()
    target = options.out / f"attention_memory_{device.kind}.json"
    if options.only_rss:
        record = json.loads(target.read_text())
        record["resident"] = measure_resident(options.rss, device)
        target.write_text(json.dumps(record, indent=1) + os.linesep)
        return 0
    routes = ProbedRoutes()
    start = time.perf_counter()
    results: list[Result] = []
    print(f"{'predicted':>9} {'measured':>9} {'ratio':>6}  MB")
    wanted = [case for case in cases(device) if not options.backend or case.backend in options.backend]
    for case in wanted[:: options.every]:
        result = measure(case, device, routes)
        if result is None:
            continue
        results.append(result)
        flag = "" if result.right else "  <-- wrong"
        print(
            f"{result.predicted / MB:9.2f} {result.measured / MB:9.2f} {result.ratio:6.3f}  {result.backend:9} "
            f"{result.route or 'mixed':9} T{result.q_tile:<5} C{result.k_chunk:<5} n{result.evaluations:<4} "
            f"{result.name}{flag}",
            flush=True,
        )
    grown = measure_resident(options.rss, device) if options.rss else []
    large = [r for r in results if r.large]
    summary = {
        "cases": len(results),
        "large": len(large),
        "below_measured": sum(r.predicted < r.measured for r in results),
        "large_above_1.25": sum(r.ratio > 1.25 for r in large),
        "worst_large_ratio": max((r.ratio for r in large), default=0.0),
        "mlx": mlx_version(),
        "device": device.name,
        "architecture": device.architecture,
        "python": platform.python_version(),
        "seconds": round(time.perf_counter() - start, 1),
    }
    print(json.dumps(summary))
    if options.backend:
        return 1 if summary["below_measured"] or summary["large_above_1.25"] else 0
    options.out.mkdir(parents=True, exist_ok=True)
    rows = [asdict(r) for r in results]
    target.write_text(json.dumps({"summary": summary, "cases": rows, "resident": grown}, indent=1) + os.linesep)
    return 1 if summary["below_measured"] or summary["large_above_1.25"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
