"""However a command is called, it ends with an exit code of the table and, where it failed, one message.

No traceback, and no words of Python's: flags instead of arguments, lines from 1 instead of indices.
"""

from __future__ import annotations

import inspect
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from archport.cli.commands import app

from .processes import BERT, CHATTY, QWEN, RERANKER, Ended, in_a_shell, in_this_process

PLAN = str(Path(__file__).parents[1] / "planning" / "data" / "qwen3_embedding_06b.json")
CODES = (0, 1, 2, 4)
# An argument of the library with its value, as `max_tokens=9`; options of FFmpeg and the like are none.
PYTHON = re.compile(r"\b[a-z]+_[a-z_]+=|\boverflow=|\bdtype=|\bseed=|\btext \d+ |\bdocument \d+ |\bprompt \d+ ")


def check(ended: Ended, where: object, code: int | None = None, said: str = "") -> None:
    assert "Traceback" not in ended.err + ended.out, f"{where}\n{ended.err}"
    assert "fault of archport" not in ended.err, f"{where}\n{ended.err}"
    where = tuple(where) if isinstance(where, tuple) else (where,)
    assert ended.code in CODES if code is None else ended.code == code, f"{where}\n{ended}"
    if ended.code:
        # Listings that end in a failure are data, and so is the help that no command at all gets.
        assert ended.err.strip() or not where or {"doctor", "check", "--json"} & set(where), where
        assert not PYTHON.search(ended.err), f"{where}\n{ended.err}"
    assert len(ended.err) < 6000, f"{where}\n{len(ended.err)}"
    assert said in ended.err, f"{where}\n{ended.err}"


