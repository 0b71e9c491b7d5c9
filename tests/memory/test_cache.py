"""Keys and values survive every way of holding them, and ceilings refuse before anything moves."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from archport.contract import (
    AttentionLayer,
    ContextLengthExceeded,
    InputError,
    KVAllocation,
    KvCeilingExceeded,
    SpecError,
    kv_capacity,
)
from archport.memory import KVCache

FULL = AttentionLayer(semantics="causal", n_heads=4, n_kv_heads=2, head_dim=8)
WINDOW = AttentionLayer(semantics="causal", n_heads=4, n_kv_heads=2, head_dim=8, reach=(31, 0))


def tokens(B: int, L: int, seed: int = 0, layer: AttentionLayer = FULL, dtype=mx.float32):
    keys = mx.random.split(mx.random.key(seed))
    k = mx.random.normal((B, layer.n_kv_heads, L, layer.head_dim), key=keys[0]).astype(dtype)
    v = mx.random.normal((B, layer.n_kv_heads, L, layer.v_head_dim), key=keys[1]).astype(dtype)
    return k, v


def same(a: mx.array, b: mx.array) -> bool:
    return np.array_equal(np.array(a.astype(mx.float32)), np.array(b.astype(mx.float32)))


def test_contents_survive_growth_bit_for_bit():
    cache = KVCache(FULL, KVAllocation("growing", 256, 5000), 2, "float32")
    k, v = tokens(2, 3000)
    view = None
    for start in range(0, 3000, 300):
        view = cache.append(k[:, :, start : start + 300], v[:, :, start : start + 300])
    assert view is not None
    assert same(view.k, k)
    assert same(view.v, v)


def test_a_growing_cache_doubles_from_4096_to_its_ceiling():
    cache = KVCache(FULL, KVAllocation("growing", 4096, 10_000), 1, "float16")
    seen = []
    for count in (1, 4095, 1, 4200):
        cache.append(*tokens(1, count, dtype=mx.float16))
        seen.append(cache.capacity)
    assert seen == [4096, 4096, 8192, kv_capacity(10_000)]


def test_a_prompt_of_6776_tokens_equals_one_shot_through_a_cache_that_starts_at_4096():
    layer = AttentionLayer(semantics="causal", n_heads=2, n_kv_heads=1, head_dim=64)
    length, chunk = 6776, 1024
    k, v = tokens(1, length, layer=layer)
    q = mx.random.normal((1, 2, length, 64), key=mx.random.key(9))
    cache = KVCache(layer, KVAllocation("growing", 4096, 32_768), 1, "float32")
    worst = 0.0
    for start in range(0, length, chunk):
        end = min(start + chunk, length)
        view = cache.append(k[:, :, start:end], v[:, :, start:end])
        rows = slice(end - 64, end)
        step = mx.fast.scaled_dot_product_attention(q[:, :, rows], view.k, view.v, scale=0.125, mask="causal")
        whole = mx.fast.scaled_dot_product_attention(
            q[:, :, rows], k[:, :, :end], v[:, :, :end], scale=0.125, mask="causal"
        )
        worst = max(worst, mx.abs(step - whole).max().item())
    assert cache.lengths == (length,)
    assert cache.capacity == 8192
    assert worst == 0.0


def test_4913_tokens_at_a_context_of_4000_are_refused_with_both_numbers():
    cache = KVCache(FULL, KVAllocation("growing", 4000, 4000), 1, "float32")
    k, v = tokens(1, 4913)
    mx.eval(k, v)
    before = mx.get_active_memory()
    with pytest.raises(ContextLengthExceeded, match=r"4,913.*4,000") as refused:
        cache.append(k, v)
    assert (refused.value.requested, refused.value.ceiling) == (4913, 4000)
    # What other tests left may go meanwhile.
    assert mx.get_active_memory() <= before
    assert cache.capacity == 0
    assert cache.bytes == 0


def test_a_refused_write_leaves_the_contents_alone():
    cache = KVCache(FULL, KVAllocation("planned", 600, 600), 1, "float32")
    k, v = tokens(1, 500)
    cache.append(k, v)
    with pytest.raises(KvCeilingExceeded, match="601"):
        cache.append(*tokens(1, 101, seed=1))
    assert cache.lengths == (500,)
    assert same(cache.view().k, k)


@pytest.mark.parametrize(
    ("allocation", "layer"),
    [
        (KVAllocation("planned", 1000, 1000), FULL),
        (KVAllocation("growing", 256, 4000), FULL),
        (KVAllocation("ring", 31 + 256, 31 + 256), WINDOW),
        (KVAllocation("planned", 700, 700), AttentionLayer("causal", 8, 2, 192, v_head_dim=128)),
        (KVAllocation("growing", 256, 4000, bits=8), AttentionLayer("causal", 8, 2, 128)),
        (KVAllocation("planned", 700, 700, bits=4, group_size=32), AttentionLayer("causal", 8, 2, 64)),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bytes_are_what_the_formula_plans(allocation: KVAllocation, layer: AttentionLayer, dtype):
    cache = KVCache(layer, allocation, 3, dtype)
    for _ in range(5):
        cache.append(*tokens(3, 130, layer=layer))
    assert cache.bytes == allocation.bytes(layer, B=3, tokens=650, itemsize=4 if dtype == "float32" else 2)


def test_rows_of_different_length_are_written_at_their_own_offsets():
    cache = KVCache(FULL, KVAllocation("planned", 100, 100), 3, "float32")
    lengths = ((5, 9, 2), (4, 0, 7), (1, 1, 1))
    written: list[list[mx.array]] = [[], [], []]
    for step, adding in enumerate(lengths):
        k, v = tokens(3, max(adding), seed=step)
        view = cache.append(k, v, adding)
        for row, count in enumerate(adding):
            written[row].append(k[row : row + 1, :, :count])
    assert view.lengths == (10, 10, 10)
    for row in range(3):
        assert same(view.k[row : row + 1], mx.concatenate(written[row], axis=2))


def test_padding_is_overwritten_by_the_next_tokens():
    cache = KVCache(FULL, KVAllocation("planned", 100, 100), 2, "float32")
    k, v = tokens(2, 6)
    cache.append(k, v, (6, 3))
    more, more_v = tokens(2, 1, seed=1)
    view = cache.append(more, more_v)
    assert view.lengths == (7, 4)
    assert same(view.k[1:, :, 3:4], more[1:])


def test_a_ring_shows_exactly_what_its_window_reaches():
    cache = KVCache(WINDOW, KVAllocation("ring", 31 + 64, 31 + 64), 1, "float32")
    k, v = tokens(1, 1000)
    for start in range(0, 1000, 64):
        end = min(start + 64, 1000)
        view = cache.append(k[:, :, start:end], v[:, :, start:end])
        first = max(0, end - (31 + end - start))
        assert view.offsets == (first,)
        assert same(view.k, k[:, :, first:end])
        assert same(view.v, v[:, :, first:end])
    assert cache.capacity == 256


def test_a_ring_of_uneven_rows_keeps_each_rows_window():
    cache = KVCache(WINDOW, KVAllocation("ring", 31 + 64, 31 + 64), 2, "float32")
    k, _ = tokens(2, 2000)
    done = [0, 0]
    for step in range(30):
        adding = (64, 1 + step % 40)
        L = max(adding)
        part = mx.concatenate(
            [
                mx.pad(k[b : b + 1, :, done[b] : done[b] + n], [(0, 0), (0, 0), (0, L - n), (0, 0)])
                for b, n in enumerate(adding)
            ]
        )
        view = cache.append(part, part, adding)
        for row, count in enumerate(adding):
            done[row] += count
            held, offset = view.lengths[row], view.offsets[row]
            assert offset + held == done[row]
            assert held >= min(done[row], 31 + count)
            assert same(view.k[row : row + 1, :, :held], k[row : row + 1, :, offset : done[row]])


def test_a_step_that_no_ring_holds_is_refused():
    cache = KVCache(WINDOW, KVAllocation("ring", 95, 95), 1, "float32")
    with pytest.raises(KvCeilingExceeded, match="smaller prefill chunk"):
        cache.append(*tokens(1, 300))


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_keys_come_back_within_one_step_of_their_group(bits: int):
    layer = AttentionLayer("causal", 2, 1, 64)
    cache = KVCache(layer, KVAllocation("planned", 300, 300, bits=bits), 1, "float32")
    k, v = tokens(1, 300, layer=layer)
    view = cache.append(k, v)
    for given, back in ((k, view.k), (v, view.v)):
        step = (given.max(axis=-1) - given.min(axis=-1)) / (2**bits - 1)
        assert (mx.abs(back - given).max(axis=-1) <= 1.01 * step).all().item()


def test_quantised_contents_survive_growth_bit_for_bit():
    layer = AttentionLayer("causal", 2, 1, 64)
    k, v = tokens(1, 900, layer=layer)
    whole = KVCache(layer, KVAllocation("planned", 900, 900, bits=4), 1, "float16").append(k, v)
    cache = KVCache(layer, KVAllocation("growing", 256, 1024, bits=4), 1, "float16")
    for start in range(0, 900, 100):
        view = cache.append(k[:, :, start : start + 100], v[:, :, start : start + 100])
    assert same(view.k, whole.k)
    assert same(view.v, whole.v)


def test_finished_rows_leave_and_the_others_go_on():
    cache = KVCache(FULL, KVAllocation("planned", 64, 64), 3, "float32")
    k, v = tokens(3, 10)
    cache.append(k, v, (10, 4, 7))
    cache.keep_rows([2, 0])
    view = cache.view()
    assert view.lengths == (7, 10)
    assert same(view.k[1], k[0])
    assert same(view.k[0, :, :7], k[2, :, :7])


def test_growing_one_layer_holds_old_and_new_only_once():
    layer = AttentionLayer("causal", 2, 2, 128)
    cache = KVCache(layer, KVAllocation("growing", 4096, 32_768), 1, "float32")
    k, v = tokens(1, 4096, layer=layer)
    cache.append(k, v)
    mx.eval(cache.view().k, cache.view().v)
    k, v = tokens(1, 1, layer=layer)
    mx.eval(k, v)
    old = cache.bytes
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    cache.append(k, v)
    mx.eval(cache.view().k, cache.view().v)
    assert cache.bytes == 2 * old
    # New keys and values come, and the old keys are gone before the old values are copied.
    assert mx.get_peak_memory() - before <= 2 * old + 2**16


def test_shapes_of_another_layer_are_named():
    cache = KVCache(FULL, KVAllocation("planned", 64, 64), 1, "float32")
    k, v = tokens(1, 4, layer=AttentionLayer("causal", 4, 4, 8))
    with pytest.raises(InputError, match=r"\(1, 4, 4, 8\).*\(1, 2, 4, 8\)"):
        cache.append(k, v)


def test_an_allocation_for_another_kind_of_layer_is_refused():
    with pytest.raises(SpecError, match="sees all of them"):
        KVCache(FULL, KVAllocation("ring", 64, 64), 1, "float32")
    with pytest.raises(SpecError, match="groups of 64"):
        KVCache(FULL, KVAllocation("planned", 64, 64, bits=4), 1, "float32")
