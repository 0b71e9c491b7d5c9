"""`archport new`: the skeleton of a plugin that installs, is discovered, and fails conformance only at its TODOs.

The texts of its files are the templates in skeleton/; of an architecture they know what its name suggests.
"""

from __future__ import annotations

import os
import re
import tempfile
from datetime import date
from pathlib import Path
from string import Template
from typing import Annotated

import typer

import archport
from archport.contract import InputError
from archport.contract.errors import shown

_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
LONGEST = 30
SKELETON = Path(__file__).with_name("skeleton")
# Template in skeleton/ -> its place in the plugin's folder.
FILES = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "LICENSE": "LICENSE",
    "ci.yml": ".github/workflows/ci.yml",
    "hooks.py": "$package/__init__.py",
    "model.py": "$package/model.py",
    "test_conformance.py": "tests/test_conformance.py",
}


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Lower case, such as qwen2 or acme_bert.")],
    into: Annotated[Path, typer.Option("--into", metavar="DIR", help="Folder to create archport-NAME in.")] = Path("."),
) -> None:
    """Write the skeleton of a plugin: pyproject, hooks, model, conformance test, README, licence, workflow of CI."""
    from archport.contract.plugins import discover

    check_name(name, taken={plugin.name: plugin.label for plugin in discover()})
    folder = write_skeleton(name, into)
    typer.echo(f"wrote {folder}:")
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        todos = path.read_text(encoding="utf-8").count("TODO:")
        note = f"  {todos} TODO{'s' if todos > 1 else ''}" if todos else ""
        typer.echo(f"  {path.relative_to(folder)}{note}")
    typer.echo(f"next:\n  pip install --editable {folder}\n  archport plugins\n  archport check {name}")


def check_name(name: str, taken: dict[str, str]) -> None:
    """Accept a name that works as entry point, as `archport-<name>` and as `archport_<name>`.

    Args:
        taken: names of installed plugins, each with its label.

    Raises:
        InputError: for a name of another form, or one that an installed plugin has.
    """
    if len(name) > LONGEST or not _NAME.fullmatch(name):
        close = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_").removeprefix("archport_").lstrip("0123456789_")
        hint = f", for example {close[:LONGEST]!r}" if close else ""
        raise InputError(
            f"{name!r} is no name for a plugin; expected lower-case letters, digits and single underscores, a letter "
            f"first, at most {LONGEST} characters{hint}"
        )
    if name.startswith("archport"):
        raise InputError(f"{name!r} would be the distribution archport-{name}; leave the prefix out")
    if name in taken:
        raise InputError(
            f"a plugin called {name!r} is installed: {taken[name]}. Two plugins can't share a name; choose another, or "
            "uninstall that one"
        )


def write_skeleton(name: str, into: Path) -> Path:
    """Write `into`/archport-<name> and return it; all of it or nothing.

    Raises:
        InputError: when that folder exists, or `into` can't be written to.
    """
    folder = into / f"archport-{name.replace('_', '-')}"
    # `os.path` says no to a name that is too long, instead of raising.
    if os.path.exists(folder):
        raise InputError(f"{folder} exists; nothing was written. Choose another name or --into, or remove it")
    major, minor = archport.__version__.split(".")[:2]
    words = {
        "name": name,
        "distribution": folder.name,
        "package": f"archport_{name}",
        "title": "".join(part.capitalize() for part in name.split("_")),
        "year": str(date.today().year),
        "requires": f"archport>={major}.{minor},<{major}.{int(minor) + 1}",
    }
    try:
        into.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=into, prefix=".archport-new-") as made:
            whole = Path(made) / "plugin"
            for name, place in FILES.items():
                text = (SKELETON / f"{name}.template").read_text(encoding="utf-8")
                target = whole / Template(place).substitute(words)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(Template(text).substitute(words), encoding="utf-8")
            whole.rename(folder)
    except OSError as error:
        raise InputError(f"--into {shown(str(into))} can't be written: {error.strerror or error}") from error
    return folder
