"""What options of a request do to logits before a token is taken: biases, masked ends, penalties for what is there.

In vLLM's order: bias, mask, repetition, frequency, presence. Knows nothing of how a token is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

# Beyond this float32 has no number, or makes infinity of what is multiplied or divided by it.
LARGEST = 1e30


@dataclass(frozen=True, slots=True)
class Adjustment:
    """What one row asks to have done to its logits.

    Args:
        repetition: divides positive logits and multiplies others of tokens in the prompt and the text; 1 does nothing.
        presence: taken from the logit of every token that the text holds; the prompt does not count.
        frequency: taken from it as often as the text holds the token; the prompt does not count.
        bias: (token, what is added to its logit).
        ends: tokens that can't come before `least` others did.
    """

    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    bias: tuple[tuple[int, float], ...] = ()
    ends: frozenset[int] = frozenset()
    least: int = 0


class Adjusting:
    """The adjustments of all rows of a batch, step after step.

    Args:
        rows: one per row.
        vocabulary: entries of the logits.
        prompts: ids of each row.
    """

    def __init__(self, rows: Sequence[Adjustment], vocabulary: int, prompts: Sequence[np.ndarray]) -> None:
        self._rows, self._vocabulary = list(rows), vocabulary
        # Tokens that were taken, of each row.
        self._steps = [0] * len(rows)
        # (B, V): whether a token is in prompt or text, and how often it is in the text.
        self._seen: mx.array | None = None
        self._counts: mx.array | None = None
        self._bind()
        if self._repetition is not None:
            seen = np.zeros((len(prompts), vocabulary), bool)
            for row, ids in enumerate(prompts):
                seen[row, ids] = True
            self._seen = mx.array(seen)
        if self._frequency is not None or self._presence is not None:
            self._counts = mx.zeros((len(rows), vocabulary), mx.float32)

    def _bind(self) -> None:
        """Columns (B, 1) and lists (B, n) of the rows there are; None for what no row asks for."""
        rows = self._rows
        self._repetition = _column([float(min(max(each.repetition, 1 / LARGEST), LARGEST)) for each in rows], 1.0)
        self._frequency = _column([each.frequency for each in rows], 0.0)
        self._presence = _column([each.presence for each in rows], 0.0)
        self._bias = _listed([each.bias for each in rows])
        self._ends = _listed([tuple((end, 0.0) for end in sorted(each.ends)) if each.least else () for each in rows])

    @property
    def _early(self) -> bool:
        """Whether some row may not end yet."""
        return any(step < each.least for step, each in zip(self._steps, self._rows, strict=True))

    @property
    def nothing(self) -> bool:
        """Whether logits stay as they are, at this step and after it."""
        columns = (self._repetition, self._frequency, self._presence)
        return all(each is None for each in columns) and self._bias is None and not self._early

    def __call__(self, logits: mx.array) -> mx.array:
        """Logits (B, V) float32 of the next token, adjusted."""
        if self._bias is not None:
            ids, values = self._bias
            biased = mx.take_along_axis(logits, ids, axis=-1) + values
            logits = mx.put_along_axis(logits, ids, biased, axis=-1)
        if self._ends is not None and self._early:
            ids, _ = self._ends
            pairs = zip(self._steps, self._rows, strict=True)
            early = mx.array([[step < each.least and bool(each.ends)] for step, each in pairs])
            masked = mx.where(early, -mx.inf, mx.take_along_axis(logits, ids, axis=-1))
            logits = mx.put_along_axis(logits, ids, masked, axis=-1)
        if self._repetition is not None:
            assert self._seen is not None
            penalised = mx.where(logits < 0, logits * self._repetition, logits / self._repetition)
            logits = mx.where(self._seen, penalised, logits)
        if self._frequency is not None:
            assert self._counts is not None
            logits = logits - self._frequency * self._counts
        if self._presence is not None:
            assert self._counts is not None
            logits = mx.where(self._counts > 0, logits - self._presence, logits)
        return logits

    def add(self, tokens: mx.array) -> None:
        """Note the tokens (B,) that were taken."""
        self._steps = [step + 1 for step in self._steps]
        at = tokens[:, None]
        if self._seen is not None:
            self._seen = mx.put_along_axis(self._seen, at, mx.array(True), axis=-1)
        if self._counts is not None:
            more = mx.take_along_axis(self._counts, at, axis=-1) + 1
            self._counts = mx.put_along_axis(self._counts, at, more, axis=-1)

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Go on with these rows only, in this order."""
        self._rows, self._steps = [self._rows[row] for row in rows], [self._steps[row] for row in rows]
        self._bind()
        index = mx.array(list(rows))
        self._seen = None if self._seen is None or self._repetition is None else self._seen[index]
        counted = self._frequency is not None or self._presence is not None
        self._counts = self._counts[index] if self._counts is not None and counted else None

    def join(self, other: Adjusting) -> None:
        """Go on with the rows of another batch after these, each from where it is."""
        counts = len(self._rows), len(other._rows)
        self._rows, self._steps = self._rows + other._rows, self._steps + other._steps
        self._seen = self._both(self._seen, other._seen, counts, mx.bool_)
        self._counts = self._both(self._counts, other._counts, counts, mx.float32)
        self._bind()

    def _both(
        self, ours: mx.array | None, theirs: mx.array | None, counts: tuple[int, int], dtype: mx.Dtype
    ) -> mx.array | None:
        """(B, V) of both batches; zeros where one has none, which its rows then do not ask for."""
        if ours is None and theirs is None:
            return None
        given = zip((ours, theirs), counts, strict=True)
        return mx.concatenate(
            [mx.zeros((count, self._vocabulary), dtype) if each is None else each for each, count in given]
        )


def _column(values: Sequence[float], nothing: float) -> mx.array | None:
    """Values as (B, 1) float32; None where all of them do nothing."""
    return None if all(value == nothing for value in values) else mx.array(list(values), mx.float32)[:, None]


def _listed(rows: Sequence[tuple[tuple[int, float], ...]]) -> tuple[mx.array, mx.array] | None:
    """Tokens (B, n) and numbers (B, n); None where no row has any.

    Rows with fewer are filled with their own first entry, or with token 0 and nothing: writing one number twice is
    writing it once.
    """
    most = max(map(len, rows))
    if not most:
        return None
    filled = [(*row, *([row[0] if row else (0, 0.0)] * (most - len(row)))) for row in rows]
    ids = mx.array([[token for token, _ in row] for row in filled], mx.int32)
    return ids, mx.array([[value for _, value in row] for row in filled], mx.float32)
