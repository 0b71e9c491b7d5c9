"""The example users of policy hooks: numbers stay what they are, explain names who pinned what and why."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from tolerances import CPU

from archport import engine
from archport.testing.plans import planned

ROOT = Path(__file__).parents[2]
GOLDENS = ROOT / "tests" / "goldens"
EXAMPLES = ROOT / "examples" / "third_party" / "override_example"


@pytest.fixture
def example(monkeypatch):
    """Loads an example override by name."""
    monkeypatch.syspath_prepend(EXAMPLES)

    def load(name):
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    return load


def pinned(plan):
    return {line.strip() for line in plan.explain().splitlines() if line.strip().startswith("pinned")}


def test_padding_is_hidden_as_the_example_pins_and_vectors_stay_what_they_are(example):
    texts = ["a", "a longer text than that", "three words here"]
    free, held = (
        engine.load(GOLDENS / "bert-plain", dtype="float32", overrides=overrides)
        for overrides in ([], [example("padded_texts")])
    )
    assert np.abs(free.embed(texts) - held.embed(texts)).max() <= 1e-6
    assert held.plan([5, 9, 7]).batches[0].kinds[0].mask.kind == "key_padding"
    assert pinned(held.plan([5, 9, 7])) == {
        "pinned   archport_mask_policy of override padded_texts: key_padding (texts are new every time, and one way is "
        "planned sooner than two)"
    }
    # A GPU pads a row that runs alone, so that its end is hidden as well.
    assert bool(pinned(held.plan([5]))) == (not CPU)


def test_caches_begin_as_small_as_the_example_pins_and_change_no_token(example, tmp_path):
    folder = shutil.copytree(GOLDENS / "qwen3-causal-sharded", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 8192}))
    free, held = (
        engine.load(folder, dtype="float32", max_context=8192, prefix_cache=0, overrides=overrides)
        for overrides in ([], [example("short_chats")])
    )
    prompts = [[5, 6, 7, 8], [9, 10]]
    plans = [planned(model._runtime.encoder.plan, [4, 2], new_tokens=None) for model in (free, held)]
    assert plans[1].bytes["kv"] == plans[0].bytes["kv"] / 8
    ceiling = held._runtime.encoder.plan.max_context
    assert pinned(plans[1]) == {
        f"pinned   archport_kv_allocation of override short_chats: growing, 512 tokens growing to {ceiling:,} (answers "
        "are short)"
    }
    assert [answer.tokens for answer in free.generate(prompts, max_tokens=8)] == [
        answer.tokens for answer in held.generate(prompts, max_tokens=8)
    ]
    # A stated limit is allocated once, and a long prompt is no short chat.
    assert not pinned(planned(held._runtime.encoder.plan, [4], new_tokens=8))
    assert not pinned(planned(held._runtime.encoder.plan, [600], new_tokens=None))
