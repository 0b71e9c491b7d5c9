"""llama_nemotron_vl: a SigLIP tower, four patches to one token, and Llama blocks that see all of a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from archport.contract import ArchSpec, LayerContext, TowerContext
from archport.layers import gelu
from archport_bidirectional.decoders.model import Blocks
from archport_bidirectional.siglip import tower as siglip_tower

_PROJECTOR = {"mlp1.0.": "mlp1.norm.", "mlp1.1.": "mlp1.linear_1.", "mlp1.3.": "mlp1.linear_2."}


class NemotronVL(nn.Module):
    """Parameters `vision_model`, `mlp1` and `language_model`."""

    def __init__(self, spec: ArchSpec, config: Mapping[str, Any], side: int) -> None:
        super().__init__()
        assert spec.vision is not None
        self.vision_model = siglip_tower.SiglipTower(spec.vision, config["vision_config"], side)
        self.mlp1 = Projector(spec.vision.hidden_size * spec.vision.merge_size**2, spec.hidden_size)
        self.language_model = Blocks(spec, config["text_config"])

    def __call__(self, input_ids: mx.array, ctx: LayerContext) -> mx.array:
        x = self.language_model.embed_tokens(input_ids)
        if ctx.visual is not None:
            x = ctx.visual.replace(x)
        return self.language_model(x, ctx)

    def see(self, patches: mx.array, ctx: TowerContext) -> list[mx.array]:
        """Features (B, tokens, D) of pictures."""
        return [ctx.rows(self.mlp1, self.vision_model(patches, ctx))]

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        kept: dict[str, mx.array] = {}
        tower: dict[str, mx.array] = {}
        for name, value in weights.items():
            name = name.removeprefix("model.")
            if name.startswith("vision_model."):
                tower[name.removeprefix("vision_model.")] = value
                continue
            for old, new in _PROJECTOR.items():
                name = name.replace(old, new) if name.startswith(old) else name
            name = name.replace("language_model.model.", "language_model.", 1)
            if not name.startswith("language_model.lm_head."):
                kept[name] = value
        return kept | {f"vision_model.{name}": value for name, value in siglip_tower.sanitized(tower).items()}


def published(weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """The inverse of `sanitize`."""
    named: dict[str, mx.array] = {}
    tower: dict[str, mx.array] = {}
    for name, value in weights.items():
        if name.startswith("vision_model."):
            tower[name.removeprefix("vision_model.")] = value
            continue
        for old, new in _PROJECTOR.items():
            name = name.replace(new, old) if name.startswith(new) else name
        named[name] = value
    return named | {f"vision_model.{name}": value for name, value in siglip_tower.published(tower).items()}


class Projector(nn.Module):
    """Neighbouring patches side by side, normalised, to the language model's width."""

    def __init__(self, merged: int, width: int) -> None:
        super().__init__()
        self._merged = merged
        self.norm = nn.LayerNorm(merged)
        self.linear_1 = nn.Linear(merged, width)
        self.linear_2 = nn.Linear(width, width)

    def __call__(self, x: mx.array) -> mx.array:
        x = self.norm(x.reshape(x.shape[0], -1, self._merged))
        return self.linear_2(gelu(self.linear_1(x)))
