"""Write docs/commands.md: every command of `archport` with its arguments and options, as `--help` shows them.

python docs/make_commands.py         # rewrite the page; a test fails while it is not current
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer

from archport.cli.commands import app

PAGE = Path(__file__).with_name("commands.md")
HEAD = """# Commands

Written by `docs/make_commands.py` from `core/archport/cli`; edit that, not this page.

Every command, argument and option, as `archport COMMAND --help` shows them. Where output goes, how a command ends and
what its messages mean: [command-line.md](command-line.md).
"""


def commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """(name as typed, command) of a command and of all below it, in the order of `--help`."""
    children = getattr(command, "commands", {})
    if not children or command.invoke_without_command:
        yield path, command
    for name, child in children.items():
        yield from commands(child, f"{path} {name}")


def prose(text: str | None) -> str:
    """A help text with its paragraphs, each on one line."""
    return "\n\n".join(" ".join(part.split()) for part in re.split(r"\n\s*\n|\f", (text or "").strip()))


def cell(text: str) -> str:
    """A text within one cell of a table, where a bar would end it, even in code."""
    return re.sub(r"\s*\|\s*", " or ", " ".join(text.split()))


def default(parameter: Any) -> str:
    """What happens without the option, where that is a value."""
    value = parameter.default
    if parameter.required:
        return "required"
    # A list or None is what every such option begins with, and a function is asked when the command runs.
    if value is None or value == [] or value == () or value is False or callable(value):
        return ""
    return f"`{cell(str(getattr(value, 'value', value)))}`"


def kind(hint: Any) -> str:
    """How a value of a type is written: the choices of an enumeration, or the type's name."""
    if get_origin(hint) is Annotated:
        return kind(get_args(hint)[0])
    inner = [part for part in get_args(hint) if part is not type(None)]
    if get_origin(hint) is list or (inner and get_origin(hint) in (Union, UnionType)):
        return kind(inner[0])
    if inspect.isclass(hint) and issubclass(hint, Enum):
        return ", ".join(str(member.value) for member in hint)
    return {str: "TEXT", int: "INTEGER", float: "NUMBER", Path: "PATH"}.get(
        hint, getattr(hint, "__name__", str(hint)).upper()
    )


def spelled(parameter: Any, hint: Any) -> str:
    """An option's names and what its value looks like, or an argument as it is called."""
    value = parameter.metavar or kind(hint)
    if parameter.param_type_name == "argument":
        return f"`{cell(parameter.metavar or parameter.name.upper())}`"
    names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    return names if parameter.is_flag else f"{names} `{cell(value)}`"


def entry(path: str, command: Any) -> str:
    """One command: what it does, and a table of what it takes."""
    hints = get_type_hints(inspect.unwrap(command.callback), include_extras=True)
    rows = [
        f"| {spelled(parameter, hints[parameter.name])} | {explained(parameter)} | {default(parameter)} |"
        for parameter in command.params
        if parameter.name in hints and not parameter.hidden
    ]
    table = "\n| | what | default |\n|---|---|---|\n" + "\n".join(rows) + "\n" if rows else ""
    return f"\n## {path}\n\n{prose(command.help)}\n{table}"


def explained(parameter: Any) -> str:
    variable = parameter.envvar
    return cell(parameter.help or "") + (f" Also `{variable}`." if isinstance(variable, str) else "")


def page() -> str:
    """The whole page."""
    return HEAD + "".join(entry(path, command) for path, command in commands(typer.main.get_command(app), "archport"))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
