"""One attention layer's keys and values: planned, growing, or the last tokens of a window.

Layout (B, K, S, Dh), tight, in multiples of 256 tokens, so that kernels never expand grouped heads. Rows may differ in
length and are written at their own offsets. Knows nothing of attention, masks or of which tokens the rows hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from archport.contract import AttentionLayer, DType, InputError, KVAllocation, KvCeilingExceeded, SpecError
from archport.memory.storage import Piece, Storage, storage_for


@dataclass(frozen=True, slots=True)
class KVView:
    """What a layer may attend to.

    Args:
        k, v: (B, K, S, Dh) and (B, K, S, Dv); a slice of the cache, never expanded.
        lengths: keys per row that are real; the rows' last real keys stand at `lengths[b] - 1`.
        offsets: position of key 0 of each row in its own document (0 unless a window dropped earlier tokens).
    """

    k: mx.array
    v: mx.array
    lengths: tuple[int, ...]
    offsets: tuple[int, ...]

    @property
    def even(self) -> bool:
        """Whether all rows hold equally many keys."""
        return len(set(self.lengths)) == 1


class KVCache:
    """The cache of one layer. Nothing is allocated before the first write.

    Args:
        layer: whose keys and values these are.
        allocation: how they are held.
        B: rows.
        dtype: element type of the keys and values that are handed in and out.

    Raises:
        SpecError: when the allocation can't hold the layer's state.
    """

    def __init__(self, layer: AttentionLayer, allocation: KVAllocation, B: int, dtype: DType) -> None:
        problems = allocation.problems_with(layer)
        if problems:
            raise SpecError(f"KV cache: {'; '.join(problems)}")
        if B < 1:
            raise InputError(f"KV cache: B={B} rows; expected at least one")
        self.layer, self.allocation, self.B = layer, allocation, B
        self.dtype: DType = dtype
        self._storage: Storage | None = None
        # Tokens ever written per row, and tokens that a window dropped in front of the buffer.
        self._written = [0] * B
        self._dropped = [0] * B

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens ever written, per row: the position of the next token."""
        return tuple(self._written)

    @property
    def capacity(self) -> int:
        """Tokens per row that the buffers hold now; 0 before the first write."""
        return 0 if self._storage is None else self._storage.capacity

    @property
    def bytes(self) -> int:
        """Bytes allocated now; equal to what `KVAllocation.bytes` says once tokens were written."""
        return 0 if self._storage is None else self._storage.bytes

    def check(self, adding: Sequence[int]) -> None:
        """Refuse tokens beyond the ceiling, before anything is allocated or written.

        Args:
            adding: tokens per row.

        Raises:
            KvCeilingExceeded: with the row, what it would hold and the ceiling.
        """
        if len(adding) != self.B:
            raise InputError(f"KV cache: lengths for {len(adding)} rows; the cache has {self.B}")
        if self.allocation.storage == "ring" or max(self._written) + max(adding) <= self.allocation.ceiling:
            return
        for row, (held, more) in enumerate(zip(self._written, adding, strict=True)):
            if held + more > self.allocation.ceiling:
                raise KvCeilingExceeded(
                    f"row {row} would hold {held + more:,} tokens ({held:,} cached + {more:,} new), but its cache ends "
                    f"at {self.allocation.ceiling:,}; raise max_context, or shorten the input",
                    binding="max_context",
                    requested=held + more,
                    ceiling=self.allocation.ceiling,
                    max_tokens_that_fit=max(0, self.allocation.ceiling - held),
                )

    def append(self, k: mx.array, v: mx.array | None, lengths: Sequence[int] | None = None) -> KVView:
        """Write new tokens after each row's own and return all that the layer may attend to.

        Args:
            k, v: (B, K, L, Dh) and (B, K, L, Dv), rows padded on the right; no v for a latent cache.
            lengths: real tokens per row; L for all when left out. Padding is never kept.

        Raises:
            KvCeilingExceeded: nothing was allocated or written.
            InputError: shapes that are not this cache's.
        """
        v = self._values(k, v)
        adding = self._adding(k, v, lengths)
        self.check(adding)
        L = max(adding)
        if self.allocation.storage == "ring":
            self._make_room(adding)
        self._reserve(max(self._held(row) + more for row, more in enumerate(adding)))
        assert self._storage is not None
        starts = [self._held(row) for row in range(self.B)]
        if len(set(starts)) == 1:
            # One write for all rows; what a shorter row gets after its end is overwritten or never read.
            self._storage.write(slice(None), starts[0], k[:, :, :L], v[:, :, :L])
        else:
            for row, (start, more) in enumerate(zip(starts, adding, strict=True)):
                if more:
                    self._storage.write(
                        slice(row, row + 1), start, k[row : row + 1, :, :more], v[row : row + 1, :, :more]
                    )
        for row, more in enumerate(adding):
            self._written[row] += more
        return self.view(L)

    def put(self, k: mx.array, v: mx.array | None) -> tuple[mx.array, mx.array]:
        """`append` of all tokens, as keys and values alone."""
        view = self.append(k, v)
        return view.k, view.v

    def align(self, lengths: Sequence[int]) -> None:
        """After a prefill of right-padded rows: drop the padding, and let all rows end at one column.

        From then on one token per row is written to one column, and `pads` of the rows are what is left of them.

        Args:
            lengths: real tokens per row.

        Raises:
            InputError: when rows hold different numbers of tokens, or a window has dropped some that are needed.
        """
        uneven, dropped = len(set(lengths)) > 1, self._dropped[0]
        if len(set(self._written)) > 1 or max(lengths) > self._written[0] or (uneven and dropped):
            raise InputError(f"KV cache: rows of {list(lengths)} tokens can't be aligned behind {dropped} dropped ones")
        if uneven and self._storage is not None:
            self._storage.align(lengths)
        left = self.layer.reach[0]
        if left is not None and max(lengths) - dropped < min(left, max(lengths)):
            raise InputError(f"KV cache: {max(lengths) - dropped} of the last {left} tokens are left behind padding")
        self._written = [max(lengths)] * self.B

    def advance(self, k: mx.array, v: mx.array | None) -> tuple[mx.array, mx.array]:
        """Write one token (B, K, 1, width) per row of aligned rows; returns the keys and values it may attend to.

        The caller has checked the ceiling. The last column is the new token's; a window's keys end with it.
        """
        held = self._written[0] - self._dropped[0]
        left = self.layer.reach[0]
        if self.allocation.storage == "ring" and held + 1 > self.allocation.capacity(0):
            self._make_room((1,) * self.B)
            held = self._written[0] - self._dropped[0]
        if self._storage is None or held >= self._storage.capacity:
            self._reserve(held + 1)
        assert self._storage is not None
        self._storage.write(slice(None), held, k, self._values(k, v))
        self._written = [self._written[0] + 1] * self.B
        return self._storage.read(0 if left is None else max(0, held - left), held + 1)

    @property
    def full(self) -> bool:
        """Whether aligned rows can write no further column into the buffers that there are."""
        most = min(self.capacity, self.allocation.ceiling)
        return self.allocation.storage != "ring" and self._written[0] >= most > 0

    def drop_front(self, columns: int) -> None:
        """Forget the first `columns` of all aligned rows, which are padding of each of them."""
        gone = min(columns, self._dropped[0])
        held = self._held(0)
        if columns > gone and self._storage is not None:
            self._storage.shift([columns - gone] * self.B, held - columns + gone)
        self._written = [count - columns for count in self._written]
        self._dropped = [count - gone for count in self._dropped]

    def view(self, queries: int = 1) -> KVView:
        """What the last `queries` tokens of the rows may attend to: all that is held, or what a window reaches.

        Raises:
            InputError: nothing was written yet.
        """
        if self._storage is None:
            raise InputError("KV cache: nothing was written yet; append keys and values first")
        held = [self._held(row) for row in range(self.B)]
        first = 0
        if self.allocation.storage == "ring":
            reach = (self.layer.reach[0] or 0) + queries
            first = min(max(0, length - reach) for length in held)
        k, v = self._storage.read(first, max(held))
        return KVView(
            k=k,
            v=v,
            lengths=tuple(length - first for length in held),
            offsets=tuple(dropped + first for dropped in self._dropped),
        )

    def held(self, row: int) -> tuple[mx.array, mx.array]:
        """Keys and values (1, K, n, width) of one row that are still held, the earliest first."""
        if self._storage is None:
            raise InputError("KV cache: nothing was written yet; append keys and values first")
        k, v = self._storage.read(0, self._held(row))
        return k[row : row + 1], v[row : row + 1]

    def start(self, tokens: int, k: mx.array, v: mx.array | None) -> None:
        """Begin every row of an empty cache with the same `tokens`, of which the last n are given.

        Args:
            k, v: (1 or B, K, n, Dh) and (1 or B, K, n, Dv); at least what a window of the layer still sees.

        Raises:
            KvCeilingExceeded: nothing was allocated or written.
            InputError: the cache is not empty, or tokens are missing that the layer still sees.
        """
        left, n, v = self.layer.reach[0], k.shape[2], self._values(k, v)
        if any(self._written) or n < (tokens if left is None else min(left, tokens)):
            raise InputError(f"KV cache: {n} of {tokens} tokens to start with, {max(self._written)} already written")
        self.check([tokens] * self.B)
        first = tokens - n
        if self.allocation.storage == "ring":
            kept = min(n, left or 0)
            k, v, first = k[:, :, n - kept :], v[:, :, n - kept :], 0
            self._dropped = [tokens - kept] * self.B
        self._reserve(tokens - self._dropped[0])
        assert self._storage is not None
        # Tokens that no window reaches any more are left as zeros.
        self._storage.write(slice(None), first, k, v)
        self._written = [tokens] * self.B

    def take_over(self, parts: Sequence[KVCache], columns: Sequence[int]) -> None:
        """Begin an empty cache with the rows of others, aligned ones; all rows then end at one column. Those are spent.

        Args:
            parts: of the same layer, holding as many rows together as this one has.
            columns: of each, the last ones that are its rows' own.

        Raises:
            KvCeilingExceeded: nothing was moved.
        """
        left, longest = self.layer.reach[0], max(columns)
        self.check([longest] * self.B)
        held = [min(part._held(0), own) for part, own in zip(parts, columns, strict=True)]
        if self.allocation.storage == "ring":
            held = [min(each, left or 0) for each in held]
        end, row = max(held), 0
        self._reserve(max(end, 1))
        assert self._storage is not None
        pieces: list[Piece] = []
        for part, count in zip(parts, held, strict=True):
            if count and part._storage is not None:
                rows = slice(row, row + part.B)
                pieces.append(Piece(rows, end - count, part._storage, part._held(0) - count, count))
            row += part.B
        self._storage.fill(pieces)
        self._written, self._dropped = [longest] * self.B, [longest - end] * self.B

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Keep only these rows, in this order, as when others finished; one named twice is copied."""
        unknown = [row for row in rows if not 0 <= row < self.B]
        if unknown or not rows:
            raise InputError(f"KV cache: rows {list(rows)}; expected at least one of 0 to {self.B - 1}")
        if self._storage is not None:
            self._storage.take_rows(list(rows))
        self._written = [self._written[row] for row in rows]
        self._dropped = [self._dropped[row] for row in rows]
        self.B = len(rows)

    def _values(self, k: mx.array, v: mx.array | None) -> mx.array:
        """The values of keys: those handed over, or a latent cache's part of its keys."""
        if v is None:
            if self.layer.kv != "latent":
                raise InputError(f"KV cache: no values for a layer with kv={self.layer.kv!r}; expected keys and values")
            return k[..., : self.layer.v_head_dim]
        return v

    def _held(self, row: int) -> int:
        return self._written[row] - self._dropped[row]

    def _adding(self, k: mx.array, v: mx.array, lengths: Sequence[int] | None) -> tuple[int, ...]:
        layer = self.layer
        for name, array, width in (("k", k, layer.head_dim), ("v", v, layer.v_head_dim)):
            expected = (self.B, layer.n_kv_heads, k.shape[2] if k.ndim == 4 else "L", width)
            if array.ndim != 4 or tuple(array.shape) != expected:
                raise InputError(f"KV cache: {name} has shape {tuple(array.shape)}; expected {expected}")
        L = k.shape[2]
        adding = (L,) * self.B if lengths is None else tuple(lengths)
        if any(not 0 <= more <= L for more in adding) or not any(adding):
            raise InputError(f"KV cache: lengths={adding} for {L} tokens; expected 0 to {L} per row, and one above 0")
        return adding

    def _reserve(self, tokens: int) -> None:
        """Have buffers for `tokens` per row, which no ceiling forbids."""
        needed = self.allocation.capacity(tokens)
        if self._storage is None:
            self._storage = storage_for(self.layer, self.allocation, self.B, needed, self.dtype)
        elif needed > self._storage.capacity:
            self._storage.grow(needed, max(self._held(row) for row in range(self.B)))

    def _make_room(self, adding: Sequence[int]) -> None:
        """Move each row's window to the front of the ring when the new tokens would not fit after it."""
        room = self.allocation.capacity(0)
        left = self.layer.reach[0] or 0
        starts = [self._held(row) for row in range(self.B)]
        if max(start + more for start, more in zip(starts, adding, strict=True)) <= room:
            return
        dropping = [max(0, held - left) for held in starts]
        if max(held - drop + more for held, drop, more in zip(starts, dropping, adding, strict=True)) > room:
            raise KvCeilingExceeded(
                f"{max(adding):,} tokens in one step do not fit a ring of {room:,} behind the {left:,} that the layer "
                "still sees; use a smaller prefill chunk",
                binding="the ring's size",
                requested=left + max(adding),
                ceiling=room,
                max_tokens_that_fit=room - left,
            )
        assert self._storage is not None
        self._storage.shift(dropping, max(held - drop for held, drop in zip(starts, dropping, strict=True)))
        for row, drop in enumerate(dropping):
            self._dropped[row] += drop
