"""A new user's hour: a fresh environment in which only what the pages say is done, from `pip install` to a plugin.

    python tests/hour/run.py                  # builds the wheel, runs every step, prints times
    python tests/hour/run.py --write          # and puts the times into docs/first-hour.md

Nothing of this checkout is on the path: the wheel is found like one of an index, models come from a package, and Python
blocks run in that environment's interpreter. What the pages need and do not say fails here.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "first-hour.md"
# What a user does -> the page that says how, in this order; pages share one folder, as a user's terminal does.
STEPS = (
    ("install it, and embed a sentence", "install.md"),
    ("search a folder", "index-a-corpus.md"),
    ("serve it to the openai client", "serving.md"),
    ("plan for a 16 GB Mac", "what-fits.md"),
    ("write a plugin that passes the kit", "write-a-plugin.md"),
)
READY_SECONDS = 60
# Runs Python blocks in the fresh environment: a line of JSON for each, answered by what it printed and its traceback.
DRIVER = """
import contextlib, io, json, sys, traceback
names = {"__name__": "page"}
for line in sys.stdin:
    block, shown, error = json.loads(line), io.StringIO(), ""
    try:
        with contextlib.redirect_stdout(shown):
            exec(compile("\\n" * block["line"] + block["body"], block["page"], "exec"), names)
    except BaseException:
        error = traceback.format_exc()
    print(json.dumps([shown.getvalue(), error]), flush=True)
"""


def reading() -> ModuleType:
    """The module that reads pages; test modules can't import each other by name."""
    spec = importlib.util.spec_from_file_location("reading_docs", ROOT / "tests" / "test_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


DOCS = reading()


class FreshReader(DOCS.Reader):
    """Does what a page says in an environment without this checkout, servers and Python blocks included."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        super().__init__(folder, environment, also=("slow", "fresh", "background"))
        self.running: list[subprocess.Popen[str]] = []
        self.interpreter: subprocess.Popen[str] | None = None

    def show_clone(self) -> None:
        """A user has none."""

    def read(self, page: Path) -> None:
        try:
            super().read(page)
        finally:
            for process in self.running:
                process.terminate()
                process.wait(30)

    def handled(self, block: Any) -> bool:
        if block.marker == "background":
            self.background(block)
        return block.marker in ("background", "clone")

    def background(self, block: Any) -> None:
        """Start a block's command and wait until its address answers."""
        ((command, _),) = DOCS.commands(block.body)
        log = (self.folder / "background.log").open("w", encoding="utf-8")
        # In place of the shell, so that what ends it ends the command.
        process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"], cwd=self.folder, env=self.environment, stdout=log, stderr=log, text=True
        )
        self.running.append(process)
        deadline = time.monotonic() + READY_SECONDS
        while not answers(block.note):
            printed = (self.folder / "background.log").read_text(encoding="utf-8")
            assert process.poll() is None, f"{block.place}: {command}\nended with {process.returncode}\n{printed}"
            assert time.monotonic() < deadline, (
                f"{block.place}: {command}\nis not ready in {READY_SECONDS} s\n{printed}"
            )
            time.sleep(0.1)

    def python(self, block: Any) -> None:
        if self.interpreter is None:
            self.interpreter = subprocess.Popen(
                ["python", "-c", DRIVER], cwd=self.folder, env=self.environment, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, text=True, executable=f"{self.environment['VIRTUAL_ENV']}/bin/python",
            )  # fmt: skip
            self.running.append(self.interpreter)
        assert self.interpreter.stdin is not None
        assert self.interpreter.stdout is not None
        asked = {"line": block.line, "body": block.body, "page": block.page}
        self.interpreter.stdin.write(json.dumps(asked) + "\n")
        self.interpreter.stdin.flush()
        self.printed, error = json.loads(self.interpreter.stdout.readline())
        assert not error, f"{block.place}\n{error}"


def answers(address: str) -> bool:
    """Whether a server says that it is ready."""
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


@dataclass(frozen=True, slots=True)
class Step:
    """What a user did, by which page, and how long it took."""

    what: str
    page: str
    seconds: float


def fresh(folder: Path) -> dict[str, str]:
    """An environment with nothing in it, and the variables under which a user's shell would find the built wheel."""
    wheels = folder / "wheels"
    build = [sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "--wheel-dir", str(wheels), str(ROOT)]
    outside = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    subprocess.run(build, check=True, env=outside, timeout=600)
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True, timeout=300)
    (wheel,) = wheels.glob("archport-*.whl")
    # The name belongs to this wheel alone, whatever an index offers under it.
    pinned = folder / "pinned.txt"
    pinned.write_text(f"archport=={wheel.name.split('-')[1]}\n", encoding="utf-8")
    return outside | {
        "PATH": f"{folder / 'venv' / 'bin'}:{outside['PATH']}",
        "VIRTUAL_ENV": str(folder / "venv"),
        "PIP_FIND_LINKS": str(wheels),
        "PIP_CONSTRAINT": str(pinned),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        # Errors alone: warnings are about this machine's own settings of pip, which no page can show.
        "PIP_QUIET": "2",
        "HF_HOME": str(folder / "hub"),
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "120",
    }


def run(pages: Sequence[tuple[str, str]] = STEPS) -> list[Step]:
    """Do all steps in a fresh environment; raises AssertionError naming page, line and what was printed."""
    done: list[Step] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = fresh(folder)
        (folder / "home").mkdir()
        for what, page in pages:
            begun = time.monotonic()
            FreshReader(folder / "home", environment).read(ROOT / "docs" / page)
            done.append(Step(what, page, time.monotonic() - begun))
            print(f"{done[-1].seconds:6.0f} s  {what} ({page})", flush=True)
    return done


def table(steps: Sequence[Step]) -> str:
    """The steps as Markdown, with their times."""
    lines = [f"| {one.what} | [{one.page}]({one.page}) | {one.seconds:.0f} s |" for one in steps]
    total = sum(one.seconds for one in steps)
    return "\n".join(["| step | page | time |", "|---|---|---|", *lines, f"| all of it | | {total / 60:.1f} min |"])


def written(text: str, steps: Sequence[Step]) -> str:
    """A page with the table of these steps in place of its own."""
    made, count = re.subn(r"^\| step \| page \| time \|\n(?:\|.*\n)+", table(steps) + "\n", text, flags=re.M)
    if count != 1:
        raise ValueError(f"{PAGE} holds {count} tables of steps; expected one")
    return made


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    steps = run()
    if asked.write:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), steps), encoding="utf-8")
