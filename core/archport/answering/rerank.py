"""Documents in the order in which they answer a query. What scores them is a head's own `Scorer`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, get_args

import numpy as np

from archport.answering.collecting import Collected, Errors, collected
from archport.contract import InputError, NonFiniteOutput
from archport.device.progress import Counter, counted, nothing_shown
from archport.reading.columns import texts_of
from archport.reading.texts import Overflow, check_text

ScoreKind = Literal["probability", "logit", "cosine", "maxsim"]


@dataclass(frozen=True, slots=True)
class Ranked:
    """One document of a ranking.

    Args:
        index: where it was among the documents.
        score: higher is more relevant.
        document: itself, where that was asked for.
    """

    index: int
    score: float
    document: Any = None


@dataclass(frozen=True, slots=True)
class RerankRequest:
    """What a caller asked of `rerank`.

    Args:
        instruction: None for the model's own.
        raw: the head's own number instead of a probability.
        max_tokens, overflow: limit of a pair, and what to do with a longer one.
        share: whether what all pairs begin with is run once.
        progress: whether a bar shows how many documents are scored.
        scored: told how many more are.
    """

    instruction: str | None = None
    raw: bool = False
    max_tokens: int | None = None
    overflow: Overflow = "error"
    share: bool = True
    progress: bool = False
    scored: Counter = nothing_shown


class Scorer(Protocol):
    """One way to score documents against a query: what a head that reranks brings."""

    @property
    def kind(self) -> ScoreKind:
        """What a score is unless raw ones are asked for."""
        ...

    def scores(self, query: Any, documents: Sequence[Any], request: RerankRequest) -> np.ndarray:
        """The head's own numbers (N,) float32, in the order of the documents; higher ones are more relevant."""
        ...

    def shown(self, scores: np.ndarray) -> np.ndarray:
        """What `kind` says of the head's own numbers (N,)."""
        ...


def rerank(
    scorer: Scorer,
    query: object,
    documents: object,
    request: RerankRequest,
    *,
    top_k: int | None = None,
    return_documents: bool = False,
    errors: Errors = "raise",
) -> Collected[list[Ranked]]:
    """Documents by descending score of the head's own, equal ones in their own order.

    Probabilities round to 1 where the head still tells documents apart, so they do not rank.

    Args:
        errors: `collect` sets documents aside that can't be scored; `raise` raises for the first of them.

    Raises:
        InputError: for arguments that are no texts or numbers, naming them.
        NonFiniteOutput: when a score is NaN or infinity.
    """
    if not isinstance(query, str | Mapping):
        raise InputError(f"query is a {type(query).__name__}; expected a str")
    if isinstance(documents, str | bytes | Mapping) or not isinstance(documents, Iterable):
        raise InputError(f"documents is a {type(documents).__name__}; expected a sequence of str")
    if top_k is not None and (not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1):
        raise InputError(f"{top_k=}; expected a positive integer, or None for all documents")
    if request.overflow not in get_args(Overflow):
        raise InputError(f"overflow={request.overflow!r}; expected 'error' or 'truncate'")
    texts: list[Any] = list(texts_of(documents))
    if not texts:
        return Collected([], ())
    with counted("scoring", len(texts), shown=request.progress) as scored:
        run = _run(scorer, query, request, len(texts), scored)
        if errors == "raise":
            return _ranked(scorer, texts, range(len(texts)), run(texts), request, top_k, return_documents)
        scores = collected(texts, run, "document")
    made = np.array(scores.results, np.float32)
    ranked = _ranked(scorer, texts, scores.rows, made, request, top_k, return_documents)
    return replace(ranked, errors=scores.errors)


def _run(
    scorer: Scorer, query: Any, request: RerankRequest, count: int, scored: Counter
) -> Callable[[Sequence[Any]], np.ndarray]:
    def run(texts: Sequence[Any]) -> np.ndarray:
        for index, text in enumerate(texts):
            # What else than text a document may be is the scorer's to say.
            if not isinstance(text, Mapping):
                check_text(text, f"document {index}")
        # Of all documents; some of them have been counted.
        told = scored if len(texts) == count else nothing_shown
        scores = scorer.scores(query, texts, replace(request, scored=told))
        bad = ~np.isfinite(scores)
        if bad.any():
            raise NonFiniteOutput(
                f"the score of document {int(bad.argmax())} is NaN or infinity; it is not returned. The weights may be "
                "damaged, or overflow in this dtype: try dtype='float32'"
            )
        return scores

    return run


def _ranked(
    scorer: Scorer,
    texts: Sequence[Any],
    rows: Sequence[int],
    scores: np.ndarray,
    request: RerankRequest,
    top_k: int | None,
    return_documents: bool,
) -> Collected[list[Ranked]]:
    """The ranking of the documents `rows`, whose scores these are."""
    # Equal documents score alike, whatever rounding in other batches made of them.
    first: dict[str | int, int] = {}
    keys = [texts[row] if isinstance(texts[row], str) else row for row in rows]
    scores = scores[[first.setdefault(key, at) for at, key in enumerate(keys)]] if len(scores) else scores
    order = np.argsort(-scores, kind="stable")[:top_k]
    shown = scores if request.raw or not len(scores) else scorer.shown(scores)
    ranked = [
        Ranked(rows[at], float(shown[at]), texts[rows[at]] if return_documents else None) for at in map(int, order)
    ]
    return Collected(ranked, tuple(each.index for each in ranked))
