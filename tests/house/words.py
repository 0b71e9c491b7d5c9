"""Words that DESIGN's glossary replaces, looked for in identifiers of core and plugins.

    python tests/house/words.py            print the identifiers that hold one and are no listed exception
    python tests/house/words.py --write    list what stands today as the exceptions

Exceptions are names that stood before the glossary did, and the documented ones that keep an old spelling.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXCEPTIONS = Path(__file__).with_name("words.json")
# word -> what to say
BANNED = {
    "segment": "document",
    "segments": "documents",
    "pack": "packed",
    "room": "free bytes",
    "parts": "halves, tiles or chunks",
    "found": "a noun: what was found",
    "each": "a noun: what one of them is",
    "held": "a noun, such as bytes",
    "seen": "a noun, such as visible",
    "said": "a noun, such as message",
    "behind": "after",
    "beside": "next to, or besides",
}


def identifiers(path: Path) -> Iterator[str]:
    """Names that a file defines: of functions, classes, arguments, variables, fields."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.id if isinstance(node, ast.Name) else node.attr


def words(identifier: str) -> set[str]:
    """The words of an identifier, in lower case."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", identifier)}


def offenders() -> dict[str, list[str]]:
    """banned word -> identifiers that hold it."""
    names: set[str] = set()
    for folder in (ROOT / "core", ROOT / "plugins"):
        for path in folder.rglob("*.py"):
            if not {"tests", "__pycache__"} & set(path.relative_to(ROOT).parts):
                names.update(identifiers(path))
    return {word: sorted(name for name in names if word in words(name)) for word in BANNED}


def new() -> dict[str, list[str]]:
    """What is no listed exception."""
    known: dict[str, list[str]] = json.loads(EXCEPTIONS.read_text(encoding="utf-8"))
    return {word: more for word, names in offenders().items() if (more := sorted({*names} - {*known.get(word, ())}))}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="list today's names as the exceptions")
    if parser.parse_args().write:
        EXCEPTIONS.write_text(json.dumps(offenders(), indent=1) + "\n", encoding="utf-8")
        return 0
    for word, names in new().items():
        print(f"{word} (say {BANNED[word]}): {', '.join(names)}")
    return 1 if new() else 0


if __name__ == "__main__":
    sys.exit(main())
