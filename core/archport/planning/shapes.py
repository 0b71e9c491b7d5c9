"""Which widths a plan may use, and which rows share a batch. Knows nothing of bytes.

Few distinct shapes matter twice: freed buffers fit again, and on CUDA MLX keeps one plan per exact shape and aborts a
process after some hundred of them.

Spans of tokens that see each other are checked and placed here too: a token of one needs, in every layer, what the
layers before made of all tokens of its span, so no later step can mend a span that was cut: a step takes all of it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import accumulate

from archport.contract import ArchSpec, AttentionLayer, BatchShape, DeviceKind, InputError, Span
from archport.contract.attention import row_spans
from archport.contract.errors import shown

RowSpans = tuple[tuple[Span, ...], ...]

# Tokens per batch that keep each kind of device busy with layers of a usual width; more only costs memory.
TOKENS_PER_BATCH: dict[DeviceKind, int] = {"cuda": 16_384, "metal": 16_384, "cpu": 2_048}
# Padded lengths per doubling. CUDA takes few, because MLX prepares each one there for 67 ms and holds some hundred:
# padding to them costs 10 % of the tokens on average. Elsewhere freed buffers have to fit again (Metal takes one that
# is at most two pages too large), and 1 % is enough for that.
WIDTHS_PER_OCTAVE: dict[DeviceKind, int] = {"cuda": 4, "metal": 32, "cpu": 32}
SHORTEST = 32
# Batches of more tokens have a power of two of rows, so that widths and rows multiply to few sizes of buffers. What
# smaller ones leave in the pool is little, and splitting them would cost a pass; a CPU has no such batches.
FREE_ROWS_TOKENS: dict[DeviceKind, int] = {"cuda": 0, "metal": 2_048, "cpu": 2**62}
# A long row gains no memory to speak of by more steps than these, for what it caches outweighs a step by far.
MOST_STEPS = 512
# Why no more rows share the last batch.
LAST = "no rows are left"
# 32, 48, 64, 96, 128, ...: every chunk is a multiple of 16, and halving or doubling stays on the lattice.
CHUNKS = tuple(sorted({32 * 2**i for i in range(20)} | {48 * 2**i for i in range(19)}))


def snapped(tokens: int, widths_per_octave: int) -> int:
    """The least of so many widths per doubling that is not below `tokens`."""
    step = max(1, (1 << tokens.bit_length() - 1) // widths_per_octave)
    return -(-tokens // step) * step


def padded_length(tokens: int, kind: DeviceKind, most: int) -> int:
    """Tokens that the longest row of a batch, of `tokens`, is padded to on this kind of device; never above `most`."""
    least = SHORTEST if kind == "cuda" else 1
    return max(tokens, min(snapped(max(tokens, least), WIDTHS_PER_OCTAVE[kind]), most))


def prompt_width(tokens: int, kind: DeviceKind, most: int) -> int:
    """Tokens that prompts are padded to, the longest being `tokens`.

    On CUDA that of any row. Elsewhere nothing is added: all chunks but the last are of a width that recurs, and what is
    cached is what was read.
    """
    return padded_length(tokens, kind, most) if kind == "cuda" else tokens


def row_counts(most: int, width: int, kind: DeviceKind) -> tuple[int, ...]:
    """Numbers of rows of `width` tokens that a batch may have, descending, when `most` fit.

    Powers of two, and any number of rows that are few tokens together.
    """
    few = min(most, FREE_ROWS_TOKENS[kind] // width)
    powers = {1 << power for power in range(most.bit_length())}
    return tuple(sorted(powers | set(range(1, few + 1)), reverse=True))


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that run together: their indices in the request, and the tokens they are padded to, each or in one row.

    Args:
        why: what keeps more rows out, in words.
    """

    rows: tuple[int, ...]
    padded: int
    packed: bool = False
    why: str = field(default="", compare=False)


