"""The short convolution against a plain sum, over steps, documents and padding, on the host and in MLX."""

import itertools

import mlx.core as mx
import numpy as np
import pytest

from archport.contract import Documents
from archport.layers import activation, short_conv
from archport.layers.short_conv import ShortConv

B, L, C, K = 2, 75, 96, 4


def reference(x, weight, before):
    """silu of the taps' weighted sum in float64; `before` are the rows in front."""
    rows = np.concatenate([before, x], axis=1).astype(np.float64)
    total = sum(weight[:, at] * rows[:, at : at + x.shape[1]] for at in range(K))
    return total / (1 + np.exp(-total))


@pytest.fixture
def conv():
    module = ShortConv(C, K)
    module.weight = mx.array(np.random.default_rng(0).normal(size=(C, K, 1)).astype(np.float32))
    return module


@pytest.fixture(params=["host", "mlx"])
def way(request, monkeypatch):
    monkeypatch.setattr(short_conv, "host_is_faster", lambda x: request.param == "host")
    # A few rows per piece, so that pieces meet inside the window.
    monkeypatch.setattr(short_conv, "_BLOCK", 2 * C)


def numbers(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def close(got, want):
    return np.abs(np.array(got) - want).max() / np.abs(want).max() <= 1e-6


@pytest.mark.usefixtures("way")
def test_a_row_equals_the_plain_sum(conv):
    x = numbers(B, L, C)
    y, tail = conv(mx.array(x), None, Documents())
    assert close(y, reference(x, np.array(conv.weight[..., 0]), np.zeros((B, K - 1, C))))
    assert (np.array(tail) == x[:, -(K - 1) :]).all()


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("cuts", [(1,), (1, 2, 3), (2, 40), (74,), tuple(range(1, L))])
def test_steps_of_any_length_equal_one_pass(conv, cuts):
    x = mx.array(numbers(B, L, C))
    whole, last = conv(x, None, Documents())
    tail, pieces = None, []
    for start, stop in zip((0, *cuts), (*cuts, L), strict=True):
        y, tail = conv(x[:, start:stop], tail, Documents())
        pieces.append(y)
    assert close(mx.concatenate(pieces, axis=1), np.array(whole))
    assert (tail == last).all()


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("lengths", [(75, 40), (3, 1), (2, 75), (0, 5)])
def test_the_tail_of_a_padded_row_is_its_own(conv, lengths):
    x, before = mx.array(numbers(B, L, C)), mx.array(numbers(B, K - 1, C, seed=2))
    real = mx.arange(L)[None] < mx.array(lengths)[:, None]
    _, tail = conv(x, before, Documents(real=real))
    for row, length in enumerate(lengths):
        rows = np.concatenate([np.array(before[row]), np.array(x[row, :length])])
        assert (np.array(tail[row]) == rows[-(K - 1) :]).all()


@pytest.mark.usefixtures("way")
def test_documents_do_not_reach_into_each_other_across_steps(conv):
    edges, x = [0, 2, 3, 30, 75], mx.array(numbers(1, L, C))
    age = mx.concatenate([mx.arange(b - a) for a, b in itertools.pairwise(edges)])[None]
    tail, pieces = None, []
    for start, stop in ((0, 1), (1, 31), (31, 75)):
        y, tail = conv(x[:, start:stop], tail, Documents(age=age[:, start:stop]))
        pieces.append(y)
    got = mx.concatenate(pieces, axis=1)
    for start, stop in itertools.pairwise(edges):
        alone, _ = conv(x[:, start:stop], None, Documents())
        assert close(got[:, start:stop], np.array(alone))


def test_sixteen_bits_are_summed_in_float32(conv):
    x = mx.array(numbers(B, L, C)).astype(mx.bfloat16)
    y, tail = conv(x, None, Documents())
    want = reference(np.array(x.astype(mx.float32)), np.array(conv.weight[..., 0]), np.zeros((B, K - 1, C)))
    assert y.dtype == mx.bfloat16
    assert tail.dtype == mx.float32
    assert np.abs(np.array(y.astype(mx.float32)) - want).max() / np.abs(want).max() <= 2**-8


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("name", ["gelu", "relu", "linear"])
def test_another_activation_is_that_of_the_plain_sum(conv, name):
    x = mx.array(numbers(B, L, C))
    rows = np.concatenate([np.zeros((B, K - 1, C)), np.array(x)], axis=1)
    total = sum(np.array(conv.weight)[:, at, 0] * rows[:, at : at + L] for at in range(K))
    other = ShortConv(C, K, activation(name))
    other.weight = conv.weight
    y, tail = other(x, None, Documents())
    assert close(y, np.array(activation(name)(mx.array(total.astype(np.float32)))))
    assert mx.array_equal(tail, conv(x, None, Documents())[1])
