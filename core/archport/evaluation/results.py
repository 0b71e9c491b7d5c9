"""What a model makes of a task, and what two models' answers say about their difference.

Vectors are compared as the model's files say; a reranker scores every pair by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from archport.contract import EmbeddingHead
from archport.engine import Model
from archport.evaluation.measures import Measure, average_precision, chance, interval, mean, ndcg, ranks, spearman
from archport.evaluation.tasks import Graded, Kind, Retrieval, bundled

MEASURES: dict[Kind, tuple[str, Measure]] = {
    "retrieval": ("nDCG@10", mean),
    "sts": ("Spearman", spearman),
    "pairs": ("average precision", average_precision),
}


@dataclass(frozen=True, slots=True)
class Result:
    """One model's answers to one task.

    Args:
        task: its name.
        measure: what the score is.
        score: higher is better, 1 at most.
        low, high: the middle 95 percent of the score over other draws of as many items.
        values: of each item, its own nDCG or the model's similarity.
        grades: what people say of each item; zeros for retrieval, whose values hold it.
    """

    task: Kind
    measure: str
    score: float
    low: float
    high: float
    values: np.ndarray
    grades: np.ndarray


def evaluated(model: Model, kind: Kind, **options: Any) -> Result:
    """A model's result on a task that comes with archport.

    Args:
        options: of `Model.embed`, or of `Model.rerank` for a reranker.

    Raises:
        InputError, AdmissionRefused: as those calls do; a model that makes neither vectors nor scores says so.
    """
    task = bundled(kind)
    similar = _by_vectors if isinstance(model.head, EmbeddingHead) else _by_pairs
    if isinstance(task, Retrieval):
        scores = similar(model, task.queries, task.documents, options)
        values = np.array([ndcg(row, relevant) for row, relevant in zip(scores, task.relevant, strict=True)])
        grades = np.zeros(len(values))
    else:
        values, grades = _paired(model, task, options), np.array(task.grades)
    name, measure = MEASURES[kind]
    return Result(kind, name, measure(values, grades), *interval(values, grades, measure), values, grades)


def difference(first: Result, second: Result) -> tuple[float, float]:
    """(how much better the second one is, how often luck alone makes a difference as large)."""
    measure: Callable[..., float] = MEASURES[first.task][1]
    values = [first.values, second.values]
    if first.task != "retrieval":
        # Two models' similarities are on scales of their own.
        values = [ranks(each) for each in values]
    return second.score - first.score, chance(values[0], values[1], first.grades, measure)


def _by_vectors(model: Model, queries: Sequence[str], documents: Sequence[str], options: dict[str, Any]) -> np.ndarray:
    return model.similarity(model.encode_query(queries, **options), model.encode_document(documents, **options))


def _by_pairs(model: Model, queries: Sequence[str], documents: Sequence[str], options: dict[str, Any]) -> np.ndarray:
    scores = np.zeros((len(queries), len(documents)))
    for row, query in zip(scores, queries, strict=True):
        for ranked in model.rerank(query, documents, raw_scores=True, **options):
            row[ranked.index] = ranked.score
    return scores


def _paired(model: Model, task: Graded, options: dict[str, Any]) -> np.ndarray:
    """The similarity of each pair's texts."""
    if isinstance(model.head, EmbeddingHead):
        # Both texts play one role.
        first, second = (model.embed(texts, **options) for texts in (task.first, task.second))
        return np.array([model.similarity(a, b)[0, 0] for a, b in zip(first, second, strict=True)], np.float64)
    pairs = zip(task.first, task.second, strict=True)
    return np.array([model.rerank(a, [b], raw_scores=True, **options)[0].score for a, b in pairs])
