"""The CUDA kernels of attention on long caches, run on the host, against float64."""

from __future__ import annotations

import archport  # noqa: F401

# isort: split
import shutil

import cuda_on_host
import numpy as np
import pytest
from cuda_on_host import bits_of, value_of

from archport.kernels import decode, decode_source

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ to run CUDA source on the host")
FIRST = [
    "q",
    "k",
    "v",
    "lengths",
    "divided",
    "numbers",
    "q_strides",
    "k_strides",
    "v_strides",
    "k_shape",
    "sums",
    "stats",
]
SECOND = ["sums", "stats", "sums_shape", "out"]
POISON = 0x7FFF


def attention(q, k, v, left, scale, softcap):
    scores = q @ k.T * scale
    if softcap is not None:
        scores = softcap * np.tanh(scores / softcap)
    apart = np.arange(len(k))[None] - (len(k) - len(q)) - np.arange(len(q))[:, None]
    scores[(apart > 0) | (apart < -left if left is not None else False)] = -np.inf
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True) @ v


CASES = {
    "one query": (128, 4, 2, 1, (700,), {}),
    "wide heads": (256, 4, 1, 1, (300,), {}),
    "rows of different length": (64, 2, 2, 1, (1, 530), {}),
    "several queries": (128, 6, 2, 4, (90, 4), {}),
    "window and cap": (192, 2, 1, 2, (333,), {"left": 60, "softcap": 1.5}),
    "half": (128, 2, 1, 1, (257,), {"brain": False}),
}


@needs_compiler
def test_every_row_agrees_with_float64(tmp_path):
    agrees(tmp_path, "several queries")


@needs_compiler
@pytest.mark.truth
@pytest.mark.parametrize("case", CASES)
def test_every_row_of_every_kind_of_call_agrees_with_float64(tmp_path, case):
    agrees(tmp_path, case)


def agrees(tmp_path, case):
    Dh, heads, kv_heads, L, lengths, options = CASES[case]
    brain, left, softcap = options.get("brain", True), options.get("left"), options.get("softcap")
    B, S, divided, warps, scale = len(lengths), max(lengths) + 5, 3, 2, 0.7 * Dh**-0.5
    rng = np.random.default_rng(0)
    q = bits_of(3 * rng.normal(size=(B, heads, L, Dh)), brain)
    keys = np.full((2, B, kv_heads, S, Dh), POISON, np.uint16)
    for row, length in enumerate(lengths):
        keys[:, row, :, :length] = bits_of(3 * rng.normal(size=(2, kv_heads, length, Dh)), brain)
    blocks = B * kv_heads * decode.row_tiles(heads, kv_heads, L) * divided
    strides = np.array([kv_heads * S * Dh, S * Dh, Dh, 1], np.int64)
    filled = {
        "q": q,
        "k": keys[0],
        "v": keys[1],
        "lengths": np.array(lengths, np.int32),
        "numbers": np.array([scale, softcap or 1], np.float32),
        "q_strides": np.array([heads * L * Dh, L * Dh, Dh, 1], np.int64),
        "divided": np.array([divided, decode.UNLIMITED if left is None else left, 0], np.int32),
        "k_shape": np.array([B, kv_heads, S, Dh], np.int32),
        "sums_shape": np.array([B, kv_heads, decode.row_tiles(heads, kv_heads, L), divided, 8, Dh], np.int32),
        "k_strides": strides,
        "v_strides": strides,
        "sums": np.full((blocks, 8, Dh), np.nan, np.float32),
        "stats": np.full((blocks, 8, 2), np.nan, np.float32),
        "out": np.full((B, L, heads, Dh), POISON, np.uint16),
    }
    constants = {
        "Dh": Dh,
        "Brain": int(brain),
        "Cap": int(softcap is not None),
        "kShares": divided,
        "kWarps": warps,
        "kGroups": decode.groups(Dh),
    }
    texts = ((decode_source.SHARES, FIRST, warps * 32), (decode_source.MERGE, SECOND, Dh))
    for number, (source, names, threads) in enumerate(texts):
        folder = tmp_path / str(number)
        folder.mkdir()
        launch = cuda_on_host.build(
            folder,
            source,
            cuda_on_host.TENSOR_CORES + cuda_on_host.DECODE + decode_source.HEADER,
            names,
            constants | ({"Heads": heads, "Queries": L} if number else {}),
            threads,
            whole=("lengths", "divided", "k_shape", "sums_shape", "q_strides", "k_strides", "v_strides"),
            halves=("q", "k", "v", "out"),
        )
        launch(filled, q.shape, (B * L * heads if number else blocks, 1))
    got = value_of(filled["out"], brain)
    q64, keys64 = value_of(q, brain), value_of(keys, brain)
    for row, length in enumerate(lengths):
        for head in range(heads):
            mine = keys64[:, row, head // (heads // kv_heads), :length]
            want = attention(q64[row, head], *mine, left, scale, softcap)
            np.testing.assert_allclose(got[row, :, head], want, atol=0.03 if brain else 0.004, rtol=0.01)
