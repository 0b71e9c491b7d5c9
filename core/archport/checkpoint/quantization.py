"""How a checkpoint's matrices are packed: what its config says, and what the stored shapes prove.

Knows MLX's layout (`weight` of uint32 words, `scales`, and `biases` in affine mode). Other packings are refused by
name. Touches no array.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from archport.contract.errors import CheckpointError, SpecError
from archport.contract.spec import Quantization, QuantMode

_SETTINGS = ("bits", "group_size", "mode")
# Each of these modes exists in exactly one shape.
_MX_MODES: Mapping[tuple[int, int], QuantMode] = {(4, 32): "mxfp4", (8, 32): "mxfp8", (4, 16): "nvfp4"}
_LEGACY: Mapping[str, tuple[int, int, QuantMode]] = {"mxfp4": (4, 32, "mxfp4"), "mxfp8": (8, 32, "mxfp8")}
AFFINE_BITS = (2, 3, 4, 5, 6, 8)
AFFINE_GROUPS = (32, 64, 128)


def read_quantization(config: Mapping[str, Any]) -> Quantization | None:
    """The quantisation a config states, None when it states none.

    Args:
        config: raw or normalised; a multimodal root's text config counts.

    Raises:
        CheckpointError: a packing that archport can't read, or settings that make no sense.
    """
    text = config.get("text_config")
    levels = [config, text] if isinstance(text, dict) else [config]
    for level in levels:
        for key in ("quantization", "quantization_config"):
            stated = level.get(key)
            if stated is None or stated is False or stated == {}:
                continue
            if not isinstance(stated, dict):
                raise CheckpointError(f"{key}={stated!r}; expected an object with bits and group_size.")
            method = stated.get("quant_method")
            return _settings(key, stated) if method in (None, "mlx") else _foreign(str(method))
    return None


def _foreign(method: str) -> Quantization:
    if method in _LEGACY:
        bits, group_size, mode = _LEGACY[method]
        return Quantization(bits, group_size, mode)
    raise CheckpointError(
        f"the weights are packed with quant_method={method!r}, which archport can't read. Use the unquantised "
        "repository, or an MLX conversion of it (`mlx_lm.convert --hf-path ID -q`, or one from mlx-community)."
    )


def _settings(key: str, stated: Mapping[str, Any]) -> Quantization:
    """MLX's own object: settings of its own, and module paths with theirs or false."""
    overrides: dict[str, Quantization | None] = {}
    for path, value in stated.items():
        if path in _SETTINGS:
            continue
        if value is False:
            overrides[path] = None
        elif isinstance(value, dict) and any(name in value for name in _SETTINGS):
            # An override that names no mode is affine: in the other modes nothing can differ.
            inherited = {} if "mode" in value else {name: stated.get(name) for name in ("bits", "group_size")}
            overrides[path] = _one(f"{key}[{path!r}]", {**inherited, **value})
    return _one(key, stated, overrides)


def _one(
    key: str, stated: Mapping[str, Any], overrides: Mapping[str, Quantization | None] | None = None
) -> Quantization:
    mode = stated.get("mode") or "affine"
    for (bits, group_size), only in _MX_MODES.items():
        if mode == only:
            stated = {"bits": bits, "group_size": group_size, **stated}
    try:
        found = Quantization(stated["bits"], stated["group_size"], mode, overrides or {})
    except KeyError as error:
        raise CheckpointError(f"{key}={dict(stated)!r} lacks {error}; expected bits and group_size.") from error
    except SpecError as error:
        raise CheckpointError(f"{key}: {error}") from error
    legal = found.bits in AFFINE_BITS and found.group_size in AFFINE_GROUPS
    if found.mode != "affine":
        legal = _MX_MODES.get((found.bits, found.group_size)) == found.mode
    if not legal:
        raise CheckpointError(
            f"{key}: {found.mode} with {found.bits} bits in groups of {found.group_size} does not exist in MLX; "
            f"expected affine with bits in {AFFINE_BITS} and groups in {AFFINE_GROUPS}, or one of "
            + ", ".join(f"{mode} ({bits} bits, groups of {group})" for (bits, group), mode in _MX_MODES.items())
            + "."
        )
    return found


def packing(path: str, in_features: int, words: int, groups: int, scales_dtype: str) -> Quantization:
    """The packing that stored shapes prove, for a module whose dense matrix has `in_features` columns.

    Args:
        path: the module, for the error.
        words: columns of its packed `weight`, in 32-bit words.
        groups: columns of its `scales`.
        scales_dtype: element type of the scales; `uint8` means one of the mx and nv formats.

    Raises:
        CheckpointError: no packing of this width has these shapes.
    """
    bits, bits_left = divmod(words * 32, in_features)
    group_size, group_left = divmod(in_features, groups) if groups else (0, 1)
    mode: QuantMode | None = "affine" if bits in AFFINE_BITS and group_size in AFFINE_GROUPS else None
    if scales_dtype == "uint8":
        mode = _MX_MODES.get((bits, group_size))
    if bits_left or group_left or mode is None:
        raise CheckpointError(
            f"{path}: a packed weight of {words} words and {groups} {scales_dtype} scales per row does not hold "
            f"{in_features} columns in any packing MLX knows; the weights belong to another config."
        )
    return Quantization(bits, group_size, mode)


def packed_bits(path: str, words: int, groups: int, scales_dtype: str, stated: Quantization | None) -> int:
    """Bits per element of a packed tensor whose dense width is unknown.

    The shapes prove only bits x group size; the config settles the rest, its own entry for the path first.
    """
    product = words * 32 // groups if groups else 0
    if scales_dtype == "uint8":
        for (bits, group_size), _ in _MX_MODES.items():
            if bits * group_size == product:
                return bits
    candidates: list[Quantization] = []
    if stated is not None:
        own = stated.overrides.get(path)
        candidates = [own, stated] if own is not None else [stated]
    for candidate in candidates:
        if candidate.bits * candidate.group_size == product:
            return candidate.bits
    for group_size in ([stated.group_size] if stated else []) + [64, 32, 128]:
        if product % group_size == 0 and product // group_size in AFFINE_BITS:
            return product // group_size
    raise CheckpointError(
        f"{path}: a packed weight of {words} words and {groups} {scales_dtype} scales per row is no packing MLX knows."
    )
