"""The host backend: exact against float64 in every mask form, independent of the batch, priced as it runs."""

from __future__ import annotations

import warnings
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from archport.attention import attend, builtin_backends, choose
from archport.attention.backends.host import FEWEST_QUERIES, Host
from archport.contract.attention import AttentionCall, AttentionLimits, AttentionPath
from archport.device import vectormath
from archport.device.profiles import profile

CPU = profile("cpu")
needs_mkl = pytest.mark.skipif(not vectormath.available(), reason="MKL is not loaded here")


def call_of(**changes: object) -> AttentionCall:
    """A causal call of 2 rows, 4 heads on 2, 37 tokens of 16."""
    base = AttentionCall(
        B=2, n_heads=4, n_kv_heads=2, q_len=37, kv_len=37, head_dim=16, v_head_dim=16, dtype="float32", mask="causal"
    )
    return replace(base, **changes)  # pyright: ignore[reportArgumentType]


def path_of(call: AttentionCall) -> AttentionPath:
    return AttentionPath(call, Host(), Host().price(call, CPU))


def arrays(call: AttentionCall, seed: int = 0) -> tuple[mx.array, mx.array, mx.array]:
    """q, k and v laid out as projections leave them: heads beside each other, so no head is contiguous."""
    random = np.random.default_rng(seed)

    def one(heads: int, length: int, width: int) -> mx.array:
        return mx.array(random.standard_normal((call.B, length, heads, width)).astype(np.float32)).transpose(0, 2, 1, 3)

    return (
        one(call.n_heads, call.q_len, call.head_dim),
        one(call.n_kv_heads, call.kv_len, call.head_dim),
        one(call.n_kv_heads, call.kv_len, call.v_head_dim),
    )


def hidden_by(call: AttentionCall) -> np.ndarray:
    """Bool (B, 1, L, S): what the call's mask, reach and lengths hide, by the words of AttentionCall."""
    lengths = call.lengths or (call.kv_len,) * call.B
    queries = call.real_queries or (call.q_len,) * call.B
    if call.mask in ("none", "causal"):
        lengths, queries = (call.kv_len,) * call.B, (call.q_len,) * call.B
    left, right = call.visible_reach
    hidden = np.zeros((call.B, 1, call.q_len, call.kv_len), dtype=bool)
    for row, (n_keys, n_queries) in enumerate(zip(lengths, queries, strict=True)):
        at = (n_keys - n_queries + np.arange(call.q_len))[:, None]
        key = np.arange(call.kv_len)[None]
        hidden[row, 0] |= key >= n_keys
        if left is not None:
            hidden[row, 0] |= key < at - left
        if right is not None:
            hidden[row, 0] |= key > at + right
    return hidden


def in_float64(
    call: AttentionCall, q: mx.array, k: mx.array, v: mx.array, scale: float, sinks: mx.array | None = None
) -> np.ndarray:
    group = call.n_heads // call.n_kv_heads
    wide_q, wide_k, wide_v = (np.asarray(x).astype(np.float64) for x in (q, k, v))
    wide_k, wide_v = np.repeat(wide_k, group, axis=1), np.repeat(wide_v, group, axis=1)
    scores = np.where(hidden_by(call), -np.inf, wide_q @ wide_k.swapaxes(-1, -2) * scale)
    extra = np.full((1, call.n_heads, 1, 1), -np.inf)
    if sinks is not None:
        extra = np.asarray(sinks).astype(np.float64).reshape(1, -1, 1, 1)
    with np.errstate(invalid="ignore"):
        top = np.maximum(scores.max(axis=-1, keepdims=True), extra)
        weights = np.exp(scores - top)
        return weights / (weights.sum(axis=-1, keepdims=True) + np.exp(extra - top)) @ wide_v


