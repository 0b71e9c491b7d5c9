"""What all layers remember of the first tokens of one row, apart from any batch, and put into other batches' caches;
and what earlier calls left of it, by their exact tokens, from which a later prompt that begins alike starts.

The prefix cache is bounded in bytes; the entry that was used longest ago goes first. A run that has not ended well
leaves nothing. Knows nothing of prompts or models.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

from archport.contract import DType, LayerSpec, RecurrentLayer
from archport.contract.sizes import parse_bytes
from archport.contract.spec import itemsize
from archport.memory.cache import KVCache
from archport.memory.caches import Caches
from archport.memory.recurrent import RecurrentState


@dataclass(frozen=True, slots=True)
class KVSnapshot:
    """Keys and values (1, K, n, width) of the last n of a row's first tokens; a window may have dropped others.

    A latent cache's values are a part of its keys, and None here.
    """

    k: mx.array
    v: mx.array | None


@dataclass(frozen=True, slots=True)
class StateSnapshot:
    """A recurrent layer's arrays, each of one row."""

    arrays: tuple[mx.array, ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What every layer remembers of a row's first `tokens` tokens; None for a layer that keeps nothing."""

    tokens: int
    layers: tuple[KVSnapshot | StateSnapshot | None, ...]

    @property
    def bytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for layer in self.layers if layer is not None for array in _arrays(layer))

    @property
    def finite(self) -> bool:
        """Whether no number of it is NaN or infinity; looks at one array after the other."""
        arrays = (array for layer in self.layers if layer is not None for array in _arrays(layer))
        return all(mx.isfinite(array).all().item() for array in arrays)

    def first(self, tokens: int) -> Snapshot | None:
        """The snapshot of fewer tokens; None where some layer can't go back to them."""
        if tokens == self.tokens:
            return self
        layers: list[KVSnapshot | StateSnapshot | None] = []
        for layer in self.layers:
            if layer is None:
                layers.append(None)
            elif isinstance(layer, KVSnapshot) and layer.k.shape[2] == self.tokens:
                layers.append(KVSnapshot(layer.k[:, :, :tokens], None if layer.v is None else layer.v[:, :, :tokens]))
            else:
                return None
        return Snapshot(tokens, tuple(layers))


def take(caches: Caches, row: int = 0, skip: int = 0, *, tokens: int = 0) -> Snapshot:
    """A copy of what one row's caches hold now, without the `skip` columns in front that are not the row's.

    Args:
        tokens: how many tokens that is; counts where no layer has keys, since a recurrent state does not tell.
    """
    layers: list[KVSnapshot | StateSnapshot | None] = []
    for state in caches.layers:
        if isinstance(state, KVCache):
            k, v = state.held(row)
            tokens = state.lengths[row] - skip
            first = max(0, k.shape[2] - tokens)
            # Copies: slices of the buffers would keep all rows' memory alive.
            latent = len(state.layer.kv_widths) == 1
            values = None if latent else mx.contiguous(v[:, :, first:])
            layers.append(KVSnapshot(mx.contiguous(k[:, :, first:]), values))
        elif isinstance(state, RecurrentState):
            layers.append(StateSnapshot(tuple(mx.contiguous(array[row : row + 1]) for array in state.arrays)))
        else:
            layers.append(None)
    mx.eval([array for layer in layers if layer is not None for array in _arrays(layer)])
    return Snapshot(tokens, tuple(layers))


def snapshot_bytes(caches: Caches, row: int, skip: int = 0) -> int:
    """Bytes of what `take` would copy; of a quantised cache at its full width."""
    total = 0
    for state in caches.layers:
        if isinstance(state, KVCache):
            layer, k = state.layer, state.held(row)[0]
            tokens = min(k.shape[2], state.lengths[row] - skip)
            total += tokens * layer.n_kv_heads * sum(layer.kv_widths) * k.dtype.size
        elif isinstance(state, RecurrentState):
            total += state.bytes // state.B
    return total


def row_bytes(layers: Sequence[LayerSpec], tokens: int, dtype: DType) -> int:
    """Bytes that `take` copies at most of a row with so many tokens: windows and quantised caches hold less."""
    size, total = itemsize(dtype), 0
    for layer in layers:
        if isinstance(layer, RecurrentLayer):
            total += layer.state_bytes + layer.conv_bytes
        elif layer.keeps:
            total += tokens * layer.n_kv_heads * sum(layer.kv_widths) * size
    return total


def put(snapshot: Snapshot, caches: Caches) -> None:
    """Start every row of empty caches with what the snapshot remembers.

    Raises:
        InputError: when a cache needs tokens that the snapshot no longer holds.
    """
    for state, layer in zip(caches.layers, snapshot.layers, strict=True):
        if isinstance(state, KVCache):
            assert isinstance(layer, KVSnapshot)
            state.start(snapshot.tokens, layer.k, layer.v)
        elif isinstance(state, RecurrentState):
            assert isinstance(layer, StateSnapshot)
            state.store([mx.repeat(array, state.B, axis=0) for array in layer.arrays])


def put_rows(rows: Sequence[Snapshot], caches: Caches) -> None:
    """Start each row of empty caches with its own snapshot; all rows end at one column, the longest one's.

    Raises:
        InputError: when a cache needs tokens that a snapshot no longer holds.
    """
    longest = max(row.tokens for row in rows)
    for index, state in enumerate(caches.layers):
        layers = [row.layers[index] for row in rows]
        if isinstance(state, KVCache):
            kept = [layer for layer in layers if isinstance(layer, KVSnapshot)]
            width = max(layer.k.shape[2] for layer in kept)
            k = mx.concatenate([_left_padded(each.k, width) for each in kept])
            values = [_left_padded(each.v, width) for each in kept if each.v is not None]
            state.start(longest, k, mx.concatenate(values) if values else None)
        elif isinstance(state, RecurrentState):
            arrays = [layer.arrays for layer in layers if isinstance(layer, StateSnapshot)]
            state.store([mx.concatenate(list(parts)) for parts in zip(*arrays, strict=True)])


