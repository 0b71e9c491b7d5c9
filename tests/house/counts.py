"""Counts of the house: what a reader has to walk through. The figures of docs and issues come from here.

    python tests/house/counts.py                    print the counts of this tree
    python tests/house/counts.py --json             the same as JSON
    python tests/house/counts.py --against FILE     print them next to an earlier --json
    python tests/house/counts.py --since REV        statements that commits since REV added, and that others took out

Reads sources, and runs three small calls with a profiler to see which files they enter. Judges nothing.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "core" / "archport"
PLUGINS = ROOT / "plugins"
MOST_ARGUMENTS = 8
MOST_LINES_OF_A_FUNCTION = 60
# Signatures that somebody else calls or writes: commands, the engine, drop-ins, the contract, a layer that plugins
# compose, a backend's `run`, a callable for tables. They take what their callers know, each by a name of its own.
PUBLIC_FOLDERS = ("core/archport/cli/", "core/archport/compat/", "core/archport/contract/")
PUBLIC_FILES = ("core/archport/engine.py", "core/archport/model.py")
PUBLIC_FUNCTIONS = (
    "core/archport/answering/static_words.py:embed",
    "core/archport/attention/dropin.py:scaled_dot_product_attention",
    "core/archport/bulk/tables.py:__init__",
    "core/archport/layers/attention.py:__init__",
    "core/archport/layers/experts.py:__init__",
)
BACKENDS = "core/archport/attention/backends/"
Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources(folder: Path) -> list[Path]:
    """A folder's Python files, without tests."""
    return [
        path
        for path in sorted(folder.rglob("*.py"))
        if not {"__pycache__", "tests"} & set(path.relative_to(ROOT).parts)
    ]


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def statements(path: Path) -> int:
    """Statements of a file, docstrings included, as `ast.stmt` counts them."""
    return sum(isinstance(node, ast.stmt) for node in ast.walk(parsed(path)))


def docstring_words(path: Path) -> int:
    """Words in the docstrings of a file."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [ast.get_docstring(node) for node in ast.walk(parsed(path)) if isinstance(node, kinds)]
    return sum(len(text.split()) for text in found if text)


def functions(path: Path) -> Iterator[tuple[str, Function]]:
    """(file:name, node) of every function of a file."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{path.relative_to(ROOT)}:{node.name}", node


def lines(node: Function) -> int:
    """Lines of a function's body, its signature and docstring not counted."""
    body = node.body[1:] if ast.get_docstring(node) else node.body
    return (node.end_lineno or 0) - body[0].lineno + 1 if body else 0


def arguments(node: Function) -> int:
    """Arguments that a caller may pass."""
    found = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return sum(argument.arg not in ("self", "cls") for argument in found)


def is_public(name: str) -> bool:
    """Whether a function, file:name, is a public signature."""
    file, _, function = name.partition(":")
    if function.startswith("_") and function != "__init__":
        return False
    public = file.startswith(PUBLIC_FOLDERS) or file in PUBLIC_FILES or name in PUBLIC_FUNCTIONS
    return public or (file.startswith(BACKENDS) and function == "run")


def imports(path: Path) -> set[str]:
    """Modules of the core that a file imports when it is imported itself."""
    tree, later = parsed(path), set[ast.AST]()
    for node in ast.walk(tree):
        function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if function or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            later.update(ast.walk(node))
    return named(node for node in ast.walk(tree) if node not in later)


def named(nodes: Iterable[ast.AST]) -> set[str]:
    """Modules that import statements name, and what they take of them, which may be modules as well."""
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def circles(folder: Path, *, types: bool = False) -> list[list[str]]:
    """Groups of modules that import each other, each once; a package's `__init__` is its index and not counted.

    Args:
        types: count what is imported for annotations alone, too.
    """
    files = {path: ".".join(path.relative_to(folder.parent).with_suffix("").parts) for path in sources(folder)}
    names = {name for path, name in files.items() if path.name != "__init__.py"}
    edges = {
        name: (named(ast.walk(parsed(path))) if types else imports(path)) & names - {name}
        for path, name in files.items()
        if name in names
    }
    reached: dict[str, set[str]] = {}
    for start in edges:
        waiting, seen = [start], set[str]()
        while waiting:
            for other in edges[waiting.pop()] - seen:
                seen.add(other)
                waiting.append(other)
        reached[start] = seen
    groups = {frozenset({name, *(other for other in reached[name] if name in reached[other])}) for name in edges}
    return sorted(sorted(group) for group in groups if len(group) > 1)


