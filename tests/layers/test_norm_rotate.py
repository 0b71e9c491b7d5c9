"""The kernel that normalises and rotates q and k, run on the host, against the separate operations."""

from __future__ import annotations

import archport  # noqa: F401

# isort: split
import importlib.util
import shutil
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from archport.layers import norm_rotate
from archport.layers.norm_rotate import NormRotate
from archport.layers.norms import ZeroCentredRMSNorm
from archport.layers.rotary import Rotary

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
NAMES = ["x", "q_weight", "k_weight", "periods", "starts", "settings", "q", "k"]


def on_host():
    found = importlib.util.spec_from_file_location("cuda_on_host", Path(__file__).with_name("cuda_on_host.py"))
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ to run CUDA source on the host")
@pytest.mark.parametrize(("H", "K", "Dh"), [(4, 2, 128), (3, 3, 64)])
@pytest.mark.parametrize("scaling", [None, {"rope_type": "linear", "factor": 2.0}, YARN])
def test_the_kernel_agrees_with_norm_rotation_and_transposition(tmp_path, H, K, Dh, scaling):
    rng = np.random.default_rng(0)
    B, L, width, eps = 2, 3, (H + 2 * K) * Dh, 1e-6
    x = rng.normal(size=(B, L, width)).astype(np.float32)
    weights = [rng.normal(1.0, 0.3, Dh).astype(np.float32) for _ in range(2)]
    starts, rotary = np.array([5, 90], np.int32), Rotary(Dh, 1e4, scaling)
    filled = {
        "x": x,
        "q_weight": weights[0],
        "k_weight": weights[1],
        "periods": np.array(rotary.periods),
        "starts": starts,
        "settings": np.array([eps, rotary.gain, rotary.scale], np.float32),
        "q": np.full((B, H, L, Dh), np.nan, np.float32),
        "k": np.full((B, K, L, Dh), np.nan, np.float32),
    }
    constants = {"Hq": H, "Hk": K, "Dh": Dh, "kWarps": norm_rotate.WARPS}
    run = on_host().build(
        tmp_path,
        norm_rotate.SOURCE,
        norm_rotate.HEADER,
        NAMES,
        constants,
        norm_rotate.WARPS * 32,
        shape_of="x",
        whole=("starts",),
    )
    run(filled, (B, L, width), (-(-B * L * (H + K) // norm_rotate.WARPS), 1))

    for name, first, heads, weight in (("q", 0, H, weights[0]), ("k", H * Dh, K, weights[1])):
        part = mx.array(x[..., first : first + heads * Dh]).reshape(B, L, heads, Dh)
        normed = mx.fast.rms_norm(part, mx.array(weight), eps).transpose(0, 2, 1, 3)
        expected = np.array(rotary(normed, mx.array(starts)))
        assert np.abs(filled[name] - expected).max() <= 2e-5 * np.abs(expected).max()


def test_only_layers_that_the_kernel_computes_get_it():
    norms, rotary = (nn.RMSNorm(128), nn.RMSNorm(128)), Rotary(128, 1e4)
    assert NormRotate.of(4, 2, 128, norms, rotary) is not None
    assert NormRotate.of(4, 2, 128, (ZeroCentredRMSNorm(128), ZeroCentredRMSNorm(128)), rotary) is None
    assert NormRotate.of(4, 2, 128, norms, Rotary(64, 1e4)) is None
    assert NormRotate.of(4, 2, 128, norms, Rotary(128, 1e4, interleaved=True)) is None
    assert NormRotate.of(4, 2, 96, (nn.RMSNorm(96), nn.RMSNorm(96)), Rotary(96, 1e4)) is None
    assert NormRotate.of(4, 2, 128, norms, None) is None


def test_on_a_cpu_the_separate_operations_run():
    block = NormRotate.of(4, 2, 128, (nn.RMSNorm(128), nn.RMSNorm(128)), Rotary(128, 1e4))
    assert block is not None
    if mx.default_device().type == mx.DeviceType.cpu:
        assert not block.worthwhile(mx.zeros((1, 4096, 1024)))