def _left_padded(x: mx.array, width: int) -> mx.array:
    return mx.pad(x, [(0, 0), (0, 0), (width - x.shape[2], 0), (0, 0)])


def _arrays(layer: KVSnapshot | StateSnapshot) -> tuple[mx.array, ...]:
    if isinstance(layer, StateSnapshot):
        return layer.arrays
    return (layer.k,) if layer.v is None else (layer.k, layer.v)


Entry = tuple[np.ndarray, Snapshot]


@dataclass(slots=True)
class PrefixCache:
    """Snapshots by the tokens that they remember; may be used from several threads.

    Args:
        limit: bytes that all entries together may hold; 0 keeps nothing.
    """

    limit: int
    _entries: list[Entry] = field(default_factory=list["Entry"], repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @classmethod
    def of_size(cls, asked: int | str | None, budget: int) -> PrefixCache:
        """One that may hold what was asked for, else a sixteenth of the budget and at most 4 GiB."""
        if asked is None:
            return cls(min(budget // 16, 4 << 30))
        return cls(0 if asked == 0 else parse_bytes(asked, what="prefix_cache"))

    @property
    def bytes(self) -> int:
        """Bytes held now."""
        return _bytes(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, ids: np.ndarray) -> Snapshot | None:
        """The longest remembered beginning of these tokens, at least one short of all; None when nothing fits."""
        best: Snapshot | None = None
        used = -1
        with self._lock:
            for index, (tokens, snapshot) in enumerate(self._entries):
                shared = matching(tokens, ids[:-1])
                if shared == 0 or (best is not None and shared <= best.tokens):
                    continue
                cut = snapshot.first(shared)
                if cut is not None:
                    best, used = cut, index
            if used >= 0:
                self._entries.append(self._entries.pop(used))
        return best

    def make_room(self, size: int) -> bool:
        """Forget what was used longest ago until `size` more bytes keep the limit; False where they never would."""
        if size > self.limit:
            return False
        with self._lock:
            while self.bytes + size > self.limit:
                self._entries.pop(0)
        return True

    def add(self, ids: np.ndarray, snapshot: Snapshot) -> None:
        """Remember these tokens, unless they alone exceed the limit; forget those used longest ago."""
        if snapshot.bytes > self.limit or snapshot.tokens == 0:
            return
        ids = ids[: snapshot.tokens].copy()
        with self._lock:
            # An entry that another one begins with is found through the longer one, where that can be cut.
            kept = [entry for entry in self._entries if not _covers(ids, snapshot, entry)]
            kept.append((ids, snapshot))
            while _bytes(kept) > self.limit:
                kept.pop(0)
            self._entries = kept

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()


@dataclass(slots=True)
class PrefixDraft:
    """What a run is going to leave behind: kept apart until it has ended well, gone with a run that has not.

    Args:
        cache: where `keep` puts it; draft and cache together hold at most the cache's limit.

    Attributes:
        most: bytes that both held at most.
    """

    cache: PrefixCache
    _entries: list[Entry] = field(default_factory=list["Entry"], repr=False)
    most: int = field(default=0, init=False)

    @property
    def bytes(self) -> int:
        """Bytes that draft and cache hold now."""
        return self.cache.bytes + _bytes(self._entries)

    def make_room(self, size: int) -> bool:
        """Have room for `size` more bytes, as `PrefixCache.make_room`; the draft's own entries give way last."""
        if size > self.cache.limit:
            return False
        while not self.cache.make_room(size + _bytes(self._entries)):
            self._entries.pop(0)
        return True

    def add(self, ids: np.ndarray, snapshot: Snapshot) -> None:
        """Remember these tokens once the run has ended well; a snapshot that holds NaN or infinity never."""
        if snapshot.finite:
            self._entries.append((ids, snapshot))
            self.most = max(self.most, self.bytes)

    def keep(self) -> None:
        """The run has ended well: leave everything to later calls."""
        for ids, snapshot in self._entries:
            self.cache.add(ids, snapshot)
        self._entries.clear()


def remember(draft: PrefixDraft, caches: Caches, row: int, skip: int, ids: np.ndarray, *, tokens: int) -> None:
    """Have what a row's layers hold of its tokens `ids`, or of all but the last of them, ready for later calls.

    Args:
        skip: columns in front of the row that are not its own.
        tokens: how many the layers hold; counts where no layer has keys.
    """
    if draft.make_room(snapshot_bytes(caches, row, skip)):
        draft.add(ids, take(caches, row, skip, tokens=tokens))


def _bytes(entries: list[Entry]) -> int:
    return sum(snapshot.bytes for _, snapshot in entries)


def _covers(ids: np.ndarray, snapshot: Snapshot, entry: Entry) -> bool:
    """Whether an entry can be had from a snapshot of these tokens too."""
    tokens = entry[0]
    if len(tokens) > len(ids) or matching(tokens, ids) < len(tokens):
        return False
    return len(tokens) == len(ids) or snapshot.first(len(tokens)) is not None


def matching(a: np.ndarray, b: np.ndarray) -> int:
    """Leading tokens that a and b have in common."""
    shortest = min(len(a), len(b))
    differs = np.flatnonzero(a[:shortest] != b[:shortest])
    return int(differs[0]) if len(differs) else shortest
