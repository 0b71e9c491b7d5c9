"""Which widths a plan may use, and which rows share a batch. Knows nothing of bytes.

Few distinct shapes matter twice: freed buffers fit again, and on CUDA MLX keeps one plan per exact shape and aborts a
process after some hundred of them.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from archport.contract import DeviceKind

# Tokens per batch that keep each kind of device busy with layers of a usual width; more only costs memory.
TOKENS_PER_BATCH: dict[DeviceKind, int] = {"cuda": 16_384, "metal": 16_384, "cpu": 2_048}
# Distinct padded lengths per doubling on CUDA. Padding to them costs 10 % of the tokens on average.
STEPS_PER_OCTAVE = 4
SHORTEST = 32


def _octaves() -> tuple[int, ...]:
    widths = [SHORTEST]
    while widths[-1] < 2**24:
        low = widths[-1]
        widths += [low + low * step // STEPS_PER_OCTAVE for step in range(1, STEPS_PER_OCTAVE + 1)]
    return tuple(widths)


_LATTICE = _octaves()
# 32, 48, 64, 96, 128, ...: every chunk is a multiple of 16, and halving or doubling stays on the lattice.
CHUNKS = tuple(sorted({32 * 2**i for i in range(20)} | {48 * 2**i for i in range(19)}))


def padded_length(tokens: int, kind: DeviceKind, most: int) -> int:
    """Tokens that the longest row of a batch, of `tokens`, is padded to on this kind of device; never above `most`.

    CUDA takes few widths. Elsewhere nothing is gained: Metal reuses freed buffers of up to twice the size, and batches
    run from long to short.
    """
    if kind != "cuda":
        return tokens
    return max(tokens, min(_LATTICE[bisect.bisect_left(_LATTICE, tokens)], most))


def row_counts(most: int, kind: DeviceKind) -> tuple[int, ...]:
    """Numbers of rows that a batch may have, descending, when `most` fit: on CUDA powers of two only."""
    if kind != "cuda":
        return tuple(range(most, 0, -1))
    return tuple(1 << power for power in reversed(range(most.bit_length())))


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that run together: their indices in the request, and the tokens they are padded to, each or in one row."""

    rows: tuple[int, ...]
    padded: int
    packed: bool = False


def group_rows(
    lengths: Sequence[int],
    *,
    kind: DeviceKind,
    tokens_per_batch: int | None = None,
    max_rows: Callable[[int], int] | None = None,
    most: int = 2**24,
    padding: float = 0.25,
    seconds: Callable[[int, int], float] | None = None,
) -> tuple[Group, ...]:
    """Rows sorted by length into batches of about equal tokens, longest first.

    Longest first: what does not fit fails at once, and later, smaller batches reuse the first one's buffers.

    Args:
        lengths: tokens per row.
        tokens_per_batch: padded tokens per batch; a row that is longer runs alone.
        max_rows: rows of a padded length that may share a batch, when memory says so.
        most: tokens that no row may be padded beyond.
        padding: largest share of a batch's tokens that may be padding beyond the one that the width alone costs.
        seconds: of so many rows of a padded length; where given, a batch has as many rows as make its real tokens
            cheapest, and `padding` does not count.
    """
    target = tokens_per_batch or TOKENS_PER_BATCH[kind]
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    groups: list[Group] = []
    at = 0
    while at < len(order):
        width = padded_length(lengths[order[at]], kind, most)
        wanted = max(1, target // width)
        if max_rows is not None:
            wanted = max(1, min(wanted, max_rows(width)))
        if seconds is not None:
            count = _cheapest(lengths, order[at : at + wanted], width, kind, seconds)
            groups.append(Group(rows=tuple(order[at : at + count]), padded=width))
            at += count
            continue
        # Rows much shorter than the first are left to a narrower batch.
        shortest = (1 - 2 * padding) * lengths[order[at]]
        alike = at
        while (
            alike < len(order)
            and alike - at < wanted
            and (lengths[order[alike]] >= shortest or lengths[order[alike]] <= SHORTEST)
        ):
            alike += 1
        count = next(count for count in row_counts(wanted, kind) if count <= alike - at)
        groups.append(Group(rows=tuple(order[at : at + count]), padded=width))
        at += count
    return tuple(groups)


def _cheapest(
    lengths: Sequence[int], rows: Sequence[int], width: int, kind: DeviceKind, seconds: Callable[[int, int], float]
) -> int:
    """How many of these rows, longest first, share a batch for the least time per real token."""
    real = list(accumulate(lengths[row] for row in rows))
    return min(row_counts(len(rows), kind), key=lambda count: seconds(count, width) / real[count - 1])


def chunk_widths(length: int, most: int, usual: int, *, whole: bool) -> tuple[int, ...]:
    """Prefill chunks to try for a row of `length` tokens, largest first.

    Args:
        most: the largest chunk that a plugin or caller admits.
        usual: the largest chunk of a row that is split.
        whole: whether the row is tried unsplit even when it is longer than that.
    """
    widths = {width for width in CHUNKS if width < length and width <= min(most, usual)}
    if length <= most and (whole or length <= usual):
        widths.add(length)
    # A plugin may want fewer tokens than the smallest width.
    return tuple(sorted(widths, reverse=True)) or (max(1, min(most, length)),)
