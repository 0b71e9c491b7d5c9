"""Docstrings as the house writes them, for griffe: one line may name several arguments (`top_p, top_k: how ...`).

Loaded by mkdocstrings (mkdocs.yml). Each name of such a line becomes an entry of its own with the same text, and
attributes become a list, because griffe gives one without an annotation the type of the one before it.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension

SEVERAL = re.compile(r"^(?P<indent> +)(?P<names>\w+(?:, \w+)+): ")


class SeveralNames(Extension):
    """Rewrites the docstring of every class and function before it is parsed."""

    def on_class_instance(self, *, cls: Any, **_: Any) -> None:
        rewrite(cls)

    def on_function_instance(self, *, func: Any, **_: Any) -> None:
        rewrite(func)


def rewrite(thing: Any) -> None:
    if thing.docstring is not None:
        thing.docstring.value = as_list(expanded(thing.docstring.value))


def expanded(text: str) -> str:
    """A docstring whose lines name one argument each."""
    lines = text.splitlines()
    made: list[str] = []
    at = 0
    while at < len(lines):
        end = at + 1
        if match := SEVERAL.match(lines[at]):
            deeper = match["indent"] + " "
            while end < len(lines) and lines[end].startswith(deeper):
                end += 1
            for name in match["names"].split(", "):
                made += [f"{match['indent']}{name}: {lines[at][match.end() :]}", *lines[at + 1 : end]]
        else:
            made += lines[at:end]
        at = end
    return "\n".join(made)


def as_list(text: str) -> str:
    """A docstring whose section of attributes is a list."""
    before, heading, after = text.partition("\nAttributes:\n")
    if not heading:
        return text
    section, blank, rest = after.partition("\n\n")
    items = re.sub(r"^    (\w+): ", r"- `\1`: ", section, flags=re.M).replace("\n        ", "\n  ")
    return f"{before}\n\n{items}{blank}{rest}"
