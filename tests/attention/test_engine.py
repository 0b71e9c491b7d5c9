"""The engine's side: mask policies, documents, padding and caches, where lengths are known on the host."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from archport.attention import attend, builtin_backends, choose, sharing
from archport.contract import AttentionCall, AttentionLayer, AttentionLimits, InputError, MaskPolicy
from archport.contract.masks import mask_policies
from archport.device.facts import this_device

SCALE = 0.125
TOLERANCE = 1e-6


def _layer(semantics="causal", reach=(None, None), sinks=False):
    return AttentionLayer(semantics, 4, 2, 64, reach=reach, sinks=sinks)


LAYERS = {
    "causal": _layer(),
    "causal window": _layer(reach=(20, 0)),
    "bidirectional": _layer("bidirectional"),
    "two-sided window": _layer("bidirectional", (16, 16)),
    "sinks": _layer(sinks=True),
}


def _rows(policy, layer, queries, keys, devices, inputs, *, device="cpu", limits=None, pin=None, loud=True):
    """Every row of a right-padded batch under a policy: (output, q, k, v)."""
    B, L, S = len(keys), max(queries), max(keys)
    q, k, v = inputs(B, 4, 2, L, S, 64)
    if loud:
        # What lies in the padding must not matter.
        for row, (n_q, n_k) in enumerate(zip(queries, keys, strict=True)):
            q[row, :, n_q:], k[row, :, n_k:], v[row, :, n_k:] = 1e3, 1e3, 1e3
    call = AttentionCall.of(
        layer,
        policy,
        devices[device],
        B=B,
        q_len=L,
        kv_len=S,
        dtype="float32",
        lengths=keys,
        q_lengths=queries,
        limits=limits,
    )
    sinks = mx.array([0.1, -0.2, 0.3, 0.0]) if layer.sinks else None
    path = choose(call, devices["cpu"], builtin_backends(), pin)
    return attend(path, q, k, v, scale=SCALE, sinks=sinks), q, k, v, sinks


def _alone(layer, q, k, v, sinks, visible, attention64):
    """One row by itself in float64; its queries are the last of its keys."""
    left, right = layer.reach
    right = 0 if layer.semantics == "causal" else right
    return attention64(q, k, v, scale=SCALE, shown=visible(q.shape[2], k.shape[2], left, right), sinks=sinks)


BATCHES = {
    "equal": ((40, 40, 40), (40, 40, 40)),
    "ragged": ((40, 7, 23, 40), (40, 7, 23, 40)),
    "cached": ((9, 9), (50, 50)),
    "ragged cached": ((9, 4, 9), (50, 61, 12)),
    "decode": ((1, 1, 1), (50, 3, 61)),
    "equal decode": ((1, 1), (50, 50)),
}


def _policies(layer, queries, keys, *, ragged):
    """Every policy the planner may choose for a batch, and the dense one that a hook may pin."""
    even = len({k - q for q, k in zip(queries, keys, strict=True)}) == 1
    found = mask_policies(layer, q_len=max(queries), kv_len=max(keys), ragged=ragged, even_start=even)
    return (*found, MaskPolicy("dense"))


# A bidirectional layer has no cache.
POSSIBLE = [
    (name, batch)
    for name, layer in LAYERS.items()
    for batch, (queries, keys) in BATCHES.items()
    if layer.semantics == "causal" or queries == keys
]


@pytest.mark.parametrize(("name", "batch"), POSSIBLE)
def test_every_legal_policy_gives_each_row_what_it_gets_alone(
    name, batch, devices, inputs, attention64, visible, excess
):
    layer, (queries, keys) = LAYERS[name], BATCHES[batch]
    ragged = len(set(keys)) > 1 or len(set(queries)) > 1
    for policy in _policies(layer, queries, keys, ragged=ragged):
        out, q, k, v, sinks = _rows(policy, layer, queries, keys, devices, inputs)
        for row, (n_q, n_k) in enumerate(zip(queries, keys, strict=True)):
            at = slice(row, row + 1)
            expected = _alone(layer, q[at, :, :n_q], k[at, :, :n_k], v[at, :, :n_k], sinks, visible, attention64)
            assert excess(out[at, :, :n_q], expected, TOLERANCE) <= 0, policy.kind
            assert not out[at, :, n_q:].any(), policy.kind


@pytest.mark.parametrize(
    ("name", "batch"), [pair for pair in POSSIBLE if "equal" not in pair[1] and pair[1] != "cached"]
)
def test_the_additive_masks_of_a_cuda_plan_say_the_same_as_bool_ones(name, batch, devices, inputs):
    layer, (queries, keys) = LAYERS[name], BATCHES[batch]
    for policy in _policies(layer, queries, keys, ragged=True):
        bool_mask = _rows(policy, layer, queries, keys, devices, inputs)[0]
        additive = _rows(policy, layer, queries, keys, devices, inputs, device="h200")[0]
        assert mx.allclose(bool_mask, additive, rtol=0, atol=TOLERANCE), policy.kind


@pytest.mark.parametrize("name", ["causal", "bidirectional", "two-sided window"])
@pytest.mark.parametrize("pin", ["composite", "tiled", "banded", "chunked"])
def test_every_backend_runs_a_ragged_batch_as_the_first_legal_policy_has_it(name, pin, devices, inputs):
    layer, (queries, keys) = LAYERS[name], BATCHES["ragged"]
    limits = AttentionLimits(transient_bytes=30_000, chunk_threshold=8, chunk_size=16)
    kind = "window" if layer.is_windowed else "key_padding" if layer.semantics == "bidirectional" else "causal"
    expected = _rows(MaskPolicy(kind), layer, queries, keys, devices, inputs, pin="composite")[0]
    try:
        got = _rows(MaskPolicy(kind), layer, queries, keys, devices, inputs, limits=limits, pin=pin)[0]
    except InputError as error:
        # Windows are what banded is for and tiled is not; any other refusal is a failure.
        if pin not in ("banded", "tiled") or "window" not in str(error):
            raise
        return
    assert mx.allclose(got, expected, rtol=0, atol=TOLERANCE)


PACKED = {
    "different": ((30, 1, 17, 52), 100),
    "equal": ((25, 25, 25, 25), 100),
    "equal among others": ((10, 20, 20, 20, 30), 100),
    "padded tail": ((40, 33), 100),
    "an empty one": ((40, 0, 33), 73),
    "one": ((64,), 64),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("how", PACKED)
def test_documents_packed_in_one_row_see_only_themselves(name, how, devices, inputs, attention64, visible, excess):
    layer, (lengths, L) = LAYERS[name], PACKED[how]
    q, k, v = inputs(1, 4, 2, L, L, 64)
    sinks = mx.array([0.1, -0.2, 0.3, 0.0]) if layer.sinks else None
    policy = mask_policies(layer, q_len=L, kv_len=L, packed=True)[0]
    call = AttentionCall.of(layer, policy, devices["cpu"], B=1, q_len=L, kv_len=L, dtype="float32", lengths=lengths)
    out = attend(choose(call, devices["cpu"], builtin_backends()), q, k, v, scale=SCALE, sinks=sinks)
    start = 0
    for n in lengths:
        at = slice(start, start + n)
        if n:
            expected = _alone(layer, q[:, :, at], k[:, :, at], v[:, :, at], sinks, visible, attention64)
            assert excess(out[:, :, at], expected, TOLERANCE) <= 0
        start += n
    assert not out[:, :, start:].any()


@pytest.mark.only_on("cpu", reason="a GPU's scratch is at least 1 MiB; its prices of documents are in test_features.py")
@pytest.mark.parametrize("lengths", [(64,) * 8, (100, 3, 100, 7), (40,) * 3 + (9,) * 4])
def test_documents_keep_a_budget_that_all_at_once_would_break(lengths, inputs):
    L = sum(lengths)
    layer = LAYERS["bidirectional"]
    limits = AttentionLimits(transient_bytes=300_000)
    call = AttentionCall.of(
        layer, MaskPolicy("documents"), this_device(), B=1, q_len=L, kv_len=L, dtype="float32", lengths=lengths,
        limits=limits,
    )  # fmt: skip
    path = choose(call, this_device(), builtin_backends())
    assert not path.excess
    q, k, v = inputs(1, 4, 2, L, L, 64)
    mx.eval(attend(path, q, k, v, scale=SCALE))
    mx.synchronize()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(attend(path, q, k, v, scale=SCALE))
    assert mx.get_peak_memory() - before <= path.price.transient + path.price.output


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"B": 2, "lengths": (4, 4, 4)}, "3 documents in 2 rows"),
        ({"B": 1, "lengths": (20, 20)}, "documents of 40 tokens do not fit a row of 32"),
        ({"B": 2, "lengths": (33, 4)}, "longer than its row"),
        ({"B": 1, "lengths": ()}, "names no document lengths"),
        ({"B": 1, "kv_len": 64, "lengths": (20, 20), "q_lengths": (5, 5)}, "can't have cached keys"),
        ({"B": 2, "lengths": (4, 9), "q_lengths": (8, 8)}, "more queries than keys"),
    ],
)
def test_documents_that_do_not_fit_their_rows_are_refused(fields, words, path_of):
    with pytest.raises(InputError, match=words):
        path_of(**{"q_len": 32, "kv_len": 32, "head_dim": 64, "mask": "documents", **fields})


def test_a_row_without_any_key_comes_out_as_zeros(path_of, inputs):
    q, k, v = inputs(2, 2, 1, 4, 8, 64)
    path = path_of(B=2, q_len=4, kv_len=8, head_dim=64, mask="key_padding", lengths=(8, 0))
    out = attend(path, q, k, v, scale=SCALE)
    assert mx.isfinite(out).all()
    assert out[0].any()
    assert not out[1].any()


def test_arrays_other_than_the_planned_ones_are_refused(path_of, inputs):
    path = path_of(q_len=4, kv_len=8, head_dim=64, mask="causal")
    q, k, v = inputs(1, 2, 1, 5, 8, 64)
    with pytest.raises(InputError, match=r"planned for .*4, 64.* but is run with .*5, 64"):
        attend(path, q, k, v, scale=SCALE)


@pytest.mark.parametrize("n", [1, 3, 4, 65])
def test_a_row_alone_equals_the_same_row_in_a_batch(n, devices, inputs):
    keys = (n, 90, 2, 70)
    batch, q, k, v, _ = _rows(MaskPolicy("key_padding"), LAYERS["bidirectional"], keys, keys, devices, inputs)
    call = AttentionCall(1, 4, 2, n, n, 64, 64, "float32")
    path = choose(call, devices["cpu"], builtin_backends())
    alone = attend(path, q[:1, :, :n], k[:1, :, :n], v[:1, :, :n], scale=SCALE)
    assert mx.allclose(batch[:1, :, :n], alone, rtol=0, atol=TOLERANCE)


def test_rows_of_different_length_share_one_causal_call(devices):
    layer = LAYERS["causal"]
    assert mask_policies(layer, q_len=40, kv_len=40, ragged=True)[0].kind == "causal"
    call = AttentionCall.of(
        layer, MaskPolicy("causal"), devices["h200"], B=3, q_len=40, kv_len=40, dtype="bfloat16", lengths=(40, 7, 9)
    )
    path = choose(call, devices["h200"], builtin_backends())
    # cuDNN's causal kernel reads no mask array, so nothing but slack is priced.
    assert path.backend.name == "fused"
    assert path.price.transient < 2**20


@pytest.mark.parametrize("ragged", [False, True])
def test_padding_on_the_right_needs_no_lengths_where_causal_rows_begin_together(ragged):
    for layer in LAYERS.values():
        together = mask_policies(layer, q_len=64, kv_len=96, ragged=ragged)
        apart = mask_policies(layer, q_len=64, kv_len=96, ragged=ragged, even_start=False)
        assert (together == apart) == (layer.semantics == "bidirectional" or not ragged)


def test_partial_results_over_disjoint_keys_merge_to_the_whole(inputs, attention64, excess):
    from archport.attention.backends.chunked import merge, stream
    from archport.attention.mlx_call import Operands
    from archport.attention.visibility import visibility

    q, k, v = inputs(2, 4, 2, 30, 100, 64)
    parts = []
    for lo, hi in ((0, 40), (40, 41), (41, 100)):
        seen = visibility(AttentionCall(2, 4, 2, 30, hi - lo, 64, 64, "float32"))
        on = Operands(q, k[:, :, lo:hi], v[:, :, lo:hi], SCALE)
        parts.append(stream(seen, on, 0, 30, 16))
    # A part that saw nothing may hold anything.
    parts.insert(1, (mx.full(parts[0][0].shape, float("nan")), mx.full(parts[0][1].shape, -mx.inf)))
    out, lse = merge(parts)
    assert excess(out, attention64(q, k, v, scale=SCALE), TOLERANCE) <= 0
    x = (np.array(q).reshape(2, 2, 2, 30, 64) * SCALE) @ np.array(k)[:, :, None].swapaxes(-1, -2)
    assert np.allclose(np.array(lse).reshape(2, 2, 2, 30), np.log(np.exp(x).sum(-1)), atol=1e-5)


def test_layers_of_one_step_share_the_mask_of_calls_that_lie_alike(devices, inputs):
    call = AttentionCall(2, 4, 2, 40, 40, 64, 64, "float32", "key_padding", reach=(5, 5), lengths=(40, 30))
    path = choose(call, devices["cpu"], builtin_backends(), "composite")
    arrays = [tuple(array + turn for array in inputs(2, 4, 2, 40, 40, 64)) for turn in (0, 1)]
    known: dict[tuple[object, ...], mx.array] = {}
    alone = [attend(path, *qkv, scale=SCALE) for qkv in arrays]
    with sharing(known):
        together = [attend(path, *qkv, scale=SCALE) for qkv in arrays]
    assert len(known) == 1
    assert all(mx.array_equal(one, other) for one, other in zip(alone, together, strict=True))
