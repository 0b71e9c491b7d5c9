"""How SigLIP reads an input: a text filled up to all its positions, or an image scaled to a square."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from archport.contract import Asked, ContextLengthExceeded, Encode, InputError, Measured, Picture
from archport.media.images import ImageSource, measure_image
from archport.media.patches import patch_rows
from archport.media.resize import resize
from archport_bidirectional.nemotron_reader import parts_of

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True, slots=True)
class Settings:
    """The numbers of a checkpoint's processors.

    Args:
        length: positions of the text tower, all of which every text takes.
        end, pad: ids that close a text, and that fill it.
        lowercase: whether texts are lower-cased.
        canonical: whether they lose punctuation and repeated spaces, as the first generation's tokenizer does.
        side, patch: pixels per side of an image, and of a patch.
        mean, std: of every channel.
    """

    length: int
    end: int
    pad: int
    lowercase: bool
    canonical: bool
    side: int
    patch: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


class SiglipReader:
    """A Reader of strings and of mappings with either 'text' or 'image'."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @property
    def normalisation(self) -> tuple[Sequence[float], Sequence[float]]:
        return self.settings.mean, self.settings.std

    def measure(self, item: object, encode: Encode, asked: Asked) -> Measured:
        text, images = parts_of(item, asked.name)
        if images and (text or len(images) > 1):
            raise InputError(f"{asked.name} holds {len(images)} images and a text; this model embeds them one by one")
        if images:
            return self._image(images[0], asked)
        text = (asked.prompt or "") + text
        text = text.lower() if self.settings.lowercase else text
        if self.settings.canonical:
            text = " ".join(text.translate(_NO_PUNCTUATION).split())
        ids, most = encode(text), min(asked.limit, self.settings.length)
        if ids[-1:] == [self.settings.end]:
            ids = ids[:-1]
        if len(ids) + 1 > most and asked.overflow == "error":
            raise ContextLengthExceeded(
                f"{asked.name} has {len(ids) + 1} tokens; the limit is {most}. Pass overflow='truncate' to cut it",
                requested=len(ids) + 1,
                ceiling=most,
                max_tokens_that_fit=most,
                binding=f"max_tokens {most}",
            )
        cut = len(ids) + 1 > most
        row = [*ids[: most - 1], self.settings.end]
        # The tower was trained on texts filled to their full length, and reads its answer at the last position.
        row += [self.settings.pad] * (self.settings.length - len(row))
        return Measured(np.asarray(row, dtype=np.int32), truncated=cut)

    def decode(self, picture: Picture) -> np.ndarray:
        image, side = cast(ImageSource, picture.source), self.settings.side
        return patch_rows(resize(image.pixels(), side, side)[None], patch=self.settings.patch, merge=1)

    def _image(self, value: object, asked: Asked) -> Measured:
        image = measure_image(value, name=f"the image of {asked.name}")
        grid = self.settings.side // self.settings.patch
        picture = Picture(0, 1, (grid, grid), image, image.digest)
        return Measured(np.asarray([self.settings.pad], dtype=np.int32), (picture,))
