"""Tensors from disk into a module: packed as published or unpacked, checked by name and shape, cast, evaluated.

Knows MLX arrays and module trees. Knows no architecture: renaming is the module's own `sanitize`. Memory stays bounded:
arrays are read lazily and evaluated in groups, so the peak is the module plus one group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args, runtime_checkable

from archport.checkpoint.adapting import STACKED_FACTOR, merged, unpacked
from archport.checkpoint.checkpoint import Checkpoint
from archport.checkpoint.counts import keys_of_misfits
from archport.checkpoint.cutting import cut_array, cut_of
from archport.checkpoint.disk import inside
from archport.checkpoint.files import ADAPTER_WEIGHTS, shorten
from archport.checkpoint.fit import check_fit
from archport.checkpoint.headers import TensorInfo
from archport.checkpoint.quantization import packed_bits, packing, read_quantization
from archport.checkpoint.stand_ins import stand_ins
from archport.contract.errors import ArchportError, CheckpointError, PluginError
from archport.contract.spec import DType, Quantization
from archport.contract.split import Cut
from archport.device.failures import failure_of

if TYPE_CHECKING:
    import mlx.core as mx
    import mlx.nn as nn

WeightDType = Literal["float32", "float16", "bfloat16", "checkpoint"]

# Bytes evaluated at once: enough to keep the disk busy, little against any model.
_GROUP_BYTES = 256 << 20
_ITEMSIZE = {"float32": 4, "float16": 2, "bfloat16": 2}
# Buffers that older exports carry and no module has.
_DERIVED = ("rotary_emb.inv_freq", "position_ids")


@runtime_checkable
class Sensitive(Protocol):
    """A module with tensors that 16 bits would spoil."""

    def in_float32(self, name: str) -> bool:
        """Whether a tensor stays in float32, whatever type the others get."""
        ...


def load_weights(
    checkpoint: Checkpoint,
    module: nn.Module,
    *,
    quantization: Quantization | None,
    dtype: WeightDType,
    dequantize: bool,
    cuts: Mapping[str, Cut] | None = None,
) -> None:
    """Fill a module with a checkpoint's tensors, and put it in evaluation mode.

    A module is packed where the checkpoint has `<path>.scales`; how is read off the shapes, so mixed checkpoints load
    with and without a per-path map.

    Args:
        module: an `mlx.nn.Module` with `sanitize`; its dense submodules are replaced by packed ones where needed.
        quantization: what the config states (`read_quantization`), for the mode of what is packed.
        dtype: element type of floating tensors; "checkpoint" is the one of 16 bits that most are stored in, and what
            is stored where those are in float32.
        dequantize: unpack packed tensors into `dtype` instead of keeping them.
        cuts: what is kept, by the path of a module or parameter; all of it when left out. What lies in a file as the
            module names it is read no further than that.

    Raises:
        InputError: a cut falls inside a group of a quantised matrix.
        CheckpointError: damaged files, or names and shapes that do not fit the module; the module is then unusable.
    """
    import mlx.core as mx
    from mlx.utils import tree_flatten

    stored, fit = _read_lazily(checkpoint, checkpoint.stored_tensors), checkpoint.adapted
    if fit is not None:
        own = load_arrays(inside(fit.adapter.folder, ADAPTER_WEIGHTS, "an adapter"))
        stored = merged(fit, stored, own, dtype)
    changed = frozenset[str]() if fit is None else fit.changed
    weights = _sanitized(stored, module)
    kept_as_is = {name: array for name, array in stored.items() if name not in changed} if cuts else {}
    origins = {id(array): checkpoint.tensors[name] for name, array in kept_as_is.items()}
    places = {name: origins[id(array)] for name, array in weights.items() if id(array) in origins}
    # Sources of casts would otherwise stay until all are done.
    del stored, kept_as_is
    if dequantize:
        _unpack(checkpoint, module, weights, dtype, _packed_paths(weights))
    else:
        _unpack(checkpoint, module, weights, dtype, _of_one_group(module, weights))
        _pack_modules(checkpoint, module, weights, quantization)
    parameters: dict[str, mx.array] = dict(tree_flatten(module.parameters()))
    for name in [name for name in weights if name.endswith(_DERIVED) and name not in parameters]:
        del weights[name]
    try:
        check_fit(str(checkpoint.folder), weights, parameters)
    except CheckpointError as error:
        suspects = keys_of_misfits(checkpoint.config, weights, parameters)
        raise CheckpointError(f"{error}\n  config.json: {shorten(suspects)}." if suspects else str(error)) from None
    del parameters
    dtype = _cast_to(dtype, checkpoint.tensors)
    ready: list[tuple[str, mx.array]] = []
    group: list[mx.array] = []
    pending = 0
    for name in list(weights):
        whole = weights.pop(name)
        cut = cut_of(name, cuts) if cuts else None
        kept = whole if cut is None else cut_array(whole, name, cut, checkpoint.weights_folder, places.get(name))
        array = _cast(kept, _type_of(module, name, dtype))
        if array.ndim == 3:
            # MLX's product of sorted rows with stacked experts is wrong on CUDA where a plugin's `sanitize` left them
            # transposed or cut.
            array = mx.contiguous(array)
        ready.append((name, array))
        group.append(array)
        pending += array.nbytes if kept is whole else max(array.nbytes, whole.nbytes)
        if pending >= _GROUP_BYTES or not weights:
            _evaluate(checkpoint, group)
            # Sources of casts would otherwise stay in MLX's buffer cache next to the model.
            mx.clear_cache()
            group, pending = [], 0
    # Names and shapes were checked before they were cut.
    module.load_weights(ready, strict=not cuts)
    module.eval()


def _sanitized(stored: dict[str, mx.array], module: Any) -> dict[str, mx.array]:
    """Every stored tensor, lazily, under the module's own names."""
    try:
        weights = module.sanitize(dict(stored))
    except ArchportError:
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        raise PluginError(f"sanitize of {type(module).__name__} raised {said}", hook="sanitize") from error
    if not isinstance(weights, dict):
        raise CheckpointError(
            f"{type(module).__name__}.sanitize answered {type(weights).__name__}; expected a dict of name to array."
        )
    return dict(weights)


