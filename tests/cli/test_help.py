"""The help: quick, because it imports nothing that draws or computes, and whole sentences."""

from __future__ import annotations

import os
import subprocess
import sys

import typer

from archport.cli.commands import app

PROGRAM = """
import sys
sys.argv = ["archport", *sys.argv[1:]]
from archport.cli import main
try:
    main()
finally:
    print(*sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""


def shown(*arguments: str) -> tuple[str, set[str]]:
    """(what is printed, packages that were imported)."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env=os.environ | {"COLUMNS": "100", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout, set(done.stderr.split())


def test_help_imports_nothing_that_draws_or_computes():
    _, imported = shown("--help")
    heavy = {"rich", "email", "mlx", "numpy", "jinja2", "tokenizers", "huggingface_hub", "safetensors"}
    assert imported & heavy == set()
    assert "typer" in imported


def test_help_says_of_every_command_the_whole_sentence():
    printed = " ".join(shown("--help")[0].split())
    for name, command in typer.main.get_command(app).commands.items():
        sentence = " ".join(command.help.partition("\n\n")[0].split())
        assert f"{name} {sentence}" in printed


def test_a_group_of_commands_lists_its_own():
    printed, _ = shown("models", "--help")
    assert "pull" in printed
    assert "rm" in printed
