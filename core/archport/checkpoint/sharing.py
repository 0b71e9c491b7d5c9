"""Weights that several loads of one process have in common: the second load of equal files reads nothing.

Each load gets modules of its own around the same buffers, so that replacing a weight in one model leaves the others
alone. What equal means is the caller's key. Knows nothing of architectures.
"""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

_lock = threading.Lock()
# key -> (modules that nobody else has, how many loads use their buffers)
_kept: dict[Hashable, tuple[Any, int]] = {}


def shared(key: Hashable, make: Callable[[], T]) -> tuple[T, bool]:
    """(a module tree, whether its buffers were there already).

    The buffers are freed with the last tree that uses them. A tree that can't be copied is never shared.

    Args:
        key: equal for loads whose weights are equal.
        make: reads the tree.
    """
    tree = _taken(key)
    if tree is not None:
        _released_with(tree, key)
        return tree, True
    tree = make()
    try:
        pristine = copy.deepcopy(tree)
    # A module may hold whatever its plugin likes: a lock, an open file.
    except Exception:
        return tree, False
    with _lock:
        # Another thread may have read the same files meanwhile; its buffers stay the ones that later loads get.
        if key in _kept:
            return tree, False
        _kept[key] = (pristine, 1)
    _released_with(tree, key)
    return tree, False


def _taken(key: Hashable) -> Any:
    """A tree around the buffers of a key, None where nobody uses any."""
    with _lock:
        pristine, users = _kept.get(key, (None, 0))
        if users:
            _kept[key] = (pristine, users + 1)
    # MLX copies an array as a new handle of the same buffer.
    return copy.deepcopy(pristine) if users else None


def stamp(files: list[Path]) -> tuple[tuple[str, int, int, int], ...]:
    """(path, inode, bytes, time of change) of each file: another value as soon as one is written or replaced."""
    facts = [(str(path), path.stat()) for path in sorted(files)]
    return tuple((name, fact.st_ino, fact.st_size, fact.st_mtime_ns) for name, fact in facts)


def users(key: Hashable) -> int:
    """How many trees use the buffers of a key now."""
    return _kept.get(key, (None, 0))[1]


def _released_with(tree: Any, key: Hashable) -> None:
    weakref.finalize(tree, _release, key).atexit = False


def _release(key: Hashable) -> None:
    # The garbage collector may come while this thread holds the lock, so no lock here: one assignment is enough.
    pristine, users = _kept[key]
    if users > 1:
        _kept[key] = (pristine, users - 1)
    else:
        del _kept[key]
