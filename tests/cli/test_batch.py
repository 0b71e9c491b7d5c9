"""`archport batch` and `archport similar`: words, exit codes, a process per device, Ctrl-C; tests/bulk has the jobs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from archport import engine
from archport.bulk import read
from archport.contract import InputError
from archport.device import processes

from .processes import BERT, Ended, in_this_process

pytestmark = pytest.mark.needs("pyarrow")

TEXTS = [f"text number {index} " * (1 + index % 5) for index in range(60)]


@pytest.fixture
def rows(tmp_path: Path) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"id": f"d{at}", "text": text}) + "\n" for at, text in enumerate(TEXTS)))
    return str(path)


@pytest.fixture
def batch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def run(*arguments: str, stdin: bytes = b"") -> Ended:
        out = str(tmp_path / "out")
        return in_this_process(
            monkeypatch, "batch", *arguments, "-m", BERT, "-o", out, "--part-rows", "10", stdin=stdin
        )

    return run


def vectors(folder: Path) -> dict:
    return {id: np.asarray(vector) for stored in read(folder) for id, vector in stored.rows()}


def test_a_job_says_what_it_makes_and_writes_nothing_to_standard_output(batch, rows, tmp_path: Path):
    ended = batch(rows, "--dimensions", "8")
    assert (ended.code, ended.out) == (0, "")
    assert "dimensions 8, pooling 'mean'" in ended.err
    assert "done: 60 rows in 6 parts" in ended.err
    found = vectors(tmp_path / "out")
    expected = engine.load(BERT).embed(TEXTS, dimensions=8)
    np.testing.assert_allclose(np.stack(list(found.values())), expected, atol=1e-5)
    assert batch(rows, "--dimensions", "8", "--resume", "--quiet").err == ""


def test_messages_name_flags_and_the_exit_code_says_what_happened(batch, rows, tmp_path: Path):
    assert batch(rows).code == 0
    cases = [
        ((rows,), 1, "holds a job already; --resume goes on with it, --overwrite begins anew"),
        ((rows, "--resume", "--precision", "binary"), 1, "precision was 'float32' and is 'binary'"),
        ((rows, "--resume", "--overwrite"), 2, "contradict each other"),
        ((rows, "--shard", "0/2"), 2, "--shard '0/2'; expected I/N"),
        ((rows, "--devices", "x,x"), 2, "--devices 'x,x'; expected all, a number"),
        ((rows, "--devices", "2", "--text-field", "body"), 1, "has no 'body'; it has 'id', 'text'"),
        ((rows, "--devices", "2", "--shard", "1/2", "--overwrite"), 2, "--overwrite would remove what other shards"),
        ((rows, "--overwrite", "--precision", "int8", "--calibrate", "/no/such.jsonl"), 1, "no/such.jsonl"),
        ((rows, "--calibrate", "x.txt"), 2, "--calibrate x.txt is for int8"),
        (("nothing.nope",), 1, "a folder, or --input-format"),
        (("/no/such.parquet",), 1, "/no/such.parquet"),
        ((rows, "--text-field", "body"), 1, "has no 'body'; it has 'id', 'text'"),
        ((rows, "--on-error", "nope"), 2, "nope"),
        ((rows, "--memory-budget", "1KB"), 4, "Raise --memory-budget"),
    ]
    for arguments, code, said in cases:
        ended = batch(*arguments)
        assert ended.code == code, (arguments, ended)
        assert said in ended.err, (arguments, ended.err)
        assert "Traceback" not in ended.err
        assert "fault of archport" not in ended.err
    assert len(vectors(tmp_path / "out")) == len(TEXTS)


def test_devices_are_those_that_a_cluster_left_to_this_process(monkeypatch: pytest.MonkeyPatch):
    def given(ids: list[str]) -> list[str]:
        return [processes.environment_of(at, ids, "PLACE")["CUDA_VISIBLE_DEVICES"] for at in range(len(ids))]

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert given(["0", "2"]) == ["0", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-5,6")
    assert given(["0", "1", "GPU-7"]) == ["4", "GPU-5", "GPU-7"]
    with pytest.raises(InputError, match=r"device 3, and CUDA_VISIBLE_DEVICES=4,GPU-5,6 leaves 3; expected 0 to 2"):
        given(["3"])


@pytest.mark.parametrize("on_error", ["fail", "skip", "record"])
def test_bad_rows_end_a_job_or_its_exit_code_is_three(batch, tmp_path: Path, on_error: str):
    stdin = b"fine\n\xff\n" + b"word " * 600 + b"\nlast\n"
    ended = batch("-", "--on-error", on_error, stdin=stdin)
    assert ended.code == (1 if on_error == "fail" else 3)
    assert "standard input, line 2: not UTF-8" in ended.err
    if on_error != "fail":
        assert "standard input, line 3 has 602 tokens; the limit is 512. Pass --overflow truncate" in ended.err
        assert list(vectors(tmp_path / "out")) == [0, 3]


def test_a_dry_run_writes_nothing_and_tells_the_first_bad_rows(batch, tmp_path: Path):
    ended = batch("-", "--dry-run", stdin=b"fine\n\xff\n")
    assert (ended.code, ended.out) == (0, "")
    assert "2 read, 1 bad" in ended.err
    assert not (tmp_path / "out").exists()


def test_the_nearest_rows_of_a_job_are_told_with_their_ids(monkeypatch, batch, rows, tmp_path: Path):
    model = engine.load(BERT)
    scores = model.similarity(model.encode_query([TEXTS[7]]), model.embed(TEXTS))[0]
    expected = [f"d{at}" for at in np.argsort(-scores, kind="stable")[:3]]
    for more in ((), ("--precision", "int8"), ("--output-format", "sqlite"), ("--output-format", "npy")):
        assert batch(rows, "--overwrite", *more).code == 0
        ended = in_this_process(monkeypatch, "similar", str(tmp_path / "out"), "-c", TEXTS[7], "-k", "3")
        assert (ended.code, ended.err) == (0, "")
        found = [line.split("\t")[1] for line in ended.out.splitlines()]
        assert found[0] == "d7"
        assert more == ("--precision", "int8") or found == expected
    ended = in_this_process(monkeypatch, "similar", str(tmp_path / "out"), "-c", TEXTS[7], "-k", "2", "--json")
    assert [set(each) for each in json.loads(ended.out)] == [{"id", "score"}] * 2
    ended = in_this_process(monkeypatch, "similar", str(tmp_path), "-c", "x")
    assert ended.code == 1
    assert "holds no job" in ended.err


def command(rows: str, out: Path, *more: str) -> list[str]:
    run = "import archport; from archport.cli import main; main()"
    return [sys.executable, "-c", run, "batch", rows, "-m", BERT, "-o", str(out), "--part-rows", "10", *more]


@pytest.mark.truth
def test_two_devices_make_the_parts_of_one(batch, rows, tmp_path: Path):
    assert batch(rows).code == 0
    line = command(rows, tmp_path / "two", "--devices", "2", "--quiet")
    ended = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert (ended.returncode, ended.stderr) == (0, "")
    found, expected = vectors(tmp_path / "two"), vectors(tmp_path / "out")
    assert list(found) == list(expected)
    # Each has one core, and rounds as one core does.
    np.testing.assert_allclose(np.stack(list(found.values())), np.stack(list(expected.values())), atol=1e-5)
    assert len(list((tmp_path / "two").glob("_parts-*.jsonl"))) == 2


@pytest.mark.truth
def test_ctrl_c_ends_a_job_at_its_next_part_and_it_goes_on(tmp_path: Path):
    path = tmp_path / "rows.txt"
    path.write_text("".join(f"text number {index} and more of it\n" for index in range(40_000)))
    out = tmp_path / "out"
    process = subprocess.Popen(command(str(path), out), stderr=subprocess.PIPE, text=True)
    while process.poll() is None and len(list(out.glob("part-*"))) < 3:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    error = process.communicate(timeout=300)[1]
    assert process.returncode == 130, error
    assert "stopping when this part is written" in error
    assert "stopped after" in error
    found = vectors(out)
    assert list(found) == list(range(len(found)))
    assert 30 <= len(found) < 40_000
