"""Routers of several models, against what sentence-transformers gave for the same files."""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from archport import engine
from archport.checkpoint.files import weights_needed
from archport.contract import InputError, MemoryBudgetExceeded
from archport.contract.errors import CheckpointError

GOLDEN = Path(__file__).parents[3] / "tests" / "goldens" / "routed-dense"
TEXTS = json.loads((GOLDEN.with_name("routed") / "routes.json").read_text(encoding="utf-8"))["texts"]
RECORDED = np.load(GOLDEN / "golden.npz")
CALLS = {"query": "encode_query", "document": "encode_document", "plain": "embed"}


@pytest.fixture(scope="module")
def model():
    return engine.load(GOLDEN, dtype="float32")


def cosines(got, want):
    return (got * want).sum(axis=1) / np.linalg.norm(got, axis=1) / np.linalg.norm(want, axis=1)


@pytest.mark.parametrize("recorded", CALLS)
def test_each_role_is_what_sentence_transformers_makes_of_it(model, recorded):
    got = getattr(model, CALLS[recorded])(TEXTS, overflow="truncate")
    assert np.abs(got - RECORDED[recorded]).max() <= 1e-5
    assert cosines(got, RECORDED[recorded]).min() >= 0.99999


def test_queries_and_documents_are_of_one_space(model):
    got = model.similarity(model.encode_query(TEXTS, overflow="truncate"), model.encode_document(["a cat"]))
    assert got.shape == (len(TEXTS), 1)


def test_a_copy_outlives_the_model_that_is_closed():
    model = engine.load(GOLDEN, dtype="float32")
    other = copy.copy(model)
    model.close()
    for call in CALLS.values():
        with pytest.raises(InputError, match="was closed"):
            getattr(model, call)(["a"])
        assert getattr(other, call)(["a"]).shape == (1, 32)


def test_memory_counts_the_weights_of_every_route(model):
    stored = {path.parent.name: path.stat().st_size for path in GOLDEN.glob("*/model.safetensors")}
    largest = stored["document_0_Transformer"]
    assert largest < model.memory().weights
    # Files have headers, and a pooler that nobody runs; the Dense module is no model.
    assert model.memory().weights == pytest.approx(sum(stored.values()) - stored["any_2_Dense"], rel=0.2)


def test_each_route_plans_within_what_the_others_weights_leave(model):
    budget = 64 << 20
    small = engine.load(GOLDEN, dtype="float32", memory_budget=budget)
    total = small.memory().weights
    for own in (small, *small._models.values()):
        # Read from headers before anything is loaded; poolers that nobody runs are among the stored weights.
        plan = own._runtime.encoder.plan
        assert budget - 1.1 * total <= plan.budget - plan.weights.total <= budget - total + 1024


def test_weights_that_fit_one_by_one_and_not_together_are_refused(model):
    largest = (GOLDEN / "document_0_Transformer" / "model.safetensors").stat().st_size
    with pytest.raises(MemoryBudgetExceeded, match="3 models"):
        engine.load(GOLDEN, dtype="float32", memory_budget=largest + 1024)


def test_the_hub_is_asked_for_the_weights_of_every_route():
    names = [str(path.relative_to(GOLDEN)) for path in GOLDEN.rglob("*") if path.is_file()]

    def read(name):
        return json.loads((GOLDEN / name).read_text(encoding="utf-8")) if (GOLDEN / name).is_file() else None

    assert set(weights_needed(names, read, "routed")) == {name for name in names if name.endswith(".safetensors")}


def test_an_adapter_of_several_models_is_refused(tmp_path):
    with pytest.raises((InputError, CheckpointError), match="adapter"):
        engine.load(GOLDEN, adapter=tmp_path)


def test_a_damaged_route_is_named(tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(GOLDEN, folder)
    (folder / "any_0_Transformer" / "config.json").unlink()
    with pytest.raises(CheckpointError, match="any_0_Transformer"):
        engine.load(folder)


def test_vectors_of_a_stream_take_the_route_of_texts_without_a_role(model):
    found = np.concatenate([vectors for _, vectors in model.stream(iter(TEXTS), window=4, overflow="truncate")])
    assert np.abs(found - RECORDED["plain"]).max() <= 1e-5
