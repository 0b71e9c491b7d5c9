"""The backend against a dense float64 softmax, its price against what it holds, and its place in a plan."""

import mlx.core as mx
import numpy as np
import pytest
from archport_sdpa_demo.backend import Stream32

from archport.contract import AttentionCall, AttentionLimits, DeviceFacts

STREAM = Stream32()
DEVICE = DeviceFacts("any cpu", "cpu", "x86_64", total_memory=16 << 30)


def call(**changes):
    numbers = dict(B=2, n_heads=4, n_kv_heads=2, q_len=70, kv_len=70, head_dim=16, v_head_dim=24, dtype="float32")
    return AttentionCall(**{**numbers, **changes})


CALLS = {
    "every key": call(),
    "causal": call(mask="causal"),
    "a causal step behind a cache": call(mask="causal", q_len=5),
    "a causal window": call(mask="window", reach=(9, 0)),
    "a window to both sides": call(mask="window", reach=(7, 3)),
    "rows of different length": call(mask="key_padding", lengths=(70, 31)),
    "windows in rows of different length": call(mask="key_padding", lengths=(70, 31), reach=(8, 8)),
    "one decoded token per row": call(mask="key_padding", q_len=1, lengths=(70, 31), q_lengths=(1, 1), reach=(None, 0)),
}


def arrays(call, dtype=mx.float32):
    mx.random.seed(3)
    shapes = (call.n_heads, call.q_len, call.head_dim), (call.n_kv_heads, call.kv_len, call.head_dim)
    shapes += ((call.n_kv_heads, call.kv_len, call.v_head_dim),)
    return [mx.random.normal((call.B, *shape)).astype(dtype) for shape in shapes]


def dense(call, q, k, v, scale):
    """Softmax over whatever the call's definition admits, row by row, in float64."""
    q, k, v = (np.array(each.astype(mx.float32), dtype=np.float64) for each in (q, k, v))
    group = call.n_heads // call.n_kv_heads
    left, right = call.visible_reach
    out = np.zeros((*q.shape[:3], call.v_head_dim))
    for row in range(call.B):
        keys = call.lengths[row] if call.lengths else call.kv_len
        queries = call.real_queries[row] if call.real_queries else call.q_len
        for i in range(queries):
            at = keys - queries + i
            lo = 0 if left is None else max(0, at - left)
            hi = keys if right is None else min(keys, at + right + 1)
            for head in range(call.n_heads):
                scores = k[row, head // group, lo:hi] @ q[row, head, i] * scale
                weights = np.exp(scores - scores.max())
                out[row, head, i] = weights @ v[row, head // group, lo:hi] / weights.sum()
    return out


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("block", [16, 512])
def test_the_output_is_that_of_a_dense_softmax(name, block):
    wanted = CALLS[name]
    q, k, v = arrays(wanted)
    price = STREAM._priced(wanted, DEVICE, block)
    out = np.array(STREAM.run(wanted, price, q, k, v, scale=0.25))
    reference = dense(wanted, q, k, v, 0.25)
    real = np.abs(reference).sum(axis=-1) > 0
    assert np.abs(out - reference)[real].max() <= 2e-6
    assert np.isfinite(out).all()


def test_sixteen_bit_inputs_are_summed_in_float32():
    wanted = call(dtype="bfloat16", kv_len=400, q_len=400)
    q, k, v = arrays(wanted, mx.bfloat16)
    out = STREAM.run(wanted, STREAM.price(wanted, DEVICE), q, k, v, scale=0.25)
    error = np.abs(np.array(out.astype(mx.float32)) - dense(wanted, q, k, v, 0.25)).max()
    assert out.dtype == mx.bfloat16
    assert error <= 2**-8


@pytest.mark.skipif(
    mx.default_device().type != mx.DeviceType.cpu,
    reason="only on cpu: the price is a CPU's, and a GPU gives blocks back a little after the next one began",
)
def test_the_predicted_scratch_holds_and_is_not_far_above_what_is_measured():
    wanted = call(B=1, n_heads=8, q_len=512, kv_len=2048, mask="causal", head_dim=64, v_head_dim=64)
    price = STREAM.price(wanted, DEVICE)
    q, k, v = arrays(wanted)
    mx.eval(q, k, v)
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    mx.eval(STREAM.run(wanted, price, q, k, v, scale=0.125))
    measured = mx.get_peak_memory() - before
    assert measured <= price.transient + price.output <= 1.25 * measured


def test_a_tight_limit_makes_smaller_blocks():
    roomy = STREAM.price(call(q_len=512, kv_len=4096), DEVICE)
    tight = STREAM.price(call(q_len=512, kv_len=4096, limits=AttentionLimits(transient_bytes=2_500_000)), DEVICE)
    assert roomy.k_chunk == 512
    assert tight.k_chunk < 512
    assert tight.transient <= 2_500_000


@pytest.mark.parametrize("changes", [{"mask": "documents", "lengths": (70, 31)}, {"sinks": True}])
def test_what_it_can_not_run_it_refuses_with_a_reason(changes):
    assert len(STREAM.reasons_against(call(**changes), DEVICE)) == 1
