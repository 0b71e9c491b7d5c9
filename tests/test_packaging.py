"""What people install: wheel, sdist, plain and editable installs with plain pip, each in a fresh environment."""

import json
import os
import re
import statistics
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest

pytestmark = pytest.mark.packaging

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = [PurePosixPath(name) for name in PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]]
ENTRY_POINTS = PYPROJECT["project"]["entry-points"]["archport"]
# The package's file states it, whatever is installed.
PACKAGE = (ROOT / "core" / "archport" / "__init__.py").read_text(encoding="utf-8")
VERSION = re.findall(r'^__version__ = "([^"]+)"$', PACKAGE, re.M)[0]

# The modules that importing archport must leave alone, and how long it took.
IMPORT = """
import json, sys, time
start = time.perf_counter()
import archport
taken = time.perf_counter() - start
heavy = {"torch", "transformers", "mlx_lm"} & {name.partition(".")[0] for name in sys.modules}
print(json.dumps([taken, sorted(heavy), archport.__file__]))
"""
PLUGINS = """
import json
from importlib.metadata import entry_points
print(json.dumps({point.name: point.load().__file__ for point in entry_points(group="archport")}))
"""


def call(*command: str | Path, cwd: Path) -> str:
    """Run a command outside this checkout and this environment's settings; its output, or a failure that shows it."""
    environ = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environ, capture_output=True, text=True, timeout=900, check=False
    )
    if done.returncode:
        pytest.fail(f"{' '.join(map(str, command))} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done.stdout


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment with the pip that Python brings, and an empty folder to run in."""

    root: Path

    @property
    def python(self) -> Path:
        return self.root / "bin" / "python"

    def pip(self, *arguments: str | Path) -> None:
        call(self.python, "-m", "pip", "-qq", "--disable-pip-version-check", *arguments, cwd=self.root)

    def answer(self, program: str):
        return json.loads(call(self.python, "-c", program, cwd=self.root))

    def leftovers(self) -> list[str]:
        """Files with archport in their names, its own plugins included."""
        return [str(path.relative_to(self.root)) for path in self.root.rglob("*archport*")]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    root = tmp_path_factory.mktemp("environment")
    call(sys.executable, "-m", "venv", root, cwd=root)
    return Environment(root)


@pytest.fixture(scope="module", params=["plain", "editable"])
def installed(request: pytest.FixtureRequest, environment: Environment) -> Iterator[tuple[str, Environment]]:
    """The environment with archport in it, dependencies and all, installed in one way after the other."""
    environment.pip("install", *(["--editable"] if request.param == "editable" else []), ROOT)
    yield request.param, environment
    environment.pip("uninstall", "--yes", "archport")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from the sdist."""
    folder = tmp_path_factory.mktemp("built")
    call(sys.executable, "-m", "build", "--outdir", folder, ROOT, cwd=folder)
    return folder


def wheel_of(built: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(built / f"archport-{VERSION}-py3-none-any.whl")


def test_the_wheel_holds_every_module_of_every_package_and_the_typing_marker(built: Path):
    expected = {
        f"{package.name}/{path.relative_to(ROOT / package).as_posix()}"
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        # Modules, the schema of a report, and what `archport new` fills in.
        if path.suffix in (".py", ".json", ".template")
    }
    with wheel_of(built) as wheel:
        assert (expected | {"archport/py.typed"}) - set(wheel.namelist()) == set()


def test_the_wheel_holds_nothing_but_the_packages_and_its_metadata(built: Path):
    with wheel_of(built) as wheel:
        tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert tops == {package.name for package in PACKAGES} | {f"archport-{VERSION}.dist-info"}


def test_the_wheel_announces_every_plugin_and_the_command(built: Path):
    with wheel_of(built) as wheel:
        lines = wheel.read(f"archport-{VERSION}.dist-info/entry_points.txt").decode().splitlines()
    assert {f"{name} = {module}" for name, module in ENTRY_POINTS.items()} | {"archport = archport.cli:main"} <= set(
        lines
    )


def test_the_wheels_metadata_points_at_no_file_and_requires_no_torch(built: Path):
    with wheel_of(built) as wheel:
        metadata = wheel.read(f"archport-{VERSION}.dist-info/METADATA").decode().partition("\n\n")[0]
        assert any(name.endswith("/LICENSE") for name in wheel.namelist())
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist:")]
    assert [line for line in required if "file:" in line or "@" in line or "torch" in line] == []
    assert any(line.startswith("Requires-Dist: mlx") for line in required)


def test_the_sdist_holds_what_building_and_testing_need_and_no_machinery(built: Path):
    with tarfile.open(built / f"archport-{VERSION}.tar.gz") as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "Makefile", "tests/test_layout.py"} <= names
    assert [name for name in names if name.startswith((".ci", ".git/", ".venv"))] == []


def test_an_install_finds_its_plugins_by_entry_point(installed: tuple[str, Environment]):
    way, environment = installed
    found: dict[str, str] = environment.answer(PLUGINS)
    assert set(found) == set(ENTRY_POINTS)
    assert all(Path(file).is_relative_to(ROOT) == (way == "editable") for file in found.values())


def test_importing_archport_loads_nothing_heavy_and_takes_under_half_a_second(installed: tuple[str, Environment]):
    _, environment = installed
    runs = [environment.answer(IMPORT) for _ in range(7)]
    assert runs[0][1] == []
    assert statistics.median(taken for taken, _, _ in runs) < 0.5


def test_the_command_is_installed_and_lists_the_plugins(installed: tuple[str, Environment]):
    _, environment = installed
    listed = call(environment.root / "bin" / "archport", "plugins", "--json", cwd=environment.root)
    assert {row["name"] for row in json.loads(listed)} >= set(ENTRY_POINTS)


WITHOUT_BACKEND = [
    (["--help"], 0, "embed"),
    (["embed", "--help"], 0, "--format"),
    (["doctor"], 1, "pip install 'archport[cpu]'"),
    (["plugins"], 0, "qwen3"),
    (
        ["plan", "--device", "h200", "--tokens", "9", "-m", f"{ROOT}/tests/planning/data/qwen3_embedding_06b.json"],
        0,
        "",
    ),
    (["plan", "--device", "h200", "--tokens", "9", "-m", f"{ROOT}/tests/goldens/bert-plain"], 0, "weights"),
    (["embed", "a", "-m", f"{ROOT}/tests/goldens/bert-plain"], 1, "pip install 'archport[cpu]'"),
]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the wheel of MLX holds its backend")
@pytest.mark.parametrize(("arguments", "code", "said"), WITHOUT_BACKEND)
def test_without_an_extra_what_needs_no_backend_works_and_the_rest_says_what_to_install(
    installed: tuple[str, Environment], arguments: list[str], code: int, said: str
):
    _, environment = installed
    command = [environment.root / "bin" / "archport", *arguments]
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=environment.root, env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert said in done.stdout + done.stderr
    if arguments[0] == "embed" and code:
        assert done.stderr.count("\n") == 2


@pytest.mark.parametrize("way", [[], ["--editable"]], ids=["plain", "editable"])
def test_uninstalling_leaves_nothing(environment: Environment, way: list[str]):
    environment.pip("install", "--no-deps", *way, ROOT)
    assert environment.leftovers() != []
    call(environment.python, "-c", "import archport", cwd=environment.root)
    environment.pip("uninstall", "--yes", "archport")
    assert environment.leftovers() == []