def entered(call: Callable[[], object]) -> list[str]:
    """Files of core and plugins in which some function or module body runs during a call."""
    seen: set[str] = set()
    folders = tuple(f"{folder}{os.sep}" for folder in (CORE, PLUGINS))

    def note(frame: Any, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(folders):
            seen.add(frame.f_code.co_filename)

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return sorted(str(Path(name).relative_to(ROOT)) for name in seen)


def walks() -> dict[str, list[str]]:
    """Files entered by loaded models: why a plan is as it is, two texts embedded, a prompt continued.

    The question is asked of a plan that is there: what a reader has to open who wants to know why.
    """
    import archport  # noqa: F401  # isort: skip
    import shutil

    from archport import engine

    folder = ROOT / "tests" / "goldens"
    with tempfile.TemporaryDirectory() as made:
        # A copy, because reading a checkpoint may write next to it.
        embeds = engine.load(shutil.copytree(folder / "qwen3-embed", Path(made) / "embeds"))
        speaks = engine.load(shutil.copytree(folder / "qwen3-causal-sharded", Path(made) / "speaks"))
        return {
            "embed": entered(lambda: embeds.embed(["a text", "a longer text than the first"])),
            "generate": entered(lambda: speaks.generate([1, 2, 3, 4], max_tokens=4)),
            "plan": entered(lambda: embeds.plan([300, 20])),
            "why": entered(embeds.plan([400, 30]).explain),
        }


def counts() -> dict[str, Any]:
    """Every count, as JSON-ready values."""
    core = sources(CORE)
    plugins = [path for path in sources(PLUGINS) if "archport_" in str(path.relative_to(PLUGINS))]
    every = [entry for path in (*core, *plugins) for entry in functions(path)]
    long = sorted(((lines(node), name) for name, node in every), reverse=True)
    many = sorted(([arguments(node), name] for name, node in every if arguments(node) > MOST_ARGUMENTS), reverse=True)
    rooms: dict[str, list[int]] = {}
    for path in core:
        room = path.relative_to(CORE).parts[0]
        files, total = rooms.get(room, [0, 0])
        rooms[room] = [files + 1, total + statements(path)]
    return {
        "files": {"core": len(core), "plugins": len(plugins)},
        "statements": {"core": sum(map(statements, core)), "plugins": sum(map(statements, plugins))},
        "docstring_words": {"core": sum(map(docstring_words, core)), "plugins": sum(map(docstring_words, plugins))},
        "rooms": rooms,
        "import_circles": circles(CORE),
        "import_circles_of_types": circles(CORE, types=True),
        "longest_functions": [list(entry) for entry in long if entry[0] > MOST_LINES_OF_A_FUNCTION] or [list(long[0])],
        "most_arguments": many,
        "most_arguments_inside": [entry for entry in many if not is_public(entry[1])],
        "walks": walks(),
    }


def since(rev: str) -> Iterator[str]:
    """What became of the statements of core and plugins since a commit: commits that took some out on balance, each by
    name, and the sum of what all others, which brought features and tests' subjects, added.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    @cache
    def of_blob(blob: str) -> int:
        text = "" if set(blob) == {"0"} else git("cat-file", "-p", blob)
        return sum(isinstance(node, ast.stmt) for node in ast.walk(ast.parse(text)))

    added, lost = 0, list[tuple[int, str]]()
    for commit in git("log", "--no-merges", "--format=%H %s", f"{rev}..HEAD").splitlines():
        change = 0
        for line in git("diff-tree", "-r", "--no-renames", "--no-commit-id", commit.split()[0]).splitlines():
            (_, _, before, after, _), path = line.partition("\t")[0].split(), line.partition("\t")[2]
            core = path.startswith("core/archport/") or (path.startswith("plugins/") and "/archport_" in path)
            if core and path.endswith(".py") and "/tests/" not in path:
                change += of_blob(after) - of_blob(before)
        added += max(change, 0)
        lost += [(change, commit[:8] + commit[40:])] if change < 0 else []
    yield f"{added:>7} statements added by commits since {rev} that add on balance"
    yield f"{sum(change for change, _ in lost):>7} by the {len(lost)} others, which take out:"
    yield from (f"{change:>7}  {name}" for change, name in sorted(lost))


def shown(found: dict[str, Any], before: dict[str, Any] | None) -> Iterator[str]:
    """The counts in lines, next to earlier ones where there are some."""

    def line(name: str, path: Callable[[dict[str, Any]], object]) -> str:
        return f"{name:<44}{path(found)!s:>9}" + (f"{path(before)!s:>9} before" if before else "")

    for what in ("files", "statements", "docstring_words"):
        for where in ("core", "plugins"):
            yield line(f"{what.replace('_', ' ')}, {where}", lambda all, what=what, where=where: all[what][where])
    for name in ("import_circles", "import_circles_of_types"):
        yield line(name.replace("_", " "), lambda all, name=name: len(all[name]))
    for name in found["walks"]:
        yield line(f"files entered: {name}", lambda all, name=name: len(all["walks"].get(name, ())))
    yield line("lines of the longest function", lambda all: all["longest_functions"][0][0])
    yield line("functions above 60 lines", lambda all: sum(count > 60 for count, _ in all["longest_functions"]))
    yield line("functions above 8 arguments", lambda all: len(all["most_arguments"]))
    yield line("of them no public signatures", lambda all: len(all.get("most_arguments_inside", all["most_arguments"])))
    for room in sorted(found["rooms"].keys() | (before or found)["rooms"].keys()):
        yield line(
            f"room {room}: files, statements", lambda all, room=room: "{} {}".format(*all["rooms"].get(room, "00"))
        )
    yield ""
    for count, name in (*found["longest_functions"], *found["most_arguments"]):
        yield f"{count:>4}  {name}"
    for circle in (*found["import_circles"], *found["import_circles_of_types"]):
        yield f"circle: {', '.join(circle)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--against", type=Path, help="an earlier --json to compare with")
    parser.add_argument("--since", metavar="REV", help="a commit to tell from what became of statements")
    asked = parser.parse_args()
    if asked.since:
        print("\n".join(since(asked.since)))
        return 0
    found = counts()
    before = json.loads(asked.against.read_text(encoding="utf-8")) if asked.against else None
    print(json.dumps(found, indent=1) if asked.json else "\n".join(shown(found, before)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
