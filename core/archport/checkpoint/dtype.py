"""Choose the element type a model runs in. Knows nothing of arrays; sizes come from checkpoint headers."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal, get_args

from archport.contract.device import DeviceKind
from archport.contract.errors import InputError, shown
from archport.contract.spec import ArchSpec, DType

LoadDType = Literal["float32", "float16", "bfloat16", "checkpoint"]


@dataclass(frozen=True, slots=True)
class DTypeChoice:
    """What weights become when loaded.

    Args:
        dtype: of unquantised weights; `checkpoint`: what most are stored in.
        dequantize: whether packed matrices are unpacked to `dtype`.
        why: one sentence for `archport info`.
        promoted: whether the stored element type was left because this family overflows in it.
    """

    dtype: LoadDType
    dequantize: bool
    why: str
    promoted: bool = False


def choose_dtype(
    requested: str | None,
    spec: ArchSpec,
    device: DeviceKind,
    *,
    budget: int,
    bytes_of: Callable[[LoadDType, bool], int],
    stored: Collection[str] = (),
) -> DTypeChoice:
    """The dtype policy: what was asked for; else the checkpoint's dtype on a GPU and float32 on a CPU.

    Quantised checkpoints on a CPU are unpacked when they fit: packed products are slower there than float32 ones.

    Args:
        requested: the caller's `dtype`, or None.
        budget: bytes the weights may take.
        bytes_of: (dtype, dequantize) -> bytes of the loaded weights.
        stored: element types of the checkpoint's tensors; a config may leave them out, or be wrong about them.

    Raises:
        InputError: for an unknown dtype, or one this family overflows in.
    """
    if requested is not None and requested not in get_args(LoadDType):
        raise InputError(f"dtype={shown(requested)}; expected one of {', '.join(get_args(LoadDType))}, or None")
    for dtype, reason in spec.dtypes_refused.items():
        if requested == dtype:
            raise InputError(f"dtype={requested!r} is refused for {spec.arch}: {reason}; use 'float32' or 'bfloat16'")
    for overflows, reason in spec.dtypes_refused.items():
        if requested in (None, "checkpoint") and (overflows in stored or overflows == spec.dtype):
            unpack = requested is None and device == "cpu" and spec.quantization is not None
            why = f"promoted from {overflows} to float32: {reason}"
            return DTypeChoice("float32", unpack and bytes_of("float32", True) <= budget, why, promoted=True)
    if requested == "checkpoint":
        return DTypeChoice("checkpoint", False, "as stored, because dtype='checkpoint'")
    if device != "cpu":
        if requested is not None:
            return DTypeChoice(_named(requested), False, f"dtype={requested!r} was asked for")
        return DTypeChoice("checkpoint", False, "the checkpoint's own, the default on a GPU")
    dtype = _named(requested or "float32")
    why = f"dtype={requested!r} was asked for" if requested else "float32, the default on a CPU"
    if spec.quantization is None:
        return DTypeChoice(dtype, False, why)
    if bytes_of(dtype, True) <= budget:
        return DTypeChoice(dtype, True, f"{why}; packed matrices are unpacked, which is faster here")
    return DTypeChoice(dtype, False, f"{why}; packed matrices stay packed, because unpacked they exceed the budget")


def _named(name: str) -> DType:
    for dtype in get_args(DType):
        if dtype == name:
            return dtype
    raise InputError(f"dtype={shown(name)}; expected one of {', '.join(get_args(DType))}")
