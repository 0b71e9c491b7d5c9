"""Soft caps, biases and chunked windows: every backend that names them against float64, its prices against peaks."""

from __future__ import annotations

import itertools
import random

import mlx.core as mx
import numpy as np
import pytest

from archport.attention import attend, builtin_backends, choose
from archport.contract import AttentionCall, AttentionLimits, DeviceFacts, DistanceVectors, InputError
from archport.contract.attention import missing_features
from archport.device.facts import host_device, this_device
from archport.device.profiles import profile
from archport.layers import RelativeBuckets, Slopes, alibi_slopes

BACKENDS = builtin_backends()
# Small enough that tiles, bands and chunks occur at lengths that a test can afford.
LIMITS = AttentionLimits(transient_bytes=400_000, chunk_threshold=64, chunk_size=48)
# What cuBLAS takes while a product of small float32 matrices is split; a plan holds WORKSPACE for it, once.
SPLIT = {"cuda": 4 << 20}
SCALE = 0.4
TOLERANCE = {"float32": 2e-6, "float16": 6e-3, "bfloat16": 5e-2}
SHAPES = ((1, 4, 2, 200, 200), (2, 4, 4, 70, 150), (1, 4, 1, 1, 130), (3, 2, 2, 33, 33))
MASKS = (
    {"mask": "none"},
    {"mask": "causal"},
    {"mask": "window", "reach": (20, 0)},
    {"mask": "window", "reach": (13, 9)},
    {"mask": "key_padding"},
    {"mask": "key_padding", "reach": (None, 0)},
    {"mask": "documents", "reach": (None, 0)},
    {"mask": "documents"},
    {"mask": "window", "reach": (31, 0), "chunk": 32},
    {"mask": "window", "reach": (31, 0), "chunk": 32, "start": 19},
    {"mask": "window", "reach": (39, 39), "chunk": 40},
    {"mask": "key_padding", "reach": (24, 24), "chunk": 25},
    {"mask": "key_padding", "reach": (15, 0), "chunk": 16},
    {"mask": "documents", "reach": (9, 0), "chunk": 10},
    {"mask": "window", "reach": (None, 0), "spans": ((0.1, 0.4), (0.4, 0.45), (0.7, 1.0))},
    {"mask": "window", "reach": (11, 0), "spans": ((0.0, 0.1), (0.3, 0.9))},
    {"mask": "window", "reach": (15, 0), "chunk": 16, "start": 5, "spans": ((0.2, 0.8),)},
    {"mask": "window", "reach": (None, 0), "spans": ((0.0, 1.0),)},
    {"mask": "key_padding", "reach": (20, 0), "spans": ((0.1, 0.6), (0.8, 1.0))},
    {"mask": "documents", "reach": (None, 0), "spans": ((0.2, 0.7),)},
)


def spans_of(mask, keys, queries):
    """Per row the spans of a mask's shares of its queries, in keys; rows of the second half have none."""
    rows = [
        tuple((n - m + round(start * m), n - m + round(stop * m)) for start, stop in mask["spans"])
        for n, m in zip(keys, queries, strict=True)
    ]
    return tuple(row if 2 * at < len(rows) else () for at, row in enumerate(rows))


def rule_of(name, heads):
    if name == "slopes":
        return Slopes(alibi_slopes(heads))
    if name == "buckets":
        rule = RelativeBuckets(heads, buckets=8, max_distance=40)
        rule.weight = mx.array(np.random.default_rng(heads).normal(size=(8, heads)).astype(np.float32))
        return rule
    if name in CONTENT:
        return Met(heads, name)
    return None


class Met:
    """Vectors that queries, keys or both meet; those of far distances are one, as in DeBERTa."""

    def __init__(self, heads, name):
        drawn = np.random.default_rng(heads).normal(size=(2, heads, 61, 16)).astype(np.float32) * 0.3
        self.queries, self.keys = (
            mx.array(each) if word in name else None for each, word in zip(drawn, "qk", strict=True)
        )

    def __call__(self, distances):
        at = mx.clip(distances, -30, 30) + 30
        return DistanceVectors(*(None if each is None else each[:, at] for each in (self.queries, self.keys)))


CONTENT = ("q", "k", "qk")


