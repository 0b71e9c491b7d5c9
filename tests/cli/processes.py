"""Command lines run in this process, fast, and as processes, whole."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from archport import cli

GOLDENS = Path(__file__).parents[1] / "goldens"
BERT, QWEN, CHATTY, RERANKER = (
    str(GOLDENS / name) for name in ("bert-plain", "qwen3-embed", "qwen3-moe", "qwen3-reranker")
)
COMMAND = f"{sys.executable} -c 'from archport.cli import main; main()'"


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended: its exit code, and what it wrote to both outputs."""

    code: int
    out: str
    err: str


def in_this_process(
    monkeypatch: pytest.MonkeyPatch, *arguments: str, stdin: bytes = b"", environment: dict[str, str] | None = None
) -> Ended:
    """Run a command as `main` does, but for descriptors and signals."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace") for _ in range(2))
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["archport", *arguments])
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        for name, value in {"HF_HUB_OFFLINE": "1", "COLUMNS": "200", **(environment or {})}.items():
            patch.setenv(name, value)
        code = cli.finished(cli.run())
    told = [stream.buffer.getvalue().decode("utf-8", "replace") for stream in (out, err)]
    return Ended(code, *told)


def in_a_shell(line: str, *, stdin: bytes | None = None, **environment: str) -> Ended:
    """Run a line of bash in which `$A` is the command, and `$BERT` and so on are checkpoints."""
    names = {"A": COMMAND, "BERT": BERT, "QWEN": QWEN, "CHATTY": CHATTY, "RERANKER": RERANKER}
    for name, value in names.items():
        line = line.replace(f"${name}", value)
    done = subprocess.run(
        ["bash", "-c", line],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "200", **environment},
        timeout=300,
    )
    return Ended(done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace"))
