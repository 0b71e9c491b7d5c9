"""`archport models`: what it lists, fetches from a hub on the loopback interface, and removes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from archport.cli.commands import app
from archport.contract import InputError

GOLDENS = Path(__file__).parents[1] / "goldens"
ID = "someone/tiny-qwen3"


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["models", *arguments])


def listed() -> dict[str, Any]:
    return json.loads(run("--json").stdout)


@pytest.fixture
def published(hub):
    hub.add(ID, GOLDENS / "qwen3-embed")
    return hub


def cached(found: dict[str, Any]) -> dict[str, Any]:
    return {entry["id"]: entry for row in found["plugins"] for entry in row["cached"]}


def test_families_are_listed_with_tasks_and_ids(published):
    rows = {row["name"]: row for row in listed()["plugins"]}
    assert "embed" in rows["qwen3"]["families"]["qwen3"]
    assert "Qwen/Qwen3-Embedding-0.6B" in rows["qwen3"]["ids"]
    assert "bert" in rows["bidirectional"]["families"]
    assert not published.requests


def test_a_model_that_was_pulled_is_in_the_list_and_loads_without_a_network(published):
    assert not cached(listed())
    done = run("pull", ID)
    assert done.exit_code == 0, done.output
    entry = cached(listed())[ID]
    assert entry["whole"]
    assert entry["family"] == "qwen3"
    assert entry["bytes"] > (GOLDENS / "qwen3-embed" / "model.safetensors").stat().st_size
    asked = len(published.requests)
    assert run("pull", ID).exit_code == 0
    assert len(published.requests) == asked


def test_a_model_that_was_removed_is_gone(published):
    run("pull", ID)
    folder = Path(cached(listed())[ID]["folder"])
    assert folder.is_dir()
    assert run("rm", ID).exit_code == 0
    assert not folder.exists()
    assert not cached(listed())


def test_what_is_not_there_can_not_be_removed_and_names_like_it_are_said(published):
    run("pull", ID)
    done = run("rm", "someone/tiny-qwen")
    assert done.exit_code != 0
    assert ID in str(done.exception)
    assert cached(listed())


def test_a_model_of_a_package_is_said_to_be_one():
    removed = run("rm", "all-MiniLM-L6-v2")
    assert isinstance(removed.exception, InputError)
    assert "all-MiniLM-L6-v2 comes in an installed package" in str(removed.exception)


def test_nothing_outside_the_cache_is_removed(published, tmp_path: Path):
    (tmp_path / "mine").mkdir()
    for name in ("../../mine", str(tmp_path / "mine"), ".", ""):
        assert run("rm", name).exit_code != 0
    assert (tmp_path / "mine").is_dir()


def test_weights_of_what_no_plugin_claims_are_not_fetched(published, tmp_path: Path):
    shutil.copytree(GOLDENS / "qwen3-embed", tmp_path / "strange")
    config = json.loads((tmp_path / "strange" / "config.json").read_text())
    config |= {"architectures": ["StrangeModel"], "model_type": "strange"}
    (tmp_path / "strange" / "config.json").write_text(json.dumps(config))
    published.add("someone/strange", tmp_path / "strange")
    assert run("pull", "someone/strange").exit_code != 0
    weights = (tmp_path / "strange" / "model.safetensors").stat().st_size
    assert published.served.get("model.safetensors", 0) < weights