def cases():
    """(call, name of its rule) of every combination that asks for something."""
    found = []
    for (B, H, K, L, S), mask, softcap, rule, sinks, dtype in itertools.product(
        SHAPES, MASKS, (None, 3.0), (None, "slopes", "buckets", *CONTENT), (False, True), TOLERANCE
    ):
        if sinks and rule in CONTENT[:2]:
            continue
        if softcap is None and rule is None and not {"chunk", "spans"} & set(mask):
            continue
        fields = dict(mask)
        if mask["mask"] in ("key_padding", "documents"):
            lengths = tuple(max(1, S - 29 * row) for row in range(B))
            fields |= {"lengths": lengths, "q_lengths": tuple(min(L, n) for n in lengths)}
        if "spans" in mask:
            keys = fields.get("lengths", (S,) * B)
            fields["spans"] = spans_of(mask, keys, fields.get("q_lengths", (min(L, S),) * B))
            if not any(stop - start > 1 for row in fields["spans"] for start, stop in row):
                continue
        call = AttentionCall(
            B, H, K, L, S, 16, 24, dtype, sinks=sinks, softcap=softcap,
            bias="content" if rule in CONTENT else rule is not None,
            additive=rule is not None, limits=LIMITS, **fields,
        )  # fmt: skip
        found.append((call, rule))
    return found


CASES = cases()


def drawn(call, seed=0):
    rng = np.random.default_rng(seed)

    def array(*shape):
        return mx.array(rng.normal(size=shape).astype(np.float32)).astype(getattr(mx, call.dtype))

    q = array(call.B, call.n_heads, call.q_len, call.head_dim) * 2
    k = array(call.B, call.n_kv_heads, call.kv_len, call.head_dim)
    v = array(call.B, call.n_kv_heads, call.kv_len, call.v_head_dim)
    sinks = array(call.n_heads) if call.sinks else None
    mx.eval([each for each in (q, k, v, sinks) if each is not None])
    return q, k, v, sinks


