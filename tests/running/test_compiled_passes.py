"""Short passes compiled whole, as CUDA runs them: the same vectors, in the same plan."""

from __future__ import annotations

import archport  # noqa: F401

# isort: split
import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from archport import engine
from archport.attention import Chooser, builtin_backends
from archport.checkpoint import normalise_config
from archport.contract.plugins import claim, discover
from archport.device.evaluation import compile_traces
from archport.device.profiles import profile
from archport.planning import Planner, Request
from archport.running import steps

GOLDENS = Path(__file__).parents[1] / "goldens"
MODELS = ("qwen3-embed", "bert-plain", "modernbert", "embeddinggemma", "qwen35-text", "qwen3-moe")
SHORT = ["a text", "and another one"]
CONFIGS = {
    "qwen3-0.6b": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": 151669,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000,
        "tie_word_embeddings": True,
    },
    "bert-base": {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": 30522,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
    },
}


@pytest.fixture
def everywhere(monkeypatch):
    """Compile on whatever device, whatever the plan: a CPU evaluates after each layer."""
    monkeypatch.setattr(steps, "compiles", lambda kind: True)
    monkeypatch.setattr(steps, "compilable", lambda plan, batch, step: not batch.packed)


def loaded(name: str) -> engine.Model:
    return engine.load(GOLDENS / name, dtype="float32", prefix_cache=0, share_weights=False)


def traces(model: engine.Model) -> int:
    return len(model._runtime.encoder.passes._shapes.traces)


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("name", MODELS)
def test_vectors_are_those_of_a_pass_run_layer_by_layer(name):
    plain, model = loaded(name), loaded(name)
    plain._runtime.encoder.passes._refused = True
    # The trace is not of the text.
    for texts in (SHORT[:1], SHORT[1:]):
        want, got = np.array(plain.embed(texts)), np.array(model.embed(texts))
        assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()
        assert np.array_equal(np.array(model.embed(texts)), got)
    assert 1 <= traces(model) <= 2
    assert traces(plain) == 0


@pytest.mark.usefixtures("everywhere")
def test_replaced_weights_are_seen():
    model = loaded("qwen3-embed")
    for _ in range(3):
        before = np.array(model.embed(SHORT[:1]))
    trunk = model._runtime.encoder.trunk
    norm = trunk.model.layers[0].input_layernorm
    norm.weight = norm.weight * mx.linspace(0.5, 1.5, norm.weight.size)
    after = np.array(model.embed(SHORT[:1]))
    assert np.abs(after - before).max() > 1e-3
    model._runtime.encoder.passes._refused = True
    assert np.abs(np.array(model.embed(SHORT[:1])) - after).max() <= 1e-5


@pytest.mark.usefixtures("everywhere")
def test_as_many_shapes_as_are_kept_and_no_more(monkeypatch):
    monkeypatch.setattr(steps, "MOST", 2)
    model = loaded("qwen3-embed")
    for words in (1, 40, 80, 120, 1, 40, 80, 120, 120):
        model.embed([" word" * words])
    assert traces(model) <= 2


@pytest.mark.usefixtures("everywhere")
def test_threads_and_copies_have_traces_of_their_own():
    model = loaded("qwen3-embed")
    want, *_ = [np.array(model.embed(SHORT[:1])) for _ in range(3)]
    with ThreadPoolExecutor(1) as pool:
        for _ in range(3):
            assert np.abs(np.array(pool.submit(model.embed, SHORT[:1]).result()) - want).max() <= 1e-5
    passes = model._runtime.encoder.passes
    for copied in (copy.deepcopy(passes), pickle.loads(pickle.dumps(passes))):
        assert (len(passes._shapes.traces), len(copied._shapes.traces)) == (1, 0)


@pytest.mark.skipif(not compile_traces(), reason="mx.compile needs g++ on a CPU, and traces nothing without it")
@pytest.mark.usefixtures("everywhere")
def test_a_trunk_that_reads_values_while_it_runs_is_run_as_it_is():
    want = np.array(loaded("qwen3-embed").embed(SHORT[:1]))
    model = loaded("qwen3-embed")
    encoder, run = model._runtime.encoder, model._runtime.encoder.trunk

    def reads(ids, ctx):
        assert ids.max().item() >= 0
        return run(ids, ctx)

    object.__setattr__(encoder, "trunk", reads)
    for _ in range(3):
        assert np.abs(np.array(model.embed(SHORT[:1])) - want).max() <= 1e-5
    assert encoder.passes._refused


@pytest.mark.parametrize("name", ["bert-base", "qwen3-0.6b"])
def test_what_passes_are_kept_by_can_be_looked_up_on_every_device(name):
    """Paths of a padded batch hold others, which hold backends."""
    for device in ("h200", "m3-max-128gb", "cpu"):
        planner = Planner.of(spec_of(name), profile(device), Chooser(builtin_backends()), dtype="bfloat16")
        batch = planner(Request(lengths=[5, 90, 300])).batches[0]
        assert hash(steps._key(batch, batch.steps[0]))


@pytest.mark.parametrize(
    ("lengths", "whole"), [([16], True), ([128], True), ([512], True), ([2048], False), ([512] * 32, False)]
)
def test_on_an_h200_what_fits_the_plan_in_one_evaluation_is_compiled(lengths, whole):
    planner = Planner.of(spec_of("qwen3-0.6b"), profile("h200"), Chooser(builtin_backends()), dtype="bfloat16")
    plan = planner(Request(lengths=lengths))
    batch = plan.batches[0]
    assert steps.compilable(plan, batch, batch.steps[0]) is whole


def spec_of(name: str):
    return claim(normalise_config(CONFIGS[name]), discover())[1]
