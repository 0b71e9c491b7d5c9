"""Attention on this machine: which kernels MLX says it takes against the table, and paths run against float64.

Reports bytes, times and errors of calls; knows no model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import mlx.core as mx
import numpy as np

from archport.attention import attend, builtin_backends, choose
from archport.attention.prices import FastCall, TableRoutes
from archport.attention.probe import ProbedRoutes, ask
from archport.contract import AttentionCall, AttentionPath, DeviceFacts, DType
from archport.testing.measure import as_array, reference

_DIMS = ((64, 64), (72, 72), (80, 80), (96, 96), (96, 64), (128, 128), (192, 192), (192, 128), (256, 256), (512, 512))
_LENGTHS = ((1, 512), (1, 8192), (8, 2048), (9, 2048), (512, 512), (1024, 4096), (2048, 2048))
_TYPES: dict[DType, mx.Dtype] = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
_MASKS: tuple[Literal["none", "causal", "array"], ...] = ("none", "causal", "array")
_HEADS = ((8, 8), (32, 4))
# Queries and keys of the calls that are run, and heads: small enough for a CPU's reference.
_RUN = (("causal", 256, 256), ("causal", 64, 320), ("none", 1, 1100))
_N_HEADS, _N_KV_HEADS = 4, 2


def routes(device: DeviceFacts) -> dict[str, Any]:
    """How MLX answers about kernels, against the table that plans for other machines are made from."""
    table, asked, unanswered, differing = TableRoutes(), 0, 0, []
    for call in _calls():
        believed, answer = table.route(call, device), ask(call, device)
        if answer is None:
            unanswered += 1
            continue
        asked += 1
        fused, forceable = answer
        # Of decoding with cuDNN, of the blocked path and of what exceeds a threadgroup, MLX's answer is not the kernel.
        if (believed.kernel != "composite", believed.forced is not None) != (fused, forceable):
            differing.append(
                {
                    "call": _named(call.dtype, call.head_dim, call.v_head_dim, call.form, call.q_len, call.kv_len)
                    + f", {call.n_heads}/{call.n_kv_heads} heads",
                    "table": believed.kernel,
                    "table_forced": believed.forced,
                    "fused": fused,
                    "forceable": forceable,
                }
            )
    return {"asked": asked, "unanswered": unanswered, "differing": differing}


def _calls() -> Iterator[FastCall]:
    types: tuple[DType, ...] = ("float32", "bfloat16")
    for dtype in types:
        for D, Dv in _DIMS:
            for q_len, kv_len in _LENGTHS:
                for form in _MASKS:
                    for heads, kv_heads in _HEADS:
                        yield FastCall(1, heads, kv_heads, q_len, kv_len, D, Dv, dtype, form)


def attention(device: DeviceFacts, done: Callable[[], bool], *, quick: bool) -> Iterator[dict[str, Any]]:
    """Calls that are run by the path that a plan takes: planned and measured bytes, time, error against float64.

    Args:
        done: whether time is up.
    """
    backends = builtin_backends(ProbedRoutes())
    types: tuple[DType, ...] = ("float32",) if device.kind == "cpu" else ("bfloat16", "float16", "float32")
    dims = [D for D, Dv in _DIMS if D == Dv and (not quick or D in (64, 128, 256))]
    for dtype in types:
        for D in dims:
            for mask, q_len, kv_len in _RUN:
                name = _named(dtype, D, D, mask, q_len, kv_len)
                if done():
                    yield {"call": name, "status": "skipped"}
                    continue
                call = AttentionCall(1, _N_HEADS, _N_KV_HEADS, q_len, kv_len, D, D, dtype, mask)  # pyright: ignore
                try:
                    path = choose(call, device, backends)
                    yield {"call": name, "status": "done", **_run(path, dtype)}
                # Whatever a device makes of a call is what is reported.
                except Exception as error:
                    yield {"call": name, "status": "failed", "failure": f"{type(error).__name__}: {error}"[:600]}


def _run(path: AttentionPath, dtype: DType) -> dict[str, Any]:
    call, rng = path.call, np.random.default_rng(0)
    shapes = ((call.n_heads, call.q_len), (call.n_kv_heads, call.kv_len), (call.n_kv_heads, call.kv_len))
    q, k, v = (mx.array(rng.normal(size=(1, *shape, call.head_dim))).astype(_TYPES[dtype]) for shape in shapes)
    mx.eval(q, k, v)
    scale = call.head_dim**-0.5
    seconds, measured, out = [], 0, q
    for _ in range(4):
        mx.synchronize()
        mx.clear_cache()
        mx.reset_peak_memory()
        del out
        before, started = mx.get_active_memory(), time.perf_counter()
        out = attend(path, q, k, v, scale=scale)
        mx.eval(out)
        mx.synchronize()
        seconds.append(time.perf_counter() - started)
        measured = max(measured, mx.get_peak_memory() - before)
    columns, rows = np.arange(call.kv_len)[None], np.arange(call.kv_len - call.q_len, call.kv_len)[:, None]
    shown = columns <= rows if call.mask == "causal" else np.ones((call.q_len, call.kv_len), bool)
    exact = reference(q, k, v, scale, shown)
    if not np.isfinite(as_array(out)).all():
        raise ArithmeticError(f"the {path.backend.name} path gives NaN or infinity")
    return {
        "backend": path.backend.name,
        "route": path.price.route,
        "planned_bytes": path.price.transient + path.price.output,
        "measured_bytes": measured,
        "milliseconds": round(1e3 * min(seconds), 4),
        "error": float(np.abs(as_array(out) - exact).max() / np.abs(exact).max()),
    }


def _named(dtype: str, D: int, Dv: int, mask: str, q_len: int, kv_len: int) -> str:
    width = f"{D}" if D == Dv else f"({D}, {Dv})"
    return f"{dtype}, head_dim {width}, mask {mask}, {q_len} x {kv_len}"
