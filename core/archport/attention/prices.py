"""MLX's own attention in numbers: which kernel it runs for a call, per device, and what that costs.

Routes are written from MLX 0.32.4: what its Metal library refuses, compiles and compares in `use_fallback`, and the
shared memory of its kernels by their headers. Byte formulas are measured, above what a kernel is handed; times are
rough and only compare paths on one device. Knows nothing of this machine: `probe` asks MLX where it can and falls back
to this. Pure Python, no arrays.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from archport.attention.visibility import Form
from archport.contract.device import DeviceFacts, DeviceKind, rate
from archport.contract.spec import DType, itemsize

Kernel = Literal["full", "vector", "vector_two_pass", "cudnn", "blocked", "composite"]

METAL_FULL = frozenset({(d, d) for d in (64, 72, 80, 96, 128, 192, 256)} | {(96, 64)})
METAL_VECTOR = frozenset({(d, d) for d in (64, 96, 128, 192, 256, 512)} | {(192, 128), (96, 64)})
# Head dims whose full kernel has a form for the matrix units; 72 and 80 are padded to 96 there.
NAX_FULL = frozenset({64, 96, 128, 256, 512})
# What every Apple GPU gives one threadgroup.
METAL_THREADGROUP = 32 * 1024
CUDA_VECTOR = frozenset({64, 96, 128})
# The vector kernel takes over at this many query rows on Metal.
VECTOR_ROWS = 8
NO_SOFTCAP = "no fused kernel of MLX caps its scores"


@dataclass(frozen=True, slots=True)
class FastCall:
    """One call of `mx.fast.scaled_dot_product_attention`, in numbers.

    Args:
        form: whether the mask is absent, "causal" or an array.
        additive: whether an array mask is additive.
        mask_elements: elements of the array mask as handed over (before broadcasting).
        mask_rows: size of the array mask's first axis.
        softcap: whether the scores are capped, so that it is no call of MLX's but the same in plain operations.
    """

    B: int
    n_heads: int
    n_kv_heads: int
    q_len: int
    kv_len: int
    head_dim: int
    v_head_dim: int
    dtype: DType
    form: Form = "none"
    sinks: bool = False
    additive: bool = False
    mask_elements: int = 0
    mask_rows: int = 1
    softcap: bool = False

    @property
    def itemsize(self) -> int:
        return itemsize(self.dtype)

    @property
    def sizes(self) -> tuple[object, ...]:
        """What rules of routes read: all but the numbers of its mask, so that calls fall into few classes."""
        # fmt: off
        return (self.B, self.n_heads, self.n_kv_heads, self.q_len, self.kv_len, self.head_dim, self.v_head_dim,
                self.dtype, self.form, self.sinks, self.additive, self.softcap)
        # fmt: on

    @property
    def scores(self) -> int:
        """Elements of the score matrix."""
        return self.B * self.n_heads * self.q_len * self.kv_len

    @property
    def flops(self) -> float:
        return 2.0 * self.scores * (self.head_dim + self.v_head_dim)


@dataclass(frozen=True, slots=True)
class Route:
    """What MLX does with a FastCall.

    Args:
        kernel: what a plain call runs.
        forced: what `force_fused=True` runs; None where MLX refuses it.
        why: the reason, when a plain call is not fused.
    """

    kernel: Kernel
    forced: Kernel | None = None
    why: str = ""


class Routes(Protocol):
    """Answers which kernel a call takes on a device."""

    def route(self, call: FastCall, device: DeviceFacts) -> Route:
        """The route of `call` on `device`."""
        ...


@dataclass(frozen=True, slots=True)
class TableRoutes:
    """Routes from the tables in this file."""

    def route(self, call: FastCall, device: DeviceFacts) -> Route:
        return _table(
            # Sizes that no rule reads are dropped, so that the cache holds classes rather than calls.
            replace(call, mask_elements=0, mask_rows=1) if call.form == "array" else call,
            device.kind,
            device.nax and (device.tf32 or call.dtype != "float32"),
            device.nax,
            device.architecture[-1:],
        )


@functools.lru_cache(maxsize=4096)
def _table(call: FastCall, kind: str, accelerated: bool, nax: bool, suffix: str) -> Route:
    if call.softcap:
        return Route("composite", None, NO_SOFTCAP)
    if kind == "metal":
        return _metal_vector(call, suffix) if call.q_len <= VECTOR_ROWS else _metal_full(call, accelerated, nax)
    if kind == "cuda":
        return _cuda(call)
    return Route("composite", None, "MLX has no fused attention kernel on a CPU")


def _metal_full(call: FastCall, accelerated: bool, nax: bool) -> Route:
    """More than `VECTOR_ROWS` queries; `accelerated` where the GPU's matrix units take this element type."""
    D, Dv, causal, array = call.head_dim, call.v_head_dim, call.form == "causal", call.form == "array"
    half = call.dtype != "float32"
    if causal and call.q_len > call.kv_len:
        return Route("composite", None, f"causal with q_len {call.q_len} > kv_len {call.kv_len} has no fused kernel")
    if (D, Dv) == (512, 512):
        if accelerated:
            tall = call.B * call.n_heads * -(-call.q_len // 32) >= 1024
            if causal and call.q_len >= 1024 and tall:
                return Route("full", "full")
            return Route("composite", "full", "head_dim 512 is fused by default for large causal calls only")
        if not nax and half and causal and not call.sinks and 1024 <= call.q_len <= call.kv_len:
            # force_fused raises here although the plain call is bounded.
            return Route("blocked", None)
        why = "float32 takes its matrix units as TF32 only" if nax else "it has only the blocked causal path"
        return Route("composite", None, f"head_dim 512 of this call has no kernel on this GPU: {why}")
    if (D, Dv) not in METAL_FULL:
        return Route("composite", None, f"no fused kernel for head_dim {D}, v_head_dim {Dv}")
    if lacks_threadgroup(call):
        # MLX accepts force_fused, and the kernel can't be made when it is first run.
        return Route("composite", None, f"the kernel of head_dim {D} in {call.dtype} needs more than 32 KiB a group")
    if D == 192:
        return Route("composite", "full", "MLX leaves head_dim 192 unfused by default")
    if D == 256:
        if accelerated and call.q_len >= 1024 and (causal or array):
            return Route("full", "full")
        if not nax and causal and call.q_len >= 2048 and call.q_len == call.kv_len and half:
            return Route("full", "full")
        return Route("composite", "full", "MLX leaves head_dim 256 unfused at this q_len and kv_len by default")
    return Route("full", "full")


def too_large(head_dim: int, v_head_dim: int, dtype: DType) -> bool:
    """Whether MLX's full Metal kernel without matrix units needs more threadgroup memory than there is."""
    return threadgroup_bytes(head_dim, v_head_dim, dtype) > METAL_THREADGROUP


def lacks_threadgroup(call: FastCall) -> bool:
    """Whether a Metal call would run a full kernel that can't be made."""
    dims = (call.head_dim, call.v_head_dim)
    return call.q_len > VECTOR_ROWS and dims in METAL_FULL and dims[0] not in NAX_FULL and too_large(*dims, call.dtype)


def threadgroup_bytes(head_dim: int, v_head_dim: int, dtype: DType) -> int:
    """Bytes of threadgroup memory of MLX's full Metal kernel without matrix units, by the constants in its header.

    Queries have 32 rows and keys 32, or 16 from head_dim 128 on; rows are padded by 16 bytes, and keys and values take
    turns in one buffer. From head_dim 256 on two groups share a row's width; in float32 queries then stay in registers.
    """
    size = itemsize(dtype)
    pad, keys = 16 // size, 32 if head_dim < 128 else 16
    shared = max((keys + pad) * head_dim, keys * (v_head_dim + pad))
    queries = 1 if head_dim == 256 and dtype == "float32" else 32 * (head_dim + pad)
    return size * (queries + shared)


def _metal_vector(call: FastCall, suffix: str) -> Route:
    D, Dv = call.head_dim, call.v_head_dim
    G = call.n_heads // call.n_kv_heads
    if (D, Dv) not in METAL_VECTOR:
        return Route("composite", None, f"no vector kernel for head_dim {D}, v_head_dim {Dv}")
    if call.q_len > call.kv_len:
        return Route("composite", None, f"the vector kernel needs q_len {call.q_len} <= kv_len {call.kv_len}")
    if call.q_len * G > 32:
        return Route("composite", None, f"the vector kernel takes 32 rows per kv head, this is {call.q_len} x {G}")
    if D == 512 and not (call.q_len == 1 and G == 8 and call.form != "array" and call.kv_len >= 1024):
        return Route("composite", None, "head_dim 512 decodes fused only for one query, 8 heads per kv head, long keys")
    two_pass = (suffix in ("d", "s") and call.kv_len >= 1024) or (G > 1 and call.kv_len >= 4096)
    kernel: Kernel = "vector_two_pass" if two_pass else "vector"
    if D == Dv == 192:
        return Route("composite", kernel, "MLX leaves head_dim 192 unfused by default")
    return Route(kernel, kernel)


def _cuda(call: FastCall) -> Route:
    D, Dv, half, array = call.head_dim, call.v_head_dim, call.dtype != "float32", call.form == "array"
    if call.q_len < 4 and Dv == D and D in CUDA_VECTOR and not array:
        kernel: Kernel = "vector_two_pass" if call.kv_len > 1024 else "vector"
        return Route(kernel, kernel)
    if call.q_len == 1:
        # cuDNN decode depends on how K and V lie in memory, which numbers can't tell.
        return Route("composite", None, "decode without a vector kernel for this head_dim, or with an array mask")
    if not half:
        return Route("composite", None, "cuDNN attention takes 16-bit types only")
    if D > 128 or Dv > 128:
        return Route("composite", None, f"cuDNN attention takes head dims up to 128, this is ({D}, {Dv})")
    if D % 8 or Dv % 8:
        return Route("composite", None, f"cuDNN attention takes head dims in multiples of 8, this is ({D}, {Dv})")
    if call.form == "causal" and call.q_len > call.kv_len:
        return Route("composite", None, f"causal with q_len {call.q_len} > kv_len {call.kv_len} has no fused kernel")
    return Route("cudnn", "cudnn")


def padded_dims(call: FastCall, device: DeviceFacts) -> tuple[int, int]:
    """The head dims a fused kernel exists for once q, k and v are padded with zeros; (0, 0) when there are none.

    Padding is exact: zeros add nothing to a score, and the output's surplus columns are cut off.
    """
    D, Dv = call.head_dim, call.v_head_dim
    if device.kind == "cuda":
        wide = (-(-D // 8) * 8, -(-Dv // 8) * 8)
        return wide if max(wide) <= 128 and wide != (D, Dv) else (0, 0)
    # Padding K and V for a few query rows would copy the whole cache.
    if device.kind != "metal" or call.q_len <= VECTOR_ROWS:
        return (0, 0)
    listed = sorted(pair for pair in METAL_FULL if pair[0] >= D and pair[1] >= Dv and not too_large(*pair, call.dtype))
    return listed[0] if listed and listed[0] != (D, Dv) else (0, 0)


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