CALLS = {
    "causal": call_of(),
    "causal behind cached keys": call_of(kv_len=90),
    "causal in many tiles": call_of(B=1, q_len=300, kv_len=300),
    "every key": call_of(mask="none", kv_len=50),
    "other value width": call_of(mask="none", v_head_dim=24),
    "one head": call_of(n_heads=1, n_kv_heads=1, q_len=300, kv_len=300),
    "causal window": call_of(mask="window", reach=(9, 0), q_len=300, kv_len=300),
    "symmetric window": call_of(mask="window", reach=(9, 9), q_len=300, kv_len=300),
    "ragged": call_of(mask="key_padding", lengths=(37, 11)),
    "ragged window": call_of(mask="key_padding", reach=(8, 8), lengths=(37, 29)),
    "ragged causal cache": call_of(
        mask="key_padding", reach=(None, 0), kv_len=60, lengths=(60, 41), q_lengths=(37, 18)
    ),
}


@needs_mkl
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_it_equals_attention_in_float64(call: AttentionCall):
    q, k, v = arrays(call)
    out = np.asarray(attend(path_of(call), q, k, v, scale=0.3, zero_padding=False))
    expected = in_float64(call, q, k, v, 0.3)
    for row, n in enumerate(call.real_queries or (call.q_len,) * call.B):
        assert np.abs(out[row, :, :n] - expected[row, :, :n]).max() < 1e-5


@needs_mkl
@pytest.mark.parametrize("mask", ["none", "causal"])
def test_a_sink_takes_its_share_of_every_query(mask):
    call = call_of(mask=mask, sinks=True)
    q, k, v = arrays(call)
    sinks = mx.array([4.0, 0.0, -3.0, 100.0])
    out = np.asarray(attend(path_of(call), q, k, v, scale=0.3, sinks=sinks))
    assert np.abs(out - in_float64(call, q, k, v, 0.3, sinks)).max() < 1e-5


@needs_mkl
@pytest.mark.parametrize("shape", [(37, 50), (1, 50), (2, 1, 1, 50), (2, 4, 37, 50), (1, 4, 1, 50), (37, 1)])
@pytest.mark.parametrize("additive", [False, True])
def test_an_array_mask_means_what_mlx_means(shape, additive):
    call = call_of(mask="dense", kv_len=50, mask_shape=shape, additive=additive)
    q, k, v = arrays(call)
    shown = np.random.default_rng(1).random(shape) < 0.6
    shown[..., 0] = True
    mask = mx.array(np.where(shown, 0.5, -np.inf).astype(np.float32)) if additive else mx.array(shown)
    price = Host().price(call, CPU)
    out = Host().run(call, price, q, k, v, scale=0.3, mask=mask)
    expected = mx.fast.scaled_dot_product_attention(q, k, v, scale=0.3, mask=mask)
    assert mx.abs(out - expected).max().item() < 1e-5


@needs_mkl
@pytest.mark.parametrize("hide", [False, -np.inf])
def test_a_query_without_any_key_comes_out_finite_and_silent(hide):
    call = call_of(mask="dense", mask_shape=(37, 37), additive=hide is not False)
    q, k, v = arrays(call)
    mask = np.full((37, 37), True) if hide is False else np.zeros((37, 37), dtype=np.float32)
    mask[5] = hide
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = Host().run(call, Host().price(call, CPU), q, k, v, scale=0.3, mask=mx.array(mask))
    assert np.isfinite(np.asarray(out)).all()


@needs_mkl
def test_scores_far_apart_give_exact_zeros_and_no_warning():
    call = call_of(mask="none")
    q, k, v = arrays(call)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = attend(path_of(call), q * 100, k * 100, v, scale=1.0)
    assert np.abs(np.asarray(out) - in_float64(call, q * 100, k * 100, v, 1.0)).max() < 1e-5


@needs_mkl
def test_padded_keys_are_never_read_into_a_real_row():
    call = call_of(mask="key_padding", lengths=(37, 11))
    q, k, v = arrays(call)
    quiet = np.asarray(attend(path_of(call), q, k, v, scale=0.3))
    padding = (mx.arange(37) >= 11)[None, None, :, None] & (mx.arange(2) == 1)[:, None, None, None]
    loud = attend(path_of(call), q, mx.where(padding, 1e3, k), mx.where(padding, 1e30, v), scale=0.3)
    assert np.array_equal(quiet, np.asarray(loud))


