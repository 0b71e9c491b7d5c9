"""What earlier calls left behind, by their exact tokens: a later prompt that begins alike starts from it.

Bounded in bytes; the entry that was used longest ago goes first. Knows nothing of prompts or models.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from archport.memory import Snapshot


@dataclass(slots=True)
class PrefixCache:
    """Snapshots by the tokens that they remember.

    Args:
        limit: bytes that all entries together may hold; 0 keeps nothing.
    """

    limit: int
    _entries: list[tuple[np.ndarray, Snapshot]] = field(default_factory=list["tuple[np.ndarray, Snapshot]"], repr=False)

    @property
    def bytes(self) -> int:
        """Bytes held now."""
        return sum(snapshot.bytes for _, snapshot in self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, ids: np.ndarray) -> Snapshot | None:
        """The longest remembered beginning of these tokens, at least one short of all; None when nothing fits."""
        best: Snapshot | None = None
        used = -1
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
        while self.bytes + size > self.limit:
            self._entries.pop(0)
        return True

    def add(self, ids: np.ndarray, snapshot: Snapshot) -> None:
        """Remember these tokens, unless they alone exceed the limit; forget those used longest ago."""
        if snapshot.bytes > self.limit or snapshot.tokens == 0:
            return
        ids = ids[: snapshot.tokens].copy()
        # An entry that another one begins with is found through the longer one, where that can be cut.
        self._entries = [
            (tokens, kept)
            for tokens, kept in self._entries
            if matching(tokens, ids) < len(tokens) or (len(tokens) < len(ids) and snapshot.first(len(tokens)) is None)
        ]
        self._entries.append((ids, snapshot))
        while self.bytes > self.limit:
            self._entries.pop(0)

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()


def matching(a: np.ndarray, b: np.ndarray) -> int:
    """Leading tokens that a and b have in common."""
    shortest = min(len(a), len(b))
    differs = np.flatnonzero(a[:shortest] != b[:shortest])
    return int(differs[0]) if len(differs) else shortest
