"""Activations: the host's functions are MLX's, within rounding, and stay out of transformations and other types."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from archport.contract import SpecError
from archport.device.evaluation import compile_traces
from archport.layers import activations
from archport.layers.activations import ACTIVATIONS, activation

THEIRS = {"gelu": nn.gelu, "gelu_new": nn.gelu_approx, "gelu_pytorch_tanh": nn.gelu_approx, "silu": nn.silu}
# Made by make_activations.py.
RECORDED = json.loads(Path(__file__).with_name("activations.json").read_text())
# More than one block, and not a multiple of one.
SHAPE = (3, 100, 701)


@pytest.fixture
def x() -> mx.array:
    return mx.array(np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32) * 4)


@pytest.mark.parametrize("name", THEIRS)
def test_the_host_computes_what_mlx_computes(name: str, x: mx.array):
    found = activation(name)(x)
    assert found.shape == SHAPE
    assert found.dtype == mx.float32
    assert mx.abs(found - THEIRS[name](x)).max().item() < 2e-6


@pytest.mark.parametrize(
    ("theirs", "name"),
    [
        *((nn.silu, "silu"), (nn.gelu, "gelu"), (nn.gelu_approx, "gelu_new"), (nn.SiLU(), "silu")),
        *((nn.GELU(), "gelu"), (nn.GELU("tanh"), "gelu_new"), (nn.GELU("fast"), "quick_gelu")),
    ],
)
def test_blocks_take_mlx_s_activations_for_archport_s(theirs, name: str, x: mx.array):
    assert activations.own(theirs) is activation(name)
    assert mx.abs(activation(name)(x) - theirs(x)).max().item() < 2e-6


def test_a_block_takes_an_activation_of_anybody_s():
    for theirs in (nn.ReLU(), nn.relu, lambda x: nn.relu(x) ** 2):
        act = activations.own(theirs)
        gate, up = mx.array([[-1.0, 2.0]]), mx.array([[3.0, 3.0]])
        both = mx.concatenate([gate, up], axis=-1)
        assert mx.array_equal(activations.gated(act)(gate, up), theirs(gate) * up)
        assert mx.array_equal(activations.gated_halves(act)(both), theirs(gate) * up)


def test_gelu_keeps_its_digits_where_one_plus_erf_cancels():
    from math import erfc, sqrt

    x = np.linspace(-8, 0, 5000, dtype=np.float32)
    exact = np.array([v * 0.5 * erfc(-v / sqrt(2)) for v in x.astype(np.float64)])
    if not activations.vectormath.available():
        pytest.skip("MKL is not loaded here")
    found = np.asarray(activation("gelu")(mx.array(x)))
    assert np.abs(found[:-1] / exact[:-1] - 1).max() < 1e-5


@pytest.mark.parametrize("name", THEIRS)
def test_the_ends_of_the_range_are_finite_and_silent(name: str):
    x = np.zeros(5000, dtype=np.float32)
    x[:6] = 1e4, -1e4, 100, -100, 3e8, -3e8
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = np.asarray(activation(name)(mx.array(x)))
    assert found[:6].tolist() == [pytest.approx(max(v, 0.0), abs=1e-30) for v in x[:6].tolist()]


def test_what_a_few_elements_wait_for_is_not_started(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(activations, "traced", lambda *_: pytest.fail("asked MLX, which starts computing"))
    if not activations.vectormath.available():
        pytest.skip("without MKL the size decides nothing")
    activation("gelu")(mx.zeros((1, 1, 64)))


@pytest.mark.parametrize("name", THEIRS)
def test_the_input_is_left_as_it_was(name: str, x: mx.array):
    before = np.array(x)
    mx.eval(activation(name)(x))
    assert np.array_equal(before, np.asarray(x))


@pytest.mark.parametrize("name", THEIRS)
def test_an_array_that_is_a_view_is_read_as_it_looks(name: str, x: mx.array):
    turned = x.transpose(2, 0, 1)[::2]
    assert mx.abs(activation(name)(turned) - THEIRS[name](turned)).max().item() < 2e-6


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("transform", [mx.compile, lambda f: mx.grad(lambda x: f(x).sum())], ids=["compile", "grad"])
def test_a_transformed_function_is_mlx_own(name: str, transform, x: mx.array):
    found, expected = transform(activation(name))(x), transform(THEIRS[name])(x)
    assert mx.abs(found - expected).max().item() < 1e-5


@pytest.mark.parametrize("name", THEIRS)
def test_other_types_keep_their_type(name: str, x: mx.array):
    half = x.astype(mx.bfloat16)
    assert mx.array_equal(activation(name)(half), THEIRS[name](half)).item()


@pytest.mark.parametrize("name", THEIRS)
def test_an_element_depends_on_no_other(name: str, x: mx.array):
    rows = x.reshape(300, 701)
    whole = np.asarray(activation(name)(rows))
    parts = np.concatenate([np.asarray(activation(name)(rows[at : at + 30])) for at in range(0, 300, 30)])
    assert np.abs(whole - parts).max() < 1e-6


def test_a_name_that_is_not_known_is_refused_with_those_that_are():
    with pytest.raises(SpecError, match="'swoosh' is not supported; known: gelu"):
        activation("swoosh")


@pytest.mark.parametrize("name", RECORDED["values"])
def test_every_name_of_transformers_is_its_function(name: str):
    found = np.asarray(activation(name)(mx.array(RECORDED["x"])))
    assert np.abs(found - np.array(RECORDED["values"][name])).max() < 2e-6


def test_every_name_of_transformers_is_known_or_refused_as_learned():
    assert set(RECORDED["values"]) == set(activations.ACTIVATIONS)
    for name in RECORDED["learned"]:
        with pytest.raises(SpecError, match="learned parameters"):
            activation(name)


@pytest.mark.parametrize("name", RECORDED["values"])
def test_every_function_of_a_large_array_is_that_of_a_small_one(name: str, x: mx.array):
    # Small arrays go through MLX's operations wherever the two differ.
    small = [activation(name)(x[0, row]) for row in (0, 50, 99)]
    found = activation(name)(x)
    assert max(mx.abs(found[0, row] - each).max().item() for row, each in zip((0, 50, 99), small, strict=True)) < 2e-5


@pytest.mark.skipif(not compile_traces(), reason="without a compiler MLX runs the steps of a function apart")
@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_a_function_in_16_bits_needs_no_array_beside_its_input_s(name: str):
    function, x = ACTIVATIONS[name], mx.zeros((1 << 16,), mx.bfloat16)
    # What is compiled is there from here on.
    mx.eval(x, function(x + 1))
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(function(x + 1))
    # The approximation is too long for one of MLX's fused operations.
    assert mx.get_peak_memory() - before <= (2.1 if function is activations.gelu_tanh else 1.1) * x.nbytes
