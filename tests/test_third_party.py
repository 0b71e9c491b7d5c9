"""Outside plugins in a fresh environment: built, installed by plain pip, checked, shown by explain(), taken out again.

Also replays the author's guide there, every command and file of it, with nothing standing in for pip.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from scripts import loaded

pytestmark = pytest.mark.packaging

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples" / "third_party"
GOLDEN = ROOT / "tests" / "goldens" / "qwen3-embed"
DISTRIBUTIONS = ("archport-llama", "archport-decoders", "archport-sdpa-demo")
# Plain mlx is the Metal build; on Linux the CPU build runs anywhere.
EXTRA = "" if sys.platform == "darwin" else "[cpu]"

EXPLAIN = """
import sys
import archport_sdpa_demo, archport_sdpa_demo.pinned
sys.path.insert(0, sys.argv[2])
import small_chunks
from archport import engine

for overrides in ([archport_sdpa_demo], [archport_sdpa_demo.pinned], [small_chunks]):
    model = engine.load(sys.argv[1], overrides=overrides)
    model.embed(["a text"])
    print(model.plan([300]).explain(verbose=True), end="\\n=====\\n")
"""


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment that knows nothing of this checkout but what was installed into it."""

    root: Path

    @property
    def variables(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        return kept | {"PATH": f"{self.root / 'bin'}:{kept['PATH']}", "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}

    def run(self, *command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        words = [str(part) for part in command]
        words[0] = str(self.root / "bin" / words[0])
        done = subprocess.run(
            words, cwd=self.root, env=self.variables, capture_output=True, text=True, timeout=900, check=False
        )
        if check and done.returncode:
            pytest.fail(f"{' '.join(words)} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done

    def pip(self, *arguments: str | Path) -> None:
        self.run("python", "-m", "pip", "-qq", "--disable-pip-version-check", *arguments)

    def plugins(self) -> dict[str, dict[str, object]]:
        return {row["name"]: row for row in json.loads(self.run("archport", "plugins", "--json").stdout)}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheels of archport and of every example, built as their projects say."""
    folder = tmp_path_factory.mktemp("wheels")
    for project in (ROOT, *(EXAMPLES / name for name in DISTRIBUTIONS)):
        command = [sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "--wheel-dir", str(folder), str(project)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory, wheels: Path) -> Environment:
    """A fresh environment with archport's wheel, its dependencies and pytest; no plugin of anybody else."""
    root = tmp_path_factory.mktemp("outside")
    subprocess.run([sys.executable, "-m", "venv", root], check=True, timeout=300)
    fresh = Environment(root)
    (wheel,) = wheels.glob("archport-*.whl")
    fresh.pip("install", f"{wheel}{EXTRA}", "pytest>=8")
    return fresh


@pytest.fixture(scope="module")
def installed(environment: Environment, wheels: Path) -> Iterator[Environment]:
    """The environment with every example distribution in it."""
    files = [next(wheels.glob(f"{name.replace('-', '_')}-*.whl")) for name in DISTRIBUTIONS]
    environment.pip("install", *files)
    yield environment
    environment.pip("uninstall", "--yes", *DISTRIBUTIONS)


def test_installed_plugins_are_listed_like_the_shipped_ones(installed: Environment):
    rows = installed.plugins()
    assert {"llama", "decoders", "sdpa_demo", "qwen3", "bidirectional"} <= set(rows)
    assert {name: row["status"] for name, row in rows.items() if row["status"] != "ok"} == {}
    assert (rows["llama"]["distribution"], rows["llama"]["architectures"]) == ("archport-llama", ["llama"])
    assert rows["decoders"]["architectures"] == [
        "gemma",
        "gemma2",
        "gemma3",
        "glm4_moe",
        "gpt_oss",
        "lfm2",
        "llama",
        "ministral3",
        "mistral",
    ]
    assert rows["sdpa_demo"]["hooks"] == ["sdpa_backends"]


@pytest.mark.parametrize("name", ["llama", "decoders", "sdpa_demo"])
def test_an_example_passes_the_conformance_command(installed: Environment, name: str):
    done = installed.run("archport", "check", name, "--json")
    outcomes = json.loads(done.stdout)
    assert outcomes


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_an_example_s_own_tests_pass_where_it_is_installed(installed: Environment, name: str):
    done = installed.run("python", "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", EXAMPLES / name / "tests")
    assert " passed" in done.stdout
    skipped = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
    # Guests claim nothing, what embeds has no output head, and a reference of decoders has no vectors or scores.
    reasons = ("it claims nothing", "no task reads an output head", "no layer is declared to know spans")
    reasons += ("the reference holds no", "no real weights were named")
    assert [line for line in skipped if not any(reason in line for reason in reasons)] == []


def test_explain_shows_the_backend_and_the_override_each_by_name(installed: Environment):
    done = installed.run("python", "-c", EXPLAIN, GOLDEN, EXAMPLES / "override_example")
    offered, pinned, chunks, _ = done.stdout.split("=====")
    assert "stream32" in offered
    assert "pinned" not in offered
    assert "path     304 x 304: stream32" in pinned
    assert "pinned   archport_sdpa_backend of override archport_sdpa_demo.pinned: stream32" in pinned
    assert "prefilled in 5 chunks of 64" in chunks
    assert "archport_prefill_chunk of override small_chunks" in chunks


def test_uninstalling_leaves_archport_as_it_was(environment: Environment, wheels: Path):
    files = [next(wheels.glob(f"{name.replace('-', '_')}-*.whl")) for name in DISTRIBUTIONS]
    environment.pip("install", "--force-reinstall", "--no-deps", *files)
    environment.pip("uninstall", "--yes", *DISTRIBUTIONS)
    left = [
        path
        for name in ("llama", "decoders", "sdpa_demo", "sdpa-demo")
        for path in environment.root.rglob(f"archport[_-]{name}*")
    ]
    assert left == []
    rows = environment.plugins()
    assert {"llama", "decoders", "sdpa_demo"} & set(rows) == set()
    assert environment.run("archport", "embed", "a text", "-m", GOLDEN).stdout.startswith('{"index": 0')
    refused = environment.run("archport", "info", "-m", EXAMPLES / "archport-llama/tests/golden", check=False)
    assert refused.returncode == 1
    assert "no plugin claims model_type 'llama'" in refused.stderr


def test_a_new_plugin_installs_with_its_licence_and_its_tests_wait_for_its_todos_alone(
    environment: Environment, tmp_path: Path
):
    environment.run("archport", "new", "fresh", "--into", tmp_path)
    project = tmp_path / "archport-fresh"
    environment.pip("install", project)
    try:
        assert environment.plugins()["fresh"]["status"] == "ok"
        metadata = next(environment.root.rglob("archport_fresh-*.dist-info"))
        assert (metadata / "licenses" / "LICENSE").is_file()
        assert "License-Expression: MIT" in (metadata / "METADATA").read_text(encoding="utf-8")
        tests = environment.run(
            "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", project / "tests", check=False
        ).stdout
        assert " 1 failed" in tests or "\n1 failed" in tests, tests
        assert "[published_checkpoint_loads]" in tests
        # With a module in place of the TODOs the same tests pass.
        example = EXAMPLES / "archport-llama" / "archport_llama" / "model.py"
        site = Path(
            environment.run("python", "-c", "import archport_fresh; print(archport_fresh.__file__)").stdout.strip()
        )
        model = example.read_text(encoding="utf-8").replace("class Llama(", "class Fresh(")
        site.with_name("model.py").write_text(model, encoding="utf-8")
        environment.run("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", project / "tests")
        ran = tmp_path / "ran.json"
        environment.run("archport", "check", "fresh", "--recorded", ran)
        assert json.loads(ran.read_text())["ran"]["published_checkpoint_loads"] == 1
    finally:
        environment.pip("uninstall", "--yes", "archport-fresh")


def test_the_guide_s_commands_lead_from_nothing_to_a_qwen2_that_passes(environment: Environment, tmp_path: Path):
    reading = loaded(ROOT / "tests" / "test_docs.py", "reading_docs")
    reader = reading.Reader(tmp_path, environment.variables, also=("slow",))
    reader.read(reading.GUIDE)
    assert "acme_qwen2" not in environment.plugins()
