"""The order of the house: imports flow one way, plugins are strangers, and what is packaged is what is there."""

import ast
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = ROOT / "core" / "archport"
PLUGINS = sorted(folder for folder in (ROOT / "plugins").iterdir() if any(folder.glob("archport_*/__init__.py")))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

# A room may import rooms of a lower level, and itself (docs/adr/0006). The package's own page is public names only.
LEVELS = {
    "contract": 0,
    "archport": 0,
    "device": 1,
    "kernels": 2,
    "checkpoint": 2,
    "planning": 2,
    "memory": 3,
    "media": 2,
    "attention": 3,
    "layers": 3,
    "reading": 3,
    "pages": 3,
    "faults": 3,
    "running": 4,
    "answering": 5,
    "generating": 5,
    "options": 6,
    "runtime": 7,
    "loading": 8,
    "admission": 8.5,
    "tasks": 8,
    "model": 9,
    "routed": 9.5,
    "engine": 10,
    "testing": 11,
    "bulk": 11,
    "conversion": 11,
    "compat": 11,
    "evaluation": 11,
    "serving": 11,
    "integrations": 12,
    "cli": 13,
}
# A plan is made from facts it is handed, also for machines that are not this one.
NARROWER = {"planning": {"contract"}}
# By docs/contract-promise.md, and of each the names in its `__all__`.
PUBLIC_MODULES = {"archport", "archport.contract", "archport.layers", "archport.media", "archport.testing"}
MAX_LINES = 450
MAX_LINES_OF_TESTS = 450  # a list of independent properties reads on; code does not


def sources(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in sorted(folder.rglob("*.py")) if "__pycache__" not in path.parts]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """Dotted names a file imports anywhere in it; `from archport import engine` is archport.engine."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module == "archport":
            yield from (f"archport.{alias.name}" if alias.name in LEVELS else "archport" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # A relative import keeps its dots, and so is no name that any rule allows.
            yield "." * node.level + (node.module or "")


def run_time_imports(tree: ast.AST) -> set[str]:
    """What `imported_modules` names, less what stands under `if TYPE_CHECKING:`."""
    guarded: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            guarded.update(child for statement in node.body for child in ast.walk(statement))
    kept = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom)) and node not in guarded]
    return {name for node in kept for name in imported_modules(node)}


def backward_imports(room: str, source: str) -> list[str]:
    """Imports in a file of one room that the house's one direction forbids."""
    wrong: list[str] = []
    for name in imported_modules(ast.parse(source)):
        top, _, rest = name.partition(".")
        if top.startswith("archport_"):
            wrong.append(f"{name} is a plugin")
        elif name.startswith("."):
            wrong.append(f"{name} is relative; write archport.<room>.<module>")
        elif top == "archport":
            other = rest.partition(".")[0] or "archport"
            if other not in LEVELS:
                wrong.append(f"{name} is no room of the layout")
            elif other in (room, "archport"):
                continue
            elif LEVELS[other] >= LEVELS[room] or other not in NARROWER.get(room, LEVELS):
                wrong.append(f"{name} is not below {room}")
    return wrong


def unneighbourly_imports(package: str, source: str) -> list[str]:
    """Imports in a plugin's file that a stranger's plugin could not or should not make."""
    wrong: list[str] = []
    for name in imported_modules(ast.parse(source)):
        top = name.partition(".")[0]
        if (top.startswith("archport_") and top != package) or (top == "archport" and name not in PUBLIC_MODULES):
            wrong.append(name)
    return wrong + unpromised_names(source)


def unpromised_names(source: str) -> list[str]:
    """Names that a file imports from a public module whose `__all__` does not hold them."""
    wrong: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in PUBLIC_MODULES - {"archport"}:
            promised = promised_names(node.module)
            wrong += [f"{node.module}.{alias.name}" for alias in node.names if alias.name not in promised]
    return wrong


@cache
def promised_names(module: str) -> frozenset[str]:
    """The names in a public package's `__all__`, read without importing it."""
    path = CORE.parent.joinpath(*module.split("."), "__init__.py")
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(getattr(target, "id", "") == "__all__" for target in node.targets):
            return frozenset(ast.literal_eval(node.value))
    raise AssertionError(f"{path} has no __all__")


def room_of(path: Path) -> str:
    """The room a core file belongs to: its folder, or the file itself when it lies at the top."""
    first = path.relative_to(CORE).parts[0].removesuffix(".py")
    return "archport" if first == "__init__" else first


