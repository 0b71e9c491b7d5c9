"""Rows in order, cut into parts. What a part holds depends on the input alone, and on nothing that happens to a job."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from archport.answering.streams import MOST_CHARACTERS
from archport.bulk.ids import Ids
from archport.bulk.rows import Row
from archport.reading.texts import breathing


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive rows, written together or not at all.

    Args:
        number: counted from 0 over the whole input.
        first: number of its first row.
        rows: what was read.
        ids: of every row, None where it has no good one.
        faults: index -> why that row can't be embedded.
        digest: what tells it from a part of other rows.
        share: of the input that was read after it; None where nobody knows.
        id_type: of every id, which the first good one decides; None where this and all earlier parts have none.
    """

    number: int
    first: int
    rows: list[Row]
    ids: list[int | str | None]
    faults: dict[int, str]
    digest: str
    share: float | None = None
    id_type: type | None = None


def _digest(rows: Iterable[tuple[Row, int | str | None]], faults: Mapping[int, str]) -> str:
    found = blake2b(digest_size=16)
    for index, (row, id) in enumerate(rows):
        request = None if row.request is None else sorted(row.request.items(), key=repr)
        said = repr((id, row.item, faults.get(index), request))
        found.update(said.encode("utf-8", "surrogatepass") + b"\0")
    return found.hexdigest()


def cut(rows: Iterable[Row], ids: Ids, most: int, share: Any, *, ahead: bool) -> Iterator[Part]:
    """Parts of at most `most` rows, and fewer where texts are long.

    Args:
        ids: takes the ids of every part.
        share: () -> share of the input that was read so far.
        ahead: whether the thread that cuts works ahead of the one that feeds a device.
    """
    pace = breathing if ahead else iter
    some: list[Row] = []
    number = first = characters = 0

    def part() -> Part:
        taken, faults = ids.take(some, first)
        return Part(
            number, first, some, taken, faults, _digest(pace(zip(some, taken, strict=True)), faults), share(), ids.type
        )

    for row in pace(rows):
        some.append(row)
        characters += row.characters
        if len(some) >= most or characters >= MOST_CHARACTERS:
            yield part()
            number, first, some, characters = number + 1, first + len(some), [], 0
    if some:
        yield part()


class Turns:
    """Which process makes which part: every N-th of a shard, and of those the device with the least text so far.

    By the input alone, so that processes agree without a word, and a job that is resumed finds the same turns.

    Args:
        shard, device: (index from 0, number) of this process.
    """

    def __init__(self, shard: tuple[int, int], device: tuple[int, int]) -> None:
        self._shard, (self._device, devices) = shard, device
        self._work = [0] * devices

    def mine(self, part: Part) -> bool:
        """Whether this process makes the part; asked once for each, in order."""
        index, count = self._shard
        if part.number % count != index:
            return False
        least = self._work.index(min(self._work))
        # A row costs something whatever it says.
        self._work[least] += sum(row.characters + 1 for row in part.rows)
        return least == self._device
