"""Pixels to the rows that a vision tower reads. Knows nothing of towers.

Rows stay uint8 until the device has them: an eighth of the bytes of normalised float32 pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from archport.contract import InputError


def unfold(pixels: np.ndarray, patch: int) -> np.ndarray:
    """Patches of an image, row by row: (H, W, 3) -> (H/patch * W/patch, 3 * patch * patch), channels first.

    Raises:
        InputError: for sides that are no multiples of `patch`.
    """
    return patch_rows(pixels[None], patch=patch, merge=1)


def patch_rows(frames: np.ndarray, *, patch: int, merge: int) -> np.ndarray:
    """Patches of one moment in the order in which `merge` x `merge` of them become one token.

    Args:
        frames: (T, H, W, 3) uint8, the frames that one patch spans; a still image is one frame.
        patch: pixels per patch side.
        merge: patches per token side.

    Returns:
        (H/patch * W/patch, 3 * T * patch * patch) of the same type; a row is ordered (channel, frame, row, column).

    Raises:
        InputError: for sides that are no multiples of `patch * merge`.
    """
    T, H, W, C = frames.shape
    side = patch * merge
    if H % side or W % side:
        raise InputError(f"frames of {H} x {W} pixels do not divide into squares of {side}; resize them first")
    rows = frames.reshape(T, H // side, merge, patch, W // side, merge, patch, C)
    # (block row, block column, row in block, column in block, channel, frame, pixel row, pixel column)
    rows = rows.transpose(1, 4, 2, 5, 7, 0, 3, 6)
    return np.ascontiguousarray(rows).reshape(H * W // patch**2, C * T * patch * patch)


def normalise(rows: np.ndarray, mean: Sequence[float], std: Sequence[float], *, repeat: int = 1) -> np.ndarray:
    """Rows of uint8 patches as float32, `(x / 255 - mean) / std` per channel.

    Args:
        rows: (N, C * T * p * p), channels slowest.
        repeat: copies of each frame, for a tower that reads a still image as a film of two.

    Returns:
        (N, C * repeat * T * p * p) float32; only for T = 1 when `repeat` is above 1.
    """
    channels = len(mean)
    split = rows.reshape(len(rows), channels, 1, -1).astype(np.float32) * np.float32(1 / 255)
    shape = (1, channels, 1, 1)
    split = (split - np.asarray(mean, np.float32).reshape(shape)) / np.asarray(std, np.float32).reshape(shape)
    return np.repeat(split, repeat, axis=2).reshape(len(rows), -1)
