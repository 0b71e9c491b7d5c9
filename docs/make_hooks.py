"""Write docs/hooks.md from the contract: hooks, their arguments, when each is asked, and the types they speak in.

python docs/make_hooks.py            # rewrite the page; a test fails while it is not current
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from archport import contract
from archport.checkpoint import defaults
from archport.contract import hookspecs

PAGE = Path(__file__).with_name("hooks.md")
HEAD = """# Hooks

Written by `docs/make_hooks.py` from `core/archport/contract`; edit that, not this page.

A plugin is a module that marks functions of these names with `@hookimpl` (`from archport.contract import hookimpl`).
An implementation takes any subset of the arguments, by name, with neither defaults nor keyword-only parameters, so it
keeps working when the contract adds one. Every answer is checked; one of another type is an error that names hook,
plugin and distribution. How to start: [write-a-plugin.md](write-a-plugin.md).

"""
TYPES = """
# Types

What hooks are given and what they answer with, all from `archport.contract`. Fields with a default may be left out;
pass those with keywords.
"""


def hooks() -> list[tuple[str, Callable[..., Any], bool]]:
    """(name, function, whether the first answer wins) of every hook, in the order of the file."""
    marked = [
        (name, value, options.get("firstresult", False))
        for name, value in vars(hookspecs).items()
        if inspect.isfunction(value) and (options := vars(value).get("archport_spec")) is not None
    ]
    return sorted(marked, key=lambda hook: inspect.getsourcelines(hook[1])[1])


def asked(name: str, first: bool) -> str:
    """Whom the engine asks."""
    if name in ("archport_models", "archport_claim", "archport_examples"):
        return "every installed plugin"
    if not first:
        return "the claiming plugin and every override; all answers count"
    default = ", then the core default" if hasattr(defaults, name) else ""
    return f"overrides, then the claiming plugin{default}; the first answer that is not None wins"


def types() -> list[type]:
    """The contract's data and protocols that hooks mention, directly or by way of each other, sorted by name."""
    known = {
        name: value
        for name in contract.__all__
        if inspect.isclass(value := getattr(contract, name)) and not issubclass(value, Exception)
    }
    unions = {name: str(value) for name in contract.__all__ if get_args(value := getattr(contract, name))}
    found: set[str] = set()
    texts = [str(inspect.signature(function)) for _, function, _ in hooks()]
    while texts:
        named = set(re.findall(r"\w+", texts.pop()))
        texts += [unions.pop(word) for word in named & set(unions)]
        words = named & set(known) - found
        found |= words
        for word in words:
            texts += map(str, getattr(known[word], "__annotations__", {}).values())
            texts += [str(inspect.signature(method)) for _, method in methods(known[word])]
    return [known[name] for name in sorted(found)]


def methods(kind: type) -> list[tuple[str, Callable[..., Any]]]:
    """Methods and properties of a protocol, in order; a dataclass shows its fields instead."""
    if dataclasses.is_dataclass(kind):
        return []
    members = [(name, getattr(value, "fget", value)) for name, value in vars(kind).items()]
    return [
        (name, value)
        for name, value in members
        if inspect.isfunction(value) and (not name.startswith("_") or name == "__call__") and value.__doc__
    ]


def prose(text: str | None) -> str:
    """A docstring as Markdown: its sections as paragraphs, what it says of each argument as a list."""
    lines: list[str] = []
    section = ""
    for line in inspect.cleandoc(text or "").splitlines():
        if line in ("Args:", "Returns:", "Raises:", "Attributes:"):
            section = line
            lines += [f"{line}", ""]
        elif section and (match := re.match(r" {4}(\w[\w, ]*): (.*)", line)) and section != "Returns:":
            names = ", ".join(f"`{name}`" for name in match[1].split(", "))
            lines.append(f"- {names}: {match[2]}")
        elif section and line.startswith("        "):
            lines.append(f"  {line.strip()}")
        else:
            lines.append(line.removeprefix("    ") if section else line)
    return "\n".join(lines)


def signature(function: Callable[..., Any]) -> str:
    return str(inspect.signature(function)).replace("'", "").replace("self, ", "").replace("(self)", "()")


def type_entry(kind: type) -> str:
    parts = [f"\n## {kind.__name__}\n\n{prose(kind.__doc__)}\n"]
    if dataclasses.is_dataclass(kind):
        rows = [f"| `{each.name}` | `{_plain(each.type)}` | {_default(each)} |" for each in dataclasses.fields(kind)]
        parts.append("\n| field | type | default |\n|---|---|---|\n" + "\n".join(rows) + "\n")
    for name, method in methods(kind):
        shown = f"{name}: {_returned(method)}" if isinstance(vars(kind)[name], property) else name + signature(method)
        parts.append(f"\n`{shown}`\n\n{prose(method.__doc__)}\n")
    return "".join(parts)


def _returned(method: Callable[..., Any]) -> str:
    return str(inspect.signature(method).return_annotation).replace("'", "")


def _plain(annotation: object) -> str:
    return str(annotation).replace("|", "\\|")


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return f"`{field.default!r}`"
    if field.default_factory is dataclasses.MISSING:
        return ""
    return f"`{field.default_factory.__name__}()`" if inspect.isclass(field.default_factory) else "empty"


def page() -> str:
    """The whole page."""
    found = hooks()
    parts = [HEAD, "| hook | asked of |\n|---|---|\n"]
    parts += [f"| [`{name}`](#{name}) | {asked(name, first)} |\n" for name, _, first in found]
    for name, function, first in found:
        parts.append(f"\n## {name}\n\n`{name}{signature(function)}`\n\nAsked of {asked(name, first)}.\n")
        parts.append(f"\n{prose(function.__doc__)}\n")
    return "".join([*parts, TYPES, *map(type_entry, types())])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