@needs_mkl
def test_a_row_alone_equals_the_row_in_a_batch():
    lengths = (300, 300, 171, 37, 8)
    batch = call_of(B=5, q_len=300, kv_len=300, mask="key_padding", lengths=lengths)
    q, k, v = arrays(batch)
    together = np.asarray(attend(path_of(batch), q, k, v, scale=0.3))
    for row, n in enumerate(lengths):
        alone = call_of(B=1, q_len=n, kv_len=n, mask="none")
        own = attend(path_of(alone), *(x[row : row + 1, :, :n] for x in (q, k, v)), scale=0.3)
        assert np.abs(np.asarray(own)[0] - together[row, :, :n]).max() < 1e-6


@needs_mkl
def test_the_same_call_gives_the_same_bits():
    call = CALLS["causal in many tiles"]
    q, k, v = arrays(call)
    first, *others = [np.asarray(attend(path_of(call), q, k, v, scale=0.3)) for _ in range(5)]
    assert all(np.array_equal(first, other) for other in others)


@needs_mkl
@pytest.mark.parametrize("limit", [40_000, 100_000, 10_000_000])
def test_every_cut_gives_the_same_result(limit):
    call = call_of(B=3, q_len=64, kv_len=64, limits=AttentionLimits(transient_bytes=limit))
    q, k, v = arrays(call)
    out = attend(path_of(call), q, k, v, scale=0.3)
    assert np.abs(np.asarray(out) - in_float64(call, q, k, v, 0.3)).max() < 1e-5


def test_more_room_is_never_a_smaller_tile_and_the_price_keeps_the_limit():
    sizes = []
    for limit in (40_000, 100_000, 1_000_000, 100_000_000):
        call = call_of(B=8, q_len=512, kv_len=512, limits=AttentionLimits(transient_bytes=limit))
        price = Host().price(call, CPU)
        assert price.excess(call, CPU) == "" or price.q_tile == 16
        sizes.append(price.transient)
    assert sizes == sorted(sizes)


def test_the_scratch_stays_in_the_cache_however_long_the_call():
    price = Host().price(call_of(B=16, q_len=4096, kv_len=4096, n_heads=16, n_kv_heads=4, head_dim=64), CPU)
    assert price.transient <= 16 * 2**20


@needs_mkl
@pytest.mark.parametrize("transform", [mx.compile, mx.grad])
def test_a_transformed_call_stays_lazy_and_right(transform):
    call = CALLS["causal in many tiles"]
    q, k, v = arrays(call)

    def ours(q: mx.array) -> mx.array:
        return attend(path_of(call), q, k, v, scale=0.3).square().sum()

    def mlx(q: mx.array) -> mx.array:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=0.3, mask="causal").square().sum()

    found, expected = transform(ours)(q), transform(mlx)(q)
    assert mx.allclose(found, expected, rtol=1e-4, atol=1e-5).item()


@needs_mkl
def test_it_writes_into_no_array_but_its_own():
    zeros = mx.zeros((2, 37, 4, 16))
    mx.eval(zeros)
    call = call_of()
    mx.eval(attend(path_of(call), *arrays(call), scale=0.3))
    assert mx.abs(zeros).max().item() == 0.0


@pytest.mark.parametrize(
    ("device", "changes", "reason"),
    [
        ("h200", {}, "GPU"),
        ("cpu", {"dtype": "bfloat16"}, "bfloat16"),
        ("cpu", {"q_len": FEWEST_QUERIES - 1}, "fewer than"),
        ("cpu", {"mask": "documents", "lengths": (37, 37)}, "run in host_documents"),
    ],
)
def test_it_says_why_it_refuses(device, changes, reason):
    assert reason in "; ".join(Host().reasons_against(call_of(**changes), profile(device)))


def test_a_cpu_without_mkl_is_refused():
    assert "MKL" in Host().reasons_against(call_of(), replace(CPU, vector_threads=0))[0]


def test_a_float32_prefill_on_a_cpu_takes_it():
    call = call_of(B=16, n_heads=12, n_kv_heads=12, q_len=128, kv_len=128, head_dim=32, v_head_dim=32, mask="none")
    assert choose(call, CPU, builtin_backends()).backend.name == "host"
