"""Arrays as torch's tensors where torch is installed, and tensors as arrays. torch waits until a tensor is made."""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Any, cast

import numpy as np

from archport.contract import InputError


@cache
def torch_is_there() -> bool:
    """Whether torch is installed; it is not imported for this."""
    return importlib.util.find_spec("torch") is not None


def tensor(array: np.ndarray, what: str) -> Any:
    """A torch tensor (CPU) of an array; raises InputError where torch is not installed, naming the argument `what`."""
    if not torch_is_there():
        raise InputError(f"{what} needs torch, which is not installed; leave it out for numpy arrays, or install torch")
    import torch  # pyright: ignore[reportMissingImports]

    # numpy knows no bfloat16, so that every array here has a type that torch knows.
    return torch.from_numpy(np.ascontiguousarray(array))


def tensor_or_array(array: np.ndarray) -> Any:
    """What sentence-transformers answers as a tensor: one where torch is installed, else the array."""
    return tensor(array, "a tensor") if torch_is_there() else array


def as_array(value: Any) -> np.ndarray:
    """Tensors of any device and type, lists of them, and whatever numpy reads, as an array; floats as float32."""
    if isinstance(value, list | tuple) and value and not isinstance(value[0], float | int):
        return np.stack([as_array(item) for item in value])
    if type(value).__module__.partition(".")[0] == "torch":
        moved: Any = cast("Any", value).detach().cpu()
        value = (moved.float() if moved.is_floating_point() else moved).numpy()
    array = np.asarray(value)
    return array.astype(np.float32, copy=False) if np.issubdtype(array.dtype, np.floating) else array
