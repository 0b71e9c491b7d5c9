"""Planned steps of a causal trunk: chunks and growing caches give what one pass gives; refusals allocate nothing."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map

from archport.attention import Chooser, builtin_backends
from archport.checkpoint import normalise_config
from archport.contract import ContextLengthExceeded
from archport.contract.plugins import claim, discover
from archport.device.facts import this_device
from archport.planning import Planner
from archport.running.pool import Pooling
from archport.running.steps import batch_caches, hidden_dtype, parameter_bytes, run_steps
from archport.testing.plans import planned

CONFIG = {
    "architectures": ["Qwen3Model"],
    "model_type": "qwen3",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "vocab_size": 97,
    "max_position_embeddings": 8192,
}


@pytest.fixture(scope="module")
def trunk():
    mx.random.seed(0)
    plugin, spec = claim(normalise_config(CONFIG), discover())
    module = plugin.hooks().build(spec, normalise_config(CONFIG))
    module.update(tree_map(lambda array: mx.random.normal(array.shape) * 0.3, module.parameters()))
    mx.eval(module.parameters())
    return module


@pytest.fixture(scope="module")
def planner(trunk):
    _, spec = claim(normalise_config(CONFIG), discover())
    chooser, dtype = Chooser(builtin_backends()), hidden_dtype(trunk, spec)
    weights = parameter_bytes(trunk)
    return Planner.of(spec, this_device(), chooser, budget=1 << 30, dtype=dtype, weight_bytes=weights, plugin="qwen3")


def run(trunk, planner, plan, ids):
    (batch,) = plan.batches
    caches = batch_caches(planner.spec, plan, batch)
    pieces = []
    for _, hidden in run_steps(trunk, plan, batch, [ids], caches):
        mx.eval(hidden)
        pieces.append(np.array(hidden))
    # A row is padded to a width that recurs.
    return np.concatenate(pieces, axis=1)[0, : len(ids)], caches


def chunked(planner, lengths, chunk, **options):
    return planned(planner, lengths, chunk=chunk, **options)


def tokens(length, seed=0):
    return np.random.default_rng(seed).integers(0, 97, length).astype(np.int32)


@pytest.mark.parametrize("chunk", [1, 7, 64, 100])
def test_a_prompt_in_chunks_equals_one_pass(trunk, planner, chunk):
    ids = tokens(150)
    whole, _ = run(trunk, planner, planned(planner, [150]), ids)
    pieces, caches = run(trunk, planner, chunked(planner, [150], chunk), ids)
    assert caches is not None
    assert np.abs(pieces - whole).max() <= 1e-5 * np.abs(whole).max()


def test_a_prompt_beyond_the_first_4096_tokens_grows_its_cache_and_equals_one_pass(trunk, planner):
    ids = tokens(6776)
    whole, _ = run(trunk, planner, planned(planner, [6776]), ids)
    plan = chunked(planner, [6776], 4096, new_tokens=None)
    (batch,) = plan.batches
    assert {(kind.kv.storage, kind.kv.initial, kind.kv.ceiling) for kind in batch.kinds} == {("growing", 4096, 8192)}
    assert len(batch.steps) > 1
    pieces, caches = run(trunk, planner, plan, ids)
    assert caches[0].capacity >= 6776
    assert caches[0].lengths == (batch.shape.L,)
    assert np.abs(pieces - whole).max() <= 1e-5 * np.abs(whole).max()


def test_a_prompt_above_the_context_is_refused_with_both_numbers_and_nothing_allocated(planner):
    mx.synchronize()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    with pytest.raises(ContextLengthExceeded) as refused:
        chunked(planner, [4913], None, new_tokens=None, max_context=4000)
    assert (refused.value.requested, refused.value.ceiling) == (4913, 4000)
    assert "4,913" in str(refused.value)
    assert "4,000" in str(refused.value)
    assert mx.get_active_memory() == before


def test_ragged_rows_in_chunks_pool_to_the_vectors_of_single_rows(trunk, planner):
    rows = [tokens(length, seed=length) for length in (150, 90, 149, 31)]
    plan = chunked(planner, [len(row) for row in rows], 32)
    for batch in plan.batches:
        pooling = Pooling(batch.lengths, ["last", "mean"])
        ids = [rows[row] for row in batch.rows]
        for step, hidden in run_steps(trunk, plan, batch, ids, batch_caches(planner.spec, plan, batch)):
            pooling.add(hidden, step.start)
            pooling.evaluate(hidden)
        got = np.array(pooling.rows())
        for index, row in enumerate(batch.rows):
            whole, _ = run(trunk, planner, planned(planner, [len(rows[row])]), rows[row])
            want = np.concatenate([whole[-1], whole.mean(0)])
            assert np.abs(got[index] - want).max() <= 1e-5 * np.abs(want).max()
