"""The gated delta rule against float64, in every form, on inputs that break careless forms."""

import time

import mlx.core as mx
import numpy as np
import pytest
from tolerances import tolerance

from archport.layers import gated_delta

T, HK, HV, DK, DV = 150, 2, 4, 32, 16
LIMIT = tolerance("recurrence")


def unit(x):
    return x / np.sqrt((x * x).sum(-1, keepdims=True) + 1e-6)


def inputs(kind, tokens=T, rows=1, seed=0, value_dim=DV):
    """q, k, v, log_decay, beta of one of the cases, float32, and a state to start from."""
    rng = np.random.default_rng(seed)
    q, k = unit(rng.normal(size=(rows, tokens, HK, DK))), unit(rng.normal(size=(rows, tokens, HK, DK)))
    v = rng.normal(size=(rows, tokens, HV, value_dim))
    decay, beta = -rng.exponential(0.3, size=(rows, tokens, HV)), rng.uniform(size=(rows, tokens, HV))
    if kind == "slow decay":
        decay = -rng.uniform(0, 1e-4, size=decay.shape)
    elif kind == "correlated keys":
        common = rng.normal(size=(rows, 1, HK, DK))
        k = unit(common + 0.1 * rng.normal(size=k.shape))
        beta, decay = np.full(beta.shape, 0.98), -rng.uniform(0, 1e-3, size=decay.shape)
    elif kind == "identical keys":
        k = unit(np.broadcast_to(rng.normal(size=(rows, 1, HK, DK)), k.shape))
        beta, decay = np.full(beta.shape, 0.999), np.zeros(decay.shape)
    elif kind == "decay spikes":
        decay[:, 5::11] = -2000.0
    elif kind == "resets":
        decay[:, [0, 37, 64, 65, 149 % tokens]] = -np.inf
    q = q * DK**-0.5
    state = 0.3 * rng.normal(size=(rows, HV, DK, value_dim))
    return [x.astype(np.float32) for x in (q, k, v, decay, beta, state)]


def float64(q, k, v, log_decay, beta, state):
    """The definition, token by token."""
    q, k, v, log_decay, beta, S = (x.astype(np.float64) for x in (q, k, v, log_decay, beta, state))
    heads, y = v.shape[2] // k.shape[2], np.zeros(v.shape)
    q, k = np.repeat(q, heads, 2), np.repeat(k, heads, 2)
    for t in range(q.shape[1]):
        S = np.exp(log_decay[:, t])[..., None, None] * S
        u = beta[:, t, :, None] * (v[:, t] - np.einsum("bhkv,bhk->bhv", S, k[:, t]))
        S = S + k[:, t, ..., None] * u[:, :, None]
        y[:, t] = np.einsum("bhkv,bhk->bhv", S, q[:, t])
    return y, S


def error(got, want):
    assert np.isfinite(np.array(got)).all()
    return float(np.abs(np.array(got) - want).max() / max(np.abs(want).max(), 1e-9))


def worst(results, wanted):
    return max(error(*pair) for pair in zip(results, wanted, strict=True))


CASES = ["random", "slow decay", "correlated keys", "identical keys", "decay spikes", "resets"]


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("chunk", [1, 7, 16, 32, 64, 128])
def test_chunks_of_any_size_agree_with_float64(kind, chunk):
    case = inputs(kind)
    assert worst(gated_delta.chunked(*map(mx.array, case), chunk), float64(*case)) <= LIMIT


@pytest.mark.parametrize("kind", CASES)
def test_the_sequential_form_agrees_with_float64(kind):
    case = inputs(kind)
    assert worst(gated_delta.sequential(*map(mx.array, case)), float64(*case)) <= LIMIT


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("cuts", [(1, 2, 149), (31, 32, 33), (3, 4, 100), (64,), tuple(range(1, 150))])
def test_a_prompt_cut_anywhere_agrees_with_float64(kind, cuts):
    case = inputs(kind)
    *tokens, state = map(mx.array, case)
    rows = []
    for start, stop in zip((0, *cuts), (*cuts, T), strict=True):
        piece = [each[:, start:stop] for each in tokens]
        y, state = (
            gated_delta.sequential(*piece, state) if stop - start == 1 else gated_delta.chunked(*piece, state, 32)
        )
        rows.append(y)
    assert worst((mx.concatenate(rows, axis=1), state), float64(*case)) <= LIMIT


