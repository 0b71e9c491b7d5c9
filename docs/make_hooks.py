"""Write docs/hooks.md from the hookspecs: names, arguments, when each is asked, what it answers.

python docs/make_hooks.py            # rewrite the page; a test fails while it is not current
"""

from __future__ import annotations

import inspect
from pathlib import Path

from archport.checkpoint import defaults
from archport.contract import hookspecs

PAGE = Path(__file__).with_name("hooks.md")
HEAD = """# Hooks

Written by `docs/make_hooks.py` from `core/archport/contract/hookspecs.py`; edit that file, not this one.

A plugin is a module that marks functions of these names with `@hookimpl` (`from archport.contract import hookimpl`).
An implementation takes any subset of the arguments, by name, with neither defaults nor keyword-only parameters: a
plugin that takes fewer arguments keeps working when the contract adds one. Every answer is checked, and an answer of
another type is an error that names hook, plugin and distribution.

"""


def hooks() -> list[tuple[str, object, bool]]:
    """(name, function, whether the first answer wins) of every hook, in the order of the file."""
    marked = [
        (name, value, value.archport_spec.get("firstresult", False))
        for name, value in vars(hookspecs).items()
        if inspect.isfunction(value) and hasattr(value, "archport_spec")
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


def page() -> str:
    """The whole page."""
    parts = [HEAD, "| hook | asked of |\n|---|---|\n"]
    found = hooks()
    parts += [f"| [`{name}`](#{name}) | {asked(name, first)} |\n" for name, _, first in found]
    for name, function, first in found:
        signature = str(inspect.signature(function)).replace("'", "")
        text = inspect.cleandoc(function.__doc__ or "").replace("\nReturns:\n", "\nReturns:\n\n")
        text = text.replace("\nArgs:\n", "\nArgs:\n\n")
        body = "\n".join(line.removeprefix("    ") for line in text.splitlines())
        parts.append(f"\n## {name}\n\n`{name}{signature}`\n\nAsked of {asked(name, first)}.\n\n{body}\n")
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
