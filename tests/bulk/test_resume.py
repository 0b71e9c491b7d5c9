"""However a job ends, its parts are whole, and going on gives byte for byte what one run gives."""

from __future__ import annotations

import archport  # noqa: F401

# isort: split
import errno
import io
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from archport.bulk import read, stores
from archport.bulk.search import complete
from archport.contract import InputError

from .conftest import GOLDENS, TEXTS, contents, json_lines, written

pytestmark = pytest.mark.needs("pyarrow")

FORMATS = ["parquet", "jsonl", "npy", "sqlite"]


class Stopped(BaseException):
    """The machine stops here."""


def stop_at(monkeypatch: pytest.MonkeyPatch, moment: int) -> list[str]:
    """Stop at the so-manyth call that makes anything last; returns those that were made."""
    calls: list[str] = []

    def watched(name: str, call):
        def one(*args, **options):
            calls.append(name)
            if len(calls) == moment:
                raise Stopped
            return call(*args, **options)

        return one

    monkeypatch.setattr(os, "fsync", watched("fsync", os.fsync))
    monkeypatch.setattr(Path, "replace", watched("replace", Path.replace))
    monkeypatch.setattr(stores, "add_record", watched("add_record", stores.add_record))
    return calls


@pytest.mark.parametrize("output_format", ["parquet", "npy"])
def test_a_job_stopped_at_any_moment_goes_on_to_the_same_bytes(monkeypatch, tmp_path: Path, job, rows, output_format):
    whole = tmp_path / "whole"
    job(rows, out=whole, output_format=output_format, part_rows=20)
    moments = range(1, 100, 3 if output_format == "npy" else 2)
    for moment in moments:
        out = tmp_path / f"stopped-{moment}"
        with monkeypatch.context() as patch:
            calls = stop_at(patch, moment)
            with suppress(Stopped):
                job(rows, out=out, output_format=output_format, part_rows=20)
        if len(calls) < moment:
            assert moment > 12
            return
        for name, content in contents(out).items():
            assert content == contents(whole)[name]
        job(rows, out=out, output_format=output_format, part_rows=20, resume=True)
        assert contents(out) == contents(whole)
        assert list(out.glob("_*.tmp")) == []
    pytest.fail("the job never ran through")


def test_parts_that_are_there_are_not_made_again(tmp_path: Path, job, rows):
    job(rows)
    assert job(rows, resume=True).made == 0
    (tmp_path / "out" / "part-00003.parquet").unlink()
    (tmp_path / "out" / "part-00005.parquet").write_bytes(b"PAR1 torn")
    before = written_apart(tmp_path / "out")
    summary = job(rows, resume=True)
    assert (summary.made, summary.rows) == (2, len(TEXTS))
    assert before.items() <= written_apart(tmp_path / "out").items()


def written_apart(folder: Path) -> dict:
    return {id: np.asarray(vector).tobytes() for stored in read(folder) for id, vector in stored.rows()}


def test_a_record_that_was_cut_off_is_none_and_hides_none_after_it(tmp_path: Path, job, rows):
    job(rows)
    path = tmp_path / "out" / "_parts.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]) + lines[3][:40])
    assert job(rows, resume=True).made == len(lines) - 3
    assert job(rows, resume=True).made == 0


@pytest.mark.parametrize("output_format", FORMATS)
def test_a_stop_that_was_asked_for_leaves_whole_parts(tmp_path: Path, job, rows, output_format: str):
    asked = iter([False, False, False, True])
    assert job(rows, output_format=output_format, stop=lambda: next(asked)).stopped
    assert len(written(tmp_path / "out")[0]) == 21
    summary = job(rows, output_format=output_format, resume=True)
    assert (summary.stopped, summary.made) == (False, 5)
    assert list(written(tmp_path / "out")[0]) == [f"d{index}" for index in range(50)]


OTHERS = [
    ({"dimensions": 8}, "dimensions was None and is 8"),
    ({"prompt": "query: "}, "prompt was None and is 'query: '"),
    ({"overflow": "truncate"}, "overflow was 'error' and is 'truncate'"),
    ({"precision": "binary"}, "precision was 'float32' and is 'binary'"),
    ({"part_rows": 8}, "part_rows was 7 and is 8"),
    ({"output_format": "jsonl"}, "output_format was 'parquet' and is 'jsonl'"),
]


@pytest.mark.parametrize(("settings", "said"), OTHERS, ids=lambda value: str(value)[:30])
def test_a_job_does_not_go_on_with_other_settings_and_says_which(tmp_path: Path, job, rows, settings, said):
    job(rows)
    before = contents(tmp_path / "out")
    with pytest.raises(InputError, match=said):
        job(rows, resume=True, **settings)
    assert contents(tmp_path / "out") == before