def _read_lazily(checkpoint: Checkpoint, tensors: Mapping[str, TensorInfo]) -> dict[str, mx.array]:
    _check_types(checkpoint, tensors)
    weights: dict[str, mx.array] = {}
    for file in sorted({info.file for info in tensors.values()}):
        path = inside(checkpoint.weights_folder, file, "the index")
        weights.update(load_arrays(path))
    return weights


def _check_types(checkpoint: Checkpoint, tensors: Mapping[str, TensorInfo]) -> None:
    """Raise CheckpointError for tensors of an element type that MLX can't compute with."""
    unreadable = [
        f"{info.name} ({info.dtype})"
        for info in tensors.values()
        # The packed formats keep their scales as raw bytes, which some writers label as 8-bit floats.
        if info.dtype in ("float64", "float4") or (info.dtype.startswith("float8") and not info.name.endswith("scales"))
    ]
    if unreadable:
        raise CheckpointError(
            f"{checkpoint.folder}: MLX can't compute with the element type of {shorten(unreadable)}. Use a bfloat16, "
            "float16 or float32 version of this checkpoint, or an MLX conversion of it."
        )


def load_arrays(path: Path) -> dict[str, mx.array]:
    """The tensors of a safetensors file whose header was checked, lazily."""
    import mlx.core as mx

    try:
        loaded = mx.load(str(path))
    # MLX raises what its own reader of headers, or Python for a name that is no text, raises.
    except (RuntimeError, ValueError, OverflowError) as error:
        if failure_of(error):
            raise
        raise CheckpointError(f"{path}: MLX can't read it ({error}). Fetch the file again.") from error
    assert isinstance(loaded, dict)
    return loaded


def _packed_paths(weights: Mapping[str, Any]) -> list[str]:
    return [name.removesuffix(".scales") for name in weights if name.endswith(".scales")]


def _proven(path: str, weights: Mapping[str, mx.array], in_features: int) -> Quantization:
    if f"{path}.weight" not in weights:
        raise CheckpointError(f"{path}: the checkpoint has its scales and not its packed weight.")
    scales = weights[f"{path}.scales"]
    words = weights[f"{path}.weight"].shape[-1]
    return packing(path, in_features, words, scales.shape[-1], str(scales.dtype).removeprefix("mlx.core."))


