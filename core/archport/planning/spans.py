"""Spans of tokens that see each other: checked, placed among the keys of a step, and never cut by a prefill's steps.

A token of a span needs, in every layer, what the layers before made of all tokens of its span, later ones included. So
no later step can mend a span that was cut: a step takes all of it. Pure numbers; knows nothing of paths or bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from archport.contract import ArchSpec, AttentionLayer, BatchShape, InputError, Span
from archport.contract.errors import shown

RowSpans = tuple[tuple[Span, ...], ...]


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
        edges = [edge for span in own for edge in span]
        if any(len(span) != 2 for span in own) or any(b < a for a, b in pairwise((0, *edges, length))):
            raise InputError(
                f"spans: row {row} of {length} tokens has {shown(list(own))}; expected (start, stop) pairs within the "
                "row, ascending and apart from each other"
            )
        found.append(tuple((int(start), int(stop)) for start, stop in own if stop - start > 1))
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
