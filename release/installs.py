"""The built wheels in fresh environments: pip on several Pythons, uv, pipx; and publishing against a local index.

python release/installs.py --python python3.11 --python python3.13
python release/installs.py --publish          # twine upload to an index on this machine, and pip install from it

Each environment installs what is in dist/, with dependencies from the usual index, prints the version, embeds with a
tiny checkpoint of tests/goldens, lists the plugins, and takes all out again. Needs `uv`, `pipx` and `pypiserver`.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distributions import DIST, ROOT, distributions, version

GOLDEN = ROOT / "tests" / "goldens" / "bert-plain"
# Plain mlx is the Metal build; on Linux the CPU build runs anywhere.
EXTRA = "" if sys.platform == "darwin" else "[cpu]"
TOOLS = Path(sys.executable).parent


class Failed(Exception):
    """A step that did not do what it should, with what it printed."""


def call(*command: str | Path, cwd: Path, **variables: str) -> str:
    """What a command printed, run outside this checkout and this environment; raises Failed."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    words = [str(part) for part in command]
    done = subprocess.run(
        words, cwd=cwd, env=kept | {"HF_HUB_OFFLINE": "1"} | variables, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Failed(f"{' '.join(words)} exited with {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout


def works(archport: Path, cwd: Path) -> None:
    """See that an installed command runs; raises Failed."""
    if (printed := call(archport, "--version", cwd=cwd).strip()) != f"archport {version()}":
        raise Failed(f"{archport} --version prints {printed!r}, not 'archport {version()}'")
    made = json.loads(call(archport, "embed", "a text", "-m", GOLDEN, cwd=cwd))
    if len(made["embedding"]) != 48:
        raise Failed(f"a vector of {len(made['embedding'])} numbers, not 48")


def wanted(name: str) -> str:
    """A requirement of exactly the version in dist/, so that no index offers another one."""
    (one,) = [each for each in distributions() if each.name == name]
    return f"{name}{EXTRA if name == 'archport' else ''}=={one.version}"


def by_pip(python: str, folder: Path, *options: str) -> str:
    """Install every distribution by plain pip, see that they work, and take them out again."""
    call(python, "-m", "venv", folder, cwd=folder.parent)
    pip = [folder / "bin" / "python", "-m", "pip", "-qq", "--disable-pip-version-check"]
    names = [one.name for one in distributions()]
    call(*pip, "install", *(options or ("--find-links", str(DIST))), *map(wanted, names), cwd=folder)
    works(folder / "bin" / "archport", folder)
    rows = {
        row["distribution"]: row
        for row in json.loads(call(folder / "bin" / "archport", "plugins", "--json", cwd=folder))
    }
    missing = [one.name for one in distributions() if one.requires and one.name not in rows and plugin(one.folder)]
    if missing:
        raise Failed(f"archport plugins does not list {', '.join(missing)}")
    broken = [name for name, row in rows.items() if row["status"] != "ok"]
    if broken:
        raise Failed(f"archport plugins says that {', '.join(broken)} did not load")
    call(*pip, "check", cwd=folder)
    call(*pip, "uninstall", "--yes", *names, cwd=folder)
    if left := [path for path in folder.rglob("archport*") if "__pycache__" not in path.parts]:
        raise Failed(f"uninstalling leaves {left[0]}")
    return call(folder / "bin" / "python", "--version", cwd=folder).strip()


def plugin(folder: Path) -> bool:
    """Whether a distribution announces a plugin of archport's own group."""
    return "entry-points.archport" in (folder / "pyproject.toml").read_text(encoding="utf-8")


def by_uv(folder: Path) -> str:
    uv = TOOLS / "uv"
    folders = {"UV_TOOL_DIR": str(folder / "tools"), "UV_TOOL_BIN_DIR": str(folder / "bin")}
    asked = ["tool", "install", "--quiet", "--python", sys.executable, "--find-links", str(DIST), wanted("archport")]
    call(uv, *asked, cwd=folder, **folders)
    works(folder / "bin" / "archport", folder)
    call(uv, "tool", "uninstall", "archport", cwd=folder, **folders)
    return call(uv, "--version", cwd=folder).strip()


def by_pipx(folder: Path) -> str:
    pipx = TOOLS / "pipx"
    folders = {"PIPX_HOME": str(folder / "home"), "PIPX_BIN_DIR": str(folder / "bin"), "PIPX_DEFAULT_BACKEND": "pip"}
    options = ["--python", sys.executable, "--pip-args", f"--find-links {DIST}"]
    call(pipx, "install", *options, wanted("archport"), cwd=folder, **folders)
    works(folder / "bin" / "archport", folder)
    call(pipx, "uninstall", "archport", cwd=folder, **folders)
    return f"pipx {call(pipx, '--version', cwd=folder).strip()}"


@contextmanager
def index(folder: Path) -> Iterator[str]:
    """An index on this machine that takes uploads; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        TOOLS / "pypi-server",
        "run",
        "-i",
        "127.0.0.1",
        "-p",
        str(port),
        "-P",
        ".",
        "-a",
        ".",
        "--disable-fallback",
        folder,
    ]
    server = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while True:
            with socket.socket() as asking:
                if asking.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if time.monotonic() > deadline or server.poll() is not None:
                raise Failed("the local index did not start in 30 s")
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def published(folder: Path) -> str:
    """Upload what is in dist/ as the workflow does, but to an index on this machine, and install from there."""
    (folder / "packages").mkdir()
    with index(folder / "packages") as address:
        files = sorted(map(str, DIST.iterdir()))
        login = ["--username", "none", "--password", "none", "--non-interactive", "--disable-progress-bar"]
        call(sys.executable, "-m", "twine", "upload", "--repository-url", address, *login, *files, cwd=folder)
        stored = {path.name for path in (folder / "packages").iterdir()}
        if stored != {Path(file).name for file in files}:
            raise Failed(f"the index holds {sorted(stored)}")
        by_pip(sys.executable, folder / "environment", "--extra-index-url", f"{address}/simple/")
    return f"{len(files)} files uploaded and installed"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--python", action="append", default=[], help="an interpreter to try with pip; may be repeated")
    parser.add_argument("--publish", action="store_true", help="only upload to a local index and install from it")
    asked = parser.parse_args()
    tries = [(f"pip, {python}", lambda folder, python=python: by_pip(python, folder / "e")) for python in asked.python]
    tries += [] if asked.publish else [("uv tool", by_uv), ("pipx", by_pipx)]
    tries += [("publish to a local index", published)] if asked.publish else []
    bad = 0
    for name, attempt in tries:
        begun = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            try:
                outcome = f"ok    {attempt(Path(folder))}"
            except Failed as error:
                bad, outcome = bad + 1, f"FAIL  {error}"
            # Here, because removing an environment may take as long as making it.
            print(f"{name:30} {time.monotonic() - begun:6.1f} s  {outcome}", flush=True)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
