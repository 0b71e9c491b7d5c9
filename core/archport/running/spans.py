"""Spans of a request's rows: asked of the rule of its inputs, checked, and found again in what rows are remembered by.

Knows nothing of plans or attention.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from archport.contract import PluginError, Span, SpanRule
from archport.contract.attention import row_spans
from archport.contract.errors import shown


@dataclass(frozen=True, slots=True)
class RowSpans:
    """Which tokens of the rows of a request see each other whichever comes first.

    Args:
        rows: per row (start, stop), ascending and apart.
    """

    rows: tuple[tuple[Span, ...], ...]

    def edge(self, tokens: int) -> int:
        """The most leading tokens, at most so many, that cut no span of any row."""
        for start, stop in (span for row in self.rows for span in row):
            if start < tokens < stop:
                return self.edge(start)
        return tokens

    def after(self, tokens: int) -> tuple[tuple[Span, ...], ...]:
        """The same without leading tokens, of which no span is cut; empty when nothing is left."""
        found = tuple(tuple((a - tokens, b - tokens) for a, b in row if a >= tokens) for row in self.rows)
        return found if any(found) else ()

    def keys(self, keys: Sequence[np.ndarray]) -> list[np.ndarray]:
        """What rows are remembered by: a token of a span by all of that, since it has seen all of that.

        A remembered span then equals another one whole, or not at all.
        """
        found: list[np.ndarray] = []
        for row, spans in zip(keys, self.rows, strict=True):
            own = row.astype(np.int64)
            for start, stop in spans:
                digest = hashlib.blake2b(own[start:stop].tobytes(), digest_size=8).digest()
                own[start:stop] = -1 - ((int.from_bytes(digest, "little") >> 2) + np.arange(stop - start)) % 2**62
            found.append(own)
        return found


def spans_of(rule: SpanRule | None, rows: Sequence[np.ndarray]) -> RowSpans | None:
    """The spans of rows; None where no rule names any.

    Raises:
        PluginError: the rule's answer is no ascending pairs within a row.
    """
    if rule is None:
        return None
    found = tuple(_checked(rule(row), len(row)) for row in rows)
    return RowSpans(found) if any(found) else None


def _checked(spans: Sequence[Span], length: int) -> tuple[Span, ...]:
    checked = row_spans(spans, length)
    if checked is None:
        raise PluginError(
            f"the spans of archport_inputs are {shown([tuple(span) for span in spans])} for a row of {length} tokens; "
            "expected (start, stop) pairs within the row, ascending and apart from each other"
        )
    return checked
