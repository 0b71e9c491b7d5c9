"""A small model, jobs over small inputs, and what they left behind."""

from __future__ import annotations

import archport  # noqa: F401

# isort: split
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tolerances import tolerance

from archport import engine
from archport.bulk import Job, Summary, read, run
from archport.bulk.inputs import Inputs
from archport.bulk.rows import Fields

GOLDENS = Path(__file__).parents[1] / "goldens"
TEXTS = [f"text number {index} " * (1 + index % 5) for index in range(50)]


@pytest.fixture(scope="session")
def model() -> engine.Model:
    return engine.load(GOLDENS / "bert-plain")


@pytest.fixture(scope="session")
def colbert() -> engine.Model:
    return engine.load(GOLDENS / "colbert")


@pytest.fixture(scope="session")
def splade() -> engine.Model:
    return engine.load(GOLDENS / "splade")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Fifty good rows as JSON lines."""
    return json_lines(tmp_path / "rows.jsonl", [{"id": f"d{at}", "text": text} for at, text in enumerate(TEXTS)])


@pytest.fixture
def job(model: engine.Model, tmp_path: Path) -> Callable[..., Summary]:
    """Run a job of parts of seven rows into the folder `out` of this test."""

    def start(sources: Path | Sequence[Path], fields: Fields = Fields(), **settings: Any) -> Summary:  # noqa: B008
        sources = [sources] if isinstance(sources, Path) else sources
        how = {name: settings.pop(name) for name in ("input_format", "table", "pattern") if name in settings}
        extra = {name: settings.pop(name) for name in ("watch", "stop") if name in settings}
        used = settings.pop("model", model)
        inputs = Inputs([str(source) for source in sources], fields, **how)
        settings = {"out": tmp_path / "out", "part_rows": 7, **settings}
        return run(used, inputs, Job(**settings), **extra)

    return start


def json_lines(path: Path, values: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def written(folder: Path) -> tuple[dict[Any, Any], dict[Any, str]]:
    """({id: vector}, {id: error}) of a job; an id that comes twice is a failure."""
    vectors: dict[Any, Any] = {}
    errors: dict[Any, str] = {}
    for stored in read(folder):
        for id, vector in stored.rows():
            assert id not in vectors
            vectors[id] = vector
        for index, error in stored.errors.items():
            errors[stored.ids[index]] = error
    return vectors, errors


def contents(folder: Path) -> dict[str, bytes]:
    """The data files of a job, by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("part-*"))}


def close(found: Any, expected: np.ndarray) -> None:
    np.testing.assert_allclose(np.asarray(found), expected, atol=tolerance("reference"))