E, G, R = ("embed", "-m", BERT), ("generate", "-m", CHATTY, "--max-tokens", "2"), ("rerank", "-m", RERANKER, "-q", "a")
# Content of a .jsonl file -> what commands that read it say.
FILES = {
    "deep list": (b'"fine"\n' + b"[" * 100_000, "line 2: JSON that is nested too deeply"),
    "deep object": (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "line 1: JSON that is nested too deeply"),
    "digits": (b'"fine"\n\n{"text": ' + b"9" * 5000 + b"}", "line 3: JSON with a number of more digits"),
    "no json": (b'"fine"\n{oops', "line 2: not JSON"),
    "no utf-8": (b'"fine"\n"\xff"', "line 2: not UTF-8"),
    "a number": (b'"fine"\n3', "line 2: expected a string"),
    "null": (b"null", "line 1: expected a string"),
    "an empty object": (b"{}", "line 1: expected a string"),
    "a surrogate": (b'"fine"\n"\\ud800"', "line 2 holds a lone surrogate"),
    "a surrogate behind an empty line": (b'"fine"\n\n"\\ud800"', "line"),
    "zero bytes": (b"\0\0\0", "line 1: not JSON"),
    "a late byte order mark": (b'"fine"\n\xef\xbb\xbf"fine"', "line 2: not JSON"),
    "nan": (b"NaN", "line 1: expected a string"),
}
LINES: list[tuple[tuple[str, ...], int, str]] = [
    # What does not exist, or is something else.
    ((*E, "-i", "/no/such/file"), 1, "--input '/no/such/file' can't be read: No such file"),
    ((*E, "-i", "/"), 1, "can't be read: Is a directory"),
    ((*E, "-i", "/proc/self/mem"), 1, "can't be read"),
    ((*E, "-i", "a" * 5000), 1, "can't be read: File name too long"),
    ((*G, "-i", "/"), 1, "can't be read: Is a directory"),
    ((*G, "-i", "a" * 5000), 1, "can't be read: File name too long"),
    ((*G, "-i", "/dev/null"), 1, "/dev/null is empty"),
    ((*R, "-i", "/proc/self/mem"), 1, "can't be read"),
    (("embed", "a", "-m", ""), 1, "model name ''"),
    (("embed", "a", "-m", "a" * 5000), 1, "no model"),
    (("embed", "a", "-m", "/" + "a" * 5000), 1, "there is no folder"),
    (("embed", "a", "-m", "/dev/null"), 1, ""),
    (("embed", "a", "-m", "/etc/hostname"), 1, "is a file"),
    (("embed", "a", "-m", "/"), 1, "config.json"),
    (("embed", "a", "-m", "https://huggingface.co/a/b"), 1, "pass 'a/b'"),
    (("embed", "a", "-m", "a/b/c/d"), 1, ""),
    (("embed", "a", "-m", "~nobody-here/x"), 1, ""),
    (("info", "-m", "a b"), 1, "neither a folder nor a hub id"),
    # Values that flags refuse.
    ((*E, "a", "--memory-budget", "1e400GB"), 2, "--memory-budget 1e400GB is more than any machine has"),
    ((*E, "a", "--memory-budget", "-1"), 2, "is not a size"),
    ((*E, "a", "--memory-budget", ""), 2, "--memory-budget '' is not a size"),
    ((*E, "a", "--memory-budget", "nan"), 2, "--memory-budget nan is not a size"),
    ((*E, "a", "--memory-budget", "0"), 2, "less than one byte"),
    ((*E, "a", "--memory-budget", "9" * 5000), 2, ""),
    ((*E, "a", "--memory-budget", "1KB"), 4, "Raise --memory-budget"),
    ((*G, "a", "--memory-budget", "1KB"), 4, "Raise --memory-budget"),
    ((*R, "a", "--memory-budget", "1KB"), 4, "Raise --memory-budget"),
    ((*E, "a", "--max-tokens", "0"), 2, "--max-tokens 0; expected a positive integer"),
    ((*E, "a", "--max-tokens", "-5"), 2, "--max-tokens -5"),
    ((*E, "a", "--max-tokens", "1"), 1, "TEXT 1 has 3 tokens; the limit is 1"),
    ((*E, "a", "--max-tokens", "99999999999999999999"), 1, "--max-tokens 99999999999999999999"),
    ((*E, "a", "--max-tokens", "9" * 5000), 2, "--max-tokens"),
    ((*E, "a", "--max-tokens", "x"), 2, "--max-tokens"),
    ((*E, "a", "--max-context", "0"), 2, "--max-context 0"),
    ((*E, "a", "--max-context", "100000"), 1, "--max-context 100000 is above the 512 positions"),
    ((*E, "a", "--dimensions", "0"), 2, "--dimensions 0"),
    ((*E, "a", "--dimensions", "9" * 100), 2, "--dimensions"),
    ((*E, "a", "--precision", "int8"), 2, "--precision int8 calibrates"),
    ((*E, "a", "--precision", "int4"), 2, "int4"),
    ((*E, "a", "--dtype", "int8"), 2, "--dtype int8; expected"),
    ((*E, "a", "--revision", "main"), 2, "--revision main with the folder"),
    ((*E, "a", "--prompt-name", "nope"), 2, "--prompt-name nope is not among"),
    ((*E, "a", "--prompt", "a", "--prompt-name", "nope"), 1, "--prompt a and --prompt-name nope"),
    ((*E, "word " * 600), 1, "TEXT 1 has 602 tokens; the limit is 512. Pass --overflow truncate"),
    ((*E, "a", "word " * 600), 1, "TEXT 2 has"),
    ((*E, "a", "word " * 40, "--max-tokens", "9"), 1, "or raise --max-tokens (at most 512)"),
    ((*E, ""), 0, ""),
    ((*E, "\udcff"), 1, "TEXT 1 holds a lone surrogate"),
    ((*E, "a", "--prompt", "\udcff"), 2, "holds a lone surrogate"),
    ((*E, "a", "--image", "x.png"), 1, "this model reads text only"),
    ((*E, "--image", "x.png"), 2, "--image x.png is a dict"),
    ((*E,), 2, "nothing to embed"),
    ((*E, "a", "-i", "-"), 2, "not both"),
    (("embed", "-m"), 2, "requires an argument"),
    (("embed", "--nope"), 2, "No such option"),
    (("nope",), 2, "No such command"),
    ((), 2, ""),
    ((*G, "a", "--seed", "99999999999999999999999"), 2, "--seed 99999999999999999999999; expected an integer from 0"),
    ((*G, "a", "--seed", "-1"), 2, "--seed -1"),
    ((*G, "a", "--seed", "9" * 5000), 2, "--seed"),
    ((*G, "a", "--temperature", "nan"), 2, "--temperature nan; expected"),
    ((*G, "a", "--temperature", "inf"), 2, "--temperature inf; expected"),
    ((*G, "a", "--temperature", "-1"), 2, "--temperature -1.0; expected"),
    ((*G, "a", "--temperature", "1e400"), 2, "--temperature inf; expected"),
    ((*G, "a", "--top-p", "0"), 2, "--top-p 0"),
    ((*G, "a", "--top-p", "2"), 2, "--top-p 2.0; expected"),
    ((*G, "a", "--top-k", "-1"), 2, "--top-k -1; expected"),
    ((*G, "a", "--min-p", "nan"), 2, "--min-p nan; expected"),
    ((*G, "a", "--repetition-penalty", "0"), 2, "--repetition-penalty 0"),
    ((*G, "a", "--stop", ""), 2, "--stop ''; expected"),
    ((*G, "a", "--max-tokens", "-1"), 2, "--max-tokens -1; expected"),
    ((*G, "a", "--max-tokens", "0"), 0, ""),
    ((*G, ""), 1, "PROMPT is empty"),
    ((*G, "\udcff"), 1, "PROMPT holds a lone surrogate"),
    ((*G, "word " * 4000), 1, "PROMPT has"),
    ((*G, "a", "--chat"), 1, "no chat template"),
    ((*G, "a", "--system", "b"), 1, "no chat template"),
    ((*G, "a", "--image", "x.png"), 1, ""),
    ((*G,), 2, "give one PROMPT"),
    (("generate", "-m", BERT, "a"), 1, "is for embed"),
    ((*R, "a", "--top-k", "0"), 2, "--top-k 0; expected a positive integer"),
    ((*R, "a", "--max-tokens", "1"), 1, ""),
    ((*R, "\udcff"), 1, "DOCUMENT 1 holds a lone surrogate"),
    (("rerank", "-m", RERANKER, "-q", "\udcff", "a"), 1, "the query holds a lone surrogate"),
    ((*R,), 2, "give documents"),
    (("rerank", "-m", RERANKER, "a"), 2, "--query"),
    (("rerank", "-m", BERT, "-q", "a", "b"), 1, "scores no pairs"),
    (("embed", "-m", RERANKER, "a"), 1, "use `archport rerank`"),
    # Plans and the commands around them.
    (("plan", "-m", PLAN, "--tokens", "-1"), 2, ""),
    (("plan", "-m", PLAN, "--tokens", "9" * 30), 1, ""),
    (("plan", "-m", PLAN, "--tokens", "9", "--batch", "0"), 2, "--batch 0"),
    (("plan", "-m", PLAN, "--tokens", "9", "--batch", "9" * 30), 2, "expected 1 to 100,000 rows"),
    (("plan", "-m", PLAN, "--tokens", "9", "--cached", "-1"), 2, "--cached"),
    (("plan", "-m", PLAN, "--tokens", "9", "--new", "-1"), 2, ""),
    (("plan", "-m", PLAN, "--tokens", "9", "--device", "nope"), 1, "nope"),
    (("plan", "-m", PLAN, "--tokens", "9", "--mask", "nope"), 2, "--mask nope"),
    (("plan", "-m", PLAN, "--tokens", "9", "--budget", "1e400GB"), 2, "--budget 1e400GB is more than"),
    (("plan", "-m", PLAN, "--tokens", "9000", "--budget", "1MB"), 4, ""),
    (("plan", "-m", PLAN, "--tokens", "9000", "--budget", "1MB", "--json"), 4, ""),
    (("plan", "-m", PLAN, "--tokens", "900000"), 1, ""),
    (("plan", "-m", "/no/such.json", "--tokens", "9"), 1, "/no/such.json"),
    (("plan", "-m", __file__, "--tokens", "9"), 1, ""),
    (("check", "no_such_plugin"), 1, "no_such_plugin"),
    (("check", "a b"), 1, "a b"),
    (("check", "../x"), 1, ""),
    (("check", "."), 1, ""),
    (("check", ""), 1, "neither installed nor"),
    (("check", "json"), 1, ""),
    (("check", "qwen3", "--tier", "nope"), 2, "nope"),
    (("check", "qwen3", "-m", "/no/such/folder"), 1, "/no/such/folder"),
    (("check", "qwen3", "-m", QWEN, "--vectors", "/dev/null", "--tier", "golden"), 2, "/dev/null"),
    (("new", "../up"), 1, ""),
    (("new", "acme", "--into", "/dev/null/x"), 1, "can't be written"),
    (("new", "acme", "--into", "/" + "a" * 5000), 1, "can't be written"),
    (("new", "acme", "--into", "/proc"), 1, "can't be written"),
    (("plugins", "--nope"), 2, "No such option"),
    (("doctor", "now"), 2, "unexpected extra argument"),
]
ENVIRONMENTS: list[tuple[tuple[str, ...], dict[str, str], int, str]] = [
    (("embed", "-m", "a/b", "x"), {"HF_HOME": "/dev/null/x"}, 1, "HF_HUB_OFFLINE forbids"),
    (("embed", "-m", "a/b", "x"), {"HF_HOME": "a" * 5000}, 1, "HF_HUB_OFFLINE forbids"),
    (("embed", "-m", "a/b", "x"), {"HF_HUB_CACHE": "~nobody-here/x"}, 1, "HF_HUB_OFFLINE forbids"),
    ((*E, "x"), {"MLX_SDPA_CHUNK_SIZE": "many"}, 1, "MLX_SDPA_CHUNK_SIZE"),
    ((*E, "x"), {"MLX_SDPA_CHUNK_THRESHOLD": "9" * 5000}, 1, "MLX_SDPA_CHUNK_THRESHOLD"),
    ((*E, "x"), {"MLX_SDPA_CHUNK_THRESHOLD": "²"}, 1, "MLX_SDPA_CHUNK_THRESHOLD"),
    ((*E, "x"), {"ARCHPORT_PLUGINS": "nope"}, 1, ""),
    (("plugins",), {"ARCHPORT_PLUGINS": "nope"}, 0, ""),
    (("doctor",), {"ARCHPORT_PLUGINS": "nope"}, 1, ""),
    (("--help",), {"COLUMNS": "-1"}, 0, ""),
    (("--help",), {"COLUMNS": "many"}, 0, ""),
    (("--help",), {"TERM": "nonsense", "NO_COLOR": "1"}, 0, ""),
]


