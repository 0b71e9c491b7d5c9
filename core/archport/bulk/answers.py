"""A part's rows through the model: equal texts once, bad rows apart, vectors in the precision of the job."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from archport.answering.precision import Precision, Ranges, quantise
from archport.answering.sparse_vectors import SparseVectors, is_sparse, taken_in
from archport.bulk.parts import Part
from archport.contract import ArchportError, InputError
from archport.device.progress import Counter
from archport.tasks import chosen

if TYPE_CHECKING:
    from archport.engine import Model

# How the library names a text.
_ROW = re.compile(r"\b(?:text|input) \d+\b")


@dataclass(frozen=True, slots=True)
class Answered:
    """What became of a part.

    Args:
        number, first, count: of the part: its number, its first row and how many were read.
        ids: of the rows that are written, None where one has none.
        vectors: of those that have one, in order: (n, D), an object array of (tokens, D), or SparseVectors.
        errors: index among the ids -> why it has no vector.
        failed: rows without a vector, written or not.
        tokens: run for it.
        digest: of what was read.
        requests: of an OpenAI batch the body of every row, and the tokens of its texts.
    """

    number: int
    first: int
    count: int
    ids: list[int | str | None]
    vectors: np.ndarray | SparseVectors
    errors: dict[int, str]
    failed: int = 0
    tokens: int = 0
    digest: str = ""
    requests: list[tuple[Any, int]] = field(default_factory=list[tuple[Any, int]])

    @property
    def rows(self) -> list[int]:
        """Indices of the ids that have a vector."""
        return [index for index in range(len(self.ids)) if index not in self.errors]


@dataclass(frozen=True, slots=True)
class Form:
    """How vectors are written.

    Args:
        width: of vectors, where there are none.
        precision: of their numbers.
        ranges: of int8 and uint8.
    """

    width: int
    precision: Precision = "float32"
    ranges: Ranges | None = None


def named(error: ArchportError, place: str) -> ArchportError:
    """An error that names a row of a call by its place in the input."""
    message = str(error)
    said, known = _ROW.subn(lambda _: place, message, count=1)
    error.args = (said if known else f"{place}: {message}", *error.args[1:])
    return error


def fault(part: Part, index: int) -> InputError:
    """The error of a row that could not be read."""
    return InputError(f"{part.rows[index].said}: {part.faults[index]}")


def embedded(
    model: Model, items: Sequence[Any], options: dict[str, Any], told: Counter
) -> tuple[dict[int, Any], dict[int, ArchportError]]:
    """Vectors, of sparse ones (ids, weights), and errors by index; equal texts run once."""
    places: dict[Any, list[int]] = {}
    for index, item in enumerate(items):
        places.setdefault(item if isinstance(item, str) else (index,), []).append(index)
    once = [items[indices[0]] for indices in places.values()]
    all_places = list(places.values())
    made = model.embed(once, errors="collect", progress=told, **options)
    results: Any = made.results
    if is_sparse(results):
        given = taken_in(results, "vectors")
        results = [given.row(at) for at in range(len(given))]
    found = {index: vector for row, vector in zip(made.rows, results, strict=True) for index in all_places[row]}
    return found, {index: error for row, error in made.errors.items() for index in all_places[row]}


def answered(
    model: Model,
    part: Part,
    options: dict[str, Any],
    told: Counter,
    *,
    on_error: str,
    form: Form,
    skipped: Callable[[str], None] = lambda _: None,
) -> Answered:
    """Vectors of a part's rows.

    Args:
        options: of `Model.embed`.
        on_error: `fail` raises the first row's error, `skip` leaves bad rows out, `record` keeps them with their error.
        skipped: told why a row has no vector.

    Raises:
        ArchportError: with `fail`, naming the row.
    """
    good = [index for index in range(len(part.rows)) if index not in part.faults]
    run: list[int] = []

    def counted(done: int, *, dropped: int = 0, tokens: int = 0) -> None:
        run.append(tokens)
        told(done, dropped=dropped, tokens=tokens)

    if part.rows and any(part.rows[index].request is not None for index in good):
        vectors, errors, requests = _requested(model, part, good, options, counted)
    else:
        found, failed = embedded(model, [part.rows[index].item for index in good], options, counted)
        vectors, requests = {good[at]: vector for at, vector in found.items()}, {}
        errors = {good[at]: error for at, error in failed.items()}
    every: dict[int, ArchportError] = {index: fault(part, index) for index in part.faults}
    every |= {index: named(error, part.rows[index].said) for index, error in errors.items()}
    if every and on_error == "fail":
        raise every[min(every)]
    for index in sorted(every):
        skipped(_plain(every[index]))
    kept = [index for index in range(len(part.rows)) if index in vectors or on_error == "record"]
    return Answered(
        number=part.number,
        first=part.first,
        count=len(part.rows),
        ids=[part.ids[index] for index in kept],
        vectors=_together([vectors[index] for index in kept if index in vectors], options, form),
        errors={at: _plain(every[index]) for at, index in enumerate(kept) if index not in vectors},
        failed=len(every),
        tokens=sum(run),
        digest=part.digest(),
        requests=[(part.rows[index].request, requests.get(index, 0)) for index in kept],
    )


def _plain(error: ArchportError) -> str:
    """What it says, in characters that every file takes: the name of a file may hold others."""
    return str(error).encode("utf-8", "backslashreplace").decode()


def _together(vectors: list[Any], options: dict[str, Any], form: Form) -> np.ndarray | SparseVectors:
    if options.get("output") == "sparse":
        return SparseVectors.of(vectors, form.width)
    ragged = options.get("output") == "tokens" or any(vector.ndim == 2 for vector in vectors)
    if ragged:
        objects = np.empty(len(vectors), dtype=object)
        for index, vector in enumerate(vectors):
            objects[index] = vector
        return objects
    stacked = np.stack(vectors) if vectors else np.zeros((0, form.width), np.float32)
    return quantise(stacked, form.precision, form.ranges)


def _requested(
    model: Model, part: Part, good: list[int], options: dict[str, Any], told: Counter
) -> tuple[dict[int, np.ndarray], dict[int, ArchportError], dict[int, int]]:
    """Vectors (texts, D), errors and tokens of the requests of an OpenAI batch, by row; those of one width together."""
    vectors: dict[int, np.ndarray] = {}
    errors: dict[int, ArchportError] = {}
    tokens: dict[int, int] = {}
    widths: dict[int | None, list[int]] = {}
    for index in good:
        widths.setdefault((part.rows[index].request or {}).get("dimensions"), []).append(index)
    tokeniser = chosen(model._runtime, options.get("task")).embedder().tokeniser
    for width, rows in widths.items():
        texts = [(row, text) for row in rows for text in part.rows[row].item]
        own = options if width is None else {**options, "dimensions": width}
        try:
            found, failed = embedded(model, [text for _, text in texts], own, told)
        except InputError as error:
            # A width that this model does not have.
            errors.update((row, InputError(str(error))) for row in rows)
            continue
        for at, error in failed.items():
            errors.setdefault(texts[at][0], error)
        several: dict[int, list[np.ndarray]] = {}
        for at in sorted(found):
            several.setdefault(texts[at][0], []).append(found[at])
        vectors.update((row, np.stack(each)) for row, each in several.items() if row not in errors)
        whole = [(row, text) for row, text in texts if row not in errors]
        prompt = tokeniser.prompt(options.get("prompt"), options.get("prompt_name"))
        limits: dict[str, Any] = {"max_tokens": options.get("max_tokens"), "overflow": options.get("overflow", "error")}
        for (row, _), length in zip(
            whole, tokeniser([text for _, text in whole], prompt=prompt, **limits).lengths, strict=True
        ):
            tokens[row] = tokens.get(row, 0) + length
    return vectors, errors, tokens
