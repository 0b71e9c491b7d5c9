"""Which keys which queries see, in numbers: normalised reach, key ranges of a tile, spans, and MLX's own form of it.

Imports no mlx; `masks` turns the same numbers into an array where no named form exists.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np

from archport.contract.attention import AttentionCall, Span

Form = Literal["none", "causal", "array"]
T = TypeVar("T")
# The keys of a tile that a span widens end at a multiple of this: CUDA prepares each width by itself.
SPAN_GRID = 64


@dataclass(frozen=True, slots=True)
class Visibility:
    """What one call makes visible.

    Args:
        q_len, kv_len: padded queries and keys.
        left, right: reach, None unlimited; normalised, so a value means that some pair really is out of reach.
        offsets: position of query 0 per row; one entry when all rows share it.
        key_lengths: real keys per row; one entry when all rows share it.
        has_array: whether the caller brings an array mask on top.
        chunk: positions per chunk outside of which nothing is seen; None where no pair lies in different ones.
        start: position of key 0 in its chunk.
        spans: per row the keys [start, stop) that see each other to the right as well; one entry when all rows share
            it, empty where `right` says it all.
    """

    q_len: int
    kv_len: int
    left: int | None
    right: int | None
    offsets: tuple[int, ...]
    key_lengths: tuple[int, ...]
    has_array: bool
    chunk: int | None = None
    start: int = 0
    spans: tuple[tuple[Span, ...], ...] = ()

    @property
    def rows(self) -> int:
        return max(len(self.offsets), len(self.key_lengths), len(self.spans))

    @property
    def windowed(self) -> bool:
        """Whether some query does not see a key before it."""
        return self.left is not None or self.chunk is not None

    def of_rows(self, first: int, last: int) -> Visibility:
        """The same for rows [first, last) of the batch alone."""
        if self.rows == 1:
            return self
        offsets = self.offsets if len(self.offsets) == 1 else _shared(self.offsets[first:last])
        keys = self.key_lengths if len(self.key_lengths) == 1 else _shared(self.key_lengths[first:last])
        spans = self.spans if len(self.spans) < 2 else _shared(self.spans[first:last])
        return replace(self, offsets=offsets, key_lengths=keys, spans=spans)

    def spanned(self, a: int, b: int) -> int:
        """The end of the last span in which a query of [a, b) lies, over all rows; 0 where none does."""
        end = 0
        for row in range(max(len(self.offsets), len(self.spans)) if self.spans else 0):
            offset = self.offsets[row if len(self.offsets) > 1 else 0]
            for start, stop in self.spans[row if len(self.spans) > 1 else 0]:
                if start < offset + b and stop > offset + a:
                    end = max(end, stop)
        return end

    @property
    def longest_span(self) -> int:
        """Tokens that the longest span adds to what a tile sees, on the grid of `key_range`; 0 without any."""
        longest = max((stop - start for row in self.spans for start, stop in row), default=0)
        return longest + SPAN_GRID if longest else 0

    def widest(self, rows: int) -> int:
        """Keys of the widest tile of `rows` queries; an upper bound where rows of the batch differ."""
        lo, hi = self.key_range(0, self.q_len)
        if self.left is None or self.right is None:
            return hi - lo
        spread = max(self.offsets) - min(self.offsets)
        return min(hi - lo, rows + spread + self.left + self.right + self.longest_span)

    def key_range(self, a: int, b: int) -> tuple[int, int]:
        """Keys [lo, hi) outside of which no query of [a, b) sees anything; never empty, so that softmax has a key."""
        lo = 0 if self.left is None else max(0, min(self.offsets) + a - self.left)
        hi = max(self.key_lengths)
        if self.right is not None:
            # Keys after a span's end are hidden anyway, and few widths of tiles are worth more than few keys.
            end = -(-self.spanned(a, b) // SPAN_GRID) * SPAN_GRID
            hi = min(hi, max(max(self.offsets) + b + self.right, end))
        if self.chunk is not None:
            lo = max(lo, self.chunk_of(min(self.offsets) + a)[0])
            hi = min(hi, self.chunk_of(max(self.offsets) + b - 1)[1])
        hi = min(max(hi, 1), self.kv_len)
        return min(lo, hi - 1), hi

    def chunk_of(self, key: int) -> tuple[int, int]:
        """Keys [first, last) of the chunk in which a key lies; the first may be before key 0."""
        assert self.chunk is not None
        first = (self.start + key) // self.chunk * self.chunk - self.start
        return first, first + self.chunk

    def form(self, a: int, b: int, lo: int, hi: int) -> Form:
        """How MLX can be told what queries [a, b) see of keys [lo, hi): without mask, as "causal", or by an array."""
        if self.has_array or self.rows > 1 or self.key_lengths[0] < hi:
            return "array"
        offset = self.offsets[0]
        cut_left = self.left is not None and lo < offset + b - 1 - self.left
        cut_right = self.right is not None and hi - 1 > offset + a + self.right
        if self.chunk is not None:
            cut_left = cut_left or lo < self.chunk_of(offset + b - 1)[0]
            cut_right = cut_right or hi > self.chunk_of(offset + a)[1]
        if not cut_left and not cut_right:
            return "none"
        if self.spanned(a, b):
            return "array"
        # MLX aligns "causal" at the lower right and leaves rows without any key undefined.
        if not cut_left and self.right == 0 and hi == offset + b and offset + a >= 0:
            return "causal"
        return "array"


@dataclass(frozen=True, slots=True)
class Tile:
    """Queries [a, b) and keys [lo, hi) of a call, or of some rows of one.

    Args:
        seen: what the call, or these rows of it, make visible.
    """

    seen: Visibility
    a: int
    b: int
    lo: int
    hi: int

    @property
    def form(self) -> Form:
        """How MLX can be told what these queries see of these keys."""
        return self.seen.form(self.a, self.b, self.lo, self.hi)


def visibility(call: AttentionCall) -> Visibility:
    """What `call` makes visible, normalised: limits that exclude nothing are dropped. Not for `documents`."""
    left, right = call.visible_reach
    offsets: tuple[int, ...] = (call.kv_len - call.q_len,)
    keys: tuple[int, ...] = (call.kv_len,)
    if call.lengths and call.mask not in ("none", "causal"):
        queries = call.real_queries or (call.q_len,) * len(call.lengths)
        keys = _shared(call.lengths)
        if call.visible_reach != (None, None) or call.bias:
            offsets = _shared(tuple(s - n for s, n in zip(call.lengths, queries, strict=True)))
        if right == 0 and offsets == (call.kv_len - call.q_len,):
            # Padding lies to the right of every real query, where a causal layer never looks.
            keys = (call.kv_len,)
    if left is not None and left >= max(offsets) + call.q_len - 1:
        left = None
    if right is not None and right >= call.kv_len - 1 - min(offsets):
        right = None
    spans: tuple[tuple[Span, ...], ...] = ()
    if call.mask not in ("none", "causal") and right is not None and any(call.spans):
        spans = _shared(call.spans)
        if spans == (((0, call.kv_len),),):
            # One span is all there is.
            right, spans = None, ()
    chunk = call.chunk if call.mask not in ("none", "causal") else None
    if chunk is not None and call.start + call.kv_len <= chunk:
        chunk = None
    has_array = call.mask == "dense" and bool(call.mask_shape)
    return Visibility(
        call.q_len, call.kv_len, left, right, offsets, keys, has_array, chunk, call.start if chunk else 0, spans
    )


def _shared(values: tuple[T, ...]) -> tuple[T, ...]:
    return values[:1] if len(set(values)) == 1 else values


# Of queries and of keys outside of all spans; they differ, so that none of them equal each other.
NO_QUERY, NO_KEY = -1, -2


def numbered(tile: Tile) -> tuple[np.ndarray, np.ndarray]:
    """(R, b - a) and (R, hi - lo) int32: the number of each query's and key's span in its row.

    R is 1 where all rows lie alike, else their number. A query and a key of one row are in one span where both have
    the same number.
    """
    seen, size = tile.seen, tile.b - tile.a
    rows = max(len(seen.offsets), len(seen.spans))
    queries = np.full((rows, size), NO_QUERY, np.int32)
    keys = np.full((rows, tile.hi - tile.lo), NO_KEY, np.int32)
    for row in range(rows):
        first = seen.offsets[row if len(seen.offsets) > 1 else 0] + tile.a
        for number, (start, stop) in enumerate(seen.spans[row if len(seen.spans) > 1 else 0]):
            if stop <= first or start >= first + size:
                continue
            queries[row, max(0, start - first) : max(0, stop - first)] = number
            keys[row, max(0, start - tile.lo) : max(0, stop - tile.lo)] = number
    return queries, keys
