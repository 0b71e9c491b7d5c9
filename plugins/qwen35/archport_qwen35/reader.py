"""How a Qwen3.5 vision checkpoint reads an input: headers to ids, pictures and positions; after the plan, pixels.

A string is plain text. A mapping or a list of messages is a conversation in the family's format, up to where the model
answers. Images only: for a video, give its frames as images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from archport.contract import Asked, ContextLengthExceeded, Encode, InputError, Measured, Picture
from archport.media.images import ImageSource, measure_image
from archport.media.patches import patch_rows
from archport.media.resize import resize, smart_resize

START, END = "<|im_start|>", "<|im_end|>"
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Settings:
    """The numbers of a checkpoint's processor.

    Args:
        image, start, end: vocabulary ids of one token of a picture, and of what stands around it.
        patch, merge: pixels per patch side, patches per token side.
        mean, std: of every channel.
        pixels: bounds of an image's area.
    """

    image: int
    start: int
    end: int
    patch: int = 16
    merge: int = 2
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    pixels: tuple[int, int] = (65_536, 16_777_216)

    @classmethod
    def of(cls, config: Mapping[str, Any], processor: Mapping[str, Any]) -> Settings:
        """What a checkpoint's config and preprocessor file say."""
        vision, size = config["vision_config"], processor.get("size") or {}
        low = processor.get("min_pixels") or size.get("shortest_edge") or 65_536
        high = processor.get("max_pixels") or size.get("longest_edge") or 16_777_216
        return cls(
            image=config["image_token_id"],
            start=config["vision_start_token_id"],
            end=config["vision_end_token_id"],
            patch=vision["patch_size"],
            merge=vision.get("spatial_merge_size", 2),
            mean=tuple(processor.get("image_mean") or (0.5,) * 3),
            std=tuple(processor.get("image_std") or (0.5,) * 3),
            pixels=(int(low), int(high)),
        )


@dataclass(frozen=True, slots=True)
class Still:
    """An image and the size it is given."""

    source: ImageSource
    height: int
    width: int

    def digest(self) -> bytes:
        return self.source.digest() + repr((self.height, self.width)).encode()


