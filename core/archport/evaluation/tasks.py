"""The tasks that come with archport: questions with the passages that answer them, and pairs with how alike they are.

Small, in English, and written for this purpose: they tell a broken model from a sound one and a much better one from
another, not two good ones apart.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from archport.contract import InputError

Kind = Literal["retrieval", "sts", "pairs"]
_DATA = Path(__file__).parent / "data"


@dataclass(frozen=True, slots=True)
class Retrieval:
    """Queries, documents, and which of these answer which.

    Args:
        relevant: of each query the indices of its documents.
    """

    queries: tuple[str, ...]
    documents: tuple[str, ...]
    relevant: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Graded:
    """Pairs of texts with a number each: how alike they mean, or 1 and 0 for the same question and another one.

    Args:
        first, second: the texts of the pairs.
        grades: as people gave them.
    """

    first: tuple[str, ...]
    second: tuple[str, ...]
    grades: tuple[float, ...]


@cache
def bundled(kind: Kind) -> Retrieval | Graded:
    """One of the tasks; raises InputError for another name."""
    if kind not in get_args(Kind):
        raise InputError(f"task {kind!r}; expected one of {', '.join(get_args(Kind))}")
    data: dict[str, Any] = json.loads((_DATA / f"{kind}.json").read_text(encoding="utf-8"))
    if kind == "retrieval":
        queries = data["queries"]
        relevant = tuple(tuple(query["relevant"]) for query in queries)
        return Retrieval(tuple(query["text"] for query in queries), tuple(data["documents"]), relevant)
    first, second, grades = zip(*data["pairs"], strict=True)
    return Graded(first, second, tuple(map(float, grades)))
