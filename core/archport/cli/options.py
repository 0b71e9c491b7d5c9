"""Options and reading that several commands share: how text is drawn, and documents or prompts from files and stdin."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from archport.contract import InputError

Model = Annotated[str, typer.Option("--model", "-m", help="Folder, hub id or alias.")]
Dtype = Annotated[str | None, typer.Option(help="float32, float16, bfloat16 or checkpoint.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")]
MemoryBudget = Annotated[str | None, typer.Option(metavar="BYTES", help="For example 16GB.")]
MaxTokens = Annotated[int, typer.Option(help="Tokens to generate at most.")]
Temperature = Annotated[float, typer.Option(help="0 takes the likeliest token each time.")]
TopP = Annotated[float, typer.Option(help="Keep the likeliest tokens that hold this share; 1 keeps all.")]
TopK = Annotated[int, typer.Option(help="Keep so many of the likeliest tokens; 0 keeps all.")]
MinP = Annotated[float, typer.Option(help="Keep tokens with this share of the likeliest one's probability.")]
Penalty = Annotated[float | None, typer.Option("--repetition-penalty", help="Above 1: repeat less.")]
Seed = Annotated[int | None, typer.Option(help="Draw the same text again.")]
Stop = Annotated[list[str] | None, typer.Option(help="A string that ends the text; may be given several times.")]
NoThinking = Annotated[bool, typer.Option("--no-thinking", help="Ask the chat template to leave thinking out.")]


def read_whole(source: str) -> str:
    """All text of a file, or of standard input for `-`.

    Raises:
        InputError: for a file that can't be read or is not UTF-8.
    """
    try:
        data = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        return data.decode("utf-8")
    except OSError as error:
        raise InputError(f"--input {source!r} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{source}: not UTF-8 ({error.reason} at byte {error.start})") from error


def read_objects(source: str) -> list[Any]:
    """The JSON value of every line of a file that is not empty.

    Raises:
        InputError: for a line that is not JSON, naming it.
    """
    found: list[Any] = []
    for number, line in enumerate(read_whole(source).splitlines(), 1):
        if not line.strip():
            continue
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise InputError(f"{source}, line {number}: not JSON ({error.msg} at column {error.colno})") from error
    return found


def note(text: str) -> None:
    """One line on standard error, where data does not go."""
    print(text, file=sys.stderr, flush=True)
