"""What a caller asks of a conversion, checked: bits, groups, mode, element type, and what stays as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from archport.checkpoint.quantization import read_quantization
from archport.contract import InputError
from archport.contract.errors import CheckpointError, shown
from archport.contract.spec import DType, Quantization

_BITS = (4, 6, 8)
_MODES = ("mxfp4", "mxfp8", "nvfp4")


@dataclass(frozen=True, slots=True)
class Settings:
    """How the output differs from its source.

    Args:
        quantization: of every matrix that is quantised; None quantises nothing.
        dtype: element type of what stays dense, and of scales; None keeps the stored one.
        keep: patterns (`*`, `?`, `[a-z]`) of tensor names that stay dense.
    """

    quantization: Quantization | None
    dtype: DType | None = None
    keep: tuple[str, ...] = ()

    def described(self) -> dict[str, Any]:
        """The same as JSON, for the record of a conversion that was interrupted."""
        return {"quantization": self.config(), "dtype": self.dtype, "keep": list(self.keep)}

    def config(self) -> dict[str, Any] | None:
        """`quantization` as MLX's config.json has it; None where nothing is quantised."""
        found = self.quantization
        return None if found is None else {"group_size": found.group_size, "bits": found.bits, "mode": found.mode}


def settings_of(
    *,
    bits: int | None = None,
    group_size: int | None = None,
    mode: str | None = None,
    dtype: str | None = None,
    keep: Sequence[str] = (),
    merge: bool = False,
) -> Settings:
    """The settings that a caller's arguments mean.

    Args:
        bits: 4, 6 or 8, of affine quantisation.
        group_size: columns that share a scale: 32, 64 (where left out) or 128.
        mode: "mxfp4", "mxfp8" or "nvfp4", each of which fixes bits and group.
        dtype: "float32", "float16" or "bfloat16".
        keep: patterns of tensor names that stay dense.
        merge: whether an adapter is merged, so that nothing else need be asked for.

    Raises:
        InputError: nothing is asked for, two things that exclude each other, or what MLX has no format for.
    """
    if dtype is not None and dtype not in get_args(DType):
        raise InputError(f"dtype={shown(dtype)}; expected one of {', '.join(get_args(DType))}")
    if mode is not None and mode != "affine":
        if mode not in _MODES:
            raise InputError(f"mode={shown(mode)}; expected one of {', '.join(_MODES)}, or affine with bits")
        if bits is not None or group_size is not None:
            raise InputError(f"{mode=} fixes bits and group_size; pass it without {bits=} and {group_size=}")
        stated: dict[str, Any] | None = {"mode": mode}
    elif bits is not None:
        if bits not in _BITS:
            raise InputError(f"{bits=}; expected one of {', '.join(map(str, _BITS))}")
        stated = {"bits": bits, "group_size": 64 if group_size is None else group_size}
    elif mode is not None or group_size is not None:
        raise InputError(f"{mode=} and {group_size=} need bits; pass bits=4, 6 or 8")
    else:
        stated = None
    if stated is None and dtype is None and not merge:
        raise InputError("nothing to convert: pass bits=, mode= or dtype=")
    try:
        found = None if stated is None else read_quantization({"quantization": stated})
    except CheckpointError as error:
        raise InputError(str(error)) from error
    if keep and found is None:
        raise InputError(f"keep={list(keep)!r} names what is not quantised, and nothing is; pass bits= or mode= too")
    return Settings(found, next((name for name in get_args(DType) if name == dtype), None), tuple(keep))
