"""How llama_nemotron_vl reads an input: headers to token ids and tiles; after the plan, pixels to patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from archport.contract import Asked, ContextLengthExceeded, Encode, InputError, Measured, Picture
from archport.media import measure_image, patch_rows
from archport_bidirectional.nemotron.tiles import TiledImage

# Four patches become one token.
MERGE = 2
DOCUMENT = "passage: "


@dataclass(frozen=True, slots=True)
class Settings:
    """The numbers of a checkpoint's processor.

    Args:
        image_token: vocabulary id that stands for a token of an image.
        start: text of the token that begins a row, "" for none.
        side, patch: pixels per side of a tile, and of a patch.
        tiles: tiles that an image may have, its thumbnail aside.
        thumbnail: whether several tiles are followed by the whole image in one.
        mean, std: of every channel.
    """

    image_token: int
    start: str
    side: int
    patch: int
    tiles: int
    thumbnail: bool = True
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    @property
    def tokens(self) -> int:
        """Tokens of one tile."""
        return (self.side // self.patch // MERGE) ** 2


class NemotronReader:
    """A Reader of strings and of mappings {"text": ..., "image": one or several}; images stand before the text."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @property
    def normalisation(self) -> tuple[Sequence[float], Sequence[float]]:
        return self.settings.mean, self.settings.std

    def measure(self, item: object, encode: Encode, asked: Asked) -> Measured:
        whole, images = parts_of(item, asked.name)
        text = asked.shorten(whole)
        more = text != whole
        found = [
            TiledImage(
                measure_image(image, name=f"image {index} of {asked.name}"),
                self.settings.side,
                self.settings.tiles,
                thumbnail=self.settings.thumbnail,
            )
            for index, image in enumerate(images)
        ]
        prompt = asked.shorten(asked.prompt) if asked.prompt is not None else DOCUMENT if found else ""
        more = more or (asked.prompt is not None and prompt != asked.prompt)
        ids: list[int] = encode(self.settings.start + prompt) if self.settings.start + prompt else []
        if not found:
            # One piece, as a tokenizer may join the prompt's last letters with the text's first.
            return self._finished(encode(self.settings.start + prompt + text), [], asked, len(ids), more=more)
        pictures: list[Picture] = []
        before = len(ids)
        start: list[int] = []
        for index, image in enumerate(found):
            lead = self.settings.start + prompt if index == 0 else ""
            start += encode(f"{lead}<img>")
            for tile in range(image.count):
                pictures.append(self._picture(image, tile, len(start)))
                start += [self.settings.image_token] * self.settings.tokens
            # The published text has this space even where no text follows.
            tail = f"</img> {text}" if index == len(found) - 1 else "</img>"
            start += encode(tail)
        return self._finished(start, pictures, asked, before, more=more)

    def decode(self, picture: Picture) -> np.ndarray:
        image, tile = cast("tuple[TiledImage, int]", picture.source)
        return patch_rows(image.tile(tile)[None], patch=self.settings.patch, merge=MERGE)

    def _picture(self, image: TiledImage, tile: int, start: int) -> Picture:
        side = self.settings.side // self.settings.patch

        def digest() -> bytes:
            return image.digest() + tile.to_bytes(2, "little")

        return Picture(start, self.settings.tokens, (side, side), (image, tile), digest, image.decoding)

    def _finished(self, ids: list[int], pictures: list[Picture], asked: Asked, prompt: int, *, more: bool) -> Measured:
        """The row of these ids; with `more` they are those of a text's beginning."""
        if not ids:
            raise InputError(f"{asked.name} has no tokens; this model needs at least one")
        stray = sum(token == self.settings.image_token for token in ids) - len(pictures) * self.settings.tokens
        if stray:
            raise InputError(f"{asked.name} holds {stray} image tokens in its text; images are passed beside it")
        limit, cut = asked.limit, len(ids) > asked.limit
        last = max((picture.start + picture.tokens + 1 for picture in pictures), default=0)
        if cut and (asked.overflow == "error" or last > limit):
            way = "its images alone take more" if last > limit else "pass overflow='truncate' to cut its text"
            tokens = limit + 1 if more else len(ids)
            raise ContextLengthExceeded(
                f"{asked.name} has {'at least ' if more else ''}{tokens} tokens; the limit is {limit}: {way}",
                requested=tokens,
                ceiling=limit,
                max_tokens_that_fit=limit,
                binding=f"max_tokens {limit}",
            )
        row = np.asarray(ids[:limit], dtype=np.int32)
        return Measured(row, tuple(pictures), prompt_tokens=min(prompt, len(row)), truncated=cut)


def parts_of(item: object, name: str) -> tuple[str, list[object]]:
    """(text, images) of a string, or of a mapping with 'text' and 'image'."""
    if isinstance(item, str):
        return _checked(item, name), []
    if not isinstance(item, Mapping):
        raise InputError(f"{name} is {_called(item)}; expected a str or a mapping with 'text' and 'image'")
    entry = cast("Mapping[str, object]", item)
    unknown = sorted(str(key) for key in entry if key not in ("text", "image", "images"))
    if unknown:
        raise InputError(f"{name} holds {', '.join(unknown)}; expected 'text' and 'image'")
    text = entry.get("text") or ""
    if not isinstance(text, str):
        raise InputError(f"the text of {name} is {_called(text)}; expected a str")
    images = entry.get("image", entry.get("images"))
    several = list(images) if isinstance(images, list | tuple) else [] if images is None else [images]
    if not several and not text:
        raise InputError(f"{name} is empty; expected a text, an image, or both")
    return _checked(text, name), several


def _checked(text: str, name: str) -> str:
    """The text, if it has an encoding."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{name} holds a lone surrogate, U+{ord(text[error.start]):04X}, at character {error.start}; it has no "
            "encoding. Repair it, for example with text.encode('utf-8', 'replace').decode()"
        ) from error
    return text


def _called(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
