"""Every input is the rows that were put into it, and every output gives back what the model answered."""

from __future__ import annotations

import archport  # noqa: F401

# isort: split
import base64
import csv
import gzip
import io
import json
import os
import resource
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from archport.answering.sparse_vectors import SparseVectors
from archport.bulk import read, search
from archport.bulk.answers import Answered
from archport.bulk.extras import arrow, parquet
from archport.bulk.formats import save_array
from archport.bulk.inputs import Inputs
from archport.bulk.rows import Fields
from archport.bulk.stores import store_of
from archport.contract import InputError

from .conftest import TEXTS, close, contents, json_lines, written

pytestmark = pytest.mark.needs("pyarrow")

IDS = [f"d{index}" for index in range(len(TEXTS))]
AWKWARD = ['a "quote", a comma\nand a line', "tab\tand \u2028 separator", "é ü 漢字 😀", " leading", "x" * 300]


def as_jsonl(path: Path, ids: list, texts: list[str]) -> None:
    json_lines(path, [{"id": id, "text": text} for id, text in zip(ids, texts, strict=True)])


def as_jsonl_gz(path: Path, ids: list, texts: list[str]) -> None:
    as_jsonl(path, ids, texts)
    path.write_bytes(gzip.compress(path.read_bytes()))


def as_csv(path: Path, ids: list, texts: list[str]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows(
            [("text", "other", "id"), *((text, "-", id) for id, text in zip(ids, texts, strict=True))]
        )


def as_parquet(path: Path, ids: list, texts: list[str]) -> None:
    parquet().write_table(arrow().table({"other": [1] * len(ids), "text": texts, "id": ids}), path, row_group_size=9)


def as_arrow(path: Path, ids: list, texts: list[str]) -> None:
    table = arrow().table({"text": texts, "id": ids})
    with arrow().OSFile(str(path), "wb") as file, arrow().ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=9)


def as_arrow_stream(path: Path, ids: list, texts: list[str]) -> None:
    table = arrow().table({"text": texts, "id": ids})
    with arrow().OSFile(str(path), "wb") as file, arrow().ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=9)


def as_sqlite(path: Path, ids: list, texts: list[str]) -> None:
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE docs (id, text TEXT, other)")
        database.executemany("INSERT INTO docs VALUES (?, ?, 1)", zip(ids, texts, strict=True))


def as_folder(path: Path, ids: list, texts: list[str]) -> None:
    for id, text in zip(ids, texts, strict=True):
        file = path / str(id)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode())


WRITERS: dict[str, Callable[[Path, list, list[str]], None]] = {
    "rows.jsonl": as_jsonl,
    "rows.ndjson": as_jsonl,
    "rows.jsonl.gz": as_jsonl_gz,
    "rows.csv": as_csv,
    "rows.tsv": as_csv,
    "rows.parquet": as_parquet,
    "rows.arrow": as_arrow,
    "rows.feather": as_arrow_stream,
    "rows.db": as_sqlite,
    "rows": as_folder,
}


@pytest.mark.parametrize("name", WRITERS)
def test_an_input_is_the_rows_that_were_put_into_it(tmp_path: Path, model, job, name: str):
    texts = [*AWKWARD, *TEXTS[:20]]
    ids = [f"a/{index:02d}.txt" for index in range(len(texts))]
    WRITERS[name](tmp_path / name, ids, texts)
    summary = job(tmp_path / name)
    vectors, errors = written(tmp_path / "out")
    assert (list(vectors), errors, summary.rows) == (ids, {}, len(ids))
    close(list(vectors.values()), model.embed(texts))


def test_values_of_a_database_keep_their_line_ends_and_their_kind(tmp_path: Path):
    with sqlite3.connect(tmp_path / "rows.db") as database:
        database.execute("CREATE TABLE docs (id INTEGER PRIMARY KEY AUTOINCREMENT, text TEXT, image)")
        values = [("a\r\n", "data:image/png;base64,AA"), ("b\n", "x.png"), ("c", b"bytes that end in .png")]
        database.executemany("INSERT INTO docs (text, image) VALUES (?, ?)", values)
    rows = list(Inputs([str(tmp_path / "rows.db")], Fields(image="image")).rows())
    assert [row.item["text"] for row in rows] == ["a\r\n", "b\n", "c"]
    assert [row.item["image"] for row in rows] == [values[0][1], str(tmp_path / "x.png"), values[2][1]]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "rows.arrow", "rows.db"])
