"""A row's memory apart from its batch: taken, cut, put into other batches, and rows that end at one column."""

import mlx.core as mx
import numpy as np
import pytest

from archport.contract import AttentionLayer, InputError, KVAllocation, RecurrentLayer
from archport.memory import Caches, put, put_rows, snapshot_bytes, take

FULL = AttentionLayer("causal", 4, 2, 8)
WINDOW = AttentionLayer("causal", 4, 2, 8, reach=(5, 0))
PLANNED, RING = KVAllocation("planned", 64, 64), KVAllocation("ring", 5 + 16, 5 + 16)


def filled(layers, allocations, B, tokens, seed=0):
    caches = Caches(layers, allocations, B, "float32")
    rng = np.random.default_rng(seed)
    parts = [[mx.array(rng.normal(size=(B, 2, tokens, 8)).astype(np.float32)) for _ in "kv"] for _ in layers]
    for state, (k, v) in zip(caches.layers, parts, strict=True):
        state.append(k, v)
    return caches, parts


def test_a_snapshot_starts_every_row_of_another_batch():
    caches, ((k, v),) = filled([FULL], [PLANNED], 2, 9)
    snapshot = take(caches, 1)
    assert snapshot.bytes == snapshot_bytes(caches, 1) == 2 * 9 * 2 * 8 * 4
    other = Caches([FULL], [PLANNED], 3, "float32")
    put(snapshot, other)
    for row in range(3):
        got = other.layers[0].held(row)
        assert mx.array_equal(got[0], k[1:2]).item()
        assert mx.array_equal(got[1], v[1:2]).item()
    assert other.layers[0].lengths == (9, 9, 9)


def test_a_snapshot_can_be_cut_unless_a_window_dropped_what_that_needs():
    caches, ((k, _),) = filled([FULL], [PLANNED], 1, 9)
    cut = take(caches).first(4)
    assert mx.array_equal(cut.layers[0].k, k[:, :, :4]).item()
    windowed, _ = filled([WINDOW], [KVAllocation("ring", 256, 256)], 1, 200)
    more = mx.zeros((1, 2, 100, 8))
    windowed.layers[0].append(more, more)
    snapshot = take(windowed)
    assert snapshot.tokens == 300
    assert snapshot.first(10) is None


def test_rows_end_at_one_column_and_hide_what_is_in_front():
    caches, ((k, _),) = filled([FULL], [PLANNED], 2, 9)
    caches.align([4, 9])
    keys = caches.layers[0].advance(mx.ones((2, 2, 1, 8)), mx.ones((2, 2, 1, 8)))[0]
    assert keys.shape == (2, 2, 10, 8)
    assert mx.array_equal(keys[0, :, 5:9], k[0, :, :4]).item()
    assert mx.array_equal(keys[1, :, :9], k[1]).item()
    snapshot = take(caches, 0, skip=5)
    assert snapshot.tokens == 5
    assert mx.array_equal(snapshot.layers[0].k[:, :, :4], k[:1, :, :4]).item()


def test_a_window_reads_its_own_keys_only():
    caches, ((k, _),) = filled([WINDOW], [PLANNED], 1, 9)
    caches.align([9])
    keys = caches.layers[0].advance(mx.ones((1, 2, 1, 8)), mx.ones((1, 2, 1, 8)))[0]
    assert mx.array_equal(keys[:, :, :-1], k[:, :, 4:]).item()


@pytest.mark.parametrize("allocation", [PLANNED, RING])
def test_rows_of_different_length_start_one_batch(allocation):
    rows = [filled([WINDOW], [KVAllocation("planned", 64, 64)], 1, n, seed=n) for n in (3, 12)]
    caches = Caches([WINDOW], [allocation], 2, "float32")
    put_rows([take(each) for each, _ in rows], caches)
    keys = caches.layers[0].advance(mx.ones((2, 2, 1, 8)), mx.ones((2, 2, 1, 8)))[0]
    assert mx.array_equal(keys[0, :, 2:5], rows[0][1][0][0][0]).item()
    assert mx.array_equal(keys[1, :, :5], rows[1][1][0][0][0, :, 7:]).item()


def test_recurrent_states_are_repeated_and_put_together():
    layer, allocation = RecurrentLayer(64), KVAllocation("recurrent", 0, 0)
    caches = Caches([layer], [allocation], 2, "float32")
    caches.layers[0].store([mx.arange(8.0).reshape(2, 4)])
    other = Caches([layer], [allocation], 3, "float32")
    put(take(caches, 1), other)
    assert other.layers[0].arrays[0].tolist() == [[4, 5, 6, 7]] * 3
    both = Caches([layer], [allocation], 2, "float32")
    put_rows([take(caches, 1), take(caches, 0)], both)
    assert both.layers[0].arrays[0].tolist() == [[4, 5, 6, 7], [0, 1, 2, 3]]


def test_a_recurrent_state_is_of_as_many_tokens_as_its_caller_says():
    caches = Caches([RecurrentLayer(64)], [KVAllocation("recurrent", 0, 0)], 1, "float32")
    caches.layers[0].store([mx.arange(4.0).reshape(1, 4)])
    assert take(caches, tokens=7).tokens == 7


def test_a_cache_that_holds_something_is_not_started_again():
    caches, _ = filled([FULL], [PLANNED], 1, 9)
    with pytest.raises(InputError, match="already written"):
        put(take(caches), caches)
