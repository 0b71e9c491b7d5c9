"""LangChain's own suite for embeddings, in an environment of its own; the other hosts are `make test-integrations`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.truth
def test_langchains_suite_passes(tmp_path):
    results = tmp_path / "results.json"
    command = [sys.executable, HERE / "run.py", "--only", "langchain", "--results", results]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    if not results.exists() and "'install'" in done.stderr:
        pytest.skip(f"no environment for LangChain can be made here: {done.stderr.strip()[-200:]}")
    assert done.returncode == 0, done.stdout[-3000:]
    assert json.loads(results.read_text())["langchain"]["passed"]


def test_every_host_has_its_checks_and_the_other_way_round():
    sys.path.insert(0, str(HERE))
    try:
        from run import HOSTS
    finally:
        sys.path.remove(str(HERE))
    assert sorted(HOSTS) == sorted(path.stem.removeprefix("check_") for path in HERE.glob("check_*.py"))
