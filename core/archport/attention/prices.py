"""What one attention kernel costs: bytes above its inputs, and an estimate of its time for ranking.

The byte formulas are measured; the times are rough and only compare paths on one device. Pure Python, no arrays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from archport.attention.routes import FastCall, Kernel
from archport.contract.device import DeviceFacts, DeviceKind, rate
from archport.contract.spec import DType

# Scalars and index vectors that no formula below counts, and page rounding of a handful of buffers on GPUs.
SLACK: Mapping[DeviceKind, int] = {"cpu": 1 << 14, "metal": 1 << 19, "cuda": 1 << 19}

_NOMINAL_BANDWIDTH: Mapping[DeviceKind, float] = {"cpu": 2e10, "metal": 2e11, "cuda": 3e12}
# Time of one evaluation that the device waits for.
_SYNC: Mapping[DeviceKind, float] = {"cpu": 1e-4, "metal": 3e-4, "cuda": 1e-4}
# Time to prepare the fused kernel of a shape that was not there before. Documents have lengths of their own, so theirs
# seldom were; and MLX gives up when a process brings too many.
_NEW_SHAPE: Mapping[DeviceKind, float] = {"cpu": 0.0, "metal": 0.0, "cuda": 22e-3}
# Share of the matrix rate that a kernel reaches; head_dim 256 on Metal spills registers.
_SHARE: Mapping[Kernel, float] = {
    "full": 0.7,
    "vector": 0.1,
    "vector_two_pass": 0.1,
    "cudnn": 0.6,
    "blocked": 0.5,
    "composite": 0.8,
}
# How often the score matrix passes through memory in an unfused call, without and with a mask.
_PASSES: Mapping[DeviceKind, tuple[int, int]] = {"cpu": (0, 0), "metal": (4, 6), "cuda": (9, 18)}
# Seconds per score that a CPU spends outside matrix products.
_CPU_SCORE = 2e-8


def steady_rate(device: DeviceFacts, dtype: DType) -> float:
    """Matrix FLOP/s of the device, rounded down to a power of two.

    A calibration that jitters by some percent from start to start must not change what is chosen.
    """
    return 2.0 ** math.floor(math.log2(rate(device, dtype)))


def bandwidth(device: DeviceFacts) -> float:
    """Bytes/s of device memory, rounded down to a power of two."""
    return 2.0 ** math.floor(math.log2(device.bandwidth or _NOMINAL_BANDWIDTH[device.kind]))


def transient(call: FastCall, kernel: Kernel, kind: DeviceKind) -> int:
    """Bytes a kernel holds above its inputs and its output at the peak, array masks it is handed excluded."""
    s, rows = call.itemsize, call.B * call.n_heads * call.q_len
    if call.softcap:
        # Float32 scores; of narrower inputs also the product they are made from and the weights that values want.
        held = call.scores * (4 + (4 if s < 4 else 0)) + rows * call.head_dim * s
        if call.sinks:
            held += 8 * call.scores + 12 * rows
        return held + (call.q_len * call.kv_len + 16 * (call.q_len + call.kv_len) if call.form == "causal" else 0)
    if kernel == "composite":
        held = call.scores * s + rows * call.head_dim * s
        if call.sinks:
            # The scores are copied to make room for one more logit per row, and normalised into a third buffer.
            held += 2 * call.scores * s + 3 * rows * s
        if call.form == "causal":
            held += call.q_len * call.kv_len + 16 * (call.q_len + call.kv_len)
        return held + _expanded_mask(call, kernel, kind)
    if kernel == "blocked":
        return call.B * call.n_heads * min(256, call.q_len) * (call.kv_len + 1024) * s
    if kernel == "vector_two_pass":
        if kind == "cuda":
            return rows * 32 * (4 * call.head_dim + 8)
        return rows * _metal_blocks(call.kv_len) * (call.v_head_dim * s + 8) + _expanded_mask(call, kernel, kind)
    held = _expanded_mask(call, kernel, kind)
    if kernel == "full" and call.head_dim in (72, 80) and call.form == "none" and not call.sinks and s == 2:
        # MLX itself pads these to 96 on NAX; priced wherever it might.
        held += 96 * s * (2 * rows + 2 * call.B * call.n_kv_heads * call.kv_len)
    return held


def largest_buffer(call: FastCall, kernel: Kernel, kind: DeviceKind) -> int:
    """Bytes of the largest single allocation of a kernel, output included."""
    output = call.B * call.n_heads * call.q_len * call.v_head_dim * call.itemsize
    inner = (
        call.scores * (4 if call.softcap else call.itemsize) if kernel == "composite" else transient(call, kernel, kind)
    )
    return max(output, inner)


def _expanded_mask(call: FastCall, kernel: Kernel, kind: DeviceKind) -> int:
    if call.form != "array":
        return 0
    if kind == "cuda" and not call.additive:
        return 2 * call.scores * call.itemsize
    if kind == "metal" and kernel in ("vector", "vector_two_pass") and call.mask_rows > 1:
        return call.scores * (call.itemsize if call.additive else 1)
    return 0


def _metal_blocks(kv_len: int) -> int:
    # MLX takes 32 to 1024 blocks, growing with kv_len; each step here is the most it takes up to that length.
    for keys, blocks in ((8192, 256), (32768, 512)):
        if kv_len <= keys:
            return blocks
    return 1024


def seconds(call: FastCall, kernel: Kernel, device: DeviceFacts, *, share_of_work: float = 1.0) -> float:
    """Estimated time of a kernel; `share_of_work` scales it where causal slicing or bands skip keys."""
    masked = call.form != "none"
    share = _SHARE[kernel]
    if kernel == "full" and call.head_dim > 128:
        share = 0.6 if device.nax else 0.4
    work = call.flops / (steady_rate(device, call.dtype) * share)
    if kernel == "composite":
        if device.kind == "cpu":
            work += call.scores * _CPU_SCORE * ((1.5 if masked else 1.0) + (1.0 if call.softcap else 0.0))
        work += call.scores * call.itemsize * _PASSES[device.kind][masked] / bandwidth(device)
    elif call.form == "causal" and call.q_len > 8:
        # Fused kernels skip what lies past the diagonal; an unfused one computes and discards it.
        work *= 1.0 - 0.5 * call.q_len / max(call.kv_len, call.q_len)
    cache = call.B * call.n_kv_heads * call.kv_len * (call.head_dim + call.v_head_dim) * call.itemsize
    return work * share_of_work + cache / bandwidth(device)


def content_seconds(flops: float, head_dim: int, device: DeviceFacts, dtype: DType) -> float:
    """Estimated time of products with vectors by distance, and of adding them to scores."""
    numbers = flops / (2.0 * head_dim)
    outside = numbers * _CPU_SCORE if device.kind == "cpu" else numbers * 16 / bandwidth(device)
    return flops / (steady_rate(device, dtype) * 0.5) + outside


def shape_seconds(device: DeviceFacts) -> float:
    """Time to prepare a fused kernel for one more shape."""
    return _NEW_SHAPE[device.kind]


def sync_seconds(device: DeviceFacts) -> float:
    """Time of one evaluation that the host waits for."""
    return _SYNC[device.kind]