@pytest.mark.parametrize("path", sources(CORE), ids=relative)
def test_core_imports_flow_one_way(path: Path):
    room = room_of(path)
    if room == "archport":
        allowed = {"archport.contract", "archport.device.blas"}
        assert {
            name for name in imported_modules(ast.parse(path.read_text())) if name.startswith("archport")
        } <= allowed
    else:
        assert backward_imports(room, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("contract", "from archport.device import blas"),
        ("planning", "import archport.attention.backends.one_call"),
        ("planning", "from archport.device.facts import this_device"),
        ("device", "from archport.attention import choose"),
        ("layers", "def f():\n    from archport.memory import ring"),
        ("running", "from archport import engine"),
        ("engine", "from archport.cli import main"),
        ("engine", "import archport_qwen3"),
        ("running", "from . import batching"),
        ("running", "from archport.attic import thing"),
    ],
)
def test_a_backward_import_is_seen(room: str, source: str):
    assert len(backward_imports(room, source)) == 1


@pytest.mark.parametrize(
    "path", [path for folder in PLUGINS for path in sources(*folder.glob("archport_*"))], ids=relative
)
def test_plugins_import_only_what_a_stranger_may(path: Path):
    package = path.relative_to(ROOT / "plugins").parts[1]
    assert unneighbourly_imports(package, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "from archport.running.pool import VectorHead",
        "from archport import engine",
        "import archport_other.model",
        "from archport.contract.plugins import discover",
        "from archport.layersmith import Forge",
        "from archport.layers.attention import Attention",
        "from archport.media.reading import PictureReader",
        "from archport.layers import MergedLinear",
    ],
)
def test_an_import_no_stranger_may_make_is_seen(source: str):
    assert len(unneighbourly_imports("archport_acme", source)) == 1


@pytest.mark.parametrize("path", sources(CORE / "contract"), ids=relative)
def test_the_contract_imports_no_mlx_at_run_time(path: Path):
    imports = run_time_imports(ast.parse(path.read_text(encoding="utf-8")))
    assert not {name for name in imports if name.partition(".")[0] in ("mlx", "mlx_lm")}


def test_an_import_for_types_only_is_told_from_one_at_run_time():
    guarded = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import mlx.core\n"
    assert run_time_imports(ast.parse(guarded)) == {"typing"}
    assert "mlx.nn" in run_time_imports(ast.parse(guarded + "else:\n    import mlx.nn\n"))


@pytest.mark.parametrize("path", sources(CORE, ROOT / "plugins", ROOT / "tests"), ids=relative)
def test_a_file_is_short_enough_to_read_in_one_go(path: Path):
    most = MAX_LINES_OF_TESTS if "tests" in path.relative_to(ROOT).parts else MAX_LINES
    assert len(path.read_text(encoding="utf-8").splitlines()) <= most


@pytest.mark.parametrize(
    "path",
    [
        path
        for path in sources(CORE, *(p for f in PLUGINS for p in f.glob("archport_*")))
        if CORE / "cli" not in path.parents
    ],
    ids=relative,
)
def test_only_the_command_line_prints(path: Path):
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    assert [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"] == []


@pytest.mark.parametrize("folder", PLUGINS, ids=relative)
def test_a_plugin_folder_is_packaged_and_announced(folder: Path):
    (package,) = folder.glob("archport_*")
    assert relative(package) in PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert PYPROJECT["project"]["entry-points"]["archport"].get(package.name.removeprefix("archport_")) == package.name
    assert relative(folder) in PYPROJECT["tool"]["pyright"]["extraPaths"]


def test_every_packaged_folder_and_entry_point_exists():
    packages = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert [name for name in packages if not (ROOT / name / "__init__.py").is_file()] == []
    modules = PYPROJECT["project"]["entry-points"]["archport"].values()
    assert set(modules) == {Path(name).name for name in packages} - {"archport"}


def test_the_metadata_takes_the_version_from_the_package():
    tree = ast.parse((CORE / "__init__.py").read_text(encoding="utf-8"))
    assigned = [
        node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        if any(isinstance(target, ast.Name) and target.id == "__version__" for target in node.targets)
    ]
    assert len(assigned) == 1
    assert "version" in PYPROJECT["project"]["dynamic"]
    assert ROOT / PYPROJECT["tool"]["hatch"]["version"]["path"] == CORE / "__init__.py"