class Qwen35Reader:
    """A Reader of strings, mappings ({"text": ..., "image": ...}) and conversations with images in them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @property
    def normalisation(self) -> tuple[Sequence[float], Sequence[float]]:
        return self.settings.mean, self.settings.std

    def measure(self, item: object, encode: Encode, asked: Asked) -> Measured:
        s, ids, stills = self.settings, list[int](), list[tuple[int, Still]]()
        for part in _parts(item, asked):
            if isinstance(part, str):
                found = encode(_encodable(part, asked))
                if s.image in found:
                    raise InputError(
                        f"{asked.name}: its text holds the placeholder of an image; take it out, and give images apart"
                    )
                ids += found
                continue
            still = self._still(part[0], f"image {len(stills)} of {asked.name}")
            stills.append((len(ids) + 1, still))
            ids += [s.start, *[s.image] * self._tokens(still), s.end]
        cut = len(ids) > asked.limit
        if cut and (asked.overflow == "error" or stills):
            seen = f", {sum(self._tokens(still) for _, still in stills):,} of them for images" if stills else ""
            raise ContextLengthExceeded(
                f"{asked.name} has {len(ids):,} tokens{seen}; the limit is {asked.limit:,}. "
                + (
                    "Text with images is not cut: give smaller or fewer images"
                    if stills
                    else "Pass overflow='truncate' to cut it, or raise max_context"
                ),
                requested=len(ids),
                ceiling=asked.limit,
                max_tokens_that_fit=asked.limit,
                binding=f"max_tokens {asked.limit}",
            )
        return self._placed(ids[: asked.limit], stills, cut=cut)

    def _still(self, value: object, name: str) -> Still:
        s = self.settings
        source = measure_image(value, name=name)
        height, width = smart_resize(
            source.height, source.width, factor=s.patch * s.merge, min_pixels=s.pixels[0], max_pixels=s.pixels[1]
        )
        return Still(source, height, width)

    def _tokens(self, still: Still) -> int:
        return still.height * still.width // (self.settings.patch * self.settings.merge) ** 2

    def _placed(self, ids: Sequence[int], stills: Sequence[tuple[int, Still]], *, cut: bool) -> Measured:
        """Where each token stands on the axes of time, rows and columns; text stands at one place on all."""
        array = np.asarray(ids, np.int32)
        if not stills:
            return Measured(ids=array, truncated=cut)
        s, pictures, positions = self.settings, list[Picture](), list[np.ndarray]()
        done = place = 0
        for start, still in stills:
            positions.append(np.broadcast_to(place + np.arange(start - done), (3, start - done)))
            place += start - done
            down, across = (side // (s.patch * s.merge) for side in (still.height, still.width))
            rows, columns = (axis.reshape(-1) for axis in np.mgrid[:down, :across])
            positions.append(place + np.stack([np.zeros_like(rows), rows, columns]))
            grid = down * s.merge, across * s.merge
            pictures.append(Picture(start, down * across, grid, still, still.digest))
            place, done = place + max(down, across), start + down * across
        positions.append(np.broadcast_to(place + np.arange(len(ids) - done), (3, len(ids) - done)))
        return Measured(
            ids=array,
            pictures=tuple(pictures),
            positions=np.concatenate(positions, axis=1).astype(np.int32),
            next_position=place + len(ids) - done,
        )

    def decode(self, picture: Picture) -> np.ndarray:
        still = cast(Still, picture.source)
        frames = resize(still.source.pixels(), still.height, still.width)[None]
        return patch_rows(frames, patch=self.settings.patch, merge=self.settings.merge)


def _parts(item: object, asked: Asked) -> Iterator[str | tuple[object]]:
    """Text, and images in tuples of one, in the order in which the model reads them."""
    if isinstance(item, str):
        yield (asked.prompt or "") + item
        return
    if isinstance(item, Mapping) and "messages" not in item:
        known = {"text", "image", "images"}
        if not item or set(item) - known:
            raise InputError(f"{asked.name} has the keys {sorted(item)}; expected some of {sorted(known)}, or messages")
        images = [*_several(item.get("image")), *_several(item.get("images"))]
        content = [*({"image": image} for image in images), *({"text": text} for text in _several(item.get("text")))]
        item = [{"role": "user", "content": content}]
        if asked.prompt:
            item = [{"role": "system", "content": asked.prompt}, *item]
    messages = cast(Any, item["messages"] if isinstance(item, Mapping) else item)
    if not isinstance(messages, list | tuple) or not messages:
        raise InputError(f"{asked.name} is a {type(item).__name__}; expected a str, a mapping or a list of messages")
    for number, message in enumerate(messages):
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in ROLES or "content" not in message:
            raise InputError(
                f"{asked.name}: message {number} is {message!r:.80}; expected content, and a role of {', '.join(ROLES)}"
            )
        yield f"{START}{role}\n"
        content = message["content"]
        for piece in [content] if isinstance(content, str | Mapping) else content:
            yield _piece(piece, asked)
        yield f"{END}\n"
    yield f"{START}assistant\n"


def _encodable(text: str, asked: Asked) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{asked.name} holds a lone surrogate, U+{ord(text[error.start]):04X}, at character {error.start}; it has "
            "no encoding. Repair it, for example with text.encode('utf-8', 'replace').decode()"
        ) from error
    return text


def _piece(piece: Any, asked: Asked) -> str | tuple[object]:
    text = piece if isinstance(piece, str) else piece.get("text") if isinstance(piece, Mapping) else None
    if isinstance(text, str):
        return text
    image = piece.get("image", piece.get("image_url")) if isinstance(piece, Mapping) else None
    if image is None:
        raise InputError(f"{asked.name}: content holds {piece!r:.80}; expected text or an image")
    return (image["url"] if isinstance(image, Mapping) else image,)


def _several(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
