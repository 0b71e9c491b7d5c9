"""The rows of a job that are nearest to a query, part by part, in the memory of one part. Knows no index."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from archport.answering.precision import restored
from archport.answering.sparse_vectors import SparseVectors
from archport.answering.token_vectors import maxsim
from archport.bulk.manifest import RANGES, TOTAL, Manifest, load_json
from archport.bulk.stores import load_ranges, opened
from archport.contract import InputError
from archport.contract.errors import shown
from archport.tasks import chosen

if TYPE_CHECKING:
    from archport.engine import Model


@dataclass(frozen=True, slots=True)
class Found:
    """A row near a query.

    Args:
        id: of the row.
        score: larger is nearer, as the model's vectors compare.
    """

    id: int | str | None
    score: float


@dataclass(frozen=True, slots=True)
class JobModel:
    """What a job was made with.

    Args:
        name, revision, adapter, adapters: for `engine.load`.
        task: whose adapter ran.
    """

    name: str
    revision: str | None
    adapter: str | None
    adapters: Mapping[str, str] | None
    task: str | None


def model_of(folder: Path | str) -> JobModel:
    """The model that a job was made with."""
    settings = opened(folder)[0].settings
    others = (settings.get(name) for name in ("adapter", "adapters", "task"))
    return JobModel(settings["model"], settings["revision"], *others)


def complete(folder: Path | str) -> bool:
    """Whether every part of a job was written, by all who shared it."""
    total = load_json(Path(folder) / TOTAL)
    return total is not None and len(opened(folder)[1].recorded()) == total["parts"]


def search(folder: Path | str, query: str, model: Model, top_k: int = 10, task: str | None = None) -> list[Found]:
    """The `top_k` rows of a job nearest to a query, the nearest first; equal ones in the order of the input.

    Args:
        query: a text, read with the model's prompt for queries.
        model: the one that the job was made with.
        task: whose adapter reads the query; None: the job's.

    Raises:
        InputError: where there is no job, or the model's vectors are not of its width.
    """
    if top_k < 1:
        raise InputError(f"top_k={shown(top_k)}; expected a positive number of rows")
    manifest, store = opened(folder)
    asked = _query(manifest, query, model, manifest.settings.get("task") if task is None else task)
    ranges = load_ranges(Path(folder) / RANGES)
    best: list[Found] = []
    for _, record in sorted(store.records().items()):
        stored = store.read(record)
        if not len(stored.vectors):
            continue
        vectors = stored.vectors
        if isinstance(vectors, SparseVectors):
            scores = model.similarity(asked, cast(Any, vectors))[0]
        elif manifest.settings["output"] == "tokens" or vectors.dtype == object:
            scores = maxsim(asked, list(vectors))
        else:
            width = manifest.provenance["dimensions"]
            near = restored(np.asarray(vectors), manifest.settings["precision"], ranges, width)
            scores = model.similarity(asked, near)[0]
        ids = [id for index, id in enumerate(stored.ids) if index not in stored.errors]
        nearest = np.argsort(-scores, kind="stable")[:top_k]
        best += [Found(ids[at], float(scores[at])) for at in nearest]
        best = sorted(best, key=lambda row: -row.score)[:top_k]
    return best


def _query(manifest: Manifest, query: str, model: Model, task: str | None) -> Any:
    """The query's vector (1, D) or (1, V) sparse, or its tokens' (n, D)."""
    settings = manifest.settings
    if settings["output"] == "tokens":
        return chosen(model._runtime, task).tokens().prompted([query], "query")[0]
    own: dict[str, Any] = {} if task is None else {"task": task}
    if settings["output"] == "sparse":
        return model.encode_query([query], output="sparse", top_k=settings.get("top_k"), **own)
    made = model.encode_query([query], dimensions=settings["dimensions"], normalize=settings["normalize"], **own)
    if made.shape[1] != manifest.provenance["dimensions"]:
        raise InputError(
            f"{model.name} makes vectors of {made.shape[1]} dimensions, and the job's have "
            f"{manifest.provenance['dimensions']}; load the model it was made with, {settings['model']}"
        )
    return made