def test_long_rows_pass_from_span_to_span(monkeypatch):
    monkeypatch.setattr(gated_delta, "SPAN", 64)
    case = inputs("slow decay", rows=2)
    assert worst(gated_delta.chunked(*map(mx.array, case), 16), float64(*case)) <= LIMIT


def test_a_reset_forgets_all_before_it_to_the_bit():
    case = inputs("random")
    case[3][:, 37] = -np.inf
    other = [np.array(x) for x in case]
    for index in range(5):
        other[index][:, :37] = inputs("correlated keys", seed=1)[index][:, :37]
    other[5] = -other[5]
    a, b = (gated_delta.chunked(*map(mx.array, each), 32) for each in (case, other))
    assert (a[0][:, 37:] == b[0][:, 37:]).all()
    assert (a[1] == b[1]).all()


@pytest.mark.parametrize("chunk", [1, 7, 32])
def test_tokens_without_gates_leave_the_state_to_the_bit(chunk):
    case = inputs("random", tokens=40)
    case[3][:, 20:], case[4][:, 20:] = 0.0, 0.0
    short = [*(x[:, :20] for x in case[:5]), case[5]]
    whole, part = (gated_delta.chunked(*map(mx.array, each), chunk) for each in (case, short))
    assert error(whole[1], np.array(part[1])) <= 1e-7


def test_rows_do_not_depend_on_each_other():
    case = inputs("random", rows=3)
    together = gated_delta.chunked(*map(mx.array, case), 32)
    for row in range(3):
        alone = gated_delta.chunked(*(mx.array(x[row : row + 1]) for x in case), 32)
        assert worst((together[0][row : row + 1], together[1][row : row + 1]), [np.array(x) for x in alone]) <= 1e-6


def test_one_value_head_per_key_head_works_as_well():
    case = inputs("random")
    case[0], case[1] = (np.repeat(case[i], HV // HK, axis=2) for i in (0, 1))
    grouped = inputs("random")
    a = gated_delta.chunked(*map(mx.array, case), 32)
    b = gated_delta.chunked(*map(mx.array, grouped), 32)
    assert worst(a, [np.array(x) for x in b]) <= 1e-6


# What MLX has of its own. Its Metal kernels read decay and beta in the type of q, and no decay below 1e-6.
def test_mlx_s_own_update_is_the_same_rule_with_the_state_transposed():
    case = inputs("random")
    q, k, v, log_decay, beta, state = map(mx.array, case)
    y, after = mx.fast.gated_delta_update(q, k, v, mx.exp(log_decay), beta, state.swapaxes(-1, -2))
    assert worst((y, after.swapaxes(-1, -2)), float64(*case)) <= LIMIT


def test_decay_in_sixteen_bits_as_mlx_s_metal_kernels_read_it_is_far_from_the_rule():
    q, k, v, log_decay, beta, state = case = inputs("slow decay")
    rounded = mx.log(mx.exp(mx.array(log_decay)).astype(mx.bfloat16).astype(mx.float32))
    others = map(mx.array, (beta, state))
    assert worst(gated_delta.sequential(*map(mx.array, (q, k, v)), rounded, *others), float64(*case)) > 100 * LIMIT


@pytest.mark.truth
@pytest.mark.skipif(mx.default_device().type != mx.DeviceType.cpu, reason="a GPU's forms are kernels")
def test_on_a_cpu_chunks_are_faster_than_mlx_s_own_update():
    T, heads, width = 64, (4, 8), 128
    q, k = (mx.random.normal((1, T, heads[0], width)) * 0.1 for _ in range(2))
    v, state = mx.random.normal((1, T, heads[1], width)), mx.zeros((1, heads[1], width, width))
    log_decay = -mx.random.uniform(0, 0.1, (1, T, heads[1]))
    beta = mx.random.uniform(0, 1, (1, T, heads[1]))
    mx.eval(q, k, v, log_decay, beta, state)

    def seconds(run):
        times = []
        for _ in range(4):
            started = time.perf_counter()
            mx.eval(run())
            times.append(time.perf_counter() - started)
        return min(times)

    theirs = seconds(lambda: mx.fast.gated_delta_update(q, k, v, mx.exp(log_decay), beta, state))
    assert seconds(lambda: gated_delta.chunked(q, k, v, log_decay, beta, state, 32)) < theirs
