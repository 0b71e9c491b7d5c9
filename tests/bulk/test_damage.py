"""Damaged inputs: a clear error where nothing can be read, a bad row where one row is; what was written stays."""

from __future__ import annotations

import archport  # noqa: F401

# isort: split
import gzip
import sqlite3
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from archport.bulk import lines
from archport.bulk.extras import arrow, parquet
from archport.bulk.ids import Ids
from archport.bulk.rows import Fields, Row
from archport.contract import InputError

from .conftest import TEXTS, json_lines, written
from .test_formats import as_arrow, as_jsonl, as_parquet, as_sqlite

pytestmark = pytest.mark.needs("pyarrow")

IDS = [f"d{index}" for index in range(len(TEXTS))]


def test_a_cut_parquet_file_is_refused_before_anything_is_embedded(tmp_path: Path, job, rows):
    as_parquet(tmp_path / "rows.parquet", IDS, TEXTS)
    data = (tmp_path / "rows.parquet").read_bytes()
    (tmp_path / "rows.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"rows.parquet' can't be read: damaged or cut off"):
        job([rows, tmp_path / "rows.parquet"])
    assert not (tmp_path / "out").exists()


def test_a_parquet_page_that_is_damaged_ends_the_job_and_keeps_the_parts_before_it(tmp_path: Path, job):
    table = arrow().table({"text": [f"text {index:05d}" for index in range(4000)], "id": list(range(4000))})
    path = tmp_path / "rows.parquet"
    parquet().write_table(table, path, row_group_size=1000, compression="gzip", use_dictionary=False)
    data = bytearray(path.read_bytes())
    at = parquet().ParquetFile(path).metadata.row_group(2).column(0).data_page_offset
    data[at : at + 400] = bytes(400)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"rows.parquet' can't be read after row \d+"):
        job(path, part_rows=500)
    assert len(written(tmp_path / "out")[0]) >= 1000


