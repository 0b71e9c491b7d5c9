"""Pooling against a plain per-row numpy reference, and heads against their definition."""

import mlx.core as mx
import numpy as np
import pytest

from archport.contract import Dense, EmbeddingHead
from archport.running.pool import Pooling, VectorHead, unit_length

RNG = np.random.default_rng(0)
LENGTHS = [5, 1, 7, 3]
HIDDEN = RNG.standard_normal((4, 7, 6)).astype(np.float32)


def pool(hidden, lengths, modes, skip=0, steps=1):
    """Pool in one step, or in pieces as a chunked prefill hands them over."""
    pooling, L = Pooling(lengths, modes, skip), hidden.shape[1]
    for start in range(0, L, -(-L // steps)):
        pooling.add(hidden[:, start : start + -(-L // steps)], start)
    return pooling.rows()


def reference(rows: np.ndarray, mode: str, skip: int) -> np.ndarray:
    skip = min(skip, len(rows) - 1)
    kept, weights = rows[skip:].astype(np.float64), np.arange(skip + 1, len(rows) + 1)[:, None]
    return {
        "cls": lambda: kept[0],
        "last": lambda: kept[-1],
        "max": lambda: kept.max(0),
        "mean": lambda: kept.mean(0),
        "mean_sqrt_len": lambda: kept.sum(0) / np.sqrt(len(kept)),
        "weighted_mean": lambda: (kept * weights).sum(0) / weights.sum(),
    }[mode]()


MODES = ("cls", "max", "mean", "mean_sqrt_len", "weighted_mean", "last")


@pytest.mark.parametrize("steps", [1, 3, 7])
@pytest.mark.parametrize("skip", [0, 2])
@pytest.mark.parametrize("mode", MODES)
def test_each_mode_equals_a_per_row_reference_that_never_sees_padding_in_any_number_of_steps(mode, skip, steps):
    noisy = HIDDEN.copy()
    for row, length in enumerate(LENGTHS):
        noisy[row, length:] = np.nan
    got = np.array(pool(mx.array(noisy), LENGTHS, [mode], skip, steps))
    want = np.stack([reference(HIDDEN[row, :length], mode, skip) for row, length in enumerate(LENGTHS)])
    assert np.abs(got - want).max() < 1e-6


def test_modes_are_concatenated_in_the_order_given():
    both = np.array(pool(mx.array(HIDDEN), LENGTHS, ["mean", "cls"]))
    parts = [np.array(pool(mx.array(HIDDEN), LENGTHS, [mode])) for mode in ("mean", "cls")]
    assert (both == np.concatenate(parts, axis=1)).all()


def test_half_precision_rows_are_pooled_in_float32():
    ones = mx.full((1, 5000, 2), 1.0009765625, dtype=mx.float16)
    assert np.array(pool(ones, [5000], ["mean"])) == pytest.approx(1.0009765625, abs=1e-6)


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("identity", lambda x: x),
        ("tanh", np.tanh),
        ("relu", lambda x: np.maximum(x, 0)),
        ("sigmoid", lambda x: 1 / (1 + np.exp(-x))),
    ],
)
def test_a_dense_layer_applies_weight_bias_activation_and_residual(activation, function):
    weight, bias = RNG.standard_normal((6, 6)).astype(np.float32), RNG.standard_normal(6).astype(np.float32)
    head = EmbeddingHead(("mean",), dense=(Dense("2_Dense", 6, 6, activation=activation, residual=True),))
    got = VectorHead(head, ((mx.array(weight), mx.array(bias)),)).project(pool(mx.array(HIDDEN), LENGTHS, ["mean"]))
    mean = np.stack([reference(HIDDEN[row, :length], "mean", 0) for row, length in enumerate(LENGTHS)])
    assert np.abs(np.array(got) - (mean + function(mean @ weight.T + bias))).max() < 1e-5


def test_a_residual_that_a_second_matrix_projects_goes_around_the_activation():
    weight, projection = RNG.standard_normal((2, 4, 6)).astype(np.float32)
    bias = RNG.standard_normal(4).astype(np.float32)
    head = EmbeddingHead(("mean",), dense=(Dense("2_Dense", 6, 4, residual=True),))
    both = mx.array(np.concatenate([weight, projection]))
    mean = pool(mx.array(HIDDEN), LENGTHS, ["mean"])
    got = np.array(VectorHead(head, ((both, mx.array(bias)),)).project(mean))
    x = np.array(mean)
    assert np.abs(got - (np.tanh(x @ weight.T + bias) + x @ projection.T)).max() < 1e-5


def test_dimensions_are_cut_before_unit_length():
    head = VectorHead(EmbeddingHead(("mean",), normalize=True))
    rows = head.finish(mx.array(RNG.standard_normal((3, 8)).astype(np.float32)), dimensions=3, normalize=None)
    assert rows.shape == (3, 3)
    assert np.linalg.norm(np.array(rows), axis=1) == pytest.approx(1, abs=1e-6)


def test_normalize_false_returns_the_raw_vector_and_true_the_unit_vector():
    raw = mx.array([[3.0, 4.0]])
    assert np.array(
        VectorHead(EmbeddingHead(("mean",), normalize=True)).finish(raw, dimensions=None, normalize=False)
    ).tolist() == [[3, 4]]
    assert np.array(VectorHead(EmbeddingHead(("mean",))).finish(raw, dimensions=None, normalize=True)) == pytest.approx(
        np.array([[0.6, 0.8]])
    )


def test_a_zero_vector_stays_zero_instead_of_becoming_nan():
    assert np.array(unit_length(mx.zeros((1, 4)))).tolist() == [[0, 0, 0, 0]]
