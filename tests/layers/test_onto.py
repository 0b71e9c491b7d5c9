"""Outputs added inside the last product: what it makes is what two operations make."""

from __future__ import annotations

import archport  # noqa: F401

# isort: split
import mlx.core as mx
import mlx.nn as nn
import pytest
from tolerances import CPU

from archport.layers import GatedMLP, activation, added
from archport.layers import merging as onto


@pytest.fixture
def folding(monkeypatch):
    """Products that add wherever a GPU would."""
    told = []

    def folds(linear, x):
        told.append(type(linear) is nn.Linear and "bias" not in linear and linear["weight"].dtype == x.dtype)
        return told[-1]

    monkeypatch.setattr(onto, "folds", folds)
    return told


@pytest.mark.parametrize("shape", [(1, 1, 8), (1, 5, 8), (3, 4, 8), (7, 1, 8)])
def test_one_product_adds_as_two_operations_do(shape, folding):
    mx.random.seed(0)
    linear, x, base = nn.Linear(8, 8, bias=False), mx.random.normal(shape), mx.random.normal(shape)
    found = onto.linear_onto(linear, x, base)
    assert folding == [True]
    assert found.shape == shape
    assert mx.allclose(found, base + linear(x), atol=1e-6)


def test_only_plain_matrices_of_the_same_type_fold_and_only_on_a_gpu(monkeypatch):
    x, linear = mx.zeros((1, onto.FEWEST // 64, 64)), nn.Linear(64, 64, bias=False)
    packed = nn.QuantizedLinear(64, 64, bias=False)
    assert onto.folds(linear, x) == (not CPU)
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    assert onto.folds(linear, x)
    assert not onto.folds(linear, x.astype(mx.bfloat16))
    assert not onto.folds(linear, x[:, 1:])
    assert not onto.folds(packed, x)
    assert not onto.folds(nn.Linear(64, 64), x)


def test_a_block_that_can_add_does_and_any_other_is_added(folding):
    mx.random.seed(0)
    x = mx.random.normal((2, 3, 16))
    mlp = GatedMLP(16, 32, activation("silu"))
    assert mx.allclose(added(mlp, x, x), x + mlp(x), atol=1e-6)
    assert folding == [True]
    norm = nn.RMSNorm(16)
    assert mx.array_equal(added(norm, x, x), x + norm(x))
