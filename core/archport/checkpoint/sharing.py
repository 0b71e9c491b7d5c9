"""Weights that several loads of one process have in common: the second load of equal files reads nothing.

Each load gets modules of its own around the same buffers, so that replacing a weight in one model leaves the others
alone. What equal means is the caller's key. Knows nothing of architectures.
"""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True, weakref_slot=True)
class _Original:
    """Modules around buffers that loads share. Every tree that uses them keeps this, and nothing else does."""

    tree: Any


_lock = threading.Lock()
_originals: weakref.WeakValueDictionary[Hashable, _Original] = weakref.WeakValueDictionary()


def shared(key: Hashable, make: Callable[[], T]) -> tuple[T, bool]:
    """(a module tree, whether its buffers were there already).

    The buffers are freed with the last tree that uses them. A tree that can't be copied is never shared.

    Args:
        key: equal for loads whose weights are equal.
        make: reads the tree.
    """
    original = _originals.get(key)
    if original is not None:
        # MLX copies an array as a new handle of the same buffer.
        tree = copy.deepcopy(original.tree)
        _keep(tree, original)
        return tree, True
    tree = make()
    try:
        original = _Original(copy.deepcopy(tree))
    # A module may hold whatever its plugin likes: a lock, an open file.
    except Exception:
        return tree, False
    with _lock:
        # Another thread may have read the same files meanwhile; its buffers stay the ones that later loads get.
        if _originals.setdefault(key, original) is original:
            _keep(tree, original)
    return tree, False


def stamp(files: Iterable[Path]) -> tuple[tuple[str, int, int, int], ...]:
    """(path, inode, bytes, time of change) of each file: another value as soon as one is written or replaced.

    A link that leads nowhere is told from a file by zeros: what reads it says what is wrong with it.
    """
    return tuple((str(path), *_facts(path)) for path in sorted(files))


def _facts(path: Path) -> tuple[int, int, int]:
    try:
        facts = path.stat()
    except OSError:
        return 0, 0, 0
    return facts.st_ino, facts.st_size, facts.st_mtime_ns


def count() -> int:
    """How many sets of weights trees of this process share, or could."""
    return len(_originals)


def _keep(tree: Any, original: _Original) -> None:
    """Keep the original for as long as a tree lives: a finalizer holds its arguments until then."""
    weakref.finalize(tree, id, original).atexit = False
