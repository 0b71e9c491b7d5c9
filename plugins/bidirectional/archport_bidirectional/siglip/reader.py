"""How SigLIP reads an input: a text filled up to all its positions, or an image scaled to a square."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from archport.contract import Asked, ContextLengthExceeded, Encode, InputError, Measured, Picture
from archport.media import ImageSource, measure_image, patch_rows, scaled
from archport_bidirectional.nemotron.reader import parts_of

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True, slots=True)
class Texts:
    """How texts are written.

    Args:
        length: positions of the text tower, all of which every text takes.
        end, pad: ids that close a text, and that fill it.
        lowercase: whether texts are lower-cased.
        canonical: whether they lose punctuation and repeated spaces, as the first generation's tokenizer does.
        start: id that opens a text; None where none does.
    """

    length: int
    end: int
    pad: int
    lowercase: bool
    canonical: bool
    start: int | None = None


@dataclass(frozen=True, slots=True)
class Images:
    """How images are cut.

    Args:
        side, patch: pixels per side of an image, and of a patch.
        mean, std: of every channel.
    """

    side: int
    patch: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


class SiglipReader:
    """A Reader of strings and of mappings with either 'text' or 'image', as far as there is a tower for them."""

    def __init__(self, texts: Texts | None, images: Images | None) -> None:
        self._texts, self._images = texts, images

    @property
    def normalisation(self) -> tuple[Sequence[float], Sequence[float]]:
        return ((0.5,) * 3, (0.5,) * 3) if self._images is None else (self._images.mean, self._images.std)

    def measure(self, item: object, encode: Encode, asked: Asked) -> Measured:
        text, images = parts_of(item, asked.name)
        if images and (text or len(images) > 1):
            raise InputError(f"{asked.name} holds {len(images)} images and a text; this model embeds them one by one")
        if images:
            return self._image(images[0], asked)
        s = self._texts
        if s is None:
            raise InputError(f"{asked.name} is a text; this checkpoint is the image tower alone, which reads no text")
        text = (asked.prompt or "") + text
        text = text.lower() if s.lowercase else text
        if s.canonical:
            text = " ".join(text.translate(_NO_PUNCTUATION).split())
        short = asked.shorten(text)
        ids, most = encode(short), min(asked.limit, s.length)
        if ids[-1:] == [s.end]:
            ids = ids[:-1]
        if s.start is not None:
            ids = [s.start, *ids]
        if len(ids) + 1 > most and asked.overflow == "error":
            more = short != text
            tokens = asked.limit + 1 if more else len(ids) + 1
            raise ContextLengthExceeded(
                f"{asked.name} has {'at least ' if more else ''}{tokens} tokens; the limit is {most}. Pass "
                "overflow='truncate' to cut it",
                requested=tokens,
                ceiling=most,
                max_tokens_that_fit=most,
                binding=f"max_tokens {most}",
            )
        cut = len(ids) + 1 > most
        row = [*ids[: most - 1], s.end]
        return Measured(np.asarray(self.filled(row, s), dtype=np.int32), truncated=cut)

    def filled(self, row: list[int], texts: Texts) -> list[int]:
        """A closed text's ids as the tower reads them, its answer at the last; it was trained on full lengths."""
        return row + [texts.pad] * (texts.length - len(row))

    def grid(self, images: Images) -> tuple[int, int]:
        """Rows of the tower (down, across) that one image takes."""
        side = images.side // images.patch
        return side, side

    def decode(self, picture: Picture) -> np.ndarray:
        assert self._images is not None, "no picture was measured"
        image, side = cast(ImageSource, picture.source), self._images.side
        return patch_rows(scaled(image.image(), side, side)[None], patch=self._images.patch, merge=1)

    def _image(self, value: object, asked: Asked) -> Measured:
        if self._images is None:
            raise InputError(f"{asked.name} is an image; this checkpoint is the text tower alone, which sees nothing")
        image = measure_image(value, name=f"the image of {asked.name}")
        picture = Picture(0, 1, self.grid(self._images), image, image.digest, image.decoding)
        pad = 0 if self._texts is None else self._texts.pad
        return Measured(np.asarray([pad], dtype=np.int32), (picture,))
