"""CLIP's towers as one trunk: texts through causal blocks, images through a tower whose class token stands for them.

An image is a row of one token, whose place its projected features take after the text blocks. Knows no files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from archport.contract import ArchSpec, LayerContext, TowerContext, VisionTower
from archport_bidirectional.siglip.model import TextBlock, TextEmbeddings
from archport_bidirectional.siglip.tower import Block, sanitized
from archport_bidirectional.siglip.tower import published as published_tower

_TEXT = (
    (".self_attn.out_proj.", ".self_attn.o_proj."),
    (".mlp.fc1.", ".mlp.up_proj."),
    (".mlp.fc2.", ".mlp.down_proj."),
)


class Clip(nn.Module):
    """Parameters `text_model`, `text_projection`, `vision_model`, `visual_projection`.

    Args:
        text, vision: their configs.
    """

    def __init__(self, spec: ArchSpec, text: Mapping[str, Any], vision: Mapping[str, Any]) -> None:
        super().__init__()
        assert spec.vision is not None
        D = spec.hidden_size
        self.text_model = TextTower(spec, text)
        self.text_projection = nn.Linear(D, D, bias=False)
        self.vision_model = ClassTower(spec.vision, vision)
        self.visual_projection = nn.Linear(spec.vision.hidden_size, D, bias=False)

    def __call__(self, input_ids: mx.array, ctx: LayerContext) -> mx.array:
        x = self.text_projection(self.text_model(input_ids, ctx))
        return x if ctx.visual is None else ctx.visual.replace(x)

    def see(self, patches: mx.array, ctx: TowerContext) -> list[mx.array]:
        """The projected features (B, 1, D) of pictures."""
        return [self.visual_projection(self.vision_model(patches, ctx))]

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        kept: dict[str, mx.array] = {}
        tower: dict[str, mx.array] = {}
        for name, value in weights.items():
            if name.startswith("vision_model."):
                tower[name] = value
            elif name != "logit_scale" and not name.endswith("position_ids"):
                name = name.replace("encoder.layers.", "layers.")
                for old, new in _TEXT if name.startswith("text_model.") else ():
                    name = name.replace(old, new)
                kept[name] = value
        return kept | {f"vision_model.{name}": value for name, value in sanitized(tower).items()}


def published(weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """The inverse of `sanitize`."""
    named: dict[str, mx.array] = {}
    tower: dict[str, mx.array] = {}
    for name, value in weights.items():
        if name.startswith("vision_model."):
            tower[name.removeprefix("vision_model.")] = value
            continue
        for old, new in _TEXT if name.startswith("text_model.") else ():
            name = name.replace(new, old)
        named[name.replace("text_model.layers.", "text_model.encoder.layers.")] = value
    return named | published_tower(tower)


class TextTower(nn.Module):
    """Parameters `embeddings`, `layers.N`, `final_layer_norm`."""

    def __init__(self, spec: ArchSpec, config: Mapping[str, Any]) -> None:
        super().__init__()
        eps = config["layer_norm_eps"]
        self.embeddings = TextEmbeddings(spec)
        self.layers = [TextBlock(index, spec, config, eps) for index in range(len(spec.layers))]
        self.final_layer_norm = nn.LayerNorm(spec.hidden_size, eps=eps)

    def __call__(self, input_ids: mx.array, ctx: LayerContext) -> mx.array:
        x = self.embeddings(input_ids, ctx.positions)
        for layer in self.layers:
            x = layer(x, ctx)
        return self.final_layer_norm(x)


class ClassTower(nn.Module):
    """The vision tower; parameters `embeddings`, `pre_layrnorm` as it is published, `layers.N`, `post_layernorm`."""

    def __init__(self, tower: VisionTower, config: Mapping[str, Any]) -> None:
        super().__init__()
        eps, width = config["layer_norm_eps"], tower.hidden_size
        self._rows = tower.rows_per_token
        self.embeddings = ClassEmbeddings(3 * tower.patch_size**2, width, self._rows)
        self.pre_layrnorm = nn.LayerNorm(width, eps=eps)
        self.layers = [Block(index, tower, config, eps) for index in range(len(tower.layers))]
        self.post_layernorm = nn.LayerNorm(width, eps=eps)

    def __call__(self, patches: mx.array, ctx: TowerContext) -> mx.array:
        """What the class token has seen (B, 1, width), of patches (B, L, features) uint8 after its own row."""
        # A plan may pad after a picture's end; those rows take any position.
        places = mx.minimum(mx.arange(patches.shape[1], dtype=mx.int32), self._rows - 1)
        places = mx.broadcast_to(places, patches.shape[:2])

        def embed(patches: mx.array, places: mx.array) -> mx.array:
            return self.pre_layrnorm(self.embeddings(ctx.normalise(patches), places))

        x = ctx.rows(embed, patches, places)
        for block in self.layers:
            x = block(x, ctx)
        return self.post_layernorm(x[:, :1])


class ClassEmbeddings(nn.Module):
    """A product per patch, one learned row before them, and a position for each; parameters as published.

    The product's weight is never quantised, as files hold a convolution.
    """

    def __init__(self, features: int, width: int, positions: int) -> None:
        super().__init__()
        self.class_embedding = mx.zeros((width,))
        self.patch_embedding = Unbiased(features, width)
        self.position_embedding = nn.Embedding(positions, width)

    def __call__(self, patches: mx.array, places: mx.array) -> mx.array:
        weight = self.patch_embedding.weight
        x = patches.astype(weight.dtype) @ weight.T
        return mx.where(places[..., None] == 0, self.class_embedding, x) + self.position_embedding(places)


class Unbiased(nn.Module):
    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.weight = mx.zeros((width, features))
