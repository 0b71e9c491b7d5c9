"""MKL's functions on numpy arrays: right in every layout, refused in words where a pointer would be wrong."""

from __future__ import annotations

from math import erfc, sqrt

import numpy as np
import pytest

from archport.contract.errors import InputError
from archport.device import vectormath, workers

needs_mkl = pytest.mark.skipif(not vectormath.available(), reason="MKL is not loaded here")


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@needs_mkl
def test_the_normal_distribution_has_float32_accuracy():
    x = np.linspace(-6, 6, 4001, dtype=np.float32)
    out = np.empty_like(x)
    vectormath.normal_cdf(x, out)
    exact = np.array([0.5 * erfc(-v / sqrt(2)) for v in x.astype(np.float64)])
    assert np.abs(out / exact - 1).max() < 3e-7


@needs_mkl
@pytest.mark.parametrize("turn_a", [False, True])
@pytest.mark.parametrize("turn_b", [False, True])
@pytest.mark.parametrize(("m", "k", "n"), [(5, 7, 3), (1, 7, 3), (5, 1, 3), (5, 7, 1), (1, 1, 1)])
def test_a_batch_of_products_is_numpy_matmul(turn_a: bool, turn_b: bool, m: int, k: int, n: int):
    a = normal(2, 3, k, m).swapaxes(-1, -2) if turn_a else normal(2, 3, m, k)
    b = normal(2, 3, n, k, seed=1).swapaxes(-1, -2) if turn_b else normal(2, 3, k, n, seed=1)
    out = np.full((2, 3, m, n), np.nan, dtype=np.float32)
    vectormath.matmul(a, b, out, scale=0.5)
    assert np.abs(out - 0.5 * (a.astype(np.float64) @ b)).max() < 1e-5


@needs_mkl
def test_matrices_are_read_and_written_where_they_lie():
    tokens, out = normal(2, 9, 4, 8), np.zeros((2, 9, 4, 9), dtype=np.float32)
    heads = tokens.transpose(0, 2, 1, 3)
    vectormath.matmul(heads, heads.swapaxes(-1, -2), out.transpose(0, 2, 1, 3))
    expected = heads.astype(np.float64) @ heads.swapaxes(-1, -2)
    assert np.abs(out.transpose(0, 2, 1, 3) - expected).max() < 1e-5


@needs_mkl
def test_a_repeated_matrix_is_used_again():
    a, b, out = normal(6, 5, 7), np.broadcast_to(normal(1, 7, 3), (6, 7, 3)), np.empty((6, 5, 3), np.float32)
    vectormath.matmul(a, b, out)
    assert np.abs(out - a @ b).max() < 1e-5


@needs_mkl
@pytest.mark.parametrize(
    ("a", "b", "out"),
    [
        (normal(2, 3, 4), normal(2, 5, 6), normal(2, 3, 6)),
        (normal(2, 3, 4), normal(1, 4, 6), normal(2, 3, 6)),
        (normal(2, 3, 4).astype(np.float64), normal(2, 4, 6), normal(2, 3, 6)),
        (normal(2, 3, 8)[..., ::2], normal(2, 4, 6), normal(2, 3, 6)),
        (normal(2, 3, 4), normal(2, 4, 6), normal(2, 6, 3).swapaxes(-1, -2)),
    ],
    ids=["inner", "leading", "type", "gaps", "turned output"],
)
def test_a_product_that_would_read_wrong_memory_is_refused(a: np.ndarray, b: np.ndarray, out: np.ndarray):
    with pytest.raises(InputError, match="matmul got"):
        vectormath.matmul(a, b, out)


@needs_mkl
def test_a_vector_with_gaps_is_refused():
    x = normal(10)
    with pytest.raises(InputError, match="expected contiguous float32"):
        vectormath.normal_cdf(x[::2], np.empty(5, np.float32))


@needs_mkl
def test_a_read_only_output_is_refused():
    x, out = normal(10), normal(10)
    out.flags.writeable = False
    with pytest.raises(InputError, match="read-only"):
        vectormath.normal_cdf(x, out)


def test_without_mkl_the_functions_say_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(vectormath, "_library", lambda: None)
    assert not vectormath.available()
    assert workers.threads() == 0
    with pytest.raises(InputError, match="ask available"):
        vectormath.normal_cdf(normal(4), normal(4))


def test_every_piece_is_worked_on_once():
    done = np.zeros(1000, dtype=np.int64)

    def worker():
        def work(piece: int) -> None:
            done[piece] += 1

        return work

    workers.spread(range(1000), worker, 4)
    assert (done == 1).all()


def test_a_failing_piece_raises_where_the_work_was_asked_for():
    def work(piece: int) -> None:
        if piece == 3:
            raise ZeroDivisionError("piece 3")

    with pytest.raises(ZeroDivisionError, match="piece 3"):
        workers.spread(range(10), lambda: work, 2)
