"""Tiles and bands against one call of MLX: the same bits where the device's matrix products allow it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest
from tolerances import CPU as CPU_DEVICE
from tolerances import tolerance

from archport.attention import choose
from archport.contract import AttentionCall, AttentionLimits, DeviceFacts

CPU = DeviceFacts("cpu", "cpu", "x86_64", 16 * 2**30, simulated=True)
REACHES = {"causal": (None, 0), "none": (None, None), "window": (100, 0), "two-sided": (40, 60)}


def _optimised_blas():
    """Whether an optimised BLAS is loaded in front of MLX's own, which rounds by the shape of a product."""
    maps = Path("/proc/self/maps")
    return sys.platform == "darwin" or (maps.exists() and "libmkl" in maps.read_text())


def _both(backends, inputs, dtype, name, backend, sinks=False, joined=False):
    left, right = REACHES[name]
    kind = {"causal": "causal", "none": "none"}.get(name, "window")
    call = AttentionCall(
        2, 4, 2, 300, 450, 64, 64, dtype, kind, reach=(left, right) if kind == "window" else (None, None), sinks=sinks,
        limits=AttentionLimits(transient_bytes=1_000_000),
    )  # fmt: skip
    q, k, v = inputs(2, 4, 2, 300, 450, 64, dtype=dtype)
    logits = mx.array([0.5, -1.0, 2.0, 0.0]).astype(q.dtype) if sinks else None
    path = choose(call, CPU, backends, backend)
    assert path.price.evaluations > 3
    # As a GPU runs them: the next tile started before the last is done, joined at the end.
    price = replace(path.price, depth=2, lanes=0) if joined else path.price
    ours = path.backend.run(call, price, q, k, v, scale=0.125, sinks=logits)
    at = mx.arange(300)[:, None] + 150
    keys = mx.arange(450)[None]
    shown = keys <= at + (450 if right is None else right)
    if left is not None:
        shown = mx.logical_and(shown, keys >= at - left)
    told = "causal" if name == "causal" else None if name == "none" else shown
    return ours, mx.fast.scaled_dot_product_attention(q, k, v, scale=0.125, mask=told, sinks=logits)


def check(ours, theirs):
    """As near as this device cuts: on a CPU 16-bit results have the same bits."""
    dtype = str(ours.dtype).removeprefix("mlx.core.")
    allowed = tolerance("cut", dtype)
    if allowed == 0:
        assert mx.array_equal(ours.view(mx.uint16), theirs.view(mx.uint16))
    assert mx.abs(ours.astype(mx.float32) - theirs.astype(mx.float32)).max().item() <= allowed


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize(
    ("name", "backend"), [("causal", "tiled"), ("none", "tiled"), ("window", "banded"), ("two-sided", "banded")]
)
def test_tiles_and_bands_equal_one_call_in_16_bit(dtype, sinks, name, backend, backends, inputs):
    check(*_both(backends, inputs, dtype, name, backend, sinks))


@pytest.mark.parametrize(
    ("name", "backend"), [("causal", "tiled"), ("none", "tiled"), ("window", "banded"), ("two-sided", "banded")]
)
def test_tiles_in_flight_equal_one_call_in_16_bit(name, backend, backends, inputs):
    check(*_both(backends, inputs, "bfloat16", name, backend, joined=True))


@pytest.mark.parametrize(
    ("name", "backend"), [("causal", "tiled"), ("none", "tiled"), ("window", "banded"), ("two-sided", "banded")]
)
def test_float32_tiles_and_bands_equal_one_call_bit_for_bit_on_the_stock_blas_and_by_rounding_otherwise(
    name, backend, backends, inputs
):
    ours, theirs = _both(backends, inputs, "float32", name, backend)
    if CPU_DEVICE and not _optimised_blas():
        assert mx.array_equal(ours.view(mx.uint32), theirs.view(mx.uint32))
    else:
        check(ours, theirs)


@pytest.mark.parametrize(("name", "backend"), [("causal", "tiled"), ("two-sided", "banded")])
def test_how_a_call_is_cut_does_not_change_16_bit_results(name, backend, backends, inputs):
    kind = "causal" if name == "causal" else "window"
    reach = (None, None) if name == "causal" else REACHES[name]
    call = AttentionCall(2, 4, 2, 200, 200, 64, 64, "bfloat16", kind, reach=reach)
    q, k, v = inputs(2, 4, 2, 200, 200, 64, dtype="bfloat16")
    path = choose(call, CPU, backends, backend)
    results = []
    for rows, lanes in ((16, 0), (48, 2), (128, 1), (200, 1), (64, 3)):
        price = replace(path.price, q_tile=rows, lanes=lanes, evaluations=9)
        results.append(path.backend.run(call, price, q, k, v, scale=0.125))
    for out in results[1:]:
        check(out, results[0])
