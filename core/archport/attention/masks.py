"""Masks and biases of one tile: built only where MLX has no name for what is visible, for the tile that needs them.

What a rule of distances answers for all distances of a call is one line per head, of numbers or of vectors, so it grows
with the tokens and not with their square. Reads no value of any array, so it works inside compile and grad. Knows
nothing of backends.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from archport.attention.tiles import key_step
from archport.attention.visibility import Tile, numbered, visibility
from archport.contract.attention import AttentionCall, DistanceBias, DistanceVectors
from archport.contract.errors import InputError

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


def build(tile: Tile, *, array: mx.array | None, additive: bool, dtype: mx.Dtype) -> mx.array:
    """The mask of a tile's queries on its keys, broadcastable to (B, H, queries, keys).

    Args:
        array: the caller's mask, bool or additive, broadcastable to (B, H, q_len, kv_len); combined with the reach.
        additive: whether to return an additive mask in `dtype` instead of a bool one.
    """
    import mlx.core as mx

    shown = _in_reach(tile)
    if array is None:
        if shown is None:
            shown = mx.ones((1, 1, 1, tile.hi - tile.lo), dtype=mx.bool_)
        return _additive(shown, dtype) if additive else shown
    part = cut(array, tile)
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


def shared(tile: Tile, *, additive: bool, dtype: mx.Dtype) -> mx.array:
    """`build` without a caller's mask, once per place and `sharing` block."""
    return known((tile, additive, dtype), lambda: build(tile, array=None, additive=additive, dtype=dtype))


def known(key: tuple[object, ...], make: Callable[[], mx.array]) -> mx.array:
    """What `make` returns, once per key and `sharing` block."""
    held = _SHARED.get()
    if held is None:
        return make()
    if key not in held:
        held[key] = make()
    return held[key]


def cut(mask: mx.array, tile: Tile) -> mx.array:
    """A tile's rows and columns of a mask in broadcast form, as a view of four axes."""
    mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
    rows = slice(tile.a, tile.b) if mask.shape[2] > 1 else slice(None)
    columns = slice(tile.lo, tile.hi) if mask.shape[3] > 1 else slice(None)
    return mask[:, :, rows, columns]


def _additive(shown: mx.array, dtype: mx.Dtype) -> mx.array:
    import mlx.core as mx

    return mx.where(shown, mx.array(0, dtype), mx.array(lowest(dtype), dtype))


def _in_reach(tile: Tile) -> mx.array | None:
    """Bool (1 or B, 1, rows, keys) of what reach and key lengths admit; None when they admit everything."""
    import mlx.core as mx

    seen, a, b, hi = tile.seen, tile.a, tile.b, tile.hi
    keys = mx.arange(tile.lo, hi, dtype=mx.int32)
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
                of_queries, of_keys = numbered(tile)
                right = mx.logical_or(right, mx.array(of_queries)[:, None, :, None] == mx.array(of_keys)[:, None, None])
            shown = right if shown is None else mx.logical_and(shown, right)
    if min(seen.key_lengths) < hi:
        real = keys < mx.array(seen.key_lengths, dtype=mx.int32).reshape(-1, 1, 1, 1)
        shown = real if shown is None else mx.logical_and(shown, real)
    return shown


@dataclass(frozen=True, slots=True)
class Line:
    """A rule's numbers at every distance that occurs in a call.

    Args:
        values: (H, n).
        first: distance of the first column.
    """

    values: mx.array
    first: int

    def of_heads(self, heads: slice) -> Line:
        """The same for some query heads."""
        return replace(self, values=self.values[heads])

    def tile(self, tile: Tile, q: mx.array, k: mx.array) -> mx.array:
        """The numbers (1 or B, H, queries, keys) of a tile; a view where rows lie alike."""
        import mlx.core as mx

        heads, n = self.values.shape
        shape, first = (1, heads, tile.b - tile.a, tile.hi - tile.lo), tile.lo - tile.a - self.first
        rows = [
            # One step down is one distance less.
            mx.as_strided(self.values, shape, (0, n, -1, 1), first - offset)
            for offset in tile.seen.offsets
        ]
        return rows[0] if len(rows) == 1 else mx.concatenate(rows)


