"""Which experts tokens visit, seen from outside: by what a module asks MLX to sort. Knows no property and no limit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

# What picks the largest of some scores, and is asked for their indices.
PICKS = ("argpartition", "argsort")


@dataclass(frozen=True, slots=True)
class Pick:
    """One call that ordered scores (..., n): the indices, and from which end they were asked for, 0 for both."""

    order: mx.array
    end: int


@contextmanager
def noted() -> Iterator[list[Pick]]:
    """Note what is picked within a block; on every device, and of any module."""
    found: list[Pick] = []
    real: dict[str, Callable[..., Any]] = {name: getattr(mx, name) for name in PICKS}

    def noting(name: str) -> Callable[..., Any]:
        def run(scores: Any, *arguments: Any, **options: Any) -> Any:
            order = real[name](scores, *arguments, **options)
            kth = options.get("kth", arguments[0] if arguments and name == "argpartition" else None)
            found.append(Pick(order, 0 if not isinstance(kth, int) else 1 if kth >= 0 else -1))
            return order

        return run

    for name in PICKS:
        setattr(mx, name, noting(name))
    try:
        yield found
    finally:
        for name, function in real.items():
            setattr(mx, name, function)


def agreeing(first: Sequence[Pick], second: Sequence[Pick], tokens: int, per_token: int) -> np.ndarray:
    """Which tokens (tokens,) of a row visit the same experts in two runs; all where nothing was seen to be picked."""
    same = np.ones(tokens, dtype=bool)
    for one, other in zip(first, second, strict=False):
        a, b = (np.array(pick.order).reshape(-1, pick.order.shape[-1]) for pick in (one, other))
        if a.shape != b.shape or len(a) < tokens or a.shape[-1] < per_token:
            continue
        ends = [slice(None, per_token)] if one.end >= 0 else []
        ends += [slice(-per_token, None)] if one.end <= 0 else []
        for end in ends:
            picked = (np.sort(each[:tokens, end], axis=-1) for each in (a, b))
            same &= np.equal(*picked).all(axis=-1)
    return same
