"""Mask arrays, built only where MLX has no name for what is visible, and only for the tile that needs them.

Reads no value of any array, so it works inside compile and grad. Knows nothing of backends.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from archport.attention.visibility import Visibility, numbered

if TYPE_CHECKING:
    import mlx.core as mx


def lowest(dtype: mx.Dtype) -> float:
    """The value an additive mask gives a hidden key: far below any score, and finite after a score is added.

    Half of the type's range: the full float16 minimum plus a negative score rounds to -inf, and a row of those is NaN.
    """
    import mlx.core as mx

    return float(mx.finfo(dtype).min) / 2


def finite(mask: mx.array) -> mx.array:
    """The same additive mask, of a floating type, without -inf, so that a row with every key hidden stays finite."""
    import mlx.core as mx

    return mx.maximum(mask, mx.array(lowest(mask.dtype), mask.dtype))


def build(
    seen: Visibility, a: int, b: int, lo: int, hi: int, *, array: mx.array | None, additive: bool, dtype: mx.Dtype
) -> mx.array:
    """The mask of queries [a, b) on keys [lo, hi), broadcastable to (B, H, b - a, hi - lo).

    Args:
        array: the caller's mask, bool or additive, broadcastable to (B, H, q_len, kv_len); combined with the reach.
        additive: whether to return an additive mask in `dtype` instead of a bool one.
    """
    import mlx.core as mx

    shown = _in_reach(seen, a, b, lo, hi)
    if array is None:
        if shown is None:
            shown = mx.ones((1, 1, 1, hi - lo), dtype=mx.bool_)
        return _additive(shown, dtype) if additive else shown
    part = cut(array, a, b, lo, hi)
    if part.dtype == mx.bool_:
        part = part if shown is None else mx.logical_and(part, shown)
        return _additive(part, dtype) if additive else part
    if not mx.issubdtype(part.dtype, mx.floating):
        part = part.astype(dtype)
    part = finite(part)
    return part if shown is None else mx.where(shown, part, mx.array(lowest(part.dtype), part.dtype))


def biased(bias: mx.array, shown: mx.array | None) -> mx.array:
    """The additive mask of a bias (1 or B, H, rows, keys) under a mask as `build` makes them; an array of its own."""
    import mlx.core as mx

    if shown is None:
        # A kernel may not read rows that run backwards.
        return mx.contiguous(bias)
    if shown.dtype == mx.bool_:
        return mx.where(shown, bias, mx.array(lowest(bias.dtype), bias.dtype))
    return bias + shown.astype(bias.dtype)


_SHARED: ContextVar[dict[tuple[object, ...], mx.array] | None] = ContextVar("masks of a step", default=None)


def sharing(known: dict[tuple[object, ...], mx.array]) -> AbstractContextManager[None]:
    """Inside, calls that lie alike take their mask from `known`, as the layers of one step do."""
    return _Sharing(known)


class _Sharing:
    def __init__(self, known: dict[tuple[object, ...], mx.array]) -> None:
        self._known, self._before = known, _SHARED.get()

    def __enter__(self) -> None:
        _SHARED.set(self._known)

    def __exit__(self, *_: object) -> None:
        _SHARED.set(self._before)


def stop_sharing() -> None:
    """Forget the masks that an interrupt, between two lines of `sharing`, left to this thread."""
    _SHARED.set(None)


def shared(seen: Visibility, a: int, b: int, lo: int, hi: int, *, additive: bool, dtype: mx.Dtype) -> mx.array:
    """`build` without a caller's mask, once per place and `sharing` block."""
    return known(
        (seen, a, b, lo, hi, additive, dtype),
        lambda: build(seen, a, b, lo, hi, array=None, additive=additive, dtype=dtype),
    )


def known(key: tuple[object, ...], make: Callable[[], mx.array]) -> mx.array:
    """What `make` returns, once per key and `sharing` block."""
    held = _SHARED.get()
    if held is None:
        return make()
    if key not in held:
        held[key] = make()
    return held[key]


def cut(mask: mx.array, a: int, b: int, lo: int, hi: int) -> mx.array:
    """Rows [a, b) and columns [lo, hi) of a mask in broadcast form, as a view of four axes."""
    mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
    rows = slice(a, b) if mask.shape[2] > 1 else slice(None)
    columns = slice(lo, hi) if mask.shape[3] > 1 else slice(None)
    return mask[:, :, rows, columns]


def _additive(shown: mx.array, dtype: mx.Dtype) -> mx.array:
    import mlx.core as mx

    return mx.where(shown, mx.array(0, dtype), mx.array(lowest(dtype), dtype))


def _in_reach(seen: Visibility, a: int, b: int, lo: int, hi: int) -> mx.array | None:
    """Bool (1 or B, 1, rows, keys) of what reach and key lengths admit; None when they admit everything."""
    import mlx.core as mx

    keys = mx.arange(lo, hi, dtype=mx.int32)
    shown: mx.array | None = None
    if seen.windowed or seen.right is not None:
        start = mx.array(seen.offsets, dtype=mx.int32).reshape(-1, 1, 1, 1)
        at = start + mx.arange(a, b, dtype=mx.int32).reshape(1, 1, -1, 1)
        if seen.chunk is not None:
            shown = (keys + seen.start) // seen.chunk == (at + seen.start) // seen.chunk
        elif seen.left is not None:
            shown = keys >= at - seen.left
        if seen.right is not None and (seen.chunk is None or seen.right == 0):
            right = keys <= at + seen.right
            if seen.spanned(a, b):
                of_queries, of_keys = numbered(seen, a, b, lo, hi)
                right = mx.logical_or(right, mx.array(of_queries)[:, None, :, None] == mx.array(of_keys)[:, None, None])
            shown = right if shown is None else mx.logical_and(shown, right)
    if min(seen.key_lengths) < hi:
        real = keys < mx.array(seen.key_lengths, dtype=mx.int32).reshape(-1, 1, 1, 1)
        shown = real if shown is None else mx.logical_and(shown, real)
    return shown
