"""Jobs over pictures, jobs that are searched by tokens, and what is told of a job under way."""

from __future__ import annotations

import archport  # noqa: F401

# isort: split
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from archport import engine
from archport.bulk import search
from archport.bulk.extras import arrow, parquet
from archport.bulk.inputs import Inputs
from archport.bulk.rows import Fields
from archport.cli import batch_watch

from .conftest import GOLDENS, TEXTS, close, json_lines, written

pytestmark = pytest.mark.needs("pyarrow")

IMAGE = Fields(image="image")


@pytest.fixture(scope="module")
def sighted() -> engine.Model:
    return engine.load(GOLDENS / "qwen3-vl")


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(3):
        array = np.random.default_rng(index).integers(0, 255, (64, 64, 3), np.uint8)
        Image.fromarray(array).save(folder / f"{index}.png")
    return sorted(folder.iterdir())


def test_a_picture_is_a_path_beside_the_file_that_names_it_or_its_bytes(tmp_path: Path, sighted, job, pictures):
    expected = sighted.embed([{"image": str(path)} for path in pictures])
    names = [str(path.relative_to(tmp_path)) for path in pictures]
    json_lines(tmp_path / "rows.jsonl", [{"id": name, "image": name} for name in names])
    data = [path.read_bytes() for path in pictures]
    parquet().write_table(arrow().table({"id": names, "image": data}), tmp_path / "rows.parquet")
    nested = [{"bytes": each, "path": None} for each in data]
    parquet().write_table(arrow().table({"id": names, "image": nested}), tmp_path / "nested.parquet")
    for name in ("rows.jsonl", "rows.parquet", "nested.parquet"):
        job(tmp_path / name, IMAGE, model=sighted, out=tmp_path / f"out-{name}")
        vectors, errors = written(tmp_path / f"out-{name}")
        assert (list(vectors), errors) == (names, {})
        close(list(vectors.values()), expected)


def test_a_text_beside_a_picture_is_read_with_it_and_a_damaged_one_is_a_bad_row(tmp_path: Path, sighted, job, pictures):
    pictures[1].write_bytes(b"no picture")
    values = [{"id": at, "image": str(path), "text": "a picture"} for at, path in enumerate(pictures)]
    values += [{"id": 3, "text": "words alone"}, {"id": 4}]
    job(json_lines(tmp_path / "rows.jsonl", values), IMAGE, model=sighted, on_error="record")
    vectors, errors = written(tmp_path / "out")
    assert (list(vectors), list(errors)) == ([0, 2, 3], [1, 4])
    assert "it has neither 'image' nor 'text'" in errors[4]
    close(vectors[0], sighted.embed([{"image": str(pictures[0]), "text": "a picture"}])[0])


def test_pictures_of_a_folder_are_pictures(tmp_path: Path, sighted, job, pictures):
    (pictures[0].parent / "note.txt").write_text("words")
    job(pictures[0].parent, model=sighted)
    vectors, _ = written(tmp_path / "out")
    assert list(vectors) == ["0.png", "1.png", "2.png", "note.txt"]
    close(vectors["1.png"], sighted.embed([{"image": str(pictures[1])}])[0])


def test_a_job_of_token_vectors_is_searched_by_late_interaction(tmp_path: Path, colbert, job, rows):
    job(rows, model=colbert, output="tokens")
    scores = colbert.maxsim("text number 7", TEXTS)
    found = search(tmp_path / "out", "text number 7", colbert, top_k=50)
    close([each.score for each in found], -np.sort(-scores))
    close([scores[int(str(each.id)[1:])] for each in found], -np.sort(-scores))


def test_the_time_left_goes_by_tokens_and_by_what_is_still_to_be_read(monkeypatch, capsys, rows):
    clock = [0.0]
    monkeypatch.setattr(batch_watch.time, "monotonic", lambda: clock[0])
    inputs = Inputs([str(rows)])
    watch = batch_watch.BatchWatch(inputs, quiet=False, said=str)
    monkeypatch.setattr(inputs, "share", lambda: 0.25)
    clock[0] = 20.0
    watch(500, tokens=8000)
    assert capsys.readouterr().err == ""
    clock[0] = 40.0
    watch(500, tokens=8000)
    assert capsys.readouterr().err == "archport: 1,000 rows, 16,000 tokens, 400 tokens/s, 25% read, 2 min 0 s left\n"


@pytest.mark.parametrize(("seconds", "said"), [(59.9, "59 s"), (61, "1 min 1 s"), (7300, "2 h 1 min")])
def test_a_duration_is_said_as_people_say_it(seconds: float, said: str):
    assert batch_watch.duration(seconds) == said


def test_a_job_goes_on_with_the_parts_it_was_begun_with(tmp_path: Path, job, rows):
    job(rows, part_rows=9)
    assert job(rows, part_rows=None, resume=True).parts == 6
    assert job(rows, part_rows=None, overwrite=True).parts == 1
