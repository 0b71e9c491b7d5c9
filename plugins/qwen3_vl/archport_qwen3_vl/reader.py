"""How Qwen3-VL reads an input: as the published embedder and reranker do, or as a conversation. Knows no ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from archport.contract import Asked, Encode, Measured
from archport.media import PictureReader, Settings, conversation
from archport_qwen3_vl.templates import EMPTY, embedding, pair

# What the published embedder resizes to, instead of the processor's bounds.
EMBEDDING_PIXELS = (4_096, 1_843_200)
EMBEDDING_VIDEO = (4_096, 7_864_320)


def settings_of(
    config: Mapping[str, Any], images: Mapping[str, Any], videos: Mapping[str, Any], *, embeds: bool
) -> Settings:
    """What a checkpoint's files say; for an embedder or a reranker, what its published code does instead."""
    stored = Settings.of(config, images, videos)
    if not embeds:
        return stored
    # Its bounds are in units of its tokens, and so are a tiny model's.
    scale = (stored.patch * stored.merge / 32) ** 2
    pixels, video = ((int(low * scale), int(high * scale)) for low, high in (EMBEDDING_PIXELS, EMBEDDING_VIDEO))
    return replace(stored, pixels=pixels, video_pixels=video, fps=1.0, frames=(1, 64), clamp_first=True)


class Qwen3VLReader(PictureReader):
    """A PairReader of strings, mappings and conversations, with images and video anywhere in them."""

    def __init__(self, settings: Settings, *, embeds: bool) -> None:
        super().__init__(settings)
        self._embeds = embeds

    def measure(self, item: object, encode: Encode, asked: Asked) -> Measured:
        document = embedding(item, asked) if self._embeds else conversation(item, asked, empty=EMPTY)
        return self.read(document, encode, asked)

    def measure_pair(self, query: object, document: object, encode: Encode, asked: Asked) -> Measured:
        return self.read(pair(query, document, asked), encode, asked)
