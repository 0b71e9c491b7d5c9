"""How llama_nemotron_vl cuts an image: a grid of square tiles near its aspect, and a thumbnail next to several of them.

Reads headers when asked for a grid, pixels when asked for a tile. Knows no tokens.
"""

from __future__ import annotations

import threading

import numpy as np

from archport.media import ImageSource, scaled

# (columns, rows) in the order in which the published code meets them, which decides ties.
GRIDS = ((1, 1), (1, 2), (2, 1), (3, 1), (1, 3), (4, 1), (1, 4), (2, 2), (1, 5), (5, 1), (6, 1), (2, 3), (1, 6), (3, 2))
# Tiles that hold more than this share of an image's pixels gain nothing.
ENOUGH = 0.6


def choose_grid(width: int, height: int, side: int, most: int) -> tuple[int, int]:
    """(columns, rows) of tiles of `side` pixels for an image, at most `most` of them."""
    best, found = 0.0, GRIDS[0]
    aspect = width / height
    for columns, rows in GRIDS:
        if columns * rows > most:
            continue
        ratio = columns / rows
        share = min(columns * rows * side * side / (width * height), ENOUGH)
        score = share * min(ratio / aspect, aspect / ratio)
        if score > best:
            best, found = score, (columns, rows)
    return found


class TiledImage:
    """An image that is decoded and scaled once, and handed out tile by tile; safe on threads.

    Args:
        image: measured, not decoded.
        side: pixels per side of a tile.
        most: tiles it may have, its thumbnail aside.
    """

    def __init__(self, image: ImageSource, side: int, most: int, *, thumbnail: bool = True) -> None:
        self._image, self._side = image, side
        self.columns, self.rows = choose_grid(image.width, image.height, side, most)
        cut = self.columns * self.rows
        self.count = cut + (1 if thumbnail and cut > 1 else 0)
        self._lock, self._scaled, self._left = threading.Lock(), None, self.count

    @property
    def decoding(self) -> int:
        """Bytes of host memory that the first tile takes at its peak."""
        return self._image.decoding + 3 * self._side**2 * (self.rows * self.columns + 1)

    def digest(self) -> bytes:
        return self._image.digest()

    def tile(self, index: int) -> np.ndarray:
        """Pixels (side, side, 3) uint8 of one tile, row by row; the last of several is the thumbnail."""
        with self._lock:
            if self._scaled is None:
                image = self._image.image()
                grid = scaled(image, self.rows * self._side, self.columns * self._side)
                small = scaled(image, self._side, self._side) if self.count > 1 else grid
                self._scaled = (grid, small)
            grid, small = self._scaled
            self._left -= 1
            if self._left <= 0:
                # Every tile was handed out; a later call decodes again.
                self._scaled, self._left = None, self.count
        if index >= self.columns * self.rows:
            return small
        row, column = divmod(index, self.columns)
        return grid[row * self._side : (row + 1) * self._side, column * self._side : (column + 1) * self._side]
