"""The kernel that normalises and rotates q and k, run on the host, against the separate operations."""

from __future__ import annotations

import archport  # noqa: F401

# isort: split
import shutil

import cuda_on_host
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from archport.kernels import rotate as turning
from archport.layers import norm_rotate
from archport.layers.norm_rotate import NormRotate
from archport.layers.norms import ZeroCentredRMSNorm
from archport.layers.rotary import Rotary, SectionedRotary

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
NAMES = ["x", "q_weight", "k_weight", "cosines", "sines", "eps", "q", "k"]


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ to run CUDA source on the host")
@pytest.mark.parametrize(("H", "K", "Dh"), [(4, 2, 128), (3, 3, 64)])
@pytest.mark.parametrize(
    ("scaling", "norm", "first", "apart"),
    [
        (None, 1, 1, True),
        ({"rope_type": "linear", "factor": 2.0}, 1, 0, False),
        (YARN, 1, 1, True),
        (None, 0, 0, False),
        (YARN, 0, 1, True),
    ],
)
def test_the_kernel_agrees_with_norm_rotation_and_transposition(tmp_path, H, K, Dh, scaling, norm, first, apart):
    rng = np.random.default_rng(0)
    B, L, width, eps = 2, 3, (H + 2 * K) * Dh, 1e-6
    x = rng.normal(size=(B, L, width)).astype(np.float32)
    weights = [rng.normal(1.0, 0.3, Dh).astype(np.float32) for _ in range(2)]
    starts, rotary = mx.array([5, 90] if apart else [7, 7]), Rotary(Dh, 1e4, scaling)
    cos, sin = rotary.tables(starts if apart else 7, L, {})
    filled = {
        "x": x,
        "q_weight": weights[0],
        "k_weight": weights[1],
        "cosines": np.array(cos),
        "sines": np.array(sin),
        "eps": np.array([eps], np.float32),
        "q": np.full((B, H, L, Dh), np.nan, np.float32),
        "k": np.full((B, K, L, Dh), np.nan, np.float32),
    }
    if not first:
        filled |= {name: filled[name].transpose(0, 2, 1, 3).copy() for name in ("q", "k")}
    numbers = {"Hq": H, "Hk": K, "Dh": Dh, "kWarps": norm_rotate.WARPS}
    constants = {**numbers, "Norm": norm, "RowsAlike": int(not apart), "HeadsFirst": first}
    run = cuda_on_host.build(
        tmp_path,
        norm_rotate.SOURCE,
        norm_rotate.HEADER,
        NAMES,
        constants,
        norm_rotate.WARPS * 32,
        shape_of="x",
    )
    run(filled, (B, L, width), (-(-B * L * (H + K) // norm_rotate.WARPS), 1))

    for name, begin, heads, weight in (("q", 0, H, weights[0]), ("k", H * Dh, K, weights[1])):
        part = mx.array(x[..., begin : begin + heads * Dh]).reshape(B, L, heads, Dh)
        part = (mx.fast.rms_norm(part, mx.array(weight), eps) if norm else part).transpose(0, 2, 1, 3)
        expected = np.array(rotary(part, starts))
        found = filled[name] if first else filled[name].transpose(0, 2, 1, 3)
        assert np.abs(found - expected).max() <= 2e-5 * np.abs(expected).max()


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ to run CUDA source on the host")
def test_the_kernel_takes_positions_on_several_axes(tmp_path):
    rng = np.random.default_rng(1)
    B, L, H, K, Dh, eps = 2, 3, 2, 1, 64, 1e-6
    x = rng.normal(size=(B, L, (H + 2 * K) * Dh)).astype(np.float32)
    weight = rng.normal(1.0, 0.3, Dh).astype(np.float32)
    rotary = SectionedRotary(Dh, 1e4, None, (12, 10, 10))
    positions = mx.array(rng.integers(0, 50, (3, B, L)))
    cos, sin = rotary.angles(positions)
    filled = {
        "x": x,
        "q_weight": weight,
        "k_weight": weight,
        "cosines": np.ascontiguousarray(cos),
        "sines": np.ascontiguousarray(sin),
        "eps": np.array([eps], np.float32),
        "q": np.full((B, H, L, Dh), np.nan, np.float32),
        "k": np.full((B, K, L, Dh), np.nan, np.float32),
    }
    constants = {"Hq": H, "Hk": K, "Dh": Dh, "kWarps": norm_rotate.WARPS, "Norm": 1, "RowsAlike": 0, "HeadsFirst": 1}
    build = cuda_on_host.build
    threads = norm_rotate.WARPS * 32
    source, header = norm_rotate.SOURCE, norm_rotate.HEADER
    run = build(tmp_path, source, header, NAMES, constants, threads, shape_of="x")
    run(filled, x.shape, (-(-B * L * (H + K) // norm_rotate.WARPS), 1))
    for name, first, heads in (("q", 0, H), ("k", H * Dh, K)):
        part = mx.array(x[..., first : first + heads * Dh]).reshape(B, L, heads, Dh)
        expected = np.array(rotary.at(positions)(mx.fast.rms_norm(part, mx.array(weight), eps).transpose(0, 2, 1, 3)))
        assert np.abs(filled[name] - expected).max() <= 2e-5 * np.abs(expected).max()


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ to run CUDA source on the host")
def test_the_kernel_that_turns_heads_leaves_the_others_alone(tmp_path):
    rng = np.random.default_rng(2)
    B, L, heads, Dh = 2, 5, 6, 72
    x = rng.normal(size=(B, L, heads * Dh)).astype(np.float32)
    angles = rng.uniform(0, 6, (B, L, Dh // 2)).astype(np.float32)
    filled = {"x": x, "cosines": np.cos(angles), "sines": np.sin(angles), "y": np.full_like(x, np.nan)}
    constants = {"Dh": Dh, "Turned": 4, "kWarps": turning.WARPS}
    run = cuda_on_host.build(tmp_path, turning.SOURCE, "", list(filled), constants, turning.WARPS * 32, shape_of="x")
    run(filled, x.shape, (-(-B * L * heads // turning.WARPS), 1))
    cos, sin = mx.array(np.cos(angles)), mx.array(np.sin(angles))
    expected = np.array(turning.turn_heads(mx.array(x), cos, sin, turned=4, head_dim=Dh))
    assert np.abs(filled["y"] - expected).max() <= 1e-6
    assert (filled["y"][..., 4 * Dh :] == x[..., 4 * Dh :]).all()


def test_only_layers_that_the_kernel_computes_get_it():
    norm, rotary = nn.RMSNorm(128), Rotary(128, 1e4)
    zero_centred, narrow = ZeroCentredRMSNorm(128), nn.RMSNorm(96)
    assert NormRotate.of(norm, norm, 4, 2, 128, rotary) is not None
    assert NormRotate.of(zero_centred, zero_centred, 4, 2, 128, rotary) is None
    assert NormRotate.of(norm, norm, 4, 2, 128, Rotary(64, 1e4)) is None
    assert NormRotate.of(norm, norm, 4, 2, 128, Rotary(128, 1e4, interleaved=True)) is None
    assert NormRotate.of(narrow, narrow, 4, 2, 96, Rotary(96, 1e4)) is None
    assert NormRotate.of(norm, norm, 4, 2, 128, None) is None
    assert NormRotate.of(None, None, 4, 2, 128, rotary) is not None
    assert NormRotate.of(norm, None, 4, 2, 128, rotary) is None


def test_on_a_cpu_the_separate_operations_run():
    block = NormRotate.of(nn.RMSNorm(128), nn.RMSNorm(128), 4, 2, 128, Rotary(128, 1e4))
    assert block is not None
    if mx.default_device().type == mx.DeviceType.cpu:
        assert not block.worthwhile(mx.zeros((1, 4096, 1024)))
