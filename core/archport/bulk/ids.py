"""Ids of rows: of one type, and each only once. Knows no file."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

from archport.bulk.rows import Row
from archport.contract.errors import shown
from archport.reading.columns import Unreadable

# Ids of a run that is not joined with others any more. Joining takes a copy, which the process keeps: of a million ids
# four times what they take themselves.
LONGEST_RUN = 1 << 18


class Ids:
    """Takes the ids of all rows in order and says what is wrong with each.

    The first good id decides the type of all. Ids are remembered by 96 bits of a hash, 12 bytes each: that two
    different ones among a billion are taken for the same has a chance of 1 in 10^11.

    Args:
        numbered: whether rows have no ids but their number.
    """

    def __init__(self, *, numbered: bool) -> None:
        self._numbered = numbered
        self.type: type[int] | type[str] | None = int if numbered else None
        # Sorted runs of (64 bits, 32 bits): full ones, then each at most half as long as the one before it.
        self._runs: list[tuple[np.ndarray, np.ndarray]] = []

    def take(self, rows: Sequence[Row], first: int) -> tuple[list[int | str | None], dict[int, str]]:
        """(the id of every row, None where it has no good one; index -> what is wrong with that row).

        Args:
            first: number of the first row among all.
        """
        if self._numbered:
            faults = {index: row.error for index, row in enumerate(rows) if row.error is not None}
            return list(range(first, first + len(rows))), faults
        ids: list[int | str | None] = [None] * len(rows)
        faults: dict[int, str] = {}
        keys: dict[bytes, int] = {}
        for index, row in enumerate(rows):
            fault = self._fault(row)
            key = b"" if fault else blake2b(str(row.id).encode(), digest_size=12).digest()
            if not fault and key in keys:
                fault = f"its id {shown(row.id)} is that of an earlier row"
            if fault:
                faults[index] = fault
                continue
            keys[key] = index
            ids[index] = row.id
            if row.error is not None:
                faults[index] = row.error
        for index in self._known(keys):
            faults[index], ids[index] = f"its id {shown(ids[index])} is that of an earlier row", None
        return ids, faults

    def _fault(self, row: Row) -> str | None:
        """What is wrong with an id by itself, or next to the first one."""
        id = row.id
        if id is None:
            return row.error or "its id is null; expected a string or an integer"
        if isinstance(id, Unreadable):
            return f"its id is {id.reason}"
        if isinstance(id, bool) or not isinstance(id, int | str):
            return f"its id is a {type(id).__name__} ({shown(id)}); expected a string or an integer"
        if isinstance(id, int) and not -(2**63) <= id < 2**63:
            return f"its id {shown(id)} has more than 64 bits"
        if isinstance(id, str) and not id.isascii():
            try:
                id.encode()
            except UnicodeEncodeError:
                return f"its id {shown(id)} holds a lone surrogate"
        if self.type is None:
            self.type = int if isinstance(id, int) else str
        if not isinstance(id, self.type):
            return f"its id {shown(id)} is a {type(id).__name__}; those before it are each a {self.type.__name__}"
        return None

    def _known(self, keys: dict[bytes, int]) -> list[int]:
        """The values of those keys that were there before; the others are there from now on."""
        packed = np.frombuffer(b"".join(keys), np.dtype([("high", "<u8"), ("low", "<u4")]))
        highs, lows, indices = packed["high"], packed["low"], list(keys.values())
        known = np.zeros(len(highs), bool)
        for before, others in self._runs:
            at = np.searchsorted(before, highs)
            alike = np.flatnonzero(before[np.minimum(at, len(before) - 1)] == highs)
            for new in alike:
                last = np.searchsorted(before, highs[new], "right")
                known[new] |= bool((others[at[new] : last] == lows[new]).any())
        self._settle(highs[~known], lows[~known])
        return [indices[new] for new in np.flatnonzero(known)]

    def _settle(self, highs: np.ndarray, lows: np.ndarray) -> None:
        """Put new keys into sorted runs."""
        while self._runs and len(self._runs[-1][0]) <= min(2 * len(highs), LONGEST_RUN - len(highs)):
            more, others = self._runs.pop()
            highs, lows = np.concatenate([more, highs]), np.concatenate([others, lows])
        if len(highs):
            order = np.argsort(highs, kind="stable")
            self._runs.append((highs[order], lows[order]))


def id_column(ids: list[Any]) -> type[int] | type[str]:
    """The type of a part's ids; str where it has none."""
    return next((type(id) for id in ids if id is not None), str)