@dataclass(frozen=True, slots=True)
class VectorLine:
    """A rule's vectors at every distance that occurs in a call.

    Args:
        queries, keys: (H, n, Dh) that queries and keys are multiplied by; None where they meet none.
        first: distance of the first vector.
    """

    queries: mx.array | None
    keys: mx.array | None
    first: int

    def of_heads(self, heads: slice) -> VectorLine:
        """The same for some query heads."""
        queries, keys = (None if each is None else each[heads] for each in (self.queries, self.keys))
        return replace(self, queries=queries, keys=keys)

    def tile(self, tile: Tile, q: mx.array, k: mx.array) -> mx.array:
        """The numbers (B, H, T, C) of a tile's queries q (B, H, T, Dh) on its keys k (B, K, C, Dh)."""
        import mlx.core as mx

        offsets = tile.seen.offsets
        if len(offsets) == 1:
            return self._numbers(tile, offsets[0], q, k)
        rows = [self._numbers(tile, offset, q[row : row + 1], k[row : row + 1]) for row, offset in enumerate(offsets)]
        return mx.concatenate(rows)

    def _numbers(self, tile: Tile, offset: int, q: mx.array, k: mx.array) -> mx.array:
        import mlx.core as mx

        lo, T, C, found = tile.lo, tile.b - tile.a, tile.hi - tile.lo, list[mx.array]()
        # Where the line holds the distance of a key from the last query of the tile, which is the least there is.
        at = -(offset + tile.b - 1) - self.first
        B, H = q.shape[:2]
        if self.queries is not None:
            n = T + C - 1
            met = q @ self.queries[:, at + lo : at + lo + n].swapaxes(-1, -2)
            # One query down is one distance less.
            found.append(mx.as_strided(met, (B, H, T, C), (H * T * n, T * n, n - 1, 1), T - 1))
        if self.keys is not None:
            parts, step = list[mx.array](), key_step(T)
            for start in range(0, C, step):
                part = k[:, :, start : start + step]
                size = part.shape[2]
                n = T + size - 1
                vectors = self.keys[:, at + lo + start : at + lo + start + n].swapaxes(-1, -2)
                grouped = vectors.reshape(k.shape[1], H // k.shape[1], *vectors.shape[1:])
                met = part[:, :, None] @ grouped
                parts.append(mx.as_strided(met, (B, H, T, size), (H * size * n, size * n, -1, n + 1), T - 1))
            found.append(parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=-1))
        return found[0] if len(found) == 1 else found[0] + found[1]


def line_of(call: AttentionCall, rule: DistanceBias | None, dtype: mx.Dtype) -> Line | VectorLine | None:
    """What a rule says of a call, in `dtype`; numbers are shared by the layers of one step that are handed one rule.

    Raises:
        InputError: the rule's answer is not one number per head and distance, or no vectors where the spec says so.
    """
    if rule is None:
        return None
    import mlx.core as mx

    offsets = visibility(call).offsets
    first = -(max(offsets) + call.q_len - 1)
    last = call.kv_len - 1 - min(offsets)
    if call.bias == "content":
        return _vectors(call, rule(mx.arange(first, last + 1, dtype=mx.int32)), first, last + 1 - first, dtype)

    def make() -> mx.array:
        values = rule(mx.arange(first, last + 1, dtype=mx.int32))
        wanted = (call.n_heads, last + 1 - first)
        if isinstance(values, DistanceVectors) or tuple(values.shape) != wanted:
            given = "vectors" if isinstance(values, DistanceVectors) else f"numbers of shape {tuple(values.shape)}"
            raise InputError(
                f"attention bias: {wanted[1]} distances gave {given}; expected one row per query head, {wanted}"
            )
        # Contiguous, since a tile counts its strides; and no -inf, which a hidden key may have added to.
        return mx.contiguous(mx.maximum(values, lowest(dtype)).astype(dtype))

    return Line(known((_Same(rule), first, last, dtype), make), first)


def _vectors(
    call: AttentionCall, found: mx.array | DistanceVectors, first: int, count: int, dtype: mx.Dtype
) -> VectorLine:
    wanted = (call.n_heads, count, call.head_dim)
    if not isinstance(found, DistanceVectors):
        raise InputError(
            f"attention bias: the spec says 'content', and the rule gave numbers of shape {tuple(found.shape)}; "
            f"expected DistanceVectors of {wanted}"
        )
    queries, keys = (None if each is None else each.astype(dtype) for each in (found.queries, found.keys))
    shapes = [tuple(each.shape) for each in (queries, keys) if each is not None]
    if not shapes or any(shape != wanted for shape in shapes):
        raise InputError(f"attention bias: {count} distances gave vectors of {shapes}; expected {wanted}")
    return VectorLine(queries, keys, first)


def score_dtype(call: AttentionCall, dtype: mx.Dtype) -> mx.Dtype:
    """Element type in which a bias meets the scores of a call with queries in `dtype`."""
    import mlx.core as mx

    return dtype if call.softcap is None else mx.float32


class _Same:
    """One rule as a key: by identity, since rules need not be hashable, and held, so that no other takes its place."""

    def __init__(self, rule: DistanceBias) -> None:
        self._rule = rule

    def __hash__(self) -> int:
        return id(self._rule)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other._rule is self._rule
