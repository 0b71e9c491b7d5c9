"""The official openai client against a running server; every other client is `make test-clients`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parents[1] / "clients" / "run.py"


@pytest.mark.truth
def test_the_openai_client_gets_what_it_asks_for():
    done = subprocess.run([sys.executable, RUN, "--only", "openai"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