def test_integer_ids_stay_integers(tmp_path: Path, job, name: str):
    WRITERS[name](tmp_path / name, [7, -3, 2**62], TEXTS[:3])
    job(tmp_path / name)
    assert list(written(tmp_path / "out")[0]) == [7, -3, 2**62]
    assert parquet().read_schema(tmp_path / "out" / "part-00000.parquet").field("id").type == arrow().int64()


def test_rows_without_ids_have_their_number_over_all_inputs(tmp_path: Path, model, job):
    (tmp_path / "a.txt").write_text("one\ntwo\n\n", encoding="utf-8")
    json_lines(tmp_path / "b.jsonl", ["three", {"text": "four"}])
    np.save(tmp_path / "c.npy", np.array(["five", "six"]))
    np.save(tmp_path / "d.npy", np.array([b"seven"]))
    job([tmp_path / name for name in ("a.txt", "b.jsonl", "c.npy", "d.npy")])
    vectors, _ = written(tmp_path / "out")
    assert list(vectors) == list(range(8))
    close(list(vectors.values()), model.embed(["one", "two", "", "three", "four", "five", "six", "seven"]))


@pytest.mark.parametrize(
    ("kind", "data"), [("text", b"one\ntwo\n"), ("jsonl", b'"one"\n{"text": "two"}\n'), ("csv", b"text\none\ntwo\n")]
)
def test_standard_input_is_read_line_by_line(monkeypatch, tmp_path: Path, model, job, kind: str, data: bytes):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    job(Path("-"), input_format=kind)
    close(list(written(tmp_path / "out")[0].values()), model.embed(["one", "two"]))


@pytest.mark.parametrize(
    ("source", "kind", "data"),
    [
        *((source, "text", "é\n") for source in ("folder/file", "-")),
        *((source, "jsonl", '{"id": 0, "text": "é"}\n') for source in ("folder/file", "-")),
        *((source, "csv", "id,text\n0,é\n") for source in ("folder/file", "-")),
        ("folder", "folder", "é"),
    ],
)
def test_the_mark_that_windows_puts_before_a_text_is_none_of_it(monkeypatch, tmp_path: Path, source, kind, data: str):
    marked = b"\xef\xbb\xbf" + data.encode()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(marked)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(marked)))
    monkeypatch.chdir(tmp_path)
    assert [(row.item, row.error) for row in Inputs([source], input_format=kind).rows()] == [("é", None)]


@pytest.mark.parametrize("source", ["file", "-"])
@pytest.mark.parametrize("bad", [b"\n", b"{cut\n", b"\xff\xfe\n"])
def test_a_first_line_that_is_bad_does_not_hide_the_ids_of_the_others(monkeypatch, tmp_path: Path, source, bad: bytes):
    data = bad + b'{"id": "a", "text": "one"}\n{"id": "b", "text": "two"}\n'
    (tmp_path / "file").write_bytes(data)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    inputs = Inputs([source if source == "-" else str(tmp_path / "file")], input_format="jsonl")
    found = [(row.id, row.item, row.place[-1]) for row in inputs.rows()]
    assert found[-2:] == [("a", "one", 2), ("b", "two", 3)]
    assert len(found) == (2 if bad == b"\n" else 3)


def test_other_names_of_columns_are_asked_for(tmp_path: Path, job):
    path = json_lines(tmp_path / "rows.jsonl", [{"key": "a", "body": "one"}, {"key": "b", "body": "two"}])
    job(path, Fields("body", id="key", chosen=True))
    assert list(written(tmp_path / "out")[0]) == ["a", "b"]


def test_the_files_of_a_folder_are_read_in_a_format_that_was_asked_for(tmp_path: Path, model, job):
    (tmp_path / "set").mkdir()
    for index in range(3):
        as_parquet(
            tmp_path / "set" / f"{index}.parquet", IDS[index * 5 : index * 5 + 5], TEXTS[index * 5 : index * 5 + 5]
        )
    (tmp_path / "set" / "_metadata").write_text("none of them")
    job(tmp_path / "set", input_format="parquet")
    vectors, _ = written(tmp_path / "out")
    assert list(vectors) == IDS[:15]
    close(list(vectors.values()), model.embed(TEXTS[:15]))


