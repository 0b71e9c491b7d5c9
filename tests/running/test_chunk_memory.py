"""A prompt in chunks holds one chunk at a time, whatever is pooled of it."""

from __future__ import annotations

import archport  # noqa: F401

# isort: split
import gc

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map

from archport.attention import Chooser, builtin_backends
from archport.checkpoint import normalise_config
from archport.contract import EmbeddingHead
from archport.contract.plugins import claim, discover
from archport.device.facts import this_device
from archport.running.encode import Encoder
from archport.running.pool import VectorHead
from archport.running.steps import batch_caches, parameter_bytes
from archport.testing.plans import plan_of

CONFIG = {
    "architectures": ["Qwen3Model"],
    "model_type": "qwen3",
    "hidden_size": 256,
    "num_hidden_layers": 3,
    "intermediate_size": 768,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "vocab_size": 97,
    "max_position_embeddings": 8192,
}
TOKENS, CHUNK = 2048, 512


@pytest.fixture(scope="module")
def encoder():
    plugin, spec = claim(normalise_config(CONFIG), discover())
    module = plugin.hooks().build(spec, normalise_config(CONFIG))
    module.update(tree_map(lambda array: mx.random.normal(array.shape) * 0.02, module.parameters()))
    mx.eval(module.parameters())
    return Encoder(module, spec, None)


@pytest.fixture
def plan(encoder):
    return plan_of(
        encoder.spec,
        [TOKENS],
        device=this_device(),
        choose=Chooser(builtin_backends()),
        weight_bytes=parameter_bytes(encoder.trunk),
        chunk=CHUNK,
        mode="generate",
    )


def peak(encoder, plan, run):
    """The highest of some runs, as what coexists on a CPU depends on threads."""
    highest = 0
    for _ in range(4):
        gc.collect()
        mx.synchronize()
        mx.clear_cache()
        mx.reset_peak_memory()
        others = mx.get_active_memory() - plan.bytes["weights"]
        mx.eval(run())
        mx.synchronize()
        highest = max(highest, mx.get_peak_memory() - others)
    return highest


@pytest.mark.parametrize("mode", ["last", "cls", "mean", "max"])
def test_pooling_a_prompt_in_chunks_stays_within_its_plan(encoder, plan, mode):
    (batch,) = plan.batches
    assert len(batch.steps) == TOKENS // CHUNK
    ids, head = np.arange(TOKENS, dtype=np.int32) % 97, VectorHead(EmbeddingHead((mode,)))
    assert peak(encoder, plan, lambda: encoder.pooled(plan, batch, [ids], head, 0)) <= plan.peak


def test_a_prefill_in_chunks_stays_within_its_plan(encoder, plan):
    (batch,) = plan.batches
    ids = np.arange(TOKENS, dtype=np.int32) % 97

    def run():
        return encoder.last_hidden(plan, batch, [ids], batch_caches(encoder.spec, plan, batch))

    assert peak(encoder, plan, run) <= plan.peak
