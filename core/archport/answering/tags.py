"""Labels of the pieces of a text: every token's hidden row through the classifier, and equal neighbours put together.

Knows nothing of how rows are run.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import cast

import mlx.core as mx
import numpy as np

from archport.contract import NonFiniteOutput
from archport.contract.heads import Classifier, TaggingHead
from archport.planning import Readout, Request
from archport.reading.cutting import Places
from archport.reading.texts import Overflow, TextTokeniser, Tokens, check_vocabulary
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
            tokens = self.read(some, max_tokens=max_tokens, overflow=overflow, first=first)
            for index, scores in enumerate(self.scores(tokens.ids)):
                if not np.isfinite(scores).all():
                    raise NonFiniteOutput(
                        f"a score of text {first + index} is NaN or infinity; it is not returned. The weights may be "
                        "damaged, or overflow in this dtype: try dtype='float32'"
                    )
                tagged.append(list(spans(some[index], scores, tokens.places[index], self.head.labels)))
        return tagged

    def read(
        self, texts: Sequence[str], *, max_tokens: int | None = None, overflow: Overflow = "error", first: int = 0
    ) -> Tokens:
        """Ids and places of every text; `first` is the index of the first one in the caller's sequence."""
        return self.tokeniser.placed(texts, max_tokens=max_tokens, overflow=overflow, first=first)

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


def _chances(scores: np.ndarray) -> np.ndarray:
    chances = np.exp(scores - scores.max(axis=1, keepdims=True))
    return chances / chances.sum(axis=1, keepdims=True)


def token_labels(
    text: str, scores: np.ndarray, places: Places, labels: Sequence[str], ignored: Collection[str] = (OUTSIDE,)
) -> Iterator[Span]:
    """Every token of one text as a span of its own, its label whole; as `aggregation_strategy="none"`.

    Args:
        scores: raw ones (tokens, labels) float32.
        ignored: labels whose tokens are left out.
    """
    chances = _chances(scores)
    likeliest: list[int] = chances.argmax(axis=1).tolist()
    for at, best in enumerate(likeliest):
        if not places.special[at] and labels[best] not in ignored:
            start, end = places.offsets[at]
            yield Span(labels[best], float(chances[at, best]), text[start:end], start, end)


def spans(
    text: str, scores: np.ndarray, places: Places, labels: Sequence[str], ignored: Collection[str] = (OUTSIDE,)
) -> Iterator[Span]:
    """The spans of one text.

    A token joins the one before it where both have the same label and its own does not begin with `B-`, across spaces
    too; tokens around the text are no neighbours of any.

    Args:
        scores: raw ones (tokens, labels) float32.
        ignored: labels whose spans are left out, by the name that a span has.
    """
    chances = _chances(scores)
    groups: list[list[int]] = []
    name = ""
    best: list[int] = chances.argmax(axis=1).tolist()
    for at in (at for at, special in enumerate(places.special) if not special):
        begins, label = _parted(labels[best[at]])
        if not groups or label != name or begins:
            groups.append([])
        name = label
        groups[-1].append(at)
    for group in groups:
        # As the pipeline names a group: what follows the first hyphen, whatever stands before it.
        name = labels[best[group[0]]].split("-", 1)[-1]
        if name not in ignored:
            start, end = places.offsets[group[0]][0], places.offsets[group[-1]][1]
            yield Span(name, float(chances[group].max(axis=1).mean()), text[start:end], start, end)


def _parted(label: str) -> tuple[bool, str]:
    """(whether a label begins a span, what it names); one without `B-` and `I-` goes on."""
    return label.startswith("B-"), label[2:] if label.startswith(("B-", "I-")) else label
