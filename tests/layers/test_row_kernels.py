"""The CUDA kernels that pass over rows once (norms of sums, activations, pooling), run on the host."""

from __future__ import annotations

import archport  # noqa: F401

# isort: split
import shutil

import cuda_on_host
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from tolerances import DEVICE

from archport.kernels import activation as activating
from archport.kernels import sum_norm
from archport.layers import MLP, Embedding, GatedMLP, PostNormBlock, activation, embedding
from archport.layers.activations import ACTIVATIONS, gated
from archport.running import pool
from archport.running.pool import Pooling

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ to run CUDA source on the host")


@needs_compiler
@pytest.mark.parametrize("D", [128, 192, 36])
@pytest.mark.parametrize("shift", [0, 1])
def test_the_norm_of_a_sum_is_that_of_two_operations(tmp_path, D, shift):
    rng, rows, eps = np.random.default_rng(0), 11, 1e-5
    arrays = {name: rng.normal(1.0, 2.0, (rows, D)).astype(np.float32) for name in ("x", "update")}
    arrays |= {name: rng.normal(1.0, 0.3, D).astype(np.float32) for name in ("weight", "bias")}
    arrays |= {"eps": np.array([eps], np.float32), "y": np.full((rows, D), np.nan, np.float32)}
    constants = {"D": D, "kWarps": sum_norm.WARPS, "kRows": sum_norm.ROWS, "Shift": shift}
    threads, names = sum_norm.WARPS * 32, ["x", "update", "weight", "bias", "eps", "y"]
    run = cuda_on_host.build(tmp_path, sum_norm.SOURCE, sum_norm.HEADER, names, constants, threads, shape_of="x")
    run(arrays, (1, rows, D), (-(-rows // (sum_norm.WARPS * sum_norm.ROWS)), 1))
    bias = mx.array(arrays["bias"]) if shift else None
    want = mx.fast.layer_norm(mx.array(arrays["x"] + arrays["update"]), mx.array(arrays["weight"]), bias, eps)
    np.testing.assert_allclose(arrays["y"], np.array(want), atol=2e-6)


@needs_compiler
@pytest.mark.parametrize("kind", activating.KINDS)
@pytest.mark.parametrize("halves", [False, True])
def test_an_activation_is_that_of_the_operations(tmp_path, kind, halves):
    rng, rows, width = np.random.default_rng(0), 5, 132
    x = rng.normal(0, 3, (rows, width * (1 + halves))).astype(np.float32)
    arrays = {"x": x, "y": np.full((rows, width), np.nan, np.float32)}
    constants = {"N": width, "Kind": activating.KINDS.index(kind), "Gated": int(halves), "kThreads": 32, "kTurns": 2}
    run = cuda_on_host.build(tmp_path, activating.SOURCE, activating.HEADER, ["x", "y"], constants, 32, shape_of="x")
    run(arrays, (1, rows, x.shape[1]), (-(-rows * width // 4 // 64), 1))
    act = {"gelu": nn.gelu, "gelu_tanh": nn.gelu_approx, "silu": nn.silu}[kind]
    gate = mx.array(x[:, :width])
    want = act(gate) * mx.array(x[:, width:]) if halves else act(gate)
    np.testing.assert_allclose(arrays["y"], np.array(want), rtol=2e-6, atol=2e-6)


@needs_compiler
def test_rows_of_a_table_are_copied(tmp_path):
    rng = np.random.default_rng(0)
    table, ids = rng.normal(size=(9, 20)).astype(np.float32), rng.integers(0, 9, (2, 35)).astype(np.int32)
    arrays = {"table": table, "ids": ids, "y": np.full((2, 35, 20), np.nan, np.float32)}
    names = ["table", "ids", "y"]
    run = cuda_on_host.build(tmp_path, embedding.SOURCE, "", names, {"kPieces": 5}, 32, shape_of="ids", whole=("ids",))
    # More threads than pieces: the last ones have nothing to do.
    run(arrays, ids.shape, (12, 1))
    np.testing.assert_array_equal(arrays["y"], table[ids])


def test_a_table_gives_what_mlx_gives_and_is_quantised_as_its(monkeypatch):
    mx.random.seed(0)
    own, ids = Embedding(64, 64), mx.array([[1, 63, 0]], dtype=mx.int32)
    other = nn.Embedding(64, 64)
    other.weight = own.weight
    assert mx.array_equal(own(ids), other(ids))
    assert mx.array_equal(own.as_linear(own(ids)), other.as_linear(other(ids)))
    nn.quantize(both := nn.Sequential(own), group_size=32, bits=8)
    assert isinstance(both.layers[0], nn.QuantizedEmbedding)
    many = mx.zeros((1, embedding.FEWEST // 64), dtype=mx.int32)
    assert embedding.worthwhile(own.weight, many) == (DEVICE == "cuda")
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    monkeypatch.setattr(embedding, "cuda", lambda: True)
    assert embedding.worthwhile(own.weight, many)
    assert not embedding.worthwhile(own.weight, many[:, 1:])
    assert not embedding.worthwhile(own.weight, many.astype(mx.uint32))
    assert not embedding.worthwhile(own.weight[:, :3], mx.zeros((1, 1 << 22), dtype=mx.int32))


@needs_compiler
@pytest.mark.parametrize("mode", ["mean", "max", "weighted_mean"])
@pytest.mark.parametrize("skip", [0, 3])
def test_packed_rows_are_pooled_by_the_kernel_as_padded_ones(tmp_path, mode, skip):
    rng, lengths, D = np.random.default_rng(0), [4, 1, 7], 40
    x = rng.normal(size=(sum(lengths) + 2, D)).astype(np.float32)
    # What is no number is not lost, wherever it stands.
    x[0, 0] = x[2, 1] = x[11, 2] = np.nan
    ends = np.array(lengths, np.int32)
    begins, starts = np.minimum(skip, ends - 1), np.cumsum([0, 4, 1]).astype(np.int32)
    arrays = {"x": x, "starts": starts, "bounds": np.stack([begins, ends], axis=1).astype(np.int32)}
    arrays["pooled"] = np.full((3, D), np.nan, np.float32)
    constants = {"Largest": int(mode == "max"), "Weighted": int(mode == "weighted_mean")}
    names = ["x", "starts", "bounds", "pooled"]
    run = cuda_on_host.build(tmp_path, pool.SOURCE, "", names, constants, 32, shape_of="x", whole=("starts", "bounds"))
    run(arrays, (1, *x.shape), (2, 3))
    pooling = Pooling(lengths, (mode,), skip)
    pooling.take({mode: mx.array(arrays["pooled"])})
    for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        alone = Pooling((length,), (mode,), skip)
        alone.add(mx.array(x[None, start : start + length]))
        np.testing.assert_allclose(np.array(pooling.rows())[row], np.array(alone.rows())[0], rtol=1e-5, atol=1e-6)


def test_blocks_hand_over_what_the_kernels_take(monkeypatch):
    """On a GPU the kernels run; here what they are told is run by the operations that they replace."""
    told = []

    def activate(x, kind, *, halves=False):
        told.append((kind, halves))
        gate, up = mx.split(x, 2, axis=-1) if halves else (x, 1.0)
        return {"gelu": nn.gelu, "silu": nn.silu}[kind](gate) * up

    mx.random.seed(0)
    x = mx.random.normal((1, 3, 16))
    mlp, gated_mlp = MLP(16, 24, activation("gelu"), bias=True), GatedMLP(16, 24, ACTIVATIONS["silu"])
    gated_mlp.merge()
    before = mlp(x), gated_mlp(x)
    monkeypatch.setattr(activating, "worthwhile", lambda x, halves=False: True)
    monkeypatch.setattr(activating, "activate", activate)
    monkeypatch.setattr("archport.layers.activations.host_is_faster", lambda x: False)
    assert mx.allclose(mlp(x), before[0], atol=1e-5)
    assert mx.allclose(gated_mlp(x), before[1], atol=1e-5)
    assert told == [("gelu", False), ("silu", True)]


def test_what_the_kernel_does_not_take_runs_as_two_operations():
    mx.random.seed(0)
    x, update = mx.random.normal((2, 600, 16)), mx.random.normal((2, 600, 16))
    for norm in (nn.LayerNorm(16), nn.RMSNorm(16)):
        assert not sum_norm.worthwhile(norm, x, update)
        assert mx.array_equal(sum_norm.sum_norm(norm, x, update), norm(x + update))
    assert "attention_norm" in PostNormBlock(nn.Identity(), nn.Identity(), 16, 1e-5)


def test_a_norm_whose_parts_differ_in_type_or_shape_runs_as_two_operations(monkeypatch):
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    monkeypatch.setattr(sum_norm, "cuda", lambda: True)
    norm = nn.LayerNorm(64)
    norm.set_dtype(mx.bfloat16)
    x = mx.zeros((1, sum_norm.FEWEST // 64, 64), mx.bfloat16)
    assert sum_norm.worthwhile(norm, x, x)
    assert not sum_norm.worthwhile(norm, x, x[:, :1])
    assert not sum_norm.worthwhile(norm, x[0], x[0])
    norm.bias = norm.bias.astype(mx.float32)
    assert not sum_norm.worthwhile(norm, x, x)


def test_a_function_for_all_shapes_is_made_of_operations_that_know_theirs(monkeypatch):
    """Gate and up apart are multiplied by a function that is traced once, where a kernel has no shape yet."""

    def activate(x, kind, *, halves=False):
        raise AssertionError(f"{kind} inside a function for all shapes")

    gate, up = mx.random.normal((1, 3, 8)), mx.random.normal((1, 3, 8))
    apart = gated.__wrapped__(ACTIVATIONS["silu"])
    want = apart(gate, up)
    monkeypatch.setattr(activating, "worthwhile", lambda x, halves=False: True)
    monkeypatch.setattr(activating, "activate", activate)
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    assert mx.allclose(apart(gate, up), want, atol=1e-6)