def expected(call, q, k, v, sinks, rule):
    """(attention in float64, real queries per row)."""
    q, k, v = (np.array(each.astype(mx.float32)).astype(np.float64) for each in (q, k, v))
    group = call.n_heads // call.n_kv_heads
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    queries = call.real_queries or (call.q_len,) * call.B
    out = np.zeros((call.B, call.n_heads, call.q_len, call.v_head_dim))
    for row in range(call.B):
        keys = call.lengths[row] if call.lengths else call.kv_len
        at = (keys - queries[row] if call.lengths else call.kv_len - call.q_len) + np.arange(call.q_len)[:, None]
        distance = np.arange(call.kv_len)[None] - at
        scores = q[row] @ k[row].swapaxes(-1, -2) * SCALE
        if call.softcap is not None:
            scores = call.softcap * np.tanh(scores / call.softcap)
        if rule is not None:
            line = rule(mx.arange(-1000, 1001, dtype=mx.int32))
            if isinstance(line, DistanceVectors):
                for vectors, met, letters in ((line.queries, q, "hld,hlsd->hls"), (line.keys, k, "hsd,hlsd->hls")):
                    if vectors is not None:
                        near = np.array(vectors, dtype=np.float64)[:, distance + 1000]
                        scores = scores + np.einsum(letters, met[row], near)
            else:
                scores = scores + np.array(line, dtype=np.float64)[:, distance + 1000]
        left, right = call.visible_reach
        seen = np.arange(call.kv_len)[None] < keys
        if left is not None:
            seen = seen & (distance >= -left)
        if right is not None:
            together = np.zeros_like(distance, dtype=bool)
            for start, stop in call.spans[row if len(call.spans) > 1 else 0] if call.spans else ():
                inside = (np.arange(call.kv_len) >= start) & (np.arange(call.kv_len) < stop)
                together |= inside[None] & (at >= start) & (at < stop)
            seen = seen & ((distance <= right) | together)
        if call.chunk is not None:
            keys_in = (np.arange(call.kv_len)[None] + call.start) // call.chunk
            seen = seen & (keys_in == (at + call.start) // call.chunk)
        scores = np.where(seen, scores, -1e30)
        if sinks is not None:
            logit = np.array(sinks.astype(mx.float32), dtype=np.float64)[:, None, None]
            scores = np.concatenate([scores, np.broadcast_to(logit, (*scores.shape[:2], 1))], axis=-1)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        out[row] = weights[..., : call.kv_len] @ v[row]
    return out, queries


def problems(call, name, device):
    """What is wrong with any backend's answer to a case, or with its price; [] when nothing is."""
    rule = rule_of(name, call.n_heads)
    q, k, v, sinks = drawn(call)
    want, queries = expected(call, q, k, v, sinks, rule)
    found, ran = [], 0
    more = {} if rule is None else {"bias": rule}
    for backend in BACKENDS:
        if missing_features(backend, call) or backend.reasons_against(call, device):
            continue
        price = backend.price(call, device)
        mx.synchronize()
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        out = backend.run(call, price, q, k, v, scale=SCALE, sinks=sinks, **more)
        mx.eval(out)
        mx.synchronize()
        peak, ran = mx.get_peak_memory() - before, ran + 1
        got = np.array(out.astype(mx.float32)).astype(np.float64)
        far = max(np.abs(got[b, :, :n] - want[b, :, :n]).max() for b, n in enumerate(queries)) / np.abs(want).max()
        if not far <= TOLERANCE[call.dtype]:
            found.append(f"{backend.name}: {far:.2g} from float64")
        if peak > price.transient + price.output + SPLIT.get(device.kind, 0):
            found.append(f"{backend.name}: {peak:,} bytes where {price.transient + price.output:,} are priced")
    return found or ([] if ran else ["no backend runs it"])


@pytest.mark.parametrize(("call", "rule"), random.Random(3).sample(CASES, 12))
def test_every_backend_that_takes_a_call_computes_it_in_the_bytes_it_priced(call, rule):
    assert problems(call, rule, this_device()) == []


def test_the_largest_buffer_of_vectors_by_distance_is_one_array_and_not_their_sum():
    # 2,048 queries of four heads with the vectors of 18,432 distances, in float32, on a GPU with much memory.
    call = AttentionCall(1, 4, 4, 16384, 16384, 16, 16, "float32", mask="none", bias="content", additive=True)
    price = next(each for each in BACKENDS if each.name == "tiled").price(call, profile("h200"))
    assert price.largest_buffer == 4 * price.q_tile * (price.q_tile + 16384) * 4
    assert price.transient > 4 * price.largest_buffer


@pytest.mark.truth
def test_every_combination_is_computed_in_the_bytes_it_is_priced():
    device = this_device()
    assert [(call, rule, found) for call, rule in CASES if (found := problems(call, rule, device))] == []


@pytest.mark.parametrize("rule", [None, "slopes"])
def test_every_backend_but_the_fused_ones_is_tried(rule):
    device = host_device()
    taken = set()
    for call, name in CASES:
        if name == rule:
            taken |= {b.name for b in BACKENDS if not missing_features(b, call) and not b.reasons_against(call, device)}
    assert taken >= {"composite", "tiled", "banded", "chunked", "documents"}


@pytest.mark.parametrize("device", ["m1", "m2-ultra", "m5-max", "h200"])
def test_fused_kernels_say_that_they_cap_nothing(device, devices, path_of):
    path = path_of(device=device, q_len=4096, kv_len=4096, head_dim=128, dtype="float16", mask="causal", softcap=50.0)
    why = dict(path.against)
    assert path.price.route == "composite"
    assert "soft cap" in why["fused"]


@pytest.mark.parametrize("device", ["cpu", "m1", "m2-ultra", "m5-max", "h200"])
@pytest.mark.parametrize(
    "fields", [{"softcap": 50.0}, {"bias": True, "additive": True}, {"softcap": 5.0, "bias": True}]
)
def test_long_calls_are_cut_so_that_scratch_does_not_grow_with_the_square(device, fields, path_of):
    shape = {"n_heads": 12, "n_kv_heads": 12, "head_dim": 64, "dtype": "float16", "mask": "causal"}
    whole = 12 * 32_768 * 32_768 * 2
    path = path_of(device=device, q_len=32_768, kv_len=32_768, **shape, **fields)
    assert path.excess == ""
    assert path.price.transient < whole / 4


@pytest.mark.parametrize("device", ["m1", "m5-max", "h200"])
def test_a_bias_reaches_fused_kernels_tile_by_tile(device, path_of):
    path = path_of(
        device=device, n_heads=12, n_kv_heads=12, q_len=16_384, kv_len=16_384, head_dim=64, dtype="float16",
        bias=True, additive=True,
    )  # fmt: skip
    assert (path.backend.name, path.price.route) == ("tiled", "fused")
    assert "numbers would lie there at once" in dict(path.against)["fused"]


PICTURES = (tuple((first, first + 256) for first in range(100, 16_000, 700)),)


@pytest.mark.parametrize("device", ["m1", "m2-ultra", "m5-max", "h200"])
@pytest.mark.parametrize("reach", [(None, 0), (1023, 0)])
def test_spans_reach_fused_kernels_tile_by_tile(device, reach, path_of):
    path = path_of(
        device=device, n_heads=8, n_kv_heads=4, q_len=16_384, kv_len=16_384, head_dim=64, dtype="float16",
        mask="window", reach=reach, additive=device == "h200", spans=PICTURES,
    )  # fmt: skip
    assert path.price.route == "fused"
    assert path.price.evaluations > 1
    assert "numbers would lie there at once" in dict(path.against)["fused"]


@pytest.mark.parametrize("device", ["cpu", "m1", "m2-ultra", "m5-max", "h200"])
@pytest.mark.parametrize("reach", [(None, 0), (1023, 0)])
def test_no_mask_of_all_queries_and_keys_is_ever_priced_for_spans(device, reach, path_of):
    path = path_of(
        device=device, n_heads=8, n_kv_heads=4, q_len=16_384, kv_len=16_384, head_dim=64, dtype="float16",
        mask="window", reach=reach, additive=device == "h200", spans=PICTURES, pin=None,
    )  # fmt: skip
    assert path.excess == ""
    assert path.price.largest_buffer - path.price.output < 16_384**2


def test_one_span_over_a_whole_row_needs_no_mask(path_of):
    shape = {"n_heads": 8, "n_kv_heads": 4, "q_len": 4096, "kv_len": 4096, "head_dim": 64, "dtype": "float16"}
    path = path_of(device="m2-ultra", mask="window", reach=(None, 0), spans=(((0, 4096),),), **shape)
    assert (path.backend.name, path.price.route) == ("fused", "fused")
    assert path.price.transient == path_of(device="m2-ultra", mask="none", **shape).price.transient


class Silent:
    """A backend written before there were features: it refuses nothing and knows no bias."""

    name = "silent"

    def reasons_against(self, call, device):
        return []

    def price(self, call, device):
        return BACKENDS[1].price(call, device)

    def run(self, call, price, q, k, v, *, scale, mask=None, sinks=None):
        return q


def test_a_backend_that_names_no_features_is_never_asked_for_them(devices):
    spans = {"mask": "window", "reach": (None, 0), "spans": (((2, 5),),)}
    for fields in ({"softcap": 1.0}, {"bias": True, "additive": True}, spans):
        call = AttentionCall(1, 2, 1, 8, 8, 16, 16, "float32", **fields)
        path = choose(call, devices["cpu"], (Silent(), *BACKENDS))
        assert path.backend.name != "silent"
        assert "does not run" in dict(path.against)["silent"]
        with pytest.raises(InputError, match="silent"):
            choose(call, devices["cpu"], (Silent(), *BACKENDS), "silent")


def test_a_bias_that_was_not_planned_is_refused_and_so_is_a_missing_one(path_of):
    x = mx.zeros((1, 2, 8, 16))
    with pytest.raises(InputError, match="declare bias=True"):
        attend(path_of(n_kv_heads=2, q_len=8, kv_len=8, head_dim=16), x, x, x, scale=1.0, bias=Slopes([1.0, 1.0]))
    planned = path_of(n_kv_heads=2, q_len=8, kv_len=8, head_dim=16, bias=True, additive=True)
    with pytest.raises(InputError, match="is handed none"):
        attend(planned, x, x, x, scale=1.0)


def test_a_rule_of_another_shape_is_refused_with_both(path_of):
    x = mx.zeros((1, 2, 8, 16))
    planned = path_of(n_kv_heads=2, q_len=8, kv_len=8, head_dim=16, bias=True, additive=True)
    with pytest.raises(InputError, match=r"\(3, 15\).*\(2, 15\)"):
        attend(planned, x, x, x, scale=1.0, bias=Slopes([1.0] * 3))


def test_a_traced_call_computes_the_same():
    wanted = [(c, n) for c, n in CASES if c.softcap and n == "buckets" and c.mask == "causal" and c.q_len == 200]
    call, name = wanted[0]
    rule = rule_of(name, call.n_heads)
    q, k, v, _ = drawn(call)
    device = DeviceFacts("cpu", "cpu", "x86_64", 2**34, simulated=True)
    for backend in BACKENDS:
        if missing_features(backend, call) or backend.reasons_against(call, device):
            continue
        price = backend.price(call, device)

        def run(q, k, v, backend=backend, price=price):
            return backend.run(call, price, q, k, v, scale=SCALE, bias=rule)

        assert mx.abs(mx.compile(run)(q, k, v) - run(q, k, v)).max().item() < 1e-5