@pytest.mark.parametrize(
    ("name", "make"), [("rows.arrow", as_arrow), ("rows.db", as_sqlite), ("rows.npy", None), ("rows.jsonl.gz", None)]
)
def test_other_files_that_are_cut_or_no_such_file_at_all_are_named(tmp_path: Path, job, name: str, make):
    path = tmp_path / name
    if make is not None:
        make(path, IDS * 20, TEXTS * 20) if name != "rows.db" else make(path, list(range(1000)), TEXTS * 20)
    elif name == "rows.npy":
        np.save(path, np.array(TEXTS))
    else:
        as_jsonl(path, IDS, TEXTS)
        path.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    data = path.read_bytes()
    for part in (data[: len(data) // 2], b"nothing of the kind" * 100, b""):
        path.write_bytes(part)
        if not part and name == "rows.jsonl.gz":
            continue
        with pytest.raises(InputError, match=name):
            job(path, out=tmp_path / f"out-{len(part)}")
    path.unlink()
    with pytest.raises(InputError, match=name):
        job(path)


def test_a_column_that_is_missing_is_named_with_those_that_are_there(tmp_path: Path, job):
    as_parquet(tmp_path / "rows.parquet", IDS, TEXTS)
    with pytest.raises(InputError, match=r"rows.parquet has no 'body'; it has 'other', 'text', 'id'"):
        job(tmp_path / "rows.parquet", Fields("body"))
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=r"rows.csv has no 'text'; it has 'a', 'b'"):
        job(tmp_path / "rows.csv")
    with pytest.raises(InputError, match="has no 'key'"):
        job(json_lines(tmp_path / "rows.jsonl", [{"text": "a"}]), Fields(id="key"))


def test_a_column_that_is_there_twice_is_refused_where_it_is_needed(tmp_path: Path, job):
    table = arrow().table([arrow().array(["a"]), arrow().array(["b"])], names=["text", "text"])
    parquet().write_table(table, tmp_path / "rows.parquet")
    (tmp_path / "rows.csv").write_text("text,text\na,b\n")
    for name in ("rows.parquet", "rows.csv"):
        with pytest.raises(InputError, match=f"{name} has 'text' twice"):
            job(tmp_path / name)
    # As programs for tables leave them behind.
    (tmp_path / "rows.csv").write_text("text,,\na,,\n")
    assert job(tmp_path / "rows.csv").rows == 1


ROWS = [
    (b'{"id": "a", "text": "good"}', None),
    (b"\xff\xfe broken", "not UTF-8"),
    (b'{"id": "b", "text": "cut', "not JSON"),
    (b'{"id": "c"}', "there is no 'text' among 'id'"),
    (b'{"text": "no id"}', "there is no 'id' among 'text'"),
    (b'{"id": "d", "text": null}', "'text' is null"),
    (b'{"id": "e", "text": 3}', "'text' is a int (3)"),
    (b'{"id": "a", "text": "again"}', "its id 'a' is that of an earlier row"),
    (b'{"id": 7, "text": "number"}', "its id 7 is a int; those before it are each a str"),
    (b'{"id": null, "text": "null"}', "its id is null"),
    (b'{"id": true, "text": "true"}', "its id is a bool"),
    (b'{"id": [1], "text": "list"}', "its id is a list"),
    (b"[" * 100_000, "nested too deeply"),
    (b'["a", "list"]', "expected a string or an object"),
    (b'"a text without an id"', "expected a string or an object"),
    (b'{"id": "f", "text": "a \\ud800 surrogate"}', "lone surrogate"),
    (b'{"id": "g\\ud800", "text": "a"}', "its id 'g\\ud800' holds a lone surrogate"),
    (b'{"id": "h", "text": "' + b"word " * 900 + b'"}', "has 902 tokens; the limit is 512"),
    (b"", "empty"),
    (b'{"id": "i", "text": "good too"}', None),
]


@pytest.mark.parametrize("on_error", ["record", "skip"])
def test_every_bad_row_is_recorded_or_skipped_with_its_line_and_its_neighbours_are_embedded(
    tmp_path: Path, job, on_error: str
):
    path, said = tmp_path / "rows.jsonl", []
    path.write_bytes(b"\n".join(line for line, _ in ROWS) + b"\n")

    class Watch:
        began = part = lambda *_, **__: None
        __call__ = began
        skipped = staticmethod(said.append)

    summary = job(path, on_error=on_error, watch=Watch())
    bad = [(number, reason) for number, (_, reason) in enumerate(ROWS, 1) if reason not in (None, "empty")]
    assert (summary.rows, summary.failed) == (len(ROWS) - 1, len(bad))
    for message, (number, reason) in zip(said, bad, strict=True):
        assert message.startswith(f"{path}, line {number}"), message
        assert reason in message
    vectors, errors = written_loosely(tmp_path / "out")
    assert vectors == ["a", "i"]
    assert errors == (said if on_error == "record" else [])


def written_loosely(folder: Path) -> tuple[list, list]:
    """(ids, errors) where ids may be none or come twice."""
    from archport.bulk import read

    stored = list(read(folder))
    return [id for each in stored for id, _ in each.rows()], [text for each in stored for text in each.errors.values()]


@pytest.mark.parametrize("place", [2, 8])
def test_the_first_bad_row_ends_a_job_that_is_to_fail(tmp_path: Path, job, place: int):
    lines = [b'{"id": "%d", "text": "good"}' % index for index in range(30)]
    lines[20] = ROWS[place - 1][0].replace(b'"a"', b'"3"')
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(lines))
    with pytest.raises(InputError, match=r"rows.jsonl, line 21: "):
        job(tmp_path / "rows.jsonl")
    assert list(written(tmp_path / "out")[0]) == [str(index) for index in range(14)]


