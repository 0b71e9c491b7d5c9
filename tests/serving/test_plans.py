"""What fits where, as the page asks for it: its numbers, who may ask, and what planning leaves to requests."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import shutil
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from archport.cli.plan import plan
from archport.serving import frontiers
from archport.serving.app import State
from archport.serving.frontiers import Question
from archport.serving.models import Registry
from archport.serving.security import keys_of
from archport.serving.settings import Settings
from archport.serving.shelf import Shelf, Wanted
from pages.points import check_points, data_of

from .conftest import GOLDENS

SLEEPS = (sys.executable, "-c", "import time; time.sleep(60)")
FAILS = (sys.executable, "-c", "raise SystemExit('it went wrong')")


def invoke(*arguments: Any):
    app = typer.Typer()
    app.command()(plan)
    return CliRunner().invoke(app, [str(each) for each in arguments])


def planned(serving, query: str):
    """The answer once it is there."""
    until = time.monotonic() + 240
    while (answer := serving.ask(f"/plans.json?{query}")).status_code == 202:
        assert time.monotonic() < until, answer.text
        time.sleep(0.05)
    return answer


# Of one that embeds on this machine with the server's budget, and of one that writes on another machine.
CASES = [("bert-plain", None, 0, 300_000_000), ("qwen3-windowed", "m1-8gb", 256, None)]


@pytest.mark.parametrize(("model", "device", "new", "budget"), CASES, ids=["embeds", "writes"])
def test_its_numbers_are_those_of_plan_json_and_of_the_file(make, tmp_path, model, device, new, budget):
    serving = make(model)
    serving.state.budget = 300_000_000
    answer = planned(serving, f"device={device}" if device else "")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    # Neither its folder nor any other one.
    assert str(GOLDENS.parent) not in answer.text
    data = answer.json()
    own = "" if device else next(iter(data["devices"]))
    assert (data["title"], data["new_tokens"]) == (model, new)
    arguments = ["-m", GOLDENS / model, *(["--budget", budget] if budget else [])]
    check_points(data, invoke, arguments, own=own)
    file = tmp_path / "plans.html"
    where = ["--device", device] if device else []
    assert invoke(*arguments, *where, "--new", new, "--html", file).exit_code == 0
    assert data_of(file.read_text(encoding="utf-8")) | {"title": model} == data
    # The second time it is there at once, also for a client that takes no gzip.
    again = serving.ask(f"/plans.json{f'?device={device}' if device else ''}", headers={"accept-encoding": "identity"})
    assert (again.status_code, "content-encoding" in again.headers) == (200, False)
    assert again.json() == data


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("model=other", 404, "model_not_found"),
        ("device=m1-9gb", 400, "invalid_input"),
        ("new=256", 400, "invalid_value"),
        ("new=1000000", 400, "invalid_value"),
    ],
)
def test_what_is_not_planned_is_refused(make, monkeypatch, query, status, code):
    monkeypatch.setattr(frontiers, "_COMMAND", FAILS)
    answer = make("bert-plain").ask(f"/plans.json?{query}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_it_asks_for_a_key_as_the_other_numbers_do(make, monkeypatch):
    monkeypatch.setattr(frontiers, "_COMMAND", SLEEPS)
    serving = make("bert-plain", keys=keys_of(["secret-key"]))
    assert serving.ask("/plans.json").status_code == 401
    assert serving.ask("/plans.json", headers={"authorization": "Bearer secret-key"}).status_code == 202


def test_requests_are_answered_while_one_device_is_planned_and_others_wait(make, monkeypatch, eventually):
    monkeypatch.setattr(frontiers, "_COMMAND", SLEEPS)
    serving = make("bert-plain")
    serving.ask("/plans.json?device=h200")
    eventually(lambda: serving.ask("/plans.json?device=h200").json()["seconds"] is not None)
    second = serving.ask("/plans.json?device=cpu")
    assert (second.status_code, second.headers["retry-after"]) == (202, "1")
    assert second.json() == {"ahead": 1, "seconds": None}
    assert serving.ask("/v1/embeddings", {"input": "a"}).status_code == 200
    process = serving.state.frontiers._process
    # Planning is nothing that a request of the page waits for, and ends with the server.
    assert process.poll() is None
    serving.state.frontiers.close()
    eventually(lambda: process.poll() is not None)
    assert serving.ask("/plans.json?device=m1-8gb").status_code == 503


def test_what_nobody_asks_for_again_is_not_planned(make, monkeypatch, eventually, tmp_path):
    gate = tmp_path / "open"
    waits_for_it = f"import os, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.02)\nprint('{{}}')"
    monkeypatch.setattr(frontiers, "_COMMAND", (sys.executable, "-c", waits_for_it))
    clock = [100.0]
    monkeypatch.setattr(frontiers, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    serving = make("bert-plain")
    for device in ("h200", "m1-8gb", "m1-16gb", "cpu"):
        serving.ask(f"/plans.json?device={device}")
    clock[0] += frontiers.PATIENCE + 1
    assert serving.ask("/plans.json?device=cpu").json()["ahead"] == 3
    gate.touch()
    eventually(lambda: not serving.state.frontiers._waiting)
    assert [each.device for each in serving.state.frontiers._made] == ["h200", "cpu"]


def test_a_failure_is_told_once_and_logged_and_then_tried_again(make, monkeypatch, eventually, caplog):
    monkeypatch.setattr(frontiers, "_COMMAND", FAILS)
    serving = make("bert-plain")
    with caplog.at_level(logging.ERROR, "archport.serving"):
        answer = planned(serving, "device=cpu")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "plans_failed")
    assert "it went wrong" in caplog.text
    assert "it went wrong" not in answer.text
    monkeypatch.setattr(frontiers, "_COMMAND", (sys.executable, "-c", "print('{}')"))
    assert planned(serving, "device=cpu").json() == {"title": "bert-plain"}


def test_a_model_is_planned_as_it_was_loaded(tmp_path):
    state = State(Settings(), Registry())
    state.device.start()
    adapter = str(GOLDENS / "adapters" / "qwen3-4bit")
    options = {"dtype": "checkpoint", "max_context": 99, "adapter": adapter, "revision": None}
    # An adapter by its own name.
    named = shutil.copytree(GOLDENS / "adapters" / "qwen3-4bit", tmp_path / "named")
    config = json.loads((named / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(GOLDENS / "qwen3-4bit")
    (named / "adapter_config.json").write_text(json.dumps(config))
    apart = {"dtype": "checkpoint", "adapters": {"a": adapter, "b": adapter}}
    wanted = [
        Wanted(str(GOLDENS / "qwen3-4bit"), "one", options),
        Wanted(str(named), "two", {"dtype": "checkpoint"}),
        Wanted(str(GOLDENS / "qwen3-4bit"), "three", apart),
    ]
    shelf = Shelf(state, wanted, 1 << 30)
    try:
        asyncio.run(shelf.load_all())
        for served in state.registry.all:
            question = Question(served.id, str(served.folder), None, 0, None, served.loading)
            told = json.loads(invoke(*question.arguments, "--tokens", "8", "--json").output)
            plan = served.model.plan([8])
            assert (told["bytes"]["weights"], told["max_context"]) == (plan.bytes["weights"], plan.max_context)
    finally:
        state.device.stop()
        state.answers.close()
        gc.unfreeze()


def test_the_document_lists_its_parameters_and_that_it_may_take_a_while(make):
    operation = make("bert-plain").ask("/openapi.json").json()["paths"]["/plans.json"]["get"]
    assert [each["name"] for each in operation["parameters"]] == ["model", "device", "new"]
    assert {"200", "202", "400", "401", "404"} <= operation["responses"].keys()
