"""`archport plan` of a folder gives the plan of the model that is loaded from it."""

from __future__ import annotations

import archport  # noqa: F401

# isort: split
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from archport import engine
from archport.cli.described import Loading, described
from archport.cli.plan import device_of, make, plan
from archport.contract import AdmissionRefused, ClassificationHead, SparseHead, TokenHead

GOLDENS = Path(__file__).parents[1] / "goldens"
FOLDERS = sorted(path.parent for path in GOLDENS.glob("*/config.json"))
LENGTHS = (3, 7, 7, 20)


def planned(folder: Path, dtype: str | None) -> Mapping[str, Any]:
    device = device_of(None)
    about = described(str(folder), device, Loading(dtype=dtype))
    made = make(about, device, lengths=list(LENGTHS), cached=0, new_tokens=0, budget=None, dense=False)
    return made.to_dict()


# "checkpoint" is what a GPU takes without being asked.
@pytest.mark.parametrize("dtype", [None, "checkpoint"])
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_plan_of_a_folder_is_the_loaded_model_s(folder: Path, dtype: str | None):
    assert planned(folder, dtype) == engine.load(folder, dtype=dtype).plan(LENGTHS).to_dict()


def test_the_goldens_have_heads_of_every_kind():
    heads = {type(engine.load(folder).head) for folder in FOLDERS}
    assert {SparseHead, TokenHead, ClassificationHead} <= heads


@pytest.mark.parametrize("name", ["splade", "colbert"])
def test_a_plan_holds_what_embed_runs(name: str, monkeypatch: pytest.MonkeyPatch):
    folder = next(folder for folder in FOLDERS if folder.name.startswith(name))
    model, run = engine.load(folder), []
    encoder = type(model._runtime.encoder)
    own = encoder.planned

    def noted(self, rows, **options):
        run.append(own(self, rows, **options))
        return run[-1]

    monkeypatch.setattr(encoder, "planned", noted)
    output = {"output": "tokens"} if isinstance(model.head, TokenHead) else {"output": "sparse"}
    model.embed(["t7 t8 t9"], **output)
    lengths = run[0].request.lengths
    assert model.plan(lengths).to_dict()["bytes"] == run[0].to_dict()["bytes"]


QUANTISED = [folder for folder in FOLDERS if engine.describe(folder).spec.quantization is not None]


ON_A_CPU = pytest.mark.only_on("cpu", reason="elsewhere packed weights stay packed")


@ON_A_CPU
@pytest.mark.parametrize("folder", QUANTISED, ids=lambda folder: folder.name)
def test_a_budget_chooses_the_same_weights_for_a_plan_and_a_load(folder: Path):
    whole = engine.load(folder)
    assert whole.dtype.dequantize
    unpacked = whole.memory().weights
    for budget in (unpacked - 1, unpacked, 4 * unpacked):
        model = engine.load(folder, memory_budget=budget)
        about = described(str(folder), device_of(None), Loading(budget=budget))
        assert model.dtype.dequantize == (budget >= unpacked)
        assert about.weight_bytes == model.memory().weights


@ON_A_CPU
def test_the_budget_of_the_command_reaches_the_choice():
    folder = QUANTISED[0]
    unpacked = engine.load(folder).memory().weights
    app = typer.Typer()
    app.command()(plan)
    told = CliRunner().invoke(app, ["-m", str(folder), "--budget", str(unpacked - 1), "--json"])
    held = engine.load(folder, memory_budget=unpacked - 1).memory().weights
    assert json.loads(told.output)["budget"] == unpacked - 1
    assert described(str(folder), device_of(None), Loading(budget=unpacked - 1)).weight_bytes == held < unpacked


def test_the_least_that_a_plan_names_is_enough_to_load_and_run():
    for folder in (GOLDENS / "bert-prefixed", GOLDENS / "colbert"):
        least = engine.load(folder).plan([20]).minimum
        assert planned_minimum(folder) == least
        model = engine.load(folder, memory_budget=least)
        assert model.plan([20]).peak <= least
        with pytest.raises(AdmissionRefused):
            engine.load(folder, memory_budget=least - 1).plan([20])


def planned_minimum(folder: Path) -> int:
    device = device_of(None)
    about = described(str(folder), device)
    return make(about, device, lengths=[20], cached=0, new_tokens=0, budget=None, dense=False).minimum
