"""How CLIP reads an input: a text up to its first end token, or the middle of an image whose short side is scaled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from archport.contract import Picture, SpecError
from archport.media import ImageSource, patch_rows, scaled
from archport_bidirectional.siglip.reader import Images, SiglipReader, Texts

# Of every channel, where no file says so.
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
_BICUBIC = 3


@dataclass(frozen=True, slots=True)
class Scaling:
    """To what an image is scaled before its middle is cut out.

    Args:
        short: pixels of its shorter side; None where it is scaled to a square.
    """

    short: int | None


def scaling(settings: Mapping[str, Any], side: int, name: str) -> Scaling:
    """What the image processor's settings ask for, for a tower that sees squares of `side` pixels.

    Raises:
        SpecError: what no published processor of CLIP does.
    """
    size, crop = settings.get("size", {"shortest_edge": side}), settings.get("crop_size", side)
    crop = crop if isinstance(crop, Mapping) else {"height": crop, "width": crop}
    for key, harmless in (("do_resize", True), ("do_rescale", True), ("do_normalize", True), ("resample", _BICUBIC)):
        if settings.get(key, harmless) != harmless:
            raise SpecError(f"{name}: {key}={settings[key]!r} of the image processor; expected {harmless}")
    square = isinstance(size, Mapping) and (size.get("height"), size.get("width")) == (side, side)
    if square:
        return Scaling(None)
    short = size.get("shortest_edge") if isinstance(size, Mapping) else size
    whole = settings.get("do_center_crop", True) and (crop.get("height"), crop.get("width")) == (side, side)
    if not whole or not isinstance(short, int) or short < side:
        raise SpecError(
            f"{name}: size={size!r} and crop_size={crop!r} of the image processor make no square of {side} pixels, "
            "which this model sees"
        )
    return Scaling(short)


class ClipReader(SiglipReader):
    """A Reader of strings and of mappings with either 'text' or 'image'; a class token stands before the patches."""

    def __init__(self, texts: Texts, images: Images, scaling: Scaling) -> None:
        super().__init__(texts, images)
        self._scaling = scaling

    def filled(self, row: list[int], texts: Texts) -> list[int]:
        """The row up to its first end token, which is where transformers reads; what follows changes nothing."""
        return row[: row.index(texts.end) + 1]

    def grid(self, images: Images) -> tuple[int, int]:
        side = images.side // images.patch
        return 1, side * side + 1

    def decode(self, picture: Picture) -> np.ndarray:
        assert self._images is not None, "no picture was measured"
        image, side = cast(ImageSource, picture.source).image(), self._images.side
        width, height = image.size
        short = self._scaling.short
        if short is None:
            pixels = scaled(image, side, side)
        else:
            least = min(width, height)
            pixels = scaled(image, *(short if each == least else int(short * each / least) for each in (height, width)))
        top, left = ((each - side) // 2 for each in pixels.shape[:2])
        rows = patch_rows(pixels[None, top : top + side, left : left + side], patch=self._images.patch, merge=1)
        # In the place of the class token, of which there are no pixels.
        return np.concatenate([np.zeros_like(rows[:1]), rows])
