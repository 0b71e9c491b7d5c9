"""Masked words and vectors per token stay within the plan that admitted them, however large their own arrays are."""

import json
import logging
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from tolerances import CPU, PLANNED_BESIDE

from archport import engine
from archport.checkpoint import normalise_config
from archport.contract import Example
from archport.contract.hooks import Hooks, Speaker
from archport.contract.plugins import claim, discover
from archport.running.encode import VARIABLE
from archport.testing.writing import random_weights, write_checkpoint

GOLDENS = Path(__file__).parents[3] / "tests" / "goldens"
WORDS = 60_000


@pytest.fixture(scope="module")
def speller(tmp_path_factory):
    """A folder with a masked language model of narrow layers and many words."""
    source = GOLDENS / "modernbert"
    stored = json.loads((source / "config.json").read_text())
    config = {**stored, "vocab_size": WORDS, "num_hidden_layers": 2}
    plugin, spec = claim(normalise_config(config), discover())
    hooks = Hooks([Speaker(plugin.label, plugin.module)])
    folder = tmp_path_factory.mktemp("speller")
    publish = next(each.publish for each in hooks.examples() if each.name.startswith("modernbert"))
    trunk = hooks.build(spec, normalise_config(config))
    write_checkpoint(folder, config, publish(random_weights(trunk, Example("speller", config))), spec)
    shutil.copy(source / "tokenizer.json", folder)
    shutil.copy(source / "tokenizer_config.json", folder)
    return folder


@pytest.fixture(scope="module")
def wide_colbert(tmp_path_factory):
    """A folder with the recorded late-interaction model, its vectors widened to sixteen times the hidden states."""
    folder = shutil.copytree(GOLDENS / "pylate", tmp_path_factory.mktemp("models") / "wide")
    config = json.loads((folder / "2_Dense" / "config.json").read_text())
    wide = 16 * config["in_features"]
    (folder / "2_Dense" / "config.json").write_text(json.dumps({**config, "out_features": wide}))
    weight = np.random.default_rng(0).normal(size=(wide, config["in_features"])).astype(np.float32)
    mx.save_safetensors(str(folder / "2_Dense" / "model.safetensors"), {"linear.weight": mx.array(weight)})
    return folder


@pytest.fixture
def readings(monkeypatch, caplog):
    """What each batch of a call took, beside its plan; called with the call."""

    def run(call):
        call()
        monkeypatch.setenv(VARIABLE, "1")
        caplog.clear()
        with caplog.at_level(logging.WARNING, "archport"):
            call()
        monkeypatch.delenv(VARIABLE)
        found = [record.reading for record in caplog.records if hasattr(record, "reading")]
        assert found
        assert all(reading.holds for reading in found), found
        return found

    return run


def masked(model, count):
    mask = model._runtime.tokeniser.tokenizer.id_to_token(model._runtime.mask)
    return " ".join(["a", *[mask] * count])


@pytest.mark.parametrize(
    ("texts", "masks"), [(1, 1), (24, 2), (2, 150)], ids=["one word", "many texts", "many words of two texts"]
)
def test_masked_words_stay_within_the_plan(speller, readings, texts, masks):
    model = engine.load(speller)
    given = [masked(model, masks)] * texts
    predicted = max(reading.planned for reading in readings(lambda: model.fill_mask(given)))
    (length,) = set(model._runtime.tokeniser(given).lengths)
    # Layers this narrow hold less than one row of the vocabulary.
    # Where scratch of attention is 1 MiB or more, that outweighs the row.
    if texts == 1 and CPU:
        assert predicted > model.plan([length]).peak + 3 * 4 * WORDS


@pytest.mark.parametrize("name", ["speller", "wide_colbert"])
def test_a_tight_budget_splits_batches_and_gives_the_same_answers(request, readings, name):
    folder = request.getfixturevalue(name)
    free = engine.load(folder)
    if name == "speller":
        texts = [masked(free, 1) + " the" * 300 for _ in range(24)]

        def answer(model):
            return [np.array([each.score for each in places[0]]) for places in model.fill_mask(texts, top_k=2)]
    else:
        texts = ["word " * (1 + 5 * index % 90) for index in range(48)]

        def answer(model):
            return model.embed(texts, output="tokens")

    weights = free.plan([8]).bytes["weights"]
    together = readings(lambda: answer(free))
    predicted = max(reading.planned for reading in together)
    tight = engine.load(
        folder, memory_budget=weights + PLANNED_BESIDE + (predicted - weights - PLANNED_BESIDE) // (3 if CPU else 6)
    )
    for found, expected in zip(answer(tight), answer(free), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6, rtol=1e-5)
    apart = readings(lambda: answer(tight))
    assert len(apart) > len(together)
    assert max(reading.planned for reading in apart) <= tight.budget


@pytest.mark.parametrize("role", ["document", "query"])
def test_vectors_of_tokens_wider_than_hidden_states_stay_within_the_plan(wide_colbert, readings, role):
    model = engine.load(wide_colbert)
    texts = ["word " * (1 + 3 * index % 30) for index in range(40)]
    encode = model.encode_query if role == "query" else model.encode_document
    readings(lambda: encode(texts, output="tokens", overflow="truncate"))


def test_a_head_that_does_not_fit_is_refused_with_its_bytes(speller):
    from archport.contract import MemoryBudgetExceeded

    free = engine.load(speller, dtype="float32")
    weights = free.plan([8]).bytes["weights"]
    with pytest.raises(MemoryBudgetExceeded) as least:
        engine.load(speller, dtype="float32", memory_budget=weights + 1000).embed("a word", output="tokens")
    tight = engine.load(speller, dtype="float32", memory_budget=least.value.required_bytes + 4 * WORDS)
    assert tight.embed("a word", output="tokens")[0].shape[1] == tight.spec.hidden_size
    with pytest.raises(MemoryBudgetExceeded) as caught:
        tight.fill_mask(masked(free, 1))
    assert caught.value.breakdown["logits"] > 2 * 4 * WORDS