def _pack_modules(
    checkpoint: Checkpoint, module: Any, weights: Mapping[str, mx.array], stated: Quantization | None
) -> None:
    """Replace the dense modules whose weights are packed by their packed kind."""
    import mlx.nn as nn

    found: dict[str, dict[str, Any]] = {}
    dense = dict(module.named_modules())
    modes: set[str] = set()
    if stated is not None:
        # Overrides carry the names of whoever wrote them; the shapes already say how each module is packed.
        modes = {stated.mode, *(own.mode for own in stated.overrides.values() if own is not None)}
    for path in _packed_paths(weights):
        target = dense.get(path)
        if target is None:
            # Reported with every other name that does not fit.
            continue
        if not callable(getattr(target, "to_quantized", None)):
            raise CheckpointError(
                f"{checkpoint.folder}: {path} is packed, and a {type(target).__name__} can't hold packed weights. "
                "Load with dequantisation, or give the module a `to_quantized`."
            )
        settings = _proven(path, weights, target.weight.shape[-1])
        if modes and settings.mode not in modes:
            raise CheckpointError(
                f"{checkpoint.folder}: {path} is packed as {settings.mode} and the config says "
                f"{' and '.join(sorted(modes))}. The config and the weights belong to different conversions."
            )
        found[path] = {"group_size": settings.group_size, "bits": settings.bits, "mode": settings.mode}
    if found:
        # A module that is not in the map stays as it is.
        nn.quantize(module, class_predicate=lambda path, _: found.get(path, False))


def multiplies_one_group_wrong() -> bool:
    """Whether this device's product of packed weights is wrong where a whole row is one group of its scales.

    MLX 0.32.4 takes another kernel for such matrices on a GPU of compute capability 9 (H100, H200), whose results are
    garbage, or whose launch prints "Failed to initialize the TMA descriptor" and computes nothing.
    """
    import mlx.core as mx

    return mx.default_device().type != mx.DeviceType.cpu and mx.cuda.is_available()


def _of_one_group(module: Any, weights: Mapping[str, mx.array]) -> list[str]:
    """Packed matrices that this device can't multiply with: at most 128 wide, so that unpacking them takes little."""
    from mlx.utils import tree_flatten

    if not multiplies_one_group_wrong():
        return []
    parameters: dict[str, mx.array] = dict(tree_flatten(module.parameters()))
    found: list[str] = []
    for path in _packed_paths(weights):
        target = parameters.get(f"{path}.weight")
        settings = None if target is None else _proven(path, weights, target.shape[-1])
        if target is not None and settings is not None and settings.mode == "affine":
            found += [path] if settings.group_size >= target.shape[-1] else []
    return found