def test_a_job_does_not_go_on_with_another_model(tmp_path: Path, job, rows):
    from archport import engine

    job(rows)
    with pytest.raises(InputError, match=r"model was .* and is .*; weights was"):
        job(rows, resume=True, model=engine.load(GOLDENS / "qwen3-embed"))


def test_a_job_does_not_go_on_with_another_input(tmp_path: Path, job, rows):
    job(rows)
    content = rows.read_text()
    rows.write_text(content + '{"id": "more", "text": "more"}\n')
    with pytest.raises(InputError, match=r"rows.jsonl had \d+ and has \d+ bytes"):
        job(rows, resume=True)
    # Of the same size: found where the rows are.
    big = json_lines(tmp_path / "big.jsonl", [{"id": index, "text": "x" * 900} for index in range(300)])
    job(big, out=tmp_path / "big", part_rows=100)
    lines = big.read_text().splitlines(keepends=True)
    lines[150] = lines[150].replace("xxx", "xyx", 1)
    big.write_text("".join(lines))
    with pytest.raises(InputError, match=r"the input changed: the 100 rows from .*line 101 on"):
        job(big, out=tmp_path / "big", part_rows=100, resume=True)


def test_an_input_that_ends_sooner_than_the_job_is_another_one(monkeypatch, tmp_path: Path, job):
    def piped(count: int):
        lines = "".join(f"text number {index}\n" for index in range(count))
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
        return job(Path("-"), input_format="text", resume=count < 30)

    piped(30)
    with pytest.raises(InputError, match="it ends after 14 rows, and 3 parts are there of rows beyond"):
        piped(14)


def test_two_processes_do_not_write_one_folder(tmp_path: Path, job, rows):
    with stores.writing(tmp_path / "out", alone=True):
        for settings in ({}, {"resume": True}, {"overwrite": True}, {"shard": (0, 2)}):
            with pytest.raises(InputError, match=r"another process writes into .*out now"):
                job(rows, **settings)
    with stores.writing(tmp_path / "out", alone=False):
        assert job(rows, shard=(0, 2)).made == 4
        with pytest.raises(InputError, match=r"another process writes into .*out now"):
            job(rows, resume=True)
    assert job(rows, resume=True).made == 4


def test_a_file_system_without_links_takes_a_job(monkeypatch, tmp_path: Path, job, rows):
    def link(*_: object) -> None:
        raise PermissionError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", link)
    job(rows, precision="int8")
    assert job(rows, precision="int8", resume=True).made == 0
    assert list((tmp_path / "out").glob("*.tmp")) == []


def test_a_job_that_can_not_be_measured_leaves_the_one_that_is_there(monkeypatch, tmp_path: Path, job, rows):
    job(rows)
    before = contents(tmp_path / "out")
    with pytest.raises(InputError, match=r"nowhere.jsonl.*no such file"):
        job(rows, overwrite=True, precision="int8", calibrate="nowhere.jsonl")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\nb\n")))
    with pytest.raises(InputError, match="standard input can't be read twice"):
        job(Path("-"), overwrite=True, precision="int8", input_format="text")
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("output_format", ["parquet", "sqlite"])
def test_a_job_is_complete_when_all_who_share_it_are_done(tmp_path: Path, job, rows, output_format: str):
    job(rows, shard=(0, 2), output_format=output_format)
    assert not complete(tmp_path / "out")
    job(rows, shard=(1, 2), output_format=output_format)
    assert complete(tmp_path / "out")


def test_a_shard_does_not_remove_what_others_made(job, rows):
    with pytest.raises(InputError, match="overwrite=True would remove what other shards have made"):
        job(rows, overwrite=True, shard=(0, 2))


def test_a_job_that_is_there_is_neither_continued_nor_removed_unasked(tmp_path: Path, job, rows):
    job(rows)
    with pytest.raises(InputError, match="holds a job already"):
        job(rows)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious.txt").write_text("mine")
    for settings in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(InputError, match=r"holds 'precious.txt' and no job"):
            job(rows, out=tmp_path / "other", **settings)
    job(rows, overwrite=True, dimensions=4)
    assert np.stack(list(written(tmp_path / "out")[0].values())).shape == (50, 4)


def test_bad_rows_that_ended_a_job_can_be_recorded_from_there_on(tmp_path: Path, job):
    values = [{"id": index, "text": f"text {index}" if index != 25 else None} for index in range(50)]
    path = json_lines(tmp_path / "rows.jsonl", values)
    with pytest.raises(InputError, match=r"rows.jsonl, line 26: 'text' is null"):
        job(path)
    assert len(written(tmp_path / "out")[0]) == 21
    assert job(path, resume=True, on_error="record").failed == 1
    with pytest.raises(InputError, match="1 bad rows were met before with 'record'"):
        job(path, resume=True, on_error="skip")