def group_rows(
    lengths: Sequence[int],
    *,
    kind: DeviceKind,
    tokens_per_batch: int | None = None,
    max_rows: Callable[[int, int], tuple[int, str]] | None = None,
    most: int = 2**24,
    padding: float = 0.25,
    even_alone: bool = False,
    seconds: Callable[[int, int], float] | None = None,
) -> tuple[Group, ...]:
    """Rows sorted by length into batches of about equal tokens, longest first.

    Longest first: what does not fit fails at once, and later, smaller batches reuse the first one's buffers.

    Args:
        lengths: tokens per row.
        tokens_per_batch: padded tokens per batch; a row that is longer runs alone.
        max_rows: of so many rows of a padded length those that may share a batch, when memory says so, and what keeps
            one more out.
        most: tokens that no row may be padded beyond.
        padding: largest share of a batch's tokens that may be padding beyond the one that the width alone costs.
        even_alone: whether rows of one length run at just that, because padding would cost them a mask. Not on CUDA,
            where each width has its price.
        seconds: of so many rows of a padded length; where given, batches have as many rows as take least time, and
            `padding` does not count: on a CPU all batches together, on CUDA, where each width has its price, each
            batch per real token.
    """
    target = tokens_per_batch or TOKENS_PER_BATCH[kind]
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    groups: list[Group] = []

    def bound(width: int, left: int) -> tuple[int, str]:
        wanted, why = max(1, target // width), f"{target:,} tokens a batch keep this device busy"
        if max_rows is None or left == 1:
            return wanted, why
        # Whether more would fit than are there takes longer to find out; a power of two, so that few are asked.
        most_rows, problem = max_rows(width, min(wanted, 1 << (left - 1).bit_length()))
        return (wanted, why) if most_rows >= min(wanted, left) else (max(1, most_rows), problem)

    widths = [padded_length(lengths[row], kind, most) for row in order]
    counts = deque[int]()
    at = 0
    while at < len(order):
        width = widths[at]
        left = len(order) - at
        wanted, why = bound(width, left)
        if seconds is not None:
            if kind == "cuda":
                count = _cheapest(lengths, order[at : at + wanted], width, kind, seconds)
            else:
                counts = counts or deque(_fewest_seconds(widths[at:], target, seconds))
                count = counts.popleft()
            if count > wanted:
                # The others begin anew where memory ends a batch.
                count = wanted
                counts.clear()
            if count < min(wanted, left):
                why = f"shorter rows take less time per token in a batch of their own than padded to {width:,}"
            at += count
            rows = tuple(order[at - count : at])
            if even_alone and kind != "cuda" and lengths[rows[0]] == lengths[rows[-1]]:
                width = lengths[rows[0]]
            groups.append(Group(rows, width, why=why if at < len(order) else LAST))
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
        count = row_counts(min(wanted, alike - at), width, kind)[0]
        rows = tuple(order[at : at + count])
        if even_alone and kind != "cuda" and lengths[rows[0]] == lengths[rows[-1]]:
            width = lengths[rows[0]]
        if count == alike - at < wanted:
            why = f"shorter rows would be padded by more than {2 * padding:.0%}"
        elif count < min(wanted, alike - at):
            why = f"a power of two of rows, so that buffers fit again; {why}"
        at += count
        groups.append(Group(rows=rows, padded=width, why=why if at < len(order) else LAST))
    return tuple(groups)


def _cheapest(
    lengths: Sequence[int], rows: Sequence[int], width: int, kind: DeviceKind, seconds: Callable[[int, int], float]
) -> int:
    """How many of these rows, longest first, share a batch for the least time per real token."""
    real = list(accumulate(lengths[row] for row in rows))
    return min(row_counts(len(rows), width, kind), key=lambda count: seconds(count, width) / real[count - 1])


def _fewest_seconds(widths: Sequence[int], target: int, seconds: Callable[[int, int], float]) -> list[int]:
    """Rows of every batch, of rows by descending padded length, so that all together take least time.

    A batch ends where the width changes or `target` tokens are reached, so few ends have to be tried.
    """
    ends = [at for at in range(1, len(widths)) if widths[at] != widths[at - 1]] + [len(widths)]
    # Where a batch may begin: the least time to get there, and where the batch before began.
    best: dict[int, tuple[float, int]] = {0: (0.0, 0)}
    waiting = [0]
    while (at := heappop(waiting)) < len(widths):
        width = widths[at]
        last = min(at + max(1, target // width), len(widths))
        for end in [*ends[bisect_right(ends, at) : bisect_left(ends, last)], last]:
            found = best[at][0] + seconds(end - at, width)
            if end not in best:
                heappush(waiting, end)
            if end not in best or found < best[end][0]:
                best[end] = found, at
    counts, end = list[int](), len(widths)
    while end:
        begin = best[end][1]
        counts.append(end - begin)
        end = begin
    return counts[::-1]


def chunk_widths(length: int, most: int, usual: int, *, whole: bool) -> tuple[int, ...]:
    """Prefill chunks to try for a row of `length` tokens, largest first.

    Args:
        most: the largest chunk that a plugin or caller admits.
        usual: the largest chunk of a row that is split.
        whole: whether the row is tried unsplit even when it is longer than that.
    """
    widths = {width for width in CHUNKS if width < length <= MOST_STEPS * width and width <= min(most, usual)}
    if length <= most and (whole or length <= usual):
        widths.add(length)
    # A plugin or caller may want fewer tokens than the smallest width.
    return tuple(sorted(widths, reverse=True)) or (max(1, min(most, length)),)


def spans_of(spec: ArchSpec, rows: Sequence[int], spans: Sequence[Sequence[Span]]) -> RowSpans:
    """The spans of every row, checked; empty where none of them lets a token see more.

    Args:
        rows: new tokens per row.
        spans: per row (start, stop) among its new tokens, ascending and apart; empty for no row with any.

    Raises:
        InputError: no such spans, or spans that no layer of the model knows.
    """
    if not any(spans):
        return ()
    if not any(isinstance(layer, AttentionLayer) and layer.spans for layer in spec.layers):
        raise InputError(f"spans: no layer of {spec.arch} lets the tokens of a span see each other")
    if len(spans) != len(rows):
        raise InputError(f"spans: {len(spans)} rows of spans for {len(rows)} rows of tokens")
    found: list[tuple[Span, ...]] = []
    for row, (length, own) in enumerate(zip(rows, spans, strict=True)):
        checked = row_spans(own, length)
        if checked is None:
            raise InputError(
                f"spans: row {row} of {length} tokens has {shown(list(own))}; expected (start, stop) pairs within the "
                "row, ascending and apart from each other"
            )
        found.append(checked)
    return tuple(found) if any(found) else ()


def blocks(spans: RowSpans) -> tuple[Span, ...]:
    """Stretches of a batch's columns that no step may cut: the spans of all rows, those that overlap as one."""
    found: list[Span] = []
    for start, stop in sorted(span for row in spans for span in row):
        if found and start < found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], stop)
        else:
            found.append((start, stop))
    return tuple(found)


def smallest_chunk(spans: RowSpans) -> int:
    """Tokens of the smallest step that cuts no span of any row; 1 without spans."""
    return max((stop - start for start, stop in blocks(spans)), default=1)


def steps_of(length: int, chunk: int, spans: RowSpans) -> list[Span]:
    """(start, stop) of the steps of a prefill, none longer than `chunk`, which is at least `smallest_chunk`."""
    held, found, start = blocks(spans), list[Span](), 0
    while start < length:
        stop = min(start + chunk, length)
        cut = next((first for first, last in held if first < stop < last), stop)
        found.append((start, cut))
        start = cut
    return found


def among_keys(
    spans: RowSpans, shape: BatchShape, cached: Sequence[int], start: int, tokens: int, behind: int
) -> RowSpans:
    """Spans of the queries [start, start + tokens) by the index of keys in the call; empty where no row has any.

    Args:
        cached: tokens before each row's first.
        behind: positions before key 0.
    """
    if not spans:
        return ()
    found = tuple(
        tuple((before - behind + a, before - behind + b) for a, b in row if start <= a and b <= start + tokens)
        for row, before in zip(spans, cached, strict=True)
    )
    return found if any(found) else ()


def most_that_fits(fits: Callable[[int], bool], low: int, high: int) -> int:
    """The largest number from `low` to `high` that fits, as all smaller ones do then; `low` is not asked about."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
