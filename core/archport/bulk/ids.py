"""Ids of rows: of one type, and each only once. Knows no file."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import numpy as np

from archport.bulk.rows import Row
from archport.contract.errors import shown


class Ids:
    """Takes the id of every row in order and says what is wrong with it.

    The first good id decides the type of all. Ids are remembered by 96 bits of a hash, 12 bytes each: that two
    different ones among a billion are taken for the same has a chance of 1 in 10^11.

    Args:
        numbered: whether rows have no ids but their number.
    """

    def __init__(self, *, numbered: bool) -> None:
        self._numbered = numbered
        self.type: type[int] | type[str] | None = int if numbered else None
        # Sorted runs of (64 bits, 32 bits), each at most half as long as the one before it.
        self._runs: list[tuple[np.ndarray, np.ndarray]] = []
        self._recent: dict[bytes, None] = {}

    def take(self, row: Row, number: int) -> tuple[int | str | None, str | None]:
        """(the id of a row, or None where it has no good one; what is wrong with it, or None)."""
        if self._numbered:
            return number, row.error
        id = row.id
        if id is None:
            return None, row.error or "its id is null; expected a string or an integer"
        if isinstance(id, bool) or not isinstance(id, int | str):
            return None, f"its id is a {type(id).__name__} ({shown(id)}); expected a string or an integer"
        if isinstance(id, int) and not -(2**63) <= id < 2**63:
            return None, f"its id {shown(id)} has more than 64 bits"
        if self.type is None:
            self.type = type(id)
        if type(id) is not self.type:
            return None, f"its id {shown(id)} is a {type(id).__name__}; those before it are each a {self.type.__name__}"
        try:
            key = blake2b(str(id).encode(), digest_size=12).digest()
        except UnicodeEncodeError:
            return None, f"its id {shown(id)} holds a lone surrogate"
        if self._known(key):
            return None, f"its id {shown(id)} is that of an earlier row"
        self._recent[key] = None
        if len(self._recent) >= 1 << 16:
            self._settle()
        return id, row.error

    def _known(self, key: bytes) -> bool:
        if key in self._recent:
            return True
        high, low = np.frombuffer(key, "<u8", 1)[0], np.frombuffer(key, "<u4", 1, 8)[0]
        for highs, lows in self._runs:
            first = int(np.searchsorted(highs, high))
            while first < len(highs) and highs[first] == high:
                if lows[first] == low:
                    return True
                first += 1
        return False

    def _settle(self) -> None:
        """Put what came lately into sorted runs."""
        packed = np.frombuffer(b"".join(self._recent), np.dtype([("high", "<u8"), ("low", "<u4")]))
        self._recent.clear()
        highs, lows = packed["high"].copy(), packed["low"].copy()
        while self._runs and len(self._runs[-1][0]) <= 2 * len(highs):
            more, others = self._runs.pop()
            highs, lows = np.concatenate([more, highs]), np.concatenate([others, lows])
        order = np.argsort(highs, kind="stable")
        self._runs.append((highs[order], lows[order]))


def id_column(ids: list[Any]) -> type[int] | type[str]:
    """The type of a part's ids; str where it has none."""
    return next((type(id) for id in ids if id is not None), str)
