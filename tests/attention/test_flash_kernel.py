"""The CUDA kernel of flash attention, run on the host with each kind of matrix unit, against float64."""

from __future__ import annotations

import archport  # noqa: F401

# isort: split
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

import cuda_on_host
import numpy as np
import pytest
from cuda_on_host import bits_of, value_of

from archport.kernels import flash, flash_source
from archport.kernels.flash import Document, Tiling

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ to run CUDA source on the host")
NAMES = ["q", "k", "v", "tiles", "numbers", "q_strides", "k_strides", "v_strides", "k_shape", "out"]
POISON = 0x7FFF


def attention(q, k, v, position, reach, scale, softcap):
    """(queries, Dh) of one document and head in float64; a query that sees no key gives zeros."""
    left, right = reach
    scores = q @ k.T * scale
    if softcap is not None:
        scores = softcap * np.tanh(scores / softcap)
    apart = np.arange(len(k))[None] - position - np.arange(len(q))[:, None]
    hidden = np.zeros(apart.shape, bool)
    if left is not None:
        hidden |= apart < -left
    if right is not None:
        hidden |= apart > right
    scores[hidden] = -np.inf
    top = scores.max(axis=1, keepdims=True, initial=-1e30)
    weights = np.exp(scores - top)
    total = weights.sum(axis=1, keepdims=True)
    return weights / np.where(total == 0, 1, total) @ v


@lru_cache
def launcher(tiling, Dh, brain, capped):
    """A compiled kernel, one for all calls of its kind."""
    wgmma = tiling.units == "wgmma"
    return cuda_on_host.build(
        Path(tempfile.mkdtemp()),
        flash_source.SOURCE,
        cuda_on_host.TENSOR_CORES
        + cuda_on_host.FLASH
        + flash_source.LAYOUT
        + (cuda_on_host.WARPGROUP + flash_source.WARPGROUP if wgmma else flash_source.WARP),
        NAMES,
        {"Dh": Dh, "Brain": int(brain), "kQueries": tiling.queries, "kKeys": tiling.keys, "Cap": int(capped)},
        tiling.threads,
        whole=("tiles", "q_strides", "k_strides", "v_strides", "k_shape"),
        halves=("q", "k", "v", "out"),
    )


def run(documents, shape, tiling, Dh, heads, kv_heads, *, reach=(None, None), softcap=None, brain=True, sign=1):
    """(got, want) of (B, L, H, Dh); `shape` is (B, L, S)."""
    B, L, S = shape
    rng, scale = np.random.default_rng(0), sign * 0.7 * Dh**-0.5
    # What no document names is NaN, so that nothing of it may be read.
    q = np.full((B, L, heads, Dh), POISON, np.uint16)
    keys = np.full((2, B, S + 3, kv_heads, Dh), POISON, np.uint16)
    for d in documents:
        q[d.batch, d.query : d.query + d.queries] = bits_of(3 * rng.normal(size=(d.queries, heads, Dh)), brain)
        made = bits_of(3 * rng.normal(size=(2, d.keys, kv_heads, Dh)), brain)
        keys[:, d.batch, d.key : d.key + d.keys] = made
    table = flash.tiles(documents, tiling, reach)
    key_strides = np.array([(S + 3) * kv_heads * Dh, Dh, kv_heads * Dh, 1], np.int64)
    filled = {
        "q": q,
        "k": keys[0],
        "v": keys[1],
        "tiles": table,
        "numbers": np.array([scale, softcap or 1], np.float32),
        "q_strides": np.array([L * heads * Dh, Dh, heads * Dh, 1], np.int64),
        "k_strides": key_strides,
        "v_strides": key_strides,
        "k_shape": np.array([B, kv_heads, S, Dh], np.int32),
        "out": np.full((B, L, heads, Dh), POISON, np.uint16),
    }
    launch = launcher(tiling, Dh, brain, softcap is not None)
    launch(filled, (B, heads, L, Dh), (len(table) * heads, 1))
    want = np.full((B, L, heads, Dh), np.nan)
    q64, keys64 = value_of(q, brain), value_of(keys, brain)
    for d in documents:
        for head in range(heads):
            part = keys64[:, d.batch, d.key : d.key + d.keys, head // (heads // kv_heads)]
            mine = q64[d.batch, d.query : d.query + d.queries, head]
            want[d.batch, d.query : d.query + d.queries, head] = attention(
                mine, *part, d.position, reach, scale, softcap
            )
    return value_of(filled["out"], brain), want


CASES = {
    "causal, cached keys": ([Document(0, 0, 70, 0, 150, 80)], (1, 70, 150), {"reach": (None, 0)}),
    "documents": (
        [Document(0, 0, 1, 0, 1, 0), Document(0, 1, 65, 1, 65, 0), Document(0, 66, 33, 66, 33, 0)],
        (1, 99, 99),
        {"reach": (None, 0)},
    ),
    "rows of different length": (
        [Document(0, 0, 40, 0, 40, 0), Document(1, 0, 20, 0, 20, 0), Document(1, 20, 20, 0, 0, 0)],
        (2, 40, 40),
        {},
    ),
    "window": ([Document(0, 0, 180, 0, 180, 0)], (1, 180, 180), {"reach": (30, 7)}),
    "more queries than keys": ([Document(0, 0, 90, 0, 50, -40)], (1, 90, 50), {"reach": (None, 0)}),
    "scale below zero": ([Document(0, 0, 30, 0, 90, 60)], (1, 30, 90), {"sign": -1}),
    "soft cap": ([Document(0, 0, 50, 0, 90, 40)], (1, 50, 90), {"softcap": 2.5, "reach": (None, 0), "sign": -1}),
    "half": ([Document(0, 0, 50, 0, 90, 40)], (1, 50, 90), {"brain": False}),
}
TILINGS = {
    "wgmma 256": (256, Tiling("wgmma", 128, 80)),
    "wgmma 192": (192, Tiling("wgmma", 128, 112)),
    "mma 256": (256, Tiling("mma", 64, 32)),
    "mma 192": (192, Tiling("mma", 128, 48)),
}


def agrees(case, units):
    documents, shape, options = CASES[case]
    Dh, tiling = TILINGS[units]
    half = not options.get("brain", True)
    got, want = run(documents, shape, tiling, Dh, 2, 1, **options)
    np.testing.assert_allclose(got, want, atol=0.004 if half else 0.03, rtol=0.01)


@needs_compiler
@pytest.mark.parametrize("units", ["wgmma 256", "mma 256"])
def test_every_row_agrees_with_float64(units):
    agrees("documents", units)


@needs_compiler
@pytest.mark.truth
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("units", TILINGS)
def test_every_row_of_every_kind_of_call_agrees_with_float64(case, units):
    agrees(case, units)