def test_more_files_than_a_process_may_open_are_read(tmp_path: Path):
    writers = {"parquet": as_parquet, "arrow": as_arrow, "npy": lambda path, ids, texts: np.save(path, texts)}
    for kind, write in writers.items():
        (tmp_path / kind).mkdir()
        for index in range(40):
            write(tmp_path / kind / f"{index:02d}.{kind}", [index], [f"text {index}"])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 20, hard))
    try:
        for kind in writers:
            assert len(list(Inputs([str(tmp_path / kind)], input_format=kind).rows())) == 40  # pyright: ignore
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("input_format", [None, "text"])
def test_what_a_job_writes_below_its_input_is_none_of_it(tmp_path: Path, job, input_format):
    as_folder(tmp_path / "docs", ["a.txt", "deep/b.txt", "deep/.cache/c.txt"], ["one", "two", "three"])
    for resume in (False, True):
        out = tmp_path / "docs" / "deep" / "out"
        assert job(tmp_path / "docs", out=out, resume=resume, input_format=input_format).rows == 2
        (out / "part-00000.txt").write_text("left there")


def test_a_pattern_picks_files_of_a_folder_and_hidden_ones_are_none(tmp_path: Path, job):
    as_folder(tmp_path / "docs", ["a.md", "deep/b.md", "c.txt", ".git/d.md"], ["one"] * 4)
    job(tmp_path / "docs", pattern="*.md")
    assert list(written(tmp_path / "out")[0]) == ["a.md", "deep/b.md"]


@pytest.mark.parametrize("output_format", ["parquet", "jsonl", "npy", "sqlite"])
@pytest.mark.parametrize("settings", [{}, {"precision": "int8"}, {"precision": "ubinary"}, {"dimensions": 8}], ids=str)
def test_an_output_gives_back_what_was_written(tmp_path: Path, model, job, rows, output_format: str, settings: dict):
    job(rows, output_format=output_format, **settings)
    vectors, errors = written(tmp_path / "out")
    assert (list(vectors), errors) == (IDS, {})
    found = np.stack(list(vectors.values()))
    expected = model.embed(TEXTS, **settings)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    # A vector that rounding moves over the edge of a step is the next one.
    assert np.abs(found.astype(float) - expected).max() <= (1e-5 if found.dtype == np.float32 else 255)
    assert (np.abs(found.astype(float) - expected) > 1e-5).mean() < 0.01


@pytest.mark.parametrize("output_format", ["parquet", "jsonl", "npy", "sqlite"])
def test_vectors_of_tokens_and_bad_rows_come_back(tmp_path: Path, colbert, job, output_format: str):
    values = [{"id": id, "text": text} for id, text in zip(IDS, TEXTS, strict=True)]
    values[3]["text"], values[20]["text"] = None, 7
    path = json_lines(tmp_path / "rows.jsonl", values)
    summary = job(path, model=colbert, output="tokens", output_format=output_format, on_error="record")
    vectors, errors = written(tmp_path / "out")
    assert (set(errors), summary.failed) == ({"d3", "d20"}, 2)
    good = [text for index, text in enumerate(TEXTS) if index not in (3, 20)]
    for found, expected in zip(vectors.values(), colbert.embed(good, output="tokens"), strict=True):
        close(found, expected)


@pytest.mark.parametrize("output_format", ["parquet", "jsonl", "npy", "sqlite"])
def test_a_part_without_any_vector_of_a_token_comes_back(tmp_path: Path, colbert, job, output_format: str):
    path = json_lines(tmp_path / "rows.jsonl", [*TEXTS[:7], *[None] * 7])
    job(path, model=colbert, output="tokens", output_format=output_format, on_error="record")
    vectors, errors = written(tmp_path / "out")
    assert (list(map(int, vectors)), list(map(int, errors))) == (list(range(7)), list(range(7, 14)))
    schemas = [parquet().read_schema(path) for path in sorted((tmp_path / "out").glob("part-*.parquet"))]
    assert all(schema == schemas[0] for schema in schemas)


