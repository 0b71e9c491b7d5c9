"""Command lines, in this process: any exit code of the table, and never a traceback."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import strategies as st

from archport.cli import main
from fuzz.cases import Seen

FILES = False
CODES = {0, 1, 2, 3, 4, 130}
COMMANDS = ["embed", "rerank", "generate", "plan", "info", "plugins", "doctor", "--help", "--version", "odd", "chat"]
COMMANDS += ["batch", "similar", "convert", "models"]
FLAGS = [
    "-m",
    "--model",
    "-i",
    "--input",
    "-o",
    "--output",
    "-q",
    "--query",
    "--format",
    "--prompt",
    "--prompt-name",
    "--max-tokens",
    "--tokens",
    "--batch",
    "--device",
    "--new",
    "--seed",
    "--temperature",
    "--top-k",
    "--top-p",
    "--overflow",
    "--budget",
    "--memory-budget",
    "--dimensions",
    "--json",
    "--quiet",
    "--image",
    "--stop",
    "--odd",
    "--help",
    "--dtype",
    "--logprobs",
    "--html",
    "--bits",
    "--group-size",
    "--mode",
    "--keep",
    "--no-measure",
    "--resume",
    "--on-error",
]
VALUES = [
    "-",
    "",
    "0",
    "-1",
    "1",
    "7",
    "99999999999999999999",
    "1e400GB",
    "2GB",
    "x",
    "truncate",
    "json",
    "npy",
    "h200",
    "no-such-device",
    "/dev/full",
    "/",
    "a" * 5000,
    "é",
    "\udcff",
    "1.5",
    "nan",
    "{}",
    "../x",
    "float32",
    "m2-ultra-128gb",
]
INPUTS = [
    b"",
    b"a\nb\n",
    b"\xff\xfe",
    b'{"text": "a"}\n{"text": 5}\n',
    b"[" * 5000,
    b'{"text": ' + b"1" * 5000 + b"}",
    b"\0\n\n",
    b"a" * 70000,
]
BASES = ["bert", "labels", "qwen3", "generates", "sees"]


def cases() -> st.SearchStrategy[Any]:
    word = st.one_of(
        st.sampled_from(FLAGS), st.sampled_from(VALUES), st.sampled_from(FLAGS).map(lambda flag: f"{flag}=7")
    )
    sound = st.tuples(st.sampled_from(["embed", "generate", "plan", "info", "convert"]), st.sampled_from(BASES))
    return st.tuples(
        st.one_of(st.tuples(st.sampled_from(COMMANDS), st.sampled_from([None, *BASES])), sound),
        st.lists(word, max_size=4),
        st.booleans(),
        st.sampled_from(INPUTS),
    )


def run(case: Any, bases: Path, place: Path, seen: Seen) -> None:
    (command, base), words, text, given = case
    arguments = [command]
    if base is not None:
        arguments += [str(bases / base)] if command == "info" else ["-m", str(bases / base)]
    if command in ("generate", "chat"):
        arguments += ["--max-tokens", "2"]
    if command == "convert":
        arguments += ["--out", str(place / "converted"), "--bits", "4", "--group-size", "32", "--no-measure"]
    if text and command in ("embed", "rerank", "generate"):
        arguments.append("hello")
    arguments += words
    before = os.getcwd()
    os.chdir(place)
    out, told = _stream(b""), io.StringIO()
    try:
        with (
            mock.patch.object(sys, "argv", ["archport", *arguments]),
            mock.patch.object(sys, "stdin", _stream(given)),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(told),
        ):
            code: Any = 0
            try:
                main()
            except SystemExit as error:
                code = error.code or 0
    finally:
        os.chdir(before)
    assert code in CODES, f"exit code {code!r} of {arguments}: {told.getvalue()[-500:]}"
    assert "Traceback (most recent call last)" not in told.getvalue(), f"{arguments}: {told.getvalue()[-2000:]}"
    seen.reached = code == 0 and base is not None


def _stream(content: bytes) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8")