def some(lines):
    """Every fifth one runs in `make test`, and the others in `make truth`."""
    return [pytest.param(*line, marks=[pytest.mark.truth] if at % 5 else []) for at, line in enumerate(lines)]


@pytest.mark.parametrize(("arguments", "code", "said"), some(LINES))
def test_a_command_line_ends_with_its_code_and_a_message_in_its_own_words(monkeypatch, arguments, code, said):
    check(in_this_process(monkeypatch, *arguments), arguments, code, said)


def test_a_flag_that_was_given_several_times_is_told_as_it_was_given(monkeypatch):
    ended = in_this_process(monkeypatch, *G, "a", "--stop", "a", "--stop", "")
    check(ended, "--stop", 2, "--stop a --stop ''; expected")


@pytest.mark.parametrize(("arguments", "environment", "code", "said"), some(ENVIRONMENTS))
def test_an_environment_that_makes_no_sense_is_named(monkeypatch, arguments, environment, code, said):
    check(in_this_process(monkeypatch, *arguments, environment=environment), arguments, code, said)


@pytest.mark.parametrize("content", FILES)
@pytest.mark.parametrize("command", [E, G, R], ids=["embed", "generate", "rerank"])
def test_a_line_that_can_not_be_read_is_named_by_its_number(monkeypatch, tmp_path, command, content):
    data, said = FILES[content]
    path = tmp_path / "lines.jsonl"
    path.write_bytes(data)
    ended = in_this_process(monkeypatch, *command, "-i", str(path))
    check(ended, (command, content), 1, said)
    assert "lines.jsonl, line" in ended.err