def _unpack(
    checkpoint: Checkpoint, module: Any, weights: dict[str, mx.array], dtype: WeightDType, paths: Sequence[str]
) -> None:
    """Replace packed tensors by lazily unpacked ones, in place."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    parameters: dict[str, mx.array] = dict(tree_flatten(module.parameters()))
    for path in paths:
        if f"{path}.weight" not in parameters:
            continue
        if f"{path}.weight" not in weights:
            raise CheckpointError(f"{path}: the checkpoint has its scales and not its packed weight.")
        scales, biases = weights.pop(f"{path}.scales"), weights.pop(f"{path}.biases", None)
        target = getattr(mx, _dense_dtype(dtype, str(scales.dtype).removeprefix("mlx.core."), checkpoint.config))
        columns = parameters[f"{path}.weight"].shape[-1]
        weights[f"{path}.weight"] = unpacked(path, weights[f"{path}.weight"], scales, biases, columns, target)


def _dense_dtype(dtype: WeightDType, scales_dtype: str, config: Mapping[str, Any]) -> str:
    """The element type that an unpacked tensor gets."""
    if dtype != "checkpoint":
        return dtype
    stated = config.get("dtype")
    return scales_dtype if scales_dtype in _ITEMSIZE else stated if stated in _ITEMSIZE else "bfloat16"


def stored_dtype(tensors: Mapping[str, TensorInfo]) -> DType:
    """The floating type that most bytes are stored in; float32 where nothing is floating."""
    stored = dict.fromkeys(get_args(DType), 0)
    for info in tensors.values():
        if info.dtype in stored:
            stored[info.dtype] += info.nbytes
    return max(stored, key=lambda name: stored[name])


def _cast_to(dtype: WeightDType, tensors: Mapping[str, TensorInfo]) -> WeightDType:
    """What a load in `dtype` casts to: with "checkpoint", the 16 bits that most are stored in, else nothing is cast.

    One float32 vector (a norm kept so, or widened by a module's `sanitize`) would turn every product behind it to
    float32: with Qwen3.5's norms, that was the whole model.
    """
    most = stored_dtype(tensors) if dtype == "checkpoint" else dtype
    return dtype if most == "float32" else most


def _type_of(module: Any, name: str, dtype: WeightDType) -> WeightDType:
    """What a tensor of a load in `dtype` is cast to."""
    return "float32" if isinstance(module, Sensitive) and module.in_float32(name) else dtype


def _cast(array: mx.array, dtype: WeightDType) -> mx.array:
    import mlx.core as mx

    if dtype == "checkpoint" or not mx.issubdtype(array.dtype, mx.floating):
        return array
    return array.astype(getattr(mx, dtype))


def _evaluate(checkpoint: Checkpoint, arrays: list[mx.array]) -> None:
    import mlx.core as mx

    try:
        mx.eval(arrays)
    except RuntimeError as error:
        if failure_of(error):
            raise
        raise CheckpointError(f"{checkpoint.folder}: reading the weights failed ({error}).") from error


def loaded_bytes(checkpoint: Checkpoint, module: nn.Module) -> Callable[[WeightDType, bool], int]:
    """Answers (dtype, dequantize) -> bytes that a module holds once loaded so, from headers only.

    The module's own `sanitize` says which tensors it reads, of stand-ins with the stored names, types and shapes.

    Args:
        module: unfilled; of no use for a load afterwards.

    Raises:
        CheckpointError, PluginError: as `load_weights`, for element types and what `sanitize` refuses.
    """
    from mlx.utils import tree_flatten

    _check_types(checkpoint, checkpoint.tensors)
    with stand_ins(checkpoint) as arrays:
        weights = _sanitized(arrays, module)
    parameters: dict[str, mx.array] = dict(tree_flatten(module.parameters()))

    def held(dtype: WeightDType, dequantize: bool) -> int:
        found = dict(weights)
        paths = _packed_paths(found) if dequantize else _of_one_group(module, found)
        _unpack(checkpoint, module, found, dtype, paths)
        dtype = _cast_to(dtype, checkpoint.tensors)
        kept = {name: array for name, array in found.items() if name in parameters or not name.endswith(_DERIVED)}
        return sum(_cast(array, _type_of(module, name, dtype)).nbytes for name, array in kept.items())

    return held


def weight_bytes(checkpoint: Checkpoint, *, dtype: WeightDType, dequantize: bool) -> int:
    """Bytes that the tensors take once loaded, from headers only.

    For where MLX has no backend to ask a module (`loaded_bytes`): a tensor that `sanitize` drops (a tied head, a tower
    of another task) counts, and one that stays in float32 counts in `dtype`. Adapters that the checkpoint stores do
    not: `tasks.Apart` has them.
    """
    tensors = checkpoint.tensors
    stated = read_quantization(checkpoint.config)
    to, total = _cast_to(dtype, tensors), 0
    for name, info in tensors.items():
        path, _, leaf = name.rpartition(".")
        scales = tensors.get(f"{path}.scales") if leaf in ("weight", "scales", "biases") else None
        if name.endswith(_DERIVED) or STACKED_FACTOR.match(name):
            continue
        if scales is None or not dequantize:
            total += info.size * _ITEMSIZE[to] if info.dtype in _ITEMSIZE and to != "checkpoint" else info.nbytes
        elif leaf == "weight":
            bits = packed_bits(path, info.shape[-1], scales.shape[-1], scales.dtype, stated)
            total += info.size * 32 // bits * _ITEMSIZE[_dense_dtype(dtype, scales.dtype, checkpoint.config)]
    return total
