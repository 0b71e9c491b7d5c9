"""The matrices of a pipeline's Dense modules, from their own folders or out of the main weights.

Knows the sentence-transformers file layout, that some conversions move `2_Dense` to `dense.0`, and that a plugin may
name matrices of the main weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from archport.checkpoint.checkpoint import Checkpoint
from archport.checkpoint.disk import files_in, inside
from archport.checkpoint.files import UNSAFE_WEIGHTS, module_kind, pipeline_modules, refuse_without_safetensors
from archport.checkpoint.fit import check_fit
from archport.checkpoint.headers import read_header
from archport.checkpoint.quantization import packing
from archport.checkpoint.weights import WeightDType, load_arrays
from archport.contract.errors import CheckpointError
from archport.contract.heads import Dense

if TYPE_CHECKING:
    import mlx.core as mx

# The matrix that projects a residual, next to `linear.weight`.
RESIDUAL = "residual.weight"


def check_widths(checkpoint: Checkpoint, width: int, layers: Sequence[Dense]) -> None:
    """Refuse a chain of Dense modules of which one reads another width than what comes before it makes.

    Args:
        width: of what the first one reads.

    Raises:
        CheckpointError: naming the module's config.
    """
    before = "the pooled rows of the transformer"
    for dense in layers:
        if dense.in_features != width:
            own = f"{dense.folder}/config.json"
            where = own if (checkpoint.folder / own).is_file() else dense.folder
            raise CheckpointError(
                f"{checkpoint.folder}: {where}: in_features={dense.in_features}, but {before} are {width} wide. The "
                "files belong to different pipelines, or the pooling modes were changed."
            )
        width, before = dense.out_features, f"rows of {dense.folder}"


def stored_apart(checkpoint: Checkpoint, dense: Dense) -> bool:
    """Whether a layer that is no module of the pipeline is stored: NAME.safetensors, or among the main weights."""
    return checkpoint.tensor_shape(f"{dense.folder}.weight") is not None


def load_dense(checkpoint: Checkpoint, dense: Dense, dtype: WeightDType) -> tuple[mx.array, mx.array | None]:
    """The weight (out, in) and bias (out,) of one Dense module; the bias is None when it has none.

    A residual that a second matrix projects is part of the weight: added to it where there is no activation, since both
    are one product then, else below it, (2 out, in).

    Raises:
        CheckpointError: no weights for it, or names and shapes other than its config says.
    """
    import mlx.core as mx

    where, tensors = _tensors(checkpoint, dense)
    expected = {"weight": mx.zeros((dense.out_features, dense.in_features))}
    if dense.bias:
        expected["bias"] = mx.zeros((dense.out_features,))
    if dense.projects_residual:
        expected[RESIDUAL] = mx.zeros((dense.out_features, dense.in_features))
    if "scales" in tensors:
        scales = tensors.pop("scales")
        kind = str(scales.dtype).removeprefix("mlx.core.")
        settings = packing(where, dense.in_features, tensors["weight"].shape[-1], scales.shape[-1], kind)
        tensors["weight"] = mx.dequantize(
            tensors["weight"],
            scales,
            tensors.pop("biases", None),
            group_size=settings.group_size,
            bits=settings.bits,
            mode=settings.mode,
            dtype=None if dtype == "checkpoint" else getattr(mx, dtype),
        )
    check_fit(where, tensors, expected)
    if dense.projects_residual:
        both = [tensors["weight"].astype(mx.float32), tensors.pop(RESIDUAL).astype(mx.float32)]
        tensors["weight"] = both[0] + both[1] if dense.activation == "identity" else mx.concatenate(both)
    if dtype != "checkpoint":
        tensors = {name: array.astype(getattr(mx, dtype)) for name, array in tensors.items()}
    mx.eval(list(tensors.values()))
    return tensors["weight"], tensors.get("bias")


def _tensors(checkpoint: Checkpoint, dense: Dense) -> tuple[str, dict[str, mx.array]]:
    folder = inside(checkpoint.folder, dense.folder, "modules.json")
    path = inside(folder, "model.safetensors", "modules.json")
    if path.is_file():
        header = read_header(path, f"{dense.folder}/model.safetensors")
        _only_linear(str(path), header, dense)
        loaded = load_arrays(path)
        return str(path), {name.removeprefix("linear."): array for name, array in loaded.items()}
    folders = [
        entry["path"]
        for entry in pipeline_modules(checkpoint.folder, checkpoint.route) or []
        if module_kind(entry) == "Dense"
    ]
    path = inside(checkpoint.folder, f"{dense.folder}.safetensors", "a head")
    if path.is_file():
        return str(path), load_arrays(path)
    prefix = f"dense.{folders.index(dense.folder)}." if dense.folder in folders else f"{dense.folder}."
    inner = {name: info for name, info in checkpoint.stored_tensors.items() if name.startswith(prefix)}
    if inner:
        loaded: dict[str, mx.array] = {}
        for file in {info.file for info in inner.values()}:
            loaded.update(load_arrays(inside(checkpoint.weights_folder, file, "the index")))
        return f"{checkpoint.folder}: {prefix}*", {name.removeprefix(prefix): loaded[name] for name in inner}
    names = files_in(folder) if folder.is_dir() else []
    if any(name.endswith(UNSAFE_WEIGHTS) for name in names):
        refuse_without_safetensors(names, str(folder))
    raise CheckpointError(
        f"{folder}: there is no model.safetensors, and no {prefix}* among the main weights. "
        "Fetch the Dense module's weights: vectors without it would be another model's."
    )


def _only_linear(where: str, names: Iterable[str], dense: Dense) -> None:
    known = [RESIDUAL] if dense.projects_residual else []
    foreign = [name for name in names if not name.startswith("linear.") and name not in known]
    if foreign:
        raise CheckpointError(f"{where}: holds {', '.join(foreign)}; expected linear.weight and linear.bias only.")
