"""Options and reading that several commands share: how text is drawn, and documents or prompts from files and stdin."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from archport.cli import SOME_FAILED
from archport.contract import InputError
from archport.contract.errors import shown
from archport.reading.columns import Unreadable, decoded, json_value

Model = Annotated[str, typer.Option("--model", "-m", help="Folder, hub id or alias.")]
Dtype = Annotated[str | None, typer.Option(help="float32, float16, bfloat16 or checkpoint.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")]
Adapter = Annotated[
    str | None, typer.Option(metavar="FOLDER|ID", help="A LoRA adapter (PEFT) that the weights are loaded with.")
]
Adapters = Annotated[
    list[str] | None,
    typer.Option(
        "--adapters", metavar="NAME=FOLDER|ID", help="A LoRA adapter kept apart from the weights; may be repeated."
    ),
]
Task = Annotated[
    str | None, typer.Option(help="Which of --adapters runs, or of a model's own, as retrieval.query; default: none.")
]
MemoryBudget = Annotated[str | None, typer.Option(metavar="BYTES", help="For example 16GB.")]
MaxContext = Annotated[int | None, typer.Option(help="Longest text in tokens, at most the model's positions.")]
MaxTokens = Annotated[int, typer.Option(help="Tokens to generate at most; 0 only reads the prompt.")]
Temperature = Annotated[float, typer.Option(help="0 takes the likeliest token each time.")]
TopP = Annotated[float, typer.Option(help="Keep the likeliest tokens that hold this share; 1 keeps all.")]
TopK = Annotated[int, typer.Option(help="Keep so many of the likeliest tokens; 0 keeps all.")]
MinP = Annotated[float, typer.Option(help="Keep tokens with this share of the likeliest one's probability.")]
Penalty = Annotated[float | None, typer.Option("--repetition-penalty", help="Above 1: repeat less.")]
Presence = Annotated[
    float, typer.Option("--presence-penalty", help="-2 to 2, taken from the logit of what was generated before, once.")
]
Frequency = Annotated[
    float, typer.Option("--frequency-penalty", help="-2 to 2, taken from it as often as it was generated.")
]
Bias = Annotated[
    list[str] | None,
    typer.Option("--logit-bias", metavar="ID=BIAS", help="Added to a token's logit, -100 to 100; may be repeated."),
]
Seed = Annotated[int | None, typer.Option(help="Draw the same text again.")]
Stop = Annotated[list[str] | None, typer.Option(help="A string that ends the text; may be given several times.")]
StopToken = Annotated[
    list[int] | None, typer.Option("--stop-token-id", help="A token that ends the text; may be given several times.")
]
MinTokens = Annotated[int, typer.Option(help="Tokens before which nothing ends the text.")]
NoThinking = Annotated[bool, typer.Option("--no-thinking", help="Ask the chat template to leave thinking out.")]


def called(source: str) -> str:
    """How messages call a file that was given, where `-` is standard input."""
    return "standard input" if source == "-" else source


def biases(given: list[str] | None) -> dict[int, float] | None:
    """Token id -> bias of `ID=BIAS` words.

    Raises:
        BadParameter: for a word that is none.
    """
    found: dict[int, float] = {}
    for word in given or ():
        token, _, bias = word.partition("=")
        try:
            found[int(token)] = float(bias)
        except ValueError as error:
            raise typer.BadParameter(f"--logit-bias {word!r}; expected ID=BIAS, for example 50256=-100") from error
    return found or None


def adapters_of(given: list[str] | None, adapter: str | None) -> dict[str, str] | None:
    """Name -> adapter of `NAME=FOLDER|ID` words; None without any.

    Args:
        adapter: of --adapter, which is the only one then.

    Raises:
        BadParameter: for a word that is none, a name that is there twice, and adapters of both kinds.
    """
    found: dict[str, str] = {}
    for word in given or ():
        name, _, place = word.partition("=")
        if not name or not place:
            raise typer.BadParameter(f"--adapters {word!r}; expected NAME=FOLDER or NAME=ID, such as search=me/lora")
        if name in found:
            raise typer.BadParameter(
                f"--adapters {word!r}: {name!r} is {found[name]!r} already; give each adapter a name of its own"
            )
        found[name] = place
    if found and adapter is not None:
        raise typer.BadParameter(
            f"--adapter {adapter!r} is merged into the weights that --adapters run next to; give it a name, "
            f"--adapters NAME={adapter}, or leave one of both out"
        )
    return found or None


def read_whole(source: str) -> str:
    """All text of a file, or of standard input for `-`.

    Raises:
        InputError: for a file that can't be read or is not UTF-8.
    """
    try:
        data = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        return data.decode("utf-8")
    except (OSError, ValueError) as error:
        raise _unreadable(source, error) from error


def read_lines(source: str) -> Iterator[tuple[int, str | Unreadable]]:
    """(number from 1, text without its end) of every line of a file, or of standard input for `-`.

    Raises:
        InputError: for a file that can't be read.
    """
    try:
        stream = sys.stdin.buffer if source == "-" else Path(source).open("rb")  # noqa: SIM115
        with stream:
            for number, line in enumerate(stream, 1):
                yield number, decoded(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line)
    # A name with a zero byte, or descriptors that take no reading.
    except (OSError, ValueError) as error:
        raise _unreadable(source, error) from error


def parsed(line: str, where: str) -> Any:
    """The JSON value of a line.

    Args:
        where: how messages call it.

    Raises:
        InputError: for what is no JSON, or none that can be read.
    """
    value = json_value(line)
    if isinstance(value, Unreadable):
        raise InputError(f"{where}: {value.reason}")
    return value


def read_objects(source: str) -> list[tuple[str, Any]]:
    """(how messages call it, the JSON value) of every line of a file that is not empty.

    Raises:
        InputError: for a line that is not UTF-8 or not JSON, naming it.
    """
    found: list[tuple[str, Any]] = []
    for number, line in read_lines(source):
        where = f"{called(source)}, line {number}"
        if isinstance(line, Unreadable):
            raise InputError(f"{where}: {line.reason}")
        if line.strip():
            found.append((where, parsed(line, where)))
    return found


def _unreadable(source: str, error: Exception) -> InputError:
    if isinstance(error, UnicodeDecodeError):
        return InputError(f"{called(source)}: not UTF-8 ({error.reason} at byte {error.start})")
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return InputError(f"--input {shown(source)} can't be read: {reason}")


def end_with(failures: Iterable[str]) -> None:
    """Say what failed of a command's rows; where anything did, end with the exit code of that.

    Raises:
        Exit: with that code.
    """
    found = list(failures)
    for failure in found:
        note(f"archport: skipped: {failure}")
    if found:
        raise typer.Exit(SOME_FAILED)


def note(text: str) -> None:
    """One line on standard error, where data does not go."""
    print(text, file=sys.stderr, flush=True)
