"""Inputs with pictures, whose tokens stand on three axes: headers to ids and places, and after the plan patches.

Knows how images are resized, videos are cut into moments with their times next to them, and placeholders are repeated.
Knows no architecture: formats are conversations.py's or a plugin's, numbers a checkpoint's, ids the caller's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from archport.contract import Asked, ContextLengthExceeded, Encode, InputError, Measured, Picture
from archport.media.chats import chat_messages, placed
from archport.media.conversations import Document, Part, conversation
from archport.media.images import measure_image
from archport.media.patches import patch_rows
from archport.media.pictures import Film, Moment, Still
from archport.media.processors import channel_normalisation
from archport.media.resize import smart_resize, smart_resize_video
from archport.media.video import measure_video, sample_frames

SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)
_SPECIAL = re.compile("|".join(map(re.escape, SPECIAL)))
# A source that does not say how fast it runs; the reference's assumption.
UNKNOWN_FPS = 24.0


@dataclass(frozen=True, slots=True)
class Settings:
    """The numbers of a checkpoint's processors.

    Args:
        image_token, video_token: vocabulary ids that stand for pictures; None for a model without video.
        patch, merge, temporal: pixels per patch side, patches per token side, frames per token.
        mean, std: of every channel.
        pixels: bounds of an image's area; `video_pixels` of all frames of a video together.
        fps, frames: sampled frames per second of a video, and bounds of their number.
        clamp_first: whether an image is brought within its bounds before it is rounded to whole tokens.
    """

    image_token: int
    video_token: int | None
    patch: int = 16
    merge: int = 2
    temporal: int = 2
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    pixels: tuple[int, int] = (65_536, 16_777_216)
    video_pixels: tuple[int, int] = (131_072, 786_432)
    fps: float = 2.0
    frames: tuple[int, int] = (4, 768)
    clamp_first: bool = False

    @classmethod
    def of(cls, config: Mapping[str, Any], images: Mapping[str, Any], videos: Mapping[str, Any]) -> Settings:
        """What a checkpoint's config and processor files say; what they leave out is the processors' default."""
        vision = config["vision_config"]
        mean, std = channel_normalisation(images)
        return cls(
            image_token=config["image_token_id"],
            video_token=config.get("video_token_id"),
            patch=vision["patch_size"],
            merge=vision.get("spatial_merge_size", 2),
            temporal=vision.get("temporal_patch_size", 2),
            mean=mean,
            std=std,
            pixels=_bounds(images, (65_536, 16_777_216)),
            video_pixels=_bounds(videos, (131_072, 786_432)),
            fps=videos.get("fps") or 2.0,
            frames=(videos.get("min_frames") or 4, videos.get("max_frames") or 768),
        )


def _bounds(processor: Mapping[str, Any], default: tuple[int, int]) -> tuple[int, int]:
    size = processor.get("size") or {}
    low = processor.get("min_pixels") or size.get("shortest_edge") or default[0]
    high = processor.get("max_pixels") or size.get("longest_edge") or default[1]
    return int(low), int(high)


@dataclass(frozen=True, slots=True)
class Placed:
    """What one placeholder in the rendered text stands for."""

    source: Still | Moment
    grid: tuple[int, int]
    token: int

    def tokens(self, merge: int) -> int:
        return self.grid[0] * self.grid[1] // merge**2


def _specials_behind(text: str, beginning: str) -> str:
    """The special tokens of a text that its beginning lacks, which are kept where the text between them is cut."""
    return "".join(_SPECIAL.findall(text)[len(_SPECIAL.findall(beginning)) :])


class PictureReader:
    """A ChatReader of strings, mappings and conversations, with images and video anywhere in them.

    A plugin whose inputs have another format derives from it, renders a Document and hands that to `read`.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @property
    def normalisation(self) -> tuple[Sequence[float], Sequence[float]]:
        return self.settings.mean, self.settings.std

    def measure(self, item: object, encode: Encode, asked: Asked) -> Measured:
        return self.read(conversation(item, asked), encode, asked)

    def messages(self, item: object, asked: Asked) -> list[dict[str, Any]]:
        return chat_messages(item, asked)

    def measure_chat(self, text: str, messages: Sequence[Mapping[str, Any]], encode: Encode, asked: Asked) -> Measured:
        return self.read(placed(text, messages, asked), encode, asked)

    def read(self, document: Document, encode: Encode, asked: Asked) -> Measured:
        """The ids of a rendered document, its pictures in their places, and the positions of both."""
        text: list[str] = []
        runs: list[Placed] = []
        more = False
        for part in document.parts:
            if part.kind == "text":
                short = asked.shorten(part.text)
                more = more or short != part.text
                text.append(short if short == part.text else short + _specials_behind(part.text, short))
                continue
            name = f"{part.kind} {part.index} of {asked.name}"
            made = self._image(part, name) if part.kind == "image" else self._video(part, name)
            text.append(made[0] if part.framed else f"<|vision_start|>{made[0]}<|vision_end|>")
            runs += made[1]
        ids = encode("".join(text))
        if len(ids) + sum(run.tokens(self.settings.merge) - 1 for run in runs) > asked.limit:
            ids, cut = self._cut(ids, runs, document, encode, asked, more=more), True
        else:
            cut = False
        return self._placed(ids, runs, asked, cut=cut)

    def _image(self, part: Part, name: str) -> tuple[str, list[Placed]]:
        s = self.settings
        source = measure_image(part.source, name=name)
        low, high = part.bounds(s.pixels)
        height, width = smart_resize(
            source.height,
            source.width,
            factor=s.patch * s.merge,
            min_pixels=low,
            max_pixels=high,
            clamp_first=s.clamp_first,
        )
        grid = height // s.patch, width // s.patch
        made = Placed(Still(source, height, width), grid, s.image_token)
        return "<|image_pad|>", [made]

    def _video(self, part: Part, name: str) -> tuple[str, list[Placed]]:
        s = self.settings
        if s.video_token is None:
            raise InputError(f"{name}: this checkpoint's config names no token for video; give the frames as images")
        source = measure_video(part.source, fps=part.fps, name=name)
        rate = source.fps or UNKNOWN_FPS
        wanted = part.sample_fps or s.fps
        indices = sample_frames(source.frames, rate, wanted, least=s.frames[0], most=s.frames[1])
        low, high = part.bounds(s.video_pixels)
        height, width = smart_resize_video(
            max(len(indices), s.temporal),
            source.height,
            source.width,
            factor=s.patch * s.merge,
            temporal=s.temporal,
            min_pixels=low,
            max_pixels=high,
        )
        # An odd frame at the end is shown twice.
        indices += indices[-1:] * (-len(indices) % s.temporal)
        film = Film(source, height, width, indices)
        grid = height // s.patch, width // s.patch
        text, made = "", list[Placed]()
        for first in range(0, len(indices), s.temporal):
            last = first + s.temporal - 1
            seconds = (indices[first] / rate + indices[last] / rate) / 2
            text += f"<{seconds:.1f} seconds><|vision_start|><|video_pad|><|vision_end|>"
            made.append(Placed(film.moment(range(first, last + 1)), grid, s.video_token))
        return text, made

    def _placed(self, ids: Sequence[int], runs: Sequence[Placed], asked: Asked, *, cut: bool) -> Measured:
        """Ids with every placeholder repeated, and where each token stands on the axes of time, rows and columns."""
        s = self.settings
        pads = (s.image_token, s.video_token)
        if [each for each in ids if each in pads] != [run.token for run in runs]:
            raise InputError(
                f"{asked.name}: its text holds a placeholder of images or video, or the tokenizer does not know them; "
                "take '<|image_pad|>' and '<|video_pad|>' out of the text, and give images and video apart"
            )
        out: list[int] = []
        pictures: list[Picture] = []
        positions: list[np.ndarray] = []
        waiting, place, start = iter(runs), 0, 0
        for token in [*ids, None]:
            if token is not None and token not in pads:
                out.append(token)
                continue
            # Text up to here stands at one place on every axis.
            length = len(out) - start
            positions.append(np.broadcast_to(place + np.arange(length), (3, length)))
            place += length
            if token is None:
                break
            run = next(waiting)
            down, across = run.grid[0] // s.merge, run.grid[1] // s.merge
            source = run.source
            pictures.append(Picture(len(out), down * across, run.grid, source, source.digest, source.decoding))
            rows, columns = (axis.reshape(-1) for axis in np.mgrid[:down, :across])
            positions.append(place + np.stack([np.zeros_like(rows), rows, columns]))
            place += max(down, across)
            out += [token] * (down * across)
            start = len(out)
        return Measured(
            ids=np.asarray(out, np.int32),
            pictures=tuple(pictures),
            positions=np.concatenate(positions, axis=1).astype(np.int32) if pictures else None,
            next_position=place if pictures else None,
            truncated=cut,
        )

    def _cut(
        self,
        ids: Sequence[int],
        runs: Sequence[Placed],
        document: Document,
        encode: Encode,
        asked: Asked,
        *,
        more: bool,
    ) -> list[int]:
        """Ids without the latest of those that may go: not the closing ones, no special token, no picture.

        Args:
            more: whether they are those of a beginning.
        """
        total = len(ids) + sum(run.tokens(self.settings.merge) - 1 for run in runs)
        kept, over = list(ids), total - asked.limit
        if asked.overflow == "truncate":
            special = {found[0] for token in SPECIAL if len(found := encode(token)) == 1}
            for at in range(len(ids) - len(encode(document.closing)) - 1, -1, -1):
                if over and kept[at] not in special:
                    del kept[at]
                    over -= 1
            if not over:
                return kept
        seen = f", {total - len(ids) + len(runs):,} of them for pictures" if runs else ""
        total = asked.limit + 1 if more else total
        raise ContextLengthExceeded(
            f"{asked.name} has {'at least ' if more else ''}{total:,} tokens{seen}; the limit is {asked.limit:,}. "
            + (
                "Its pictures and the format around them are not cut: give smaller max_pixels or fewer pictures"
                if asked.overflow == "truncate"
                else "Pass overflow='truncate' to cut its text, give smaller max_pixels, or raise max_context"
            ),
            requested=total,
            ceiling=asked.limit,
            max_tokens_that_fit=asked.limit,
            binding=f"max_tokens {asked.limit}",
        )

    def decode(self, picture: Picture) -> np.ndarray:
        source = cast("Still | Moment", picture.source)
        return patch_rows(source.frames(), patch=self.settings.patch, merge=self.settings.merge)
