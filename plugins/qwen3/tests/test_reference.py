"""Against mlx-lm on the same files in the stored element type, packed layouts, and transformations of the trunk."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from archport import engine
from archport.checkpoint import normalise_config
from archport.layers.mlx_lm import reused

GOLDENS = Path(__file__).parents[3] / "tests" / "goldens"


def theirs(folder):
    # It reads the classic spelling only.
    return reused("utils.load_model")(folder, model_config=normalise_config(_config(folder)))[0]


def _config(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("name", ["qwen3-causal-sharded", "qwen3-windowed", "qwen3-4bit", "qwen3-6bit", "qwen3-nvfp4"])
def test_stored_types_choose_the_tokens_of_mlx_lm_wherever_it_is_sure(name):
    model, peer = engine.load(GOLDENS / name, dtype="checkpoint"), theirs(GOLDENS / name)
    golden = np.load(GOLDENS / name / "golden.npz")
    if name == "qwen3-windowed":
        # It looks at no window; a row shorter than it shows nothing else.
        rows = [golden["ids_0"], golden["ids_4"][:24]]
    else:
        rows = [golden[key] for key in golden if key.startswith("ids_")]
    compared = 0
    for ids in rows:
        hidden = model.forward(ids[None])
        ours = np.array(model._runtime.encoder.trunk.logits(hidden).astype(mx.float32))[0]
        want = np.array(peer(mx.array(ids[None])).astype(mx.float32))[0]
        best = np.sort(want, axis=-1)[:, -2:]
        # Measured in bf16's own steps at the height of the logits, and never below the required margin.
        sure = best[:, 1] - best[:, 0] > max(1e-2, 4 * 2**-8 * np.abs(best).max())
        assert (ours.argmax(-1) == want.argmax(-1))[sure].all()
        compared += int(sure.sum())
    assert compared >= 10


@pytest.mark.parametrize("name", ["qwen3-causal-sharded", "qwen3-moe", "qwen3-yarn"])
def test_float32_logits_equal_mlx_lm(name):
    model, peer = engine.load(GOLDENS / name), theirs(GOLDENS / name)
    peer.set_dtype(mx.float32)
    golden = np.load(GOLDENS / name / "golden.npz")
    for key in ("ids_1", "ids_2"):
        ids = golden[key][None]
        ours = np.array(model._runtime.encoder.trunk.logits(model.forward(ids)))
        want = np.array(peer(mx.array(ids)))
        assert np.abs(ours - want).max() <= 1e-5 * np.abs(want).max()


@pytest.mark.parametrize("name", ["qwen3-embed", "qwen3-moe"])
def test_the_trunk_can_be_compiled(name):
    from archport.running.context import StepContext, Stretches

    model = engine.load(GOLDENS / name)
    encoder = model._runtime.encoder
    ids = np.load(GOLDENS / name / "golden.npz")["ids_2"]
    plan = encoder.plan([len(ids)])
    (batch,) = plan.batches
    (step,) = batch.steps

    def run(tokens):
        return encoder.trunk(tokens, StepContext(plan, batch, step, (0,), None, Stretches()))

    compiled = np.array(mx.compile(run)(mx.array(ids[None])))
    want = np.load(GOLDENS / name / "golden.npz")["hidden_2"]
    assert np.abs(compiled[0] - want).max() <= 1e-5 * np.abs(want).max()


@pytest.mark.parametrize("chunk", [1, 7, 64, 512])
def test_an_embedding_read_in_chunks_equals_one_pass(chunk):
    import types

    from archport import hookimpl

    scope = {"chunk": chunk}
    exec("def archport_prefill_chunk(spec):\n    return chunk", scope)
    pins = types.ModuleType("pins")
    pins.archport_prefill_chunk = hookimpl(scope["archport_prefill_chunk"])
    whole, chunked = engine.load(GOLDENS / "qwen3-embed"), engine.load(GOLDENS / "qwen3-embed", overrides=[pins])
    texts = ["a rather long text about nothing at all " * 8, "short"]
    assert np.abs(whole.embed(texts) - chunked.embed(texts)).max() <= 1e-6
