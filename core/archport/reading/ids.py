"""Token ids that a caller gives, checked as they are, before anything is cast: a cast wraps, rounds and hides.

Knows nothing of texts or of what is done with ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from archport.contract import InputError
from archport.contract.errors import shown


def token_ids(value: Sequence[Any] | np.ndarray, vocabulary: int, what: str) -> np.ndarray:
    """Ids (L,) int32 of a sequence of numbers.

    Args:
        vocabulary: entries of the model's embedding.
        what: how messages name the sequence ("prompt 0").

    Raises:
        InputError: for anything but integers from 0 to below `vocabulary`, naming it and its place.
    """
    numbers: Any = value
    if isinstance(value, np.ndarray):
        if value.dtype.kind in "iu":
            outside = np.flatnonzero(beyond(value, vocabulary))
            if len(outside):
                raise _refused(value[outside[0]], int(outside[0]), vocabulary, what)
            return value.astype(np.int32)
        numbers = value.tolist()
    kinds = {kind for kind in set(map(type, numbers)) if not _is_integer(kind)}
    for at, number in enumerate(numbers):
        if type(number) in kinds or not 0 <= number < vocabulary:
            raise _refused(number, at, vocabulary, what)
    return np.array(numbers, dtype=np.int32)


def id_rows(value: object, what: str) -> np.ndarray:
    """Ids (B, L) as a caller has padded them, in whatever integer type holds them; `object` for larger ones.

    Raises:
        InputError: for another shape, or anything but integers.
    """
    if isinstance(value, list | tuple):
        rows = [_numbers(row, f"row {index} of {what}") for index, row in enumerate(value)]
        lengths = [len(row) for row in rows]
        if not rows or len(set(lengths)) > 1 or not lengths[0]:
            raise InputError(f"{what} has rows of {lengths} ids; expected (B, L), both at least 1")
        try:
            return np.array(rows, dtype=np.int64)
        except OverflowError:
            return np.array(rows, dtype=object)
    try:
        ids = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{what} is a {type(value).__name__}; expected integers (B, L)") from error
    if ids.ndim != 2 or 0 in ids.shape:
        raise InputError(f"{what} has shape {ids.shape}; expected (B, L), both at least 1")
    if ids.dtype == object:
        return id_rows(ids.tolist(), what)
    if ids.dtype.kind not in "iu":
        raise InputError(f"{what} holds {ids.dtype}; expected integers")
    return ids


def beyond(ids: np.ndarray, vocabulary: int) -> np.ndarray:
    """Which ids are none of a vocabulary, compared in a type that holds them all."""
    if ids.dtype.kind == "i":
        ids = ids.astype(np.int64)
    elif ids.dtype.kind == "u":
        return ids.astype(np.uint64) >= np.uint64(vocabulary)
    return (ids < 0) | (ids >= vocabulary)


def named(number: object) -> str:
    """A number as messages show it."""
    return shown(number.item() if isinstance(number, np.generic) else number)


def _numbers(row: Any, what: str) -> list[Any]:
    """The integers of one row."""
    try:
        numbers = row if isinstance(row, list | tuple) else np.asarray(row).tolist()
    except (TypeError, ValueError, RuntimeError):
        numbers = None
    if not isinstance(numbers, list | tuple):
        raise InputError(f"{what} is a {type(row).__name__}; expected a list of integers")
    for at, number in enumerate(numbers):
        if not _is_integer(type(number)):
            raise InputError(f"{what} holds {named(number)} at index {at}; expected integers")
    return list(numbers)


def _is_integer(kind: type) -> bool:
    return issubclass(kind, int | np.integer) and not issubclass(kind, bool)


def _refused(number: Any, at: int, vocabulary: int, what: str) -> InputError:
    kind = "token id " if _is_integer(type(number)) else ""
    return InputError(f"{what} holds {kind}{named(number)} at index {at}; expected integers from 0 to {vocabulary - 1}")