def test_bytes_that_are_no_utf8_spoil_their_own_row_of_a_table(tmp_path: Path, job):
    (tmp_path / "rows.csv").write_bytes(b"\xef\xbb\xbfid,text\na,good\nb,\xff\xfe\nc,one,too many\nd,good\n")
    with sqlite3.connect(tmp_path / "rows.db") as database:
        database.execute("CREATE TABLE docs (id, text)")
        database.executemany(
            "INSERT INTO docs VALUES (?, CAST(? AS TEXT))", [("a", b"good"), ("b", b"\xff"), ("d", b"x")]
        )
        database.execute("INSERT INTO docs VALUES ('c', 3)")
    column = arrow().array([b"good", b"\xff\xfe", b"x", b"y"]).view(arrow().string())
    parquet().write_table(arrow().table({"id": list("abcd"), "text": column}), tmp_path / "rows.parquet")
    (tmp_path / "docs").mkdir()
    for name, data in (("a", b"good"), ("b", b"\xff"), ("d", b"x")):
        (tmp_path / "docs" / name).write_bytes(data)
    found = {}
    for name in ("rows.csv", "rows.db", "rows.parquet", "docs"):
        job(tmp_path / name, out=tmp_path / f"out-{name}", on_error="record")
        ids, errors = written_loosely(tmp_path / f"out-{name}")
        found[name] = "".join(ids), len(errors)
        assert any("not UTF-8" in error for error in errors), (name, errors)
    assert found == {"rows.csv": ("ad", 2), "rows.db": ("ad", 2), "rows.parquet": ("acd", 1), "docs": ("ad", 1)}


def test_an_open_quote_of_a_csv_is_an_error_that_names_its_line(tmp_path: Path, job):
    (tmp_path / "rows.csv").write_text('id,text\na,good\nb,"open\n' + "c,more\n" * 50)
    with pytest.raises(InputError, match=r"rows.csv: the row that begins in line 3 is no CSV"):
        job(tmp_path / "rows.csv")


def test_a_line_that_is_longer_than_any_text_is_a_bad_row(monkeypatch, tmp_path: Path, job):
    monkeypatch.setattr(lines, "MOST_BYTES", 1000)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'"good"\n"' + b"x" * 5000 + b'"\n"last"\n')
    assert job(path, on_error="record").failed == 1
    ids, errors = written_loosely(tmp_path / "out")
    assert ids == [0, 2]
    assert "line 2: a line of more than" in errors[0]


def test_what_is_no_regular_file_of_a_folder_is_a_bad_row_and_not_waited_for(tmp_path: Path, job):
    import os

    (tmp_path / "docs").mkdir()
    os.mkfifo(tmp_path / "docs" / "pipe")
    (tmp_path / "docs" / "text").write_text("good")
    (tmp_path / "docs" / "gone").symlink_to(tmp_path / "nowhere")
    job(tmp_path / "docs", on_error="record")
    ids, errors = written_loosely(tmp_path / "out")
    assert ids == ["text"]
    assert all("no regular file" in error for error in errors)
    assert len(errors) == 2


def test_ids_that_come_twice_are_found_however_far_apart():
    ids = Ids(numbered=False)
    names = [f"id-{(index * 7919) % 300_000}" for index in range(300_000)]
    for first in range(0, len(names), 7000):
        some = names[first : first + 7000]
        assert ids.take([Row(("f",), name, "x") for name in some], first) == (some, {})
    again = [*names[::40_000], "another", "another"]
    found, faults = ids.take([Row(("f",), name, "x") for name in again], 0)
    assert found == [None] * 8 + ["another", None]
    assert all("that of an earlier row" in fault for fault in faults.values())
    assert set(faults) == {*range(8), 9}


def test_ids_take_the_memory_of_their_hashes_and_of_no_copy():
    ids, draw = Ids(numbered=False), np.random.default_rng(0)
    tracemalloc.start()
    try:
        for _ in range(64):
            ids._settle(draw.integers(0, 2**63, 32_768, dtype="<u8"), np.zeros(32_768, "<u4"))
        highest = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert highest < 64 * 32_768 * 12 * 1.4


def test_settings_that_contradict_each_other_are_refused(job, rows):
    for settings, said in (
        ({"part_rows": 0}, "part_rows=0"),
        ({"resume": True, "overwrite": True}, "both given"),
        ({"shard": (3, 3)}, "shard="),
        ({"output": "tokens", "precision": "int8"}, "precision="),
        ({"calibrate": "x"}, "calibrate="),
        ({"output_format": "openai"}, "not an OpenAI batch"),
        ({"dimensions": 999}, "dimensions=999"),
    ):
        with pytest.raises(InputError, match=said):
            job(rows, **settings)