@pytest.mark.parametrize("output_format", FORMATS)
def test_shards_make_the_parts_of_one_run(tmp_path: Path, job, rows, output_format: str):
    job(rows, out=tmp_path / "whole", output_format=output_format)
    for index in (2, 0, 1):
        for device in (1, 0):
            job(rows, output_format=output_format, shard=(index, 3), device=(device, 2))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert written_apart(tmp_path / "out") == written_apart(tmp_path / "whole")
    assert job(rows, output_format=output_format, resume=True).made == 0


def test_ranges_are_measured_once_and_kept(tmp_path: Path, model, job, rows):
    sample = json_lines(tmp_path / "sample.jsonl", TEXTS[:30])
    asked = iter([False, False, True])
    job(rows, precision="int8", calibrate=str(sample), stop=lambda: next(asked))
    kept = json.loads((tmp_path / "out" / "_ranges.json").read_text())
    np.testing.assert_allclose(kept["low"], model.embed(TEXTS[:30]).min(axis=0), atol=1e-5)
    sample.unlink()
    job(rows, precision="int8", calibrate=str(sample), resume=True)
    assert json.loads((tmp_path / "out" / "_ranges.json").read_text()) == kept
    job(rows, out=tmp_path / "other", precision="int8", calibrate=str(tmp_path / "out" / "_ranges.json"))
    assert written_apart(tmp_path / "other") == written_apart(tmp_path / "out")


SCRIPT = "import archport; from archport.cli import main; main()"


def command(rows: Path, out: Path, *more: str) -> list[str]:
    model = str(GOLDENS / "bert-plain")
    return [sys.executable, "-c", SCRIPT, "batch", str(rows), "-m", model, "-o", str(out), "--part-rows", "100", *more]


# The second limit is within the last 4 KB of an array, which numpy itself does not miss.
@pytest.mark.parametrize(
    ("form", "name", "most"), [("parquet", "part-00001.parquet", 12_000), ("npy", "part-00001.npy", 19_000)]
)
def test_a_full_disk_keeps_what_was_written_and_the_job_goes_on(tmp_path: Path, job, form: str, name: str, most: int):
    # The first part has few vectors, and fits.
    texts = [f"text number {index}" if index > 90 else None for index in range(300)]
    path = json_lines(tmp_path / "rows.jsonl", [{"id": at, "text": text} for at, text in enumerate(texts)])

    def little() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    line = command(path, tmp_path / "out", "--on-error", "skip", "--output-format", form)
    ended = subprocess.run(line, capture_output=True, text=True, preexec_fn=little, timeout=300)
    assert ended.returncode == 1, ended.stderr
    assert f"{tmp_path / 'out' / name}' can't be read or written: File too large" in ended.stderr
    there = {each for each in contents(tmp_path / "out") if not each.endswith(".ids.jsonl")}
    assert there == {name.replace("1", "0")}
    assert list((tmp_path / "out").glob("*.tmp")) == []
    assert job(path, part_rows=100, on_error="skip", resume=True, output_format=form).made == 2
    job(path, out=tmp_path / "whole", part_rows=100, on_error="skip", output_format=form)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def killed(rows: Path, out: Path, moments: list[float], *more: str) -> int:
    """Run a job that is killed after so many seconds, again and again, and then to its end; returns the kills."""
    kills = 0
    for moment in [*moments, None]:
        process = subprocess.Popen(command(rows, out, *more, "--resume"), stderr=subprocess.PIPE)
        try:
            _, error = process.communicate(timeout=moment)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            continue
        assert process.returncode == 0, error
    return kills


@pytest.mark.truth
@pytest.mark.parametrize("seed", range(4))
def test_a_job_killed_at_random_moments_ends_with_the_same_bytes(tmp_path: Path, seed: int):
    draw, form = random.Random(seed), FORMATS[seed]
    path = json_lines(
        tmp_path / "rows.jsonl", [{"id": f"d{at}", "text": f"text {at} " * draw.randint(1, 30)} for at in range(6000)]
    )
    begin = time.monotonic()
    assert subprocess.run(command(path, tmp_path / "whole", "--output-format", form), timeout=300).returncode == 0
    seconds = time.monotonic() - begin
    moments = [draw.uniform(0.1, 0.9) * seconds for _ in range(4)]
    assert killed(path, tmp_path / "out", moments, "--output-format", form) >= 1
    assert written_apart(tmp_path / "out") == written_apart(tmp_path / "whole")
    if form != "sqlite":
        assert contents(tmp_path / "out") == contents(tmp_path / "whole")
