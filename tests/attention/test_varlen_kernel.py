"""The CUDA kernel of attention over documents, run on the host, against float64."""

from __future__ import annotations

import archport  # noqa: F401

# isort: split
import shutil

import cuda_on_host
import numpy as np
import pytest
from cuda_on_host import bits_of, value_of

from archport.kernels import varlen as varlen_kernel

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ to run CUDA source on the host")
NAMES = ["q", "k", "v", "tiles", "scale", "q_strides", "k_strides", "v_strides", "out"]


def attention(q, k, v, left, right, scale):
    """(L, Dh) of one document and head in float64."""
    apart = np.arange(len(k))[None] - np.arange(len(q))[:, None]
    scores = q @ k.T * scale
    scores[(apart < -left if left >= 0 else False) | (apart > right if right >= 0 else False)] = -np.inf
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True) @ v


@pytest.mark.parametrize(
    ("lengths", "Dh", "heads", "kv_heads", "reach", "brain"),
    [
        ([1, 63, 64, 65, 130], 64, 2, 2, (-1, -1), True),
        ([200, 3], 64, 2, 1, (16, 16), True),
        ([150], 64, 1, 1, (-1, 0), True),
        ([90, 70], 128, 2, 1, (-1, -1), True),
        ([140], 96, 1, 1, (40, 0), False),
        ([33, 80], 32, 2, 2, (-1, -1), False),
        ([100], 80, 1, 1, (0, 70), True),
    ],
)
def test_the_kernel_agrees_with_float64(tmp_path, lengths, Dh, heads, kv_heads, reach, brain):
    rng = np.random.default_rng(0)
    tokens, (left, right), scale = sum(lengths), reach, 0.7 * Dh**-0.5
    # Of one merged product, so that no array is contiguous.
    width = (heads + 2 * kv_heads) * Dh
    merged = bits_of(3 * rng.normal(size=(tokens, width)), brain)
    starts = np.cumsum([0, *lengths[:-1]])
    tiles = varlen_kernel.tiles(lengths, tokens)
    strides = np.array([tokens * width, Dh, width, 1], np.int64)
    filled = {
        "q": merged,
        "k": merged.reshape(-1)[heads * Dh :],
        "v": merged.reshape(-1)[(heads + kv_heads) * Dh :],
        "tiles": tiles,
        "scale": np.array([scale], np.float32),
        **dict.fromkeys(("q_strides", "k_strides", "v_strides"), strides),
        "out": np.full((tokens, heads, Dh), 0x7FFF, np.uint16),
    }
    constants = {
        "Dh": Dh,
        "Hq": heads,
        "Hk": kv_heads,
        "Left": left + 1,
        "Right": right + 1,
        "Brain": int(brain),
        "kKeys": varlen_kernel.keys_per_tile(Dh),
    }
    run = cuda_on_host.build(
        tmp_path,
        varlen_kernel.SOURCE,
        cuda_on_host.TENSOR_CORES + varlen_kernel.HEADER,
        NAMES,
        constants,
        varlen_kernel.THREADS,
        whole=("tiles", "q_strides", "k_strides", "v_strides"),
        halves=("q", "k", "v", "out"),
    )
    run(filled, (1, heads, tokens, Dh), (len(tiles), heads))

    rows = value_of(merged, brain).reshape(tokens, -1, Dh)
    got = value_of(filled["out"], brain)
    for head in range(heads):
        kv = heads + head // (heads // kv_heads)
        for start, length in zip(starts, lengths, strict=True):
            here = slice(start, start + length)
            want = attention(rows[here, head], rows[here, kv], rows[here, kv + kv_heads], left, right, scale)
            np.testing.assert_allclose(got[here, head], want, atol=0.02 if brain else 0.003, rtol=0.01)
