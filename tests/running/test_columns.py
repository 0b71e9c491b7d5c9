"""Columns and open files as texts: the vectors are those of the same texts in a list."""

from __future__ import annotations

import archport  # noqa: F401

# isort: split
from pathlib import Path

import numpy as np
import pytest

from archport import engine
from archport.contract import InputError
from archport.reading.columns import Column, Unreadable, texts_of

GOLDENS = Path(__file__).parents[1] / "goldens"
TEXTS = [f"text number {index}" for index in range(5)]


@pytest.fixture(scope="module")
def model():
    return engine.load(GOLDENS / "bert-plain")


def arrow_columns():
    import pyarrow as pa

    return {
        "an array": pa.array(TEXTS),
        "chunks": pa.chunked_array([TEXTS[:2], [], TEXTS[2:]]),
        "large strings": pa.array(TEXTS, pa.large_string()),
        "views": pa.array(TEXTS, pa.string_view()),
        "a dictionary": pa.array(TEXTS).dictionary_encode(),
    }


@pytest.mark.needs("pyarrow")
@pytest.mark.parametrize("kind", ["an array", "chunks", "large strings", "views", "a dictionary"])
def test_a_pyarrow_column_is_its_texts(model, kind: str):
    column = arrow_columns()[kind]
    assert (model.embed(column) == model.embed(TEXTS)).all()
    made = list(model.stream(column, window=2))
    assert [first for first, _ in made] == [0, 2, 4]


@pytest.mark.needs("pyarrow")
def test_a_missing_value_of_a_column_is_named_and_can_be_set_aside(model):
    import pyarrow as pa

    column = pa.array(["fine", None, "fine too"])
    with pytest.raises(InputError, match="text 1 is None"):
        model.embed(column)
    assert model.embed(column, errors="collect").rows == (0, 2)


@pytest.mark.needs("pyarrow")
def test_bytes_that_are_no_utf8_in_a_pyarrow_column_are_a_bad_row(model):
    import pyarrow as pa

    column = pa.array([b"fine", b"\xff\xfe", b"last"]).view(pa.string())
    with pytest.raises(InputError, match="text 1: not UTF-8"):
        model.embed(column)
    assert model.embed(column, errors="collect").rows == (0, 2)


@pytest.mark.needs("pyarrow")
def test_a_table_is_refused_and_not_read_as_the_names_of_its_columns(model):
    import pyarrow as pa

    for table in (pa.table({"text": TEXTS}), pa.record_batch({"text": TEXTS})):
        with pytest.raises(InputError, match="texts"):
            model.embed(table)


def test_a_column_is_read_block_by_block():
    asked: list[tuple[int, int]] = []

    def read(first: int, number: int) -> list[int]:
        asked.append((first, number))
        return list(range(first, first + number))

    column = Column(2500, read)
    assert list(column) == list(range(2500))
    assert asked == [(0, 1024), (1024, 1024), (2048, 452)]
    assert list(column[2400:]) == list(range(2400, 2500))
    assert column[-1] == 2499
    assert list(column[10:20][2:4]) == [12, 13]


@pytest.mark.parametrize("mode", ["r", "rb"])
def test_an_open_file_is_a_text_per_line_without_the_lines_ends(tmp_path: Path, model, mode: str):
    path = tmp_path / "texts.txt"
    path.write_bytes(b"one\r\ntwo words\nlast")
    with path.open(mode) as file:
        assert (model.embed(file) == model.embed(["one", "two words", "last"])).all()


def test_a_line_of_an_open_file_that_is_no_utf8_is_a_bad_row(tmp_path: Path, model):
    path = tmp_path / "texts.txt"
    path.write_bytes(b"one\n\xff\nlast\n")
    with path.open("rb") as file:
        made = model.embed(file, errors="collect")
    assert made.rows == (0, 2)
    assert "text 1: not UTF-8" in str(made.errors[1])


@pytest.mark.parametrize("name", ["bert-plain", "qwen3-vl"])
def test_a_row_that_could_not_be_read_is_an_error_like_any(name: str):
    model, rows = engine.load(GOLDENS / name), ["one", Unreadable("torn"), "two"]
    with pytest.raises(InputError, match="text 1: torn"):
        model.embed(rows)
    assert model.embed(rows, errors="collect").rows == (0, 2)


@pytest.mark.bulk
@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_series_is_its_texts(model, library: str):
    import pandas
    import polars

    series, frame = (
        (pandas.Series(TEXTS, index=range(7, 12)), pandas.DataFrame({"text": TEXTS}))
        if library == "pandas"
        else (polars.Series(TEXTS), polars.DataFrame({"text": TEXTS}))
    )
    assert isinstance(texts_of(series), Column)
    assert (model.embed(series) == model.embed(TEXTS)).all()
    assert (model.embed(frame["text"]) == model.embed(TEXTS)).all()
    with pytest.raises(InputError, match=f"{library} DataFrame; expected one column"):
        model.embed(frame)


@pytest.mark.bulk
def test_what_is_missing_in_a_pandas_series_is_a_bad_row(model):
    import pandas

    for dtype in (object, "string", "category"):
        made = model.embed(pandas.Series(["fine", None, "fine too"], dtype=dtype), errors="collect")
        assert made.rows == (0, 2)
        assert "text 1 is None" in str(made.errors[1])


def test_columns_of_no_library_are_left_as_they_are():
    rows = np.array(TEXTS)
    assert texts_of(rows) is rows
    assert texts_of(TEXTS) is TEXTS
