"""All layers of a batch are made, refused and cut together."""

from __future__ import annotations

import mlx.core as mx
import pytest

from archport.contract import AttentionLayer, InputError, KVAllocation, KvCeilingExceeded, RecurrentLayer
from archport.memory import Caches, KVCache, RecurrentState

FULL = AttentionLayer("causal", 4, 2, 8)
SHARED = AttentionLayer("causal", 4, 2, 8, kv="shared", kv_group="all")
GDN = RecurrentLayer(state_bytes=4 * 16, conv_taps=4, conv_bytes=3 * 8)


def make() -> Caches:
    kept = KVAllocation("planned", 100, 100)
    layers = (FULL, SHARED, GDN, FULL)
    return Caches(layers, (kept, None, KVAllocation("recurrent", 0, 0), KVAllocation("planned", 50, 50)), 2, "float32")


def test_each_layer_gets_its_own_kind_of_state():
    assert [type(state) for state in make().layers] == [KVCache, type(None), RecurrentState, KVCache]


def test_no_layer_is_written_when_one_of_them_would_overflow():
    caches = make()
    with pytest.raises(KvCeilingExceeded, match="60"):
        caches.check((60, 60))
    assert caches.bytes == 0


def test_a_recurrent_state_above_its_declared_bytes_is_refused():
    state = RecurrentState(GDN, 2)
    state.store([mx.zeros((2, 16)), mx.zeros((2, 6))])
    assert state.bytes == state.planned
    with pytest.raises(InputError, match="declares 176"):
        state.store([mx.zeros((2, 17)), mx.zeros((2, 6))])


def test_a_recurrent_state_of_other_rows_is_refused():
    with pytest.raises(InputError, match=r"rows; expected 2"):
        RecurrentState(GDN, 2).store([mx.zeros((3, 4))])


def test_rows_leave_all_layers_at_once():
    caches = make()
    k = mx.zeros((2, 2, 5, 8))
    for state in caches.layers:
        if isinstance(state, KVCache):
            state.append(k, k, (5, 3))
        elif isinstance(state, RecurrentState):
            state.store([mx.arange(2).reshape(2, 1).astype(mx.float32)])
    caches.keep_rows([1])
    assert isinstance(caches[0], KVCache)
    assert caches[0].lengths == (3,)
    assert isinstance(caches[2], RecurrentState)
    assert caches[2].arrays[0].tolist() == [[1.0]]