def test_a_width_of_vectors_of_tokens_is_refused(colbert, job, rows):
    with pytest.raises(InputError, match="dimensions can't be chosen with output='tokens'"):
        job(rows, model=colbert, output="tokens", dimensions=8)


@pytest.mark.parametrize("output_format", ["parquet", "jsonl", "npy", "sqlite"])
def test_sparse_vectors_come_back(tmp_path: Path, model, output_format: str):
    dense = model.embed(TEXTS[:6])
    dense = np.where(dense > 0.5, dense, 0).astype(np.float32)
    dense[2] = 0
    ends = np.cumsum([0, *(dense > 0).sum(axis=1)]).astype(np.int64)
    sparse = SparseVectors(np.nonzero(dense)[1].astype(np.int32), dense[dense > 0], ends, dense.shape[1])
    part = Answered(0, 0, 7, [*IDS[:4], "bad", *IDS[4:6]], sparse, {4: "torn"}, failed=1)
    store = store_of(tmp_path, output_format, {"output": "sparse", "dimensions": dense.shape[1]})  # pyright: ignore
    stored = store.read(store.write(part, str))
    assert set(stored.errors.values()) == {"torn"}
    found = dict(stored.rows())
    assert set(found) == set(IDS[:6])
    for id, expected in zip(IDS[:6], dense, strict=True):
        indices, values = found[id]
        row = np.zeros_like(expected)
        row[np.asarray(indices)] = values
        assert (row == expected).all()


@pytest.mark.parametrize("output_format", ["parquet", "jsonl", "npy", "sqlite"])
def test_a_job_of_sparse_vectors_holds_those_of_embed_and_is_searched(tmp_path: Path, splade, job, output_format: str):
    good = ["a cat", "the software", "a cat", "ibm"]
    path = json_lines(
        tmp_path / "in.jsonl", [{"id": f"d{at}", "text": text} for at, text in enumerate([*good, "x " * 99])]
    )
    job(path, model=splade, output="sparse", top_k=5, output_format=output_format, on_error="record", part_rows=2)
    found, errors = written(tmp_path / "out")
    assert set(errors) == {"d4"}
    expected = splade.embed(good, output="sparse", top_k=5).toarray()
    for (indices, values), row in zip((found[f"d{at}"] for at in range(4)), expected, strict=True):
        assert len(indices) == 5
        np.testing.assert_allclose(row[np.asarray(indices)], values, rtol=1e-5)
    query = "the software"
    scores = splade.similarity(splade.encode_query(query, output="sparse", top_k=5), expected)[0]
    nearest = search(tmp_path / "out", query, splade, top_k=4)
    assert sorted(row.id for row in nearest) == ["d0", "d1", "d2", "d3"]
    np.testing.assert_allclose([row.score for row in nearest], np.sort(scores)[::-1], rtol=1e-4)


def test_parquet_has_lists_of_a_fixed_size_and_says_where_they_come_from(tmp_path: Path, model, job, rows):
    job(rows, dimensions=8)
    schema = parquet().read_schema(tmp_path / "out" / "part-00000.parquet")
    assert schema.names == ["id", "embedding", "error"]
    assert schema.field("embedding").type == arrow().list_(arrow().float32(), 8)
    about = json.loads(schema.metadata[b"archport"])
    assert about["model"] == model.name
    assert {"pooling", "prompt_text", "normalized", "dimensions", "max_tokens", "weights", "precision"} <= set(about)


def test_a_folder_of_parquet_is_one_data_set_for_other_readers(tmp_path: Path, job, rows):
    import pyarrow.dataset

    job(rows)
    table = pyarrow.dataset.dataset(tmp_path / "out", format="parquet").to_table()
    assert table.column("id").to_pylist() == IDS