@pytest.mark.parametrize("command", [E, G, R], ids=["embed", "generate", "rerank"])
def test_the_mark_that_windows_puts_first_is_no_text(monkeypatch, tmp_path, command):
    path = tmp_path / "lines.jsonl"
    answers = []
    for mark in (b"", b"\xef\xbb\xbf"):
        path.write_bytes(mark + b'"fine"')
        answers.append(in_this_process(monkeypatch, *command, "-i", str(path)))
    assert answers[0].code == answers[1].code == 0
    assert answers[0].out == answers[1].out


@pytest.mark.parametrize("command", [E, G, R], ids=["embed", "generate", "rerank"])
def test_lines_of_standard_input_are_called_so(monkeypatch, command):
    ended = in_this_process(monkeypatch, *command, "-i", "-", stdin=b"fine\n\xff\n")
    check(ended, command, 1, "standard input" if command is G else "standard input, line 2: not UTF-8")
    long = in_this_process(monkeypatch, *E, "-i", "-", stdin=b"fine\n\n" + b"word " * 600)
    check(long, command, 1, "standard input, line 3 has 602 tokens")


def test_a_line_separator_inside_json_ends_no_line(monkeypatch, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('"one\u2028two"\n"three\x85"\n', encoding="utf-8")
    ended = in_this_process(monkeypatch, *G, "-i", str(path))
    check(ended, path, 0)
    assert ended.out.count("\n") == 2


def test_huge_ids_of_a_file_are_named(monkeypatch, tmp_path):
    path = tmp_path / "ids.jsonl"
    path.write_text('{"prompt": [1]}\n\n{"prompt": [1, 100000000000000000000000]}\n')
    ended = in_this_process(monkeypatch, *G, "-i", str(path))
    check(ended, path, 1, "ids.jsonl, line 3 holds token id 100000000000000000000000")


@pytest.mark.parametrize("stdin", [b"", b"\xff\n", b"\0\n", b"/exit", b"word " * 5000])
def test_a_chat_takes_what_is_typed(monkeypatch, stdin):
    check(in_this_process(monkeypatch, "chat", "-m", CHATTY, "--max-tokens", "1", stdin=stdin), ("chat", stdin))


# Strings that people, and shells with a typo, give as the value of a flag.
ODD = ["", " ", "0", "-1", "1", "3.5", "nan", "inf", "1e400", "9" * 30, "9" * 5000, "x", "-", "--", "None", "\udcff"]
ODD += ["a" * 5000, "²", "1_000", "0x10", "[1]", "true", "/", "/dev/null", "/dev/full", "http://[::1", "*", "a\nb", "é"]


def flags() -> list[tuple[str, ...]]:
    """Every command with every flag that takes a value, and an odd value for it."""
    always = {"embed": (*E, "a"), "generate": (*G, "a"), "rerank": (*R, "a"), "chat": ("chat", "-m", CHATTY)}
    always |= {"plan": ("plan", "-m", PLAN, "--tokens", "9"), "info": ("info", "-m", BERT), "check": ("check", "nope")}
    found: list[tuple[str, ...]] = []
    for registered in app.registered_commands:
        name = registered.callback.__name__
        for parameter in inspect.signature(registered.callback).parameters.values():
            flag = f"--{parameter.name.replace('_', '-')}"
            # Arguments, switches, and a folder that would be written.
            if parameter.name in ("texts", "documents", "plugins", "name", "into") or "bool" in str(
                parameter.annotation
            ):
                continue
            if name in always and parameter.name not in ("prompt", "no_thinking"):
                found += [(*always[name], flag, value) for value in ODD]
    return found


def tried(monkeypatch, chosen):
    for arguments in chosen:
        check(in_this_process(monkeypatch, *arguments), arguments)


def test_flags_take_or_refuse_any_value(monkeypatch):
    tried(monkeypatch, random.Random(0).sample(flags(), 12))


@pytest.mark.truth
def test_every_flag_takes_or_refuses_any_value(monkeypatch):
    every = flags()
    tried(monkeypatch, every)
    print(f"{len(every):,} command lines")


# Lines of bash and the exit code; data that can't be written is a failure, and closed descriptors are the null device.
SHELL: list[tuple[str, int, str]] = [
    ("$A embed -m $BERT abc > /dev/full", 1, "standard output can't be"),
    ("$A embed -m $BERT abc <&-", 0, ""),
]
MORE_SHELL: list[tuple[str, int, str]] = [
    ("$A embed -m $BERT abc >&-", 0, ""),
    ("$A embed -m $BERT abc 2>&-", 0, ""),
    ("$A generate -m $CHATTY -i - <&-", 1, "standard input is empty"),
    ("HF_ENDPOINT=http://[::1 HF_HUB_OFFLINE= $A embed -m a/b a", 1, "HF_ENDPOINT='http://[::1' is no address"),
    ("$A embed -m $BERT -i - --format jsonl | head -1; exit ${PIPESTATUS[0]}", 1, ""),
    *(
        (f"$A embed -m $BERT abc --format {form} > /dev/full", 1, "standard output")
        for form in ("json", "jsonl", "npy")
    ),
    ("$A generate -m $CHATTY abc --max-tokens 2 > /dev/full", 1, "standard output"),
    ("$A generate -m $CHATTY abc --max-tokens 2 --json > /dev/full", 1, "standard output"),
    ("$A rerank -m $RERANKER -q a b > /dev/full", 1, "standard output"),
    ("$A plugins > /dev/full", 1, "standard output"),
    ("$A plugins --json > /dev/full", 1, "standard output"),
    ("$A info -m $BERT > /dev/full", 1, "standard output"),
    ("$A doctor > /dev/full", 1, "standard output"),
    ("$A --help > /dev/full", 1, "standard output"),
    ("$A embed -m /no/such a 2> /dev/full", 1, ""),
    ("$A embed --nope 2> /dev/full", 1, ""),
    ("$A embed -m /no/such a 2>&-", 1, ""),
    ("$A embed -m $BERT abc <&- >&- 2>&-", 0, ""),
    ("$A generate -m $CHATTY abc --max-tokens 2 <&- >&- 2>&-", 0, ""),
    ("$A rerank -m $RERANKER -q a b <&- 2>&-", 0, ""),
    ("$A chat -m $CHATTY <&-", 0, ""),
    ("$A info -m $BERT <&-", 0, ""),
    ("$A doctor <&- >&-", 0, ""),
    ("$A embed -m $BERT -i - <&-", 0, ""),
    ("HF_ENDPOINT=http://[::1 HF_HUB_OFFLINE= $A info -m a/b", 1, "HF_ENDPOINT='http://[::1' is no address"),
    ("HF_ENDPOINT=nonsense HF_HUB_OFFLINE= $A embed -m a/b a", 1, "HF_ENDPOINT='nonsense' is no address"),
    ("HF_ENDPOINT=ftp://x HF_HUB_OFFLINE= $A embed -m a/b a", 1, "HF_ENDPOINT='ftp://x' is no address"),
    ("HF_ENDPOINT=http://x:99999999 HF_HUB_OFFLINE= $A embed -m a/b a", 1, "is no address"),
    ("HF_ENDPOINT=http://127.0.0.1:9 HF_HUB_OFFLINE= $A embed -m a/b a", 1, "can't be reached"),
    ("HF_ENDPOINT=http://[::1 $A doctor", 1, ""),
    ("HF_HOME=/$(printf 'a%.0s' {1..5000}) $A doctor", 0, ""),
    ("HF_HUB_CACHE=~nobody-here/x $A doctor", 0, ""),
    ("HF_HOME=/dev/null/x $A doctor", 0, ""),
    ("$A plugins | true; exit ${PIPESTATUS[0]}", 1, ""),
    ("PYTHONIOENCODING=ascii $A embed -m $BERT é", 0, ""),
    ("PYTHONIOENCODING=ascii $A rerank -m $RERANKER -q a é", 0, ""),
    ("LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 $A rerank -m $RERANKER -q a é", 1, "lone surrogate"),
    ("$A embed -m $BERT $'\\xff'", 1, "TEXT 1 holds a lone surrogate"),
    ("$A embed -m $'/no/\\xff' a", 1, ""),
]


def in_bash(line: str, code: int, said: str) -> None:
    ended = in_a_shell(line, stdin=b"word\n" * 3000 if "head" in line else None)
    assert "Traceback" not in ended.err, ended.err
    assert "Exception ignored" not in ended.err, ended.err
    assert ended.code == code, ended
    assert said in ended.err, ended.err


@pytest.mark.parametrize(("line", "code", "said"), SHELL)
def test_descriptors_that_are_full_closed_or_missing_have_their_exit_code(line, code, said):
    in_bash(line, code, said)


@pytest.mark.truth
@pytest.mark.parametrize(("line", "code", "said"), MORE_SHELL)
def test_every_command_has_its_exit_code_with_them(line, code, said):
    in_bash(line, code, said)


def test_no_descriptor_is_taken_by_a_file_of_the_command():
    script = (
        "import archport.cli, os; archport.cli.open_missing_descriptors(); f = open('/dev/zero'); print(f.fileno())"
    )
    done = subprocess.run(["bash", "-c", f'{sys.executable} -c "{script}" <&- 2>&-'], capture_output=True, text=True)
    assert int(done.stdout) > 2


def interrupted(after: float, *arguments: str) -> tuple[int, bytes]:
    """(exit code, standard error) of a command that gets Ctrl-C so many seconds after its first line."""
    # Before that the interpreter itself starts, which no program can speak for.
    script = (
        # A shell's background jobs are started with the signal ignored, and so are their children.
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); sys.argv[0] = 'archport'; "
        "os.write(2, b'.'); from archport.cli import main; main()"
    )
    command = [sys.executable, "-c", script, *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, stdin=pipe) as running:
        assert running.stderr is not None
        running.stderr.read(1)
        time.sleep(after)
        running.send_signal(signal.SIGINT)
        try:
            _, err = running.communicate(timeout=300)
        finally:
            running.kill()
    return running.returncode, err


