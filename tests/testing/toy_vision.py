"""The toy decoder with a vision tower of one block, and how it reads images."""

from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from lies import DECODER, plugin
from toy_model import Toy

from archport.contract import ContextLengthExceeded, InputError, Measured, Picture
from archport.media import measure_image, patch_rows, resize

SEER = replace(DECODER, name="decoder, a tower", config={**DECODER.config, "vision_config": {"patch_size": 4}})
# Every image is given this many patches.
GRID = (4, 6)
PLACEHOLDER = 190


class Reads:
    """A Reader of strings and of {"image": ...}."""

    normalisation = ((0.5,) * 3, (0.5,) * 3)

    def measure(self, item, encode, asked):
        if isinstance(item, dict):
            image = measure_image(item["image"], name=f"the image of {asked.name}")
            tokens = GRID[0] * GRID[1] // 4
            return Measured(np.full(tokens, PLACEHOLDER, np.int32), (Picture(0, tokens, GRID, image, image.digest),))
        if not isinstance(item, str) or not item:
            raise InputError(f"{asked.name} is {item!r}; expected a text")
        try:
            item.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{asked.name} holds a lone surrogate; expected a text") from error
        prompt = asked.prompt or ""
        ids = encode(prompt + item)
        if len(ids) > asked.limit and asked.overflow == "error":
            raise ContextLengthExceeded(
                f"{asked.name} has {len(ids)} tokens; the limit is {asked.limit}. Pass overflow='truncate' to cut it",
                requested=len(ids),
                ceiling=asked.limit,
                max_tokens_that_fit=asked.limit,
                binding="max_tokens",
            )
        row = np.asarray(ids[: asked.limit], np.int32)
        lead = len(encode(prompt)) if prompt else 0
        return Measured(row, prompt_tokens=min(lead, len(row)), truncated=len(ids) > asked.limit)

    def decode(self, picture):
        down, across = picture.grid
        return patch_rows(resize(picture.source.pixels(), 4 * down, 4 * across)[None], patch=4, merge=2)


def reads_images(checkpoint):
    return replace(checkpoint.stored_inputs(), reader=Reads())


class Sees(Toy):
    """A Toy with a tower: parameters `patch`, `looks` and `joins` beside its own."""

    def __init__(self, spec, config):
        super().__init__(spec, config)
        self.patch, self.looks = nn.Linear(3 * 4 * 4, 64), nn.Linear(64, 3 * 64)
        self.joins = nn.Linear(4 * 64, spec.hidden_size)

    def see(self, patches, ctx):
        x = self.patch(ctx.normalise(patches))
        B, L, _ = x.shape
        q, k, v = self.looks(x).reshape(B, L, 3, 2, 32).transpose(2, 0, 3, 1, 4)
        x = x + ctx.attend(0, q, k, v, scale=32**-0.5).transpose(0, 2, 1, 3).reshape(B, L, 64)
        return [self.joins(x.reshape(B, L // 4, 4 * 64))]

    def enter(self, ids, ctx):
        x = super().enter(ids, ctx)
        return x if ctx.visual is None else ctx.visual.replace(x)


def honest():
    """The plugin of the decoder that sees."""
    return plugin("no_lie_seer", trunk=Sees, examples=[SEER], archport_inputs=reads_images)


def without_a_reader():
    """The same plugin, which says nothing of how images are read."""
    return plugin("no_reader", trunk=Sees, examples=[SEER])


class RemembersPictures(Sees):
    """Text is moved by the last picture that was seen."""

    _seen = 0.0

    def see(self, patches, ctx):
        features = super().see(patches, ctx)
        self._seen = mx.abs(features[0]).mean().item()
        return features

    def enter(self, ids, ctx):
        x = super().enter(ids, ctx)
        return x if ctx.visual is not None else x * (1 + self._seen)
