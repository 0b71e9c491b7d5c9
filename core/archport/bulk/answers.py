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


@dataclass(frozen=True, slots=True)
class Embedded:
    """What became of some items.

    Args:
        vectors: (n, D), a list of (tokens, D), or SparseVectors, of every item once.
        places: index of an item -> its row there.
        errors: index -> why it has none.
    """

    vectors: Any
    places: dict[int, int]
    errors: dict[int, ArchportError]


def embedded(model: Model, items: Sequence[Any], options: dict[str, Any], told: Counter) -> Embedded:
    """Vectors and errors; equal texts run once."""
    indices: dict[Any, list[int]] = {}
    for index, item in enumerate(items):
        indices.setdefault(item if isinstance(item, str) else (index,), []).append(index)
    alike = list(indices.values())
    made = model.embed([items[some[0]] for some in alike], errors="collect", progress=told, **options)
    results: Any = made.results
    return Embedded(
        taken_in(results, "vectors") if is_sparse(results) else results,
        {index: place for place, row in enumerate(made.rows) for index in alike[row]},
        {index: error for row, error in made.errors.items() for index in alike[row]},
    )


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
        found, places, errors, requests = _requested(model, part, good, options, counted)
    else:
        made = embedded(model, [part.rows[index].item for index in good], options, counted)
        found, requests = made.vectors, {}
        places = {good[at]: place for at, place in made.places.items()}
        errors = {good[at]: error for at, error in made.errors.items()}
    every: dict[int, ArchportError] = {index: fault(part, index) for index in part.faults}
    every |= {index: named(error, part.rows[index].said) for index, error in errors.items()}
    if every and on_error == "fail":
        raise every[min(every)]
    for index in sorted(every):
        skipped(_plain(every[index]))
    kept = [index for index in range(len(part.rows)) if index in places or on_error == "record"]
    return Answered(
        number=part.number,
        first=part.first,
        count=len(part.rows),
        ids=[part.ids[index] for index in kept],
        vectors=_together(found, [places[index] for index in kept if index in places], form),
        errors={at: _plain(every[index]) for at, index in enumerate(kept) if index not in places},
        failed=len(every),
        tokens=sum(run),
        digest=part.digest,
        requests=[(part.rows[index].request, requests.get(index, 0)) for index in kept],
    )


def _plain(error: ArchportError) -> str:
    """What it says, in characters that every file takes: the name of a file may hold others."""
    return str(error).encode("utf-8", "backslashreplace").decode()


def _together(found: Any, places: list[int], form: Form) -> np.ndarray | SparseVectors:
    """The vectors at these places, in this order."""
    if isinstance(found, SparseVectors):
        return SparseVectors.of([found.row(place) for place in places], form.width)
    if isinstance(found, np.ndarray) and found.ndim == 2:
        # Most often all of them, as they are.
        return quantise(found if places == list(range(len(found))) else found[places], form.precision, form.ranges)
    objects = np.empty(len(places), dtype=object)
    for index, place in enumerate(places):
        objects[index] = found[place]
    return objects


def _requested(
    model: Model, part: Part, good: list[int], options: dict[str, Any], told: Counter
) -> tuple[list[np.ndarray], dict[int, int], dict[int, ArchportError], dict[int, int]]:
    """Of an OpenAI batch: vectors (texts, D) of each request, where they are by row, and errors and tokens by row.

    Requests of one width run together.
    """
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
            made = embedded(model, [text for _, text in texts], own, told)
        except InputError as error:
            # A width that this model does not have.
            errors.update((row, InputError(str(error))) for row in rows)
            continue
        for at, error in made.errors.items():
            errors.setdefault(texts[at][0], error)
        several: dict[int, list[np.ndarray]] = {}
        for at in sorted(made.places):
            several.setdefault(texts[at][0], []).append(made.vectors[made.places[at]])
        vectors.update((row, np.stack(each)) for row, each in several.items() if row not in errors)
        whole = [(row, text) for row, text in texts if row not in errors]
        prompt = tokeniser.prompt(options.get("prompt"), options.get("prompt_name"))
        limits: dict[str, Any] = {"max_tokens": options.get("max_tokens"), "overflow": options.get("overflow", "error")}
        for (row, _), length in zip(
            whole, tokeniser([text for _, text in whole], prompt=prompt, **limits).lengths, strict=True
        ):
            tokens[row] = tokens.get(row, 0) + length
    return list(vectors.values()), {row: place for place, row in enumerate(vectors)}, errors, tokens