@pytest.mark.parametrize("after", [0.01, 0.1])
def test_ctrl_c_ends_with_130_and_nothing_else(after):
    # It waits for standard input as long as that takes.
    assert interrupted(after, "generate", "-m", CHATTY, "-i", "-") == (130, b"")


@pytest.mark.truth
@pytest.mark.parametrize("seed", range(4))
def test_ctrl_c_at_any_time_ends_with_130_and_no_traceback(seed, tmp_path):
    drawn = random.Random(seed)
    path = tmp_path / "prompts.jsonl"
    path.write_text('"the hack of the year"\n' * 400)
    for _ in range(8):
        after = drawn.choice([drawn.uniform(0.005, 0.1), drawn.uniform(0.1, 1), drawn.uniform(1, 3)])
        code, err = interrupted(after, "generate", "-m", CHATTY, "-i", str(path), "--max-tokens", "200")
        assert code == 130, (after, err)
        assert b"Traceback" not in err, (after, err)


@pytest.mark.truth
def test_a_process_that_ignores_ctrl_c_goes_on():
    script = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); from archport.cli import main; main()"
    command = [sys.executable, "-c", script, "generate", "-m", CHATTY, "-i", "-", "--max-tokens", "1"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        time.sleep(0.3)
        running.send_signal(signal.SIGINT)
        running.communicate(b"a", timeout=300)
    assert running.returncode == 0


@pytest.mark.parametrize("name", ["no json", "no utf-8", "a number", "a surrogate", "deep list", "digits"])
@pytest.mark.parametrize("command", [(*E, "--format", "jsonl"), (*R,)], ids=["embed", "rerank"])
def test_a_line_that_can_t_be_read_is_skipped_like_any_bad_row(monkeypatch, tmp_path: Path, name: str, command):
    content, said = FILES[name]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'"before"\n' + content.removeprefix(b'"fine"') + b'\n"after"\n')
    ended = in_this_process(monkeypatch, *command, "-i", str(path), "--on-error", "skip")
    assert ended.code == 3, ended
    assert len(ended.out.splitlines()) == 2
    assert said.partition(":")[2] in ended.err
    assert "skipped: " in ended.err
