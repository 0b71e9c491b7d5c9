"""archport in the llm command: its own commands, in processes of their own, with the plugin's entry point."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import archport  # noqa: F401
from archport import engine

GOLDENS = Path(__file__).parents[1] / "goldens"
NAME = "archport/all-MiniLM-L6-v2"


@pytest.fixture
def llm(tmp_path):
    def run(*words, fails=False, given=None):
        command = [sys.executable, "-m", "llm", *map(str, words)]
        env = {**os.environ, "LLM_USER_PATH": str(tmp_path / "llm")}
        done = subprocess.run(command, env=env, capture_output=True, text=True, input=given)
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stderr if fails else done.stdout

    return run


def test_a_text_has_the_models_vector(llm):
    assert NAME in llm("embed-models")
    vector = json.loads(llm("embed", "-m", NAME, "-c", "a text"))
    assert np.abs(vector - engine.load("all-MiniLM-L6-v2").embed("a text")[0]).max() <= 1e-6


def test_a_collection_is_searched(llm, tmp_path):
    rows = [{"id": "cat", "text": "The cat sleeps."}, {"id": "rates", "text": "Interest rates rose."}]
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(rows))
    llm("embed-multi", "texts", file, "-m", NAME, "--store")
    (nearest,) = map(json.loads, llm("similar", "texts", "-c", "a kitten naps", "-n", "1").splitlines())
    assert (nearest["id"], nearest["content"]) == ("cat", "The cat sleeps.")
    a, b = engine.load("all-MiniLM-L6-v2").embed(["The cat sleeps.", "a kitten naps"])
    assert nearest["score"] == pytest.approx(float(a @ b), abs=1e-5)


def test_models_are_registered_used_and_forgotten(llm):
    folder = GOLDENS / "bert-plain"
    llm("archport", "register", folder, "--alias", "tiny", "--dimensions", 8, "--truncate")
    vector = json.loads(llm("embed", "-m", "tiny", "-c", "word " * 2000))
    expected = engine.load(folder).embed("word " * 2000, dimensions=8, overflow="truncate")[0]
    assert np.abs(vector - expected).max() <= 1e-6
    assert json.loads(llm("archport", "models"))["aliases"] == ["tiny"]
    llm("archport", "remove", "tiny")
    assert llm("archport", "models") == ""
    assert "not registered" in llm("archport", "remove", "tiny", fails=True)


def test_what_is_wrong_is_told_in_the_commands_words(llm):
    assert "--truncate" in llm("embed", "-m", NAME, "-c", "word " * 2000, fails=True)
    assert "Traceback" not in llm("archport", "register", "no/such-folder", fails=True)
