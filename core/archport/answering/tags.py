"""Labels of the pieces of a text: every token's hidden row through the classifier, and equal neighbours put together.

Knows nothing of how rows are run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import cast

import mlx.core as mx
import numpy as np

from archport.contract import NonFiniteOutput
from archport.contract.heads import Classifier, TaggingHead
from archport.planning import Readout, Request
from archport.reading.cutting import Places
from archport.reading.texts import Overflow, TextTokeniser, check_vocabulary
from archport.running.encode import Encoder, verified
from archport.running.steps import run_steps

# Texts tokenised and sorted together.
_WINDOW = 2048
# Of a token's scores: in the model's type, and in float32.
_ARRAYS = 2
# The label of what is nothing.
OUTSIDE = "O"


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a text that has a label.

    Args:
        label: without its `B-` or `I-`.
        score: the mean of its tokens' probabilities.
        text: the piece as the caller wrote it.
        start, end: its characters, `text[start:end]`.
    """

    label: str
    score: float
    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Tagger:
    """Labels tokens, and joins them to spans as transformers' pipeline does with `aggregation_strategy="simple"`."""

    tokeniser: TextTokeniser
    encoder: Encoder
    head: TaggingHead

    def __call__(
        self, texts: Sequence[str], *, max_tokens: int | None = None, overflow: Overflow = "error"
    ) -> list[list[Span]]:
        """Per text its spans, in their order; tokens that are labelled `O` belong to none.

        Raises:
            InputError, ContextLengthExceeded: for a text that can't be labelled.
            NonFiniteOutput: when a score is NaN or infinity.
        """
        tagged: list[list[Span]] = []
        for first in range(0, len(texts), _WINDOW):
            some = texts[first : first + _WINDOW]
            rows, places = self.read(some, max_tokens=max_tokens, overflow=overflow, first=first)
            for index, scores in enumerate(self.scores(rows)):
                if not np.isfinite(scores).all():
                    raise NonFiniteOutput(
                        f"a score of text {first + index} is NaN or infinity; it is not returned. The weights may be "
                        "damaged, or overflow in this dtype: try dtype='float32'"
                    )
                tagged.append(list(spans(some[index], scores, places[index], self.head.labels)))
        return tagged

    def read(
        self, texts: Sequence[str], *, max_tokens: int | None = None, overflow: Overflow = "error", first: int = 0
    ) -> tuple[tuple[np.ndarray, ...], tuple[Places, ...]]:
        """(ids, places) of every text; `first` is the index of the first one in the caller's sequence."""
        tokens = self.tokeniser.placed(texts, max_tokens=max_tokens, overflow=overflow, first=first)
        return tokens.ids, tokens.places

    def scores(self, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Raw scores (tokens, labels) float32 of every row."""
        if not rows:
            return []
        check_vocabulary(rows, self.encoder.spec.vocab_size, "text")
        labels = len(self.head.labels)
        readout = Readout("the scores of labels", "outputs", _ARRAYS, token=4 * labels)
        plan = self.encoder.plan(Request(lengths=[len(row) for row in rows], readout=readout))
        scores: dict[int, np.ndarray] = {}
        with verified(plan) as watch:
            for batch in watch.batches(plan.batches):
                with closing(run_steps(self.encoder.trunk, plan, batch, [rows[row] for row in batch.rows])) as steps:
                    ((_, hidden),) = steps
                batch_scores = np.array(cast(Classifier, self.encoder.trunk).scores(hidden).astype(mx.float32))
                scores |= {row: batch_scores[at, : len(rows[row])] for at, row in enumerate(batch.rows)}
        return [scores[row] for row in range(len(rows))]


def spans(text: str, scores: np.ndarray, places: Places, labels: Sequence[str]) -> Iterator[Span]:
    """The spans of one text.

    A token joins the one before it where both have the same label and its own does not begin with `B-`, across spaces
    too; tokens around the text are no neighbours of any.

    Args:
        scores: raw ones (tokens, labels) float32.
    """
    chances = np.exp(scores - scores.max(axis=1, keepdims=True))
    chances /= chances.sum(axis=1, keepdims=True)
    group: list[int] = []
    name = ""
    best: list[int] = chances.argmax(axis=1).tolist()
    for at in (at for at, special in enumerate(places.special) if not special):
        begins, label = _parted(labels[best[at]])
        if group and (label != name or begins):
            yield from _span(text, labels[best[group[0]]], group, chances.max(axis=1), places)
            group = []
        name = label
        group.append(at)
    if group:
        yield from _span(text, labels[best[group[0]]], group, chances.max(axis=1), places)


def _span(text: str, label: str, group: Sequence[int], chances: np.ndarray, places: Places) -> Iterator[Span]:
    # As the pipeline names a group: what follows the first hyphen, whatever stands before it.
    name = label.split("-", 1)[-1]
    if name == OUTSIDE:
        return
    start, end = places.offsets[group[0]][0], places.offsets[group[-1]][1]
    yield Span(name, float(np.mean(chances[list(group)])), text[start:end], start, end)


def _parted(label: str) -> tuple[bool, str]:
    """(whether a label begins a span, what it names); one without `B-` and `I-` goes on."""
    return label.startswith("B-"), label[2:] if label.startswith(("B-", "I-")) else label
