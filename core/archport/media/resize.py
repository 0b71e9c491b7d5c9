"""To which size an image is scaled, and scaling it. Knows nothing of patches or models."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from archport.contract import InputError
from archport.media.images import pillow

if TYPE_CHECKING:
    from PIL.Image import Image


def smart_resize(
    height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int, clamp_first: bool = False
) -> tuple[int, int]:
    """The (height, width) nearest to an image's own whose sides are multiples of `factor` and whose area is in bounds.

    Args:
        factor: pixels per side of one token of the language model.
        min_pixels, max_pixels: bounds of the area; the side of a sliver may break the upper one.
        clamp_first: give a side that rounds to nothing one `factor` before the area is looked at, as the published
            Qwen3-VL embedder does; transformers looks at the area first.

    Raises:
        InputError: for bounds that admit no size.
    """
    if not 0 < min_pixels <= max_pixels or max_pixels < factor * factor:
        raise InputError(
            f"{min_pixels=}, {max_pixels=}; expected 0 < min_pixels <= max_pixels, and at least {factor * factor} for "
            f"the latter (one token of {factor} x {factor})"
        )
    # Python's round: half to even, as the reference.
    rows, columns = round(height / factor) * factor, round(width / factor) * factor
    if clamp_first:
        rows, columns = max(factor, rows), max(factor, columns)
    if rows * columns > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows = max(factor, math.floor(height / shrink / factor) * factor)
        columns = max(factor, math.floor(width / shrink / factor) * factor)
    elif rows * columns < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows = math.ceil(height * grow / factor) * factor
        columns = math.ceil(width * grow / factor) * factor
    return rows, columns


def smart_resize_video(
    frames: int, height: int, width: int, *, factor: int, temporal: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """The (height, width) of every frame of a video, whose bounds count the pixels of all frames together.

    Args:
        frames: sampled frames.
        factor: pixels per side of one token.
        temporal: frames per token.
        min_pixels, max_pixels: bounds of frames x height x width.
    """
    if height < factor or width < factor:
        grow = max(factor / height, factor / width)
        height, width = int(height * grow), int(width * grow)
    rows, columns = round(height / factor) * factor, round(width / factor) * factor
    total = round(frames / temporal) * temporal * rows * columns
    if total > max_pixels:
        shrink = math.sqrt(frames * height * width / max_pixels)
        rows = max(factor, math.floor(height / shrink / factor) * factor)
        columns = max(factor, math.floor(width / shrink / factor) * factor)
    elif total < min_pixels:
        grow = math.sqrt(min_pixels / (frames * height * width))
        rows, columns = math.ceil(height * grow / factor) * factor, math.ceil(width * grow / factor) * factor
    return rows, columns


def resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pixels (H, W, 3) uint8 scaled to (height, width, 3) uint8, bicubic with antialiasing; untouched when they fit."""
    if pixels.shape[:2] == (height, width):
        return pixels
    return scaled(pillow().fromarray(pixels), height, width)


def scaled(image: Image, height: int, width: int) -> np.ndarray:
    """A Pillow image in RGB as pixels (height, width, 3) uint8, scaled as `resize` does."""
    return np.asarray(image.resize((width, height), resample=pillow().Resampling.BICUBIC))
