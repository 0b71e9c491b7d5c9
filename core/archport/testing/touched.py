"""What a pass reads of a module: the class of each part that it runs, and what that keeps, arrays by shape and type.

Two modules of which passes read the same run the same operations on arrays of the same shapes, so that what one of them
holds in memory holds for the other. Knows no property and no limit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from archport.contract import Trunk

# What reads more than one attribute of a part; whatever MLX's modules and dicts bring but these.
ONE = frozenset({"__call__", "__getattr__", "get", "training"})


class Reads:
    """What passes read of a module, by the paths of its parts.

    Args:
        names: of each part that was called or read, the attributes that were; "*" for all.
    """

    def __init__(self, trunk: Trunk) -> None:
        self.parts: dict[str, Any] = dict(cast(Any, trunk).named_modules())
        self.names: dict[str, set[str]] = {}
        self.passing = False

    def note(self, path: str, name: str) -> None:
        if self.passing:
            self.names.setdefault(path, set()).add(name)

    def key(self) -> tuple[object, ...]:
        """Something hashable that is equal of modules that are alike in all that was read of them."""
        return tuple((path, _kept(self.parts[path], names)) for path, names in sorted(self.names.items()))


@contextmanager
def reading(trunk: Trunk) -> Iterator[Reads]:
    """Note what the passes of a module within a block read of it."""
    reads = Reads(trunk)
    kinds = {path: type(part) for path, part in reads.parts.items()}
    for path, part in reads.parts.items():
        part.__class__ = _noting(kinds[path], path, reads)
    try:
        yield reads
    finally:
        for path, part in reads.parts.items():
            part.__class__ = kinds[path]


def _noting(kind: Any, path: str, reads: Reads) -> type:
    """A class like `kind` for the part at a path, which notes what is read of it."""

    def called(self: Any, *arguments: Any, **options: Any) -> Any:
        outermost, reads.passing = not reads.passing, True
        reads.note(path, "__call__")
        try:
            return kind.__call__(self, *arguments, **options)
        finally:
            reads.passing = not outermost

    def attribute(self: Any, name: str) -> Any:
        if name != "__class__":
            reads.note(path, "*" if name not in ONE and (hasattr(nn.Module, name) or name == "__dict__") else name)
        return kind.__getattribute__(self, name)

    def of_dict(method: str) -> Any:
        def read(self: Any, name: str, *more: Any) -> Any:
            reads.note(path, name)
            return getattr(kind, method)(self, name, *more)

        return read

    def all_of_dict(self: Any) -> Any:
        reads.note(path, "*")
        return kind.__iter__(self)

    own = {"__call__": called, "__getattribute__": attribute, "__iter__": all_of_dict, "__module__": kind.__module__}
    own |= {name: of_dict(name) for name in ("get", "__getitem__", "__contains__")}
    # Its class is this one again once the block is left.
    return type(kind.__name__, (kind,), own)


def _kept(part: Any, names: set[str]) -> tuple[object, ...]:
    """The class of a part, and what it keeps under these names.

    Numbers of MLX's own parts, such as an epsilon, are what they compute with and decide nothing.
    """
    own = {**vars(part), **dict(part)}
    operands = type(part).__module__.startswith("mlx.")
    kept = sorted(own) if "*" in names else sorted(names)
    values = (
        (name, "float" if operands and isinstance(own.get(name), float) else alike(own.get(name))) for name in kept
    )
    return Itself(type(part)), *values


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Itself:
    """An object that is equal to nothing but itself; it is kept, so that no other can take its place in memory."""

    value: object

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Itself) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def alike(value: object) -> object:
    """Something hashable that is equal of values that do the same; what is unknown equals itself alone."""
    if value is None or isinstance(value, str | int | float | bool | bytes):
        return type(value).__name__, value
    if isinstance(value, mx.array | np.ndarray):
        return "array", tuple(value.shape), str(value.dtype)
    if isinstance(value, nn.Module):
        # What is read of it is noted at its own path.
        return "part"
    if isinstance(value, list | tuple):
        return type(value).__name__, *map(alike, cast("list[object]", value))
    if isinstance(value, set | frozenset):
        return "set", frozenset(map(alike, cast("set[object]", value)))
    if isinstance(value, dict):
        return "dict", *((alike(key), alike(item)) for key, item in cast("dict[object, object]", value).items())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return Itself(type(value)), *(alike(getattr(value, field.name)) for field in dataclasses.fields(value))
    if type(value).__module__.startswith("archport.layers."):
        # What archport's own blocks do is in their attributes.
        attributes: dict[str, object] = vars(value)
        return Itself(type(value)), alike(attributes)
    return Itself(value)