def test_npy_lies_line_by_line_with_its_ids(tmp_path: Path, model, job):
    path = json_lines(tmp_path / "rows.jsonl", ["one", None, "two"])
    job(path, output_format="npy", on_error="record")
    array = np.load(tmp_path / "out" / "part-00000.npy", mmap_mode="r")
    assert np.isnan(array[1]).all()
    close(array[[0, 2]], model.embed(["one", "two"]))
    lines = [json.loads(line) for line in (tmp_path / "out" / "part-00000.ids.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [0, 1, 2]
    assert "expected a string" in lines[1]["error"]


def test_sqlite_has_the_tables_that_llm_reads(tmp_path: Path, model, job, rows):
    job(rows, output_format="sqlite")
    with sqlite3.connect(tmp_path / "out" / "embeddings.db") as database:
        (collection,) = database.execute("SELECT id, name, model FROM collections").fetchall()
        found = dict(database.execute("SELECT id, embedding FROM embeddings WHERE collection_id = ?", collection[:1]))
    assert set(found) == set(IDS)
    close(np.frombuffer(found["d7"], "<f4"), model.embed(TEXTS[7])[0])


def test_an_openai_batch_is_answered_request_by_request(tmp_path: Path, model, job):
    requests = [
        {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"input": "one", "model": "m"}},
        {
            "custom_id": "b",
            "method": "POST",
            "url": "/v1/embeddings",
            "body": {"input": ["two", "one"], "dimensions": 8},
        },
        {
            "custom_id": "c",
            "method": "POST",
            "url": "/v1/embeddings",
            "body": {"input": "x", "encoding_format": "base64"},
        },
        {"custom_id": "d", "method": "POST", "url": "/v1/embeddings", "body": {"input": "word " * 900}},
        {"custom_id": "e", "method": "POST", "url": "/v1/rerank", "body": {"input": "one"}},
        {"custom_id": "f", "method": "POST", "url": "/v1/embeddings", "body": {"input": "one", "dimensions": 9999}},
    ]
    job(json_lines(tmp_path / "batch.jsonl", requests), output_format="openai", on_error="record")
    lines = [json.loads(line) for line in contents(tmp_path / "out")["part-00000.jsonl"].splitlines()]
    assert [line["custom_id"] for line in lines] == list("abcdef")
    assert [line["response"]["status_code"] for line in lines] == [200, 200, 200, 400, 400, 400]
    first, second, third = (line["response"]["body"] for line in lines[:3])
    assert (first["object"], first["model"], first["usage"]["prompt_tokens"]) == ("list", "m", 3)
    close(first["data"][0]["embedding"], model.embed("one")[0])
    assert [each["index"] for each in second["data"]] == [0, 1]
    close([each["embedding"] for each in second["data"]], model.embed(["two", "one"], dimensions=8))
    close(np.frombuffer(base64.b64decode(third["data"][0]["embedding"]), "<f4"), model.embed("x")[0])
    assert "has 902 tokens" in lines[3]["response"]["body"]["error"]["message"]
    assert [len(vectors) for stored in read(tmp_path / "out") for _, vectors in stored.rows()] == [1, 2, 1]


def test_an_older_pyarrow_is_refused_by_its_version(monkeypatch):
    """24 does not write a row without a vector, and 25 does not read it."""
    monkeypatch.setattr(pyarrow_module(), "__version__", "25.0.0")
    with pytest.raises(InputError, match=r"pyarrow 25\.0\.0 is installed, .* expected 26 or later"):
        arrow()


def pyarrow_module():
    import pyarrow

    return pyarrow


@pytest.mark.parametrize(
    "array",
    [
        *(np.ones((2, 48), np.float32), np.zeros((0, 5), np.float32), np.zeros((3, 0), np.int8)),
        *(np.asfortranarray(np.eye(3, 4, dtype=np.float16)), np.arange(12).reshape(3, 4)[:, ::2]),
    ],
    ids=["plain", "no rows", "no columns", "by columns", "every other column"],
)
def test_an_array_is_written_as_numpy_writes_it(array: np.ndarray):
    ours, theirs = io.BytesIO(), io.BytesIO()
    save_array(ours, array)
    np.save(theirs, np.ascontiguousarray(array))
    assert ours.getvalue() == theirs.getvalue()


@pytest.mark.parametrize("count", [300, 700, 5000])
def test_an_array_whose_end_does_not_fit_the_disk_is_an_error(tmp_path: Path, count: int):
    """np.save itself is silent about the first two."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def write() -> None:
        with (tmp_path / "x.npy").open("wb") as file:
            save_array(file, np.ones(count, np.float32))

    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        with pytest.raises(OSError, match="File too large"):
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
