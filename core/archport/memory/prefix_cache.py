"""What earlier calls left behind, by their exact tokens: a later prompt that begins alike starts from it.

Bounded in bytes; the entry that was used longest ago goes first. A run that has not ended well leaves nothing. Knows
nothing of prompts or models.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np

from archport.memory import Caches, Snapshot, snapshot_bytes, take

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
