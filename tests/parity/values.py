"""The values of a checkpoint's tensors, from a seed and each tensor's name: the same in every environment.

numpy only. Nothing is close to trivial: norms are not all one, biases are not zero, attention is far from uniform.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from .space import word


def value(name: str, shape: Sequence[int], seed: int, *, zero_centred: bool) -> np.ndarray:
    """float32 values of one tensor.

    Args:
        zero_centred: whether norms store their distance from one.
    """
    dice = np.random.default_rng([seed, zlib.crc32(name.encode())])
    noise = dice.standard_normal(tuple(shape)).astype(np.float32)
    if name.endswith("A_log"):
        return np.log(0.01 + dice.random(tuple(shape)) * 15.99).astype(np.float32)
    if name.endswith("dt_bias"):
        return noise - 2
    if len(shape) <= 1:
        if name.endswith("bias"):
            return 0.3 * noise
        # The norm behind a gated delta net is a plain one, and so are those of a tower.
        plain = not zero_centred or "linear_attn.norm" in name or "visual" in name
        return (1 if plain else 0) + 0.3 * noise
    if "embed" in name and not name.endswith("proj.weight"):
        return 0.35 * noise
    if "conv1d" in name:
        return 0.5 * noise
    inner = int(np.prod(shape[1:])) if len(shape) > 3 else shape[-1]
    gain = 1.6 if ("q_proj" in name or "k_proj" in name or "query" in name or "key" in name) else 1.0
    return (gain / np.sqrt(max(inner, 1))).astype(np.float32) * noise


def values(shapes: Mapping[str, Sequence[int]], seed: int, *, zero_centred: bool) -> dict[str, np.ndarray]:
    return {name: value(name, shape, seed, zero_centred=zero_centred) for name, shape in shapes.items()}


def picture(seed: int, side: int) -> np.ndarray:
    """uint8 pixels (side, 2 side, 3) of one picture."""
    return np.random.default_rng([seed, 8]).integers(0, 256, size=(side, 2 * side, 3), dtype=np.uint8)


def patches(pixels: np.ndarray, patch: int, merge: int) -> np.ndarray:
    """Patches (n, 3 * patch * patch) of a picture, `merge` x `merge` neighbours together; channels first."""
    H, W, C = pixels.shape
    side = patch * merge
    parts = pixels.reshape(H // side, merge, patch, W // side, merge, patch, C)
    return np.ascontiguousarray(parts.transpose(0, 3, 1, 4, 6, 2, 5)).reshape(-1, C * patch * patch)


def rows(lengths: Sequence[int], vocabulary: int, seed: int) -> list[np.ndarray]:
    """Token ids of as many rows; none is below 6, where special tokens are, or among a family's last ones."""
    dice = np.random.default_rng([seed, 7])
    return [dice.integers(6, vocabulary - 6, size=length).astype(np.int32) for length in lengths]


def texts_of(ids: Sequence[np.ndarray]) -> list[str]:
    """Texts of rows for a pipeline; every fifth word is in capitals, which no vocabulary has."""
    return [_text(row) for row in ids]


def pairs_of(ids: Sequence[np.ndarray]) -> list[tuple[str, str]]:
    """A short query beside each of the rows, of 40 words at most."""
    query = _text(ids[-1][:6])
    return [(query, _text(row[:40])) for row in ids]


def _text(row: np.ndarray) -> str:
    return " ".join(word(each).upper() if at % 5 == 3 else word(each) for at, each in enumerate(row))
