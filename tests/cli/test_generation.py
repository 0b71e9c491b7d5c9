"""`archport rerank`, `generate` and `chat` as processes: data on standard output, the rest on standard error."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

GOLDENS = Path(__file__).parents[1] / "goldens"
RERANKER = GOLDENS / "qwen3-reranker"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


def run(*arguments, text=None, code=0):
    done = subprocess.run(
        [sys.executable, "-c", "from archport.cli import main; main()", *map(str, arguments)],
        input=text,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert done.returncode == code, done.stderr
    return done


@pytest.fixture(scope="module")
def chatty(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat") / "tiny"
    shutil.copytree(GOLDENS / "qwen3-windowed", folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def test_rerank_prints_score_index_and_document_best_first():
    done = run("rerank", "-m", RERANKER, "-q", "which word", "one\ntext", "another")
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert sorted(row[1:] for row in rows) == [["0", "one text"], ["1", "another"]]
    assert float(rows[0][0]) >= float(rows[1][0])
    assert "tokens/s" in done.stderr


def test_rerank_reads_standard_input_and_prints_json():
    done = run(
        "rerank", "-m", RERANKER, "-q", "which word", "-i", "-", "-k", "1", "--json", text="one\nanother\nthird\n"
    )
    (best,) = json.loads(done.stdout)
    assert set(best) == {"index", "score", "document"}
    assert best["document"] == ["one", "another", "third"][best["index"]]


LINES = "one\n" + "word " * 600 + "\nanother\n"


def test_a_bad_document_is_skipped_where_that_is_asked_for():
    arguments = ("rerank", "-m", GOLDENS / "xlm-roberta-rerank", "-q", "which", "-i", "-", "--json")
    assert "standard input, line 2 has 605 tokens" in run(*arguments, text=LINES, code=1).stderr
    done = run(*arguments, "--on-error", "skip", text=LINES, code=3)
    assert {each["index"] for each in json.loads(done.stdout)} == {0, 2}
    assert "skipped: standard input, line 2 has 605 tokens" in done.stderr


def test_what_no_tokenizer_reads_is_skipped_as_well(tmp_path):
    path = tmp_path / "documents.jsonl"
    path.write_text('"one"\n"\\ud800"\n')
    arguments = ("rerank", "-m", GOLDENS / "xlm-roberta-rerank", "-q", "which", "-i", path, "--json")
    done = run(*arguments, "--on-error", "skip", code=3)
    assert [each["index"] for each in json.loads(done.stdout)] == [0]
    assert "skipped: " in done.stderr


def test_a_bad_text_is_skipped_where_that_is_asked_for():
    arguments = ("embed", "-m", GOLDENS / "bert-plain", "-i", "-", "--format", "jsonl", "--on-error", "skip")
    done = run(*arguments, text=LINES, code=3)
    assert [json.loads(line)["index"] for line in done.stdout.splitlines()] == [0, 2]
    assert "skipped: standard input, line 2 has 602 tokens; the limit is 512. Pass --overflow truncate" in done.stderr
    run(*arguments, text="one\ntwo\n", code=0)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (("rerank", "-m", RERANKER, "-q", "which", *("one", "two", "three")), "scoring"),
        (("generate", "-m", GOLDENS / "qwen3-windowed", "a", "--max-tokens", "9", "--json"), "generating"),
    ],
)
def test_a_terminal_sees_progress_and_a_file_does_not(arguments, shown):
    import pty

    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", "from archport.cli import main; main()", *map(str, arguments)]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs, env=environment) as running:
        os.close(theirs)
        told = b""
        # The end of a terminal whose last writer has gone is an error on Linux.
        with contextlib.suppress(OSError):
            while more := os.read(ours, 4096):
                told += more
    os.close(ours)
    assert running.returncode == 0
    assert shown.encode() in told
    assert shown not in run(*arguments).stderr


def test_generate_prints_the_text_as_the_engine_makes_it():
    from archport import engine

    want = engine.load(GOLDENS / "qwen3-moe").generate("the hack", max_tokens=8)
    done = run("generate", "-m", GOLDENS / "qwen3-moe", "the hack", "--max-tokens", "8")
    assert done.stdout == want.text + "\n"
    assert "tokens/s" in done.stderr
    piped = run("generate", "-m", GOLDENS / "qwen3-moe", "-i", "-", "--max-tokens", "8", "--json", text="the hack")
    assert json.loads(piped.stdout)["text"] == want.text


def test_generate_takes_every_option_of_the_engine_and_prints_every_answer():
    from archport import engine

    options = {"max_tokens": 1000, "temperature": 2.0, "presence_penalty": 0.5, "frequency_penalty": -0.5, "seed": 3}
    want = engine.load(GOLDENS / "qwen3-windowed").generate(
        "the hack", n=2, logit_bias={40: 3.0, 7: -100}, stop_token_ids=[5, 6], stop=["e"], min_tokens=4, **options
    )
    flags = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    flags += ["--logit-bias", "40=3", "--logit-bias", "7=-100", "--stop-token-id", 5, "--stop-token-id", 6]
    done = run(
        "generate", "-m", GOLDENS / "qwen3-windowed", "the hack", *flags, "--stop", "e", "--min-tokens", 4, "-n", 2
    )
    made = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["text"] for each in made] == [each.text for each in want]
    assert [each["clamped_to"] for each in made] == [each.clamped_to for each in want]
    assert "max_tokens=1000 is more than the context" in done.stderr


def test_generate_runs_a_file_of_prompts_as_one_batch(tmp_path, chatty):
    file = tmp_path / "prompts.jsonl"
    lines = ["the hack", {"prompt": "a"}, {"messages": [{"role": "user", "content": "b"}]}]
    file.write_text("\n".join(map(json.dumps, lines)))
    done = run("generate", "-m", chatty, "-i", file, "--max-tokens", "4")
    made = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(made) == 3
    assert all(each["usage"]["completion_tokens"] <= 4 for each in made)


def test_a_chat_remembers_its_turns_without_reading_them_again(chatty):
    turns = "the hack\nanother word\n/new\nthe hack\n/exit\n"
    done = run("chat", "-m", chatty, "--max-tokens", "3", "--temperature", "0", text=turns)
    told = [line for line in done.stderr.splitlines() if line.startswith("prompt ")]
    assert len(told) == 3
    cached = [int(line.partition("(")[2].partition(" cached")[0]) for line in told]
    assert cached[0] == 0
    assert cached[1] > 10
    # Starting over, the first turn is known but for its end.
    assert cached[2] > 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("rerank", "-m", RERANKER, "-q", "a"), 2, "documents"),
        (("generate", "-m", GOLDENS / "qwen3-moe"), 2, "PROMPT"),
        (("generate", "-m", GOLDENS / "qwen3-moe", ""), 1, "PROMPT is empty"),
        (("generate", "-m", GOLDENS / "qwen3-moe", "a", "--logit-bias", "5"), 2, "expected ID=BIAS"),
        (("generate", "-m", GOLDENS / "qwen3-moe", "a", "--logit-bias", "5=300"), 2, "number from -100 to 100"),
        (("generate", "-m", GOLDENS / "qwen3-moe", "a", "--stop-token-id", "600"), 2, "--stop-token-id 600; expected"),
        (("generate", "-m", GOLDENS / "qwen3-moe", "a", "-n", "0"), 2, "--n 0; expected 1 to 1024"),
        (("generate", "-m", GOLDENS / "qwen3-moe", "a", "--chat"), 1, "no chat template"),
        (("generate", "-m", GOLDENS / "qwen3-moe", "-i", "nowhere.txt"), 1, "nowhere.txt"),
        (("generate", "-m", GOLDENS / "qwen3-embed", "a"), 1, "is for embed"),
    ],
)
def test_wrong_use_ends_in_one_message(arguments, code, said):
    done = run(*arguments, code=code)
    assert said in done.stderr
    assert "Traceback" not in done.stderr
