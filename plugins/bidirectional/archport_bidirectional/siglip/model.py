"""SigLIP's towers, one or two, as one trunk: texts through blocks, images through a vision tower and its pooling head.

An image is a row of one token, whose place its pooled features take after the text blocks. Knows no files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from archport.contract import ArchSpec, LayerContext, TowerContext, VisionTower
from archport.layers import MLP, Attention, Embedding, activation
from archport_bidirectional.siglip import tower as siglip_tower

_TEXT = (
    (".self_attn.out_proj.", ".self_attn.o_proj."),
    (".mlp.fc1.", ".mlp.up_proj."),
    (".mlp.fc2.", ".mlp.down_proj."),
)
# torch's own attention keeps two of its parameters under names without a dot.
_HEAD = (("attention.in_proj_", "in_proj."), ("attention.out_proj.", "out_proj."))


class Siglip(nn.Module):
    """Parameters `text_model` and `vision_model`, of the towers that there are.

    Args:
        text, vision: their configs; None for one that a checkpoint does not have.
    """

    def __init__(self, spec: ArchSpec, text: Mapping[str, Any] | None, vision: Mapping[str, Any] | None) -> None:
        super().__init__()
        self._width = spec.hidden_size
        if text is not None:
            self.text_model = TextTower(spec, text)
        if vision is not None:
            assert spec.vision is not None
            side = vision["image_size"] // vision["patch_size"]
            self._patches = side * side
            self.vision_model = siglip_tower.SiglipTower(spec.vision, vision, side)
            self.vision_head = PoolingHead(spec.vision, vision)

    def __call__(self, input_ids: mx.array, ctx: LayerContext) -> mx.array:
        if "text_model" in self:
            x = self.text_model(input_ids, ctx)
        else:
            x = mx.zeros((*input_ids.shape, self._width), dtype=self.vision_head.probe.dtype)
        return x if ctx.visual is None else ctx.visual.replace(x)

    def see(self, patches: mx.array, ctx: TowerContext) -> list[mx.array]:
        """The pooled features (B, 1, D) of pictures."""
        x = self.vision_model(patches, ctx)
        # Every picture has all patches of its square; what a plan pads after them is nobody's.
        return [self.vision_head(x[:, : self._patches])]

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        kept: dict[str, mx.array] = {}
        tower: dict[str, mx.array] = {}
        for name, value in weights.items():
            name = name.removeprefix("model.")
            if not name.startswith(("text_model.", "vision_model.", "vision_head.", "logit_")):
                # A tower saved alone may have no name in front.
                name = f"{'text_model' if 'text_model' in self else 'vision_model'}.{name}"
            if name.startswith("vision_model.head."):
                name = f"vision_head.{name.removeprefix('vision_model.head.')}"
                for old, new in _HEAD:
                    name = name.replace(old, new)
                kept[name] = value
            elif name.startswith("vision_model."):
                tower[name] = value
            elif name not in ("logit_scale", "logit_bias") and not name.endswith("position_ids"):
                name = name.replace("encoder.layers.", "layers.")
                for old, new in _TEXT if name.startswith("text_model.") else ():
                    name = name.replace(old, new)
                kept[name] = value
        return kept | {f"vision_model.{name}": value for name, value in siglip_tower.sanitized(tower).items()}


def published(weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """The inverse of `sanitize`."""
    named: dict[str, mx.array] = {}
    tower: dict[str, mx.array] = {}
    for name, value in weights.items():
        if name.startswith("vision_model."):
            tower[name.removeprefix("vision_model.")] = value
        elif name.startswith("vision_head."):
            name = name.replace("vision_head.", "vision_model.head.")
            for old, new in _HEAD:
                name = name.replace(f"head.{new}", f"head.{old}")
            named[name] = value
        else:
            for old, new in _TEXT:
                name = name.replace(new, old)
            named[name.replace("text_model.layers.", "text_model.encoder.layers.")] = value
    return named | siglip_tower.published(tower)


class TextTower(nn.Module):
    """Parameters `embeddings`, `layers.N`, `final_layer_norm` and `head`, which is applied to every row."""

    def __init__(self, spec: ArchSpec, config: Mapping[str, Any]) -> None:
        super().__init__()
        eps = config.get("layer_norm_eps", 1e-6)
        self.embeddings = TextEmbeddings(spec)
        self.layers = [TextBlock(index, spec, config, eps) for index in range(len(spec.layers))]
        self.final_layer_norm = nn.LayerNorm(spec.hidden_size, eps=eps)
        self.head = nn.Linear(spec.hidden_size, spec.hidden_size)

    def __call__(self, input_ids: mx.array, ctx: LayerContext) -> mx.array:
        x = self.embeddings(input_ids, ctx.positions)
        for layer in self.layers:
            x = layer(x, ctx)
        return self.head(self.final_layer_norm(x))


class TextEmbeddings(nn.Module):
    def __init__(self, spec: ArchSpec) -> None:
        super().__init__()
        self.token_embedding = Embedding(spec.vocab_size, spec.hidden_size)
        self.position_embedding = Embedding(spec.max_positions, spec.hidden_size)

    def __call__(self, input_ids: mx.array, positions: mx.array) -> mx.array:
        return self.token_embedding(input_ids) + self.position_embedding(positions)


class TextBlock(nn.Module):
    """One pre-norm block with layer norms; parameters `layer_norm1`, `self_attn`, `layer_norm2`, `mlp`."""

    def __init__(self, index: int, spec: ArchSpec, config: Mapping[str, Any], eps: float) -> None:
        super().__init__()
        D, layer = spec.hidden_size, spec.attention_layers[index]
        self.layer_norm1 = nn.LayerNorm(D, eps=eps)
        self.self_attn = Attention(index, layer, D, bias=True, output_bias=True)
        self.layer_norm2 = nn.LayerNorm(D, eps=eps)
        self.mlp = MLP(D, spec.intermediate_size, activation(config.get("hidden_act", "gelu_pytorch_tanh")), bias=True)

    def __call__(self, x: mx.array, ctx: LayerContext) -> mx.array:
        x = x + self.self_attn(self.layer_norm1(x), ctx)
        return x + self.mlp(self.layer_norm2(x))


class PoolingHead(nn.Module):
    """One learned query looks at all patches; parameters `probe`, `in_proj`, `out_proj`, `layernorm`, `mlp`."""

    def __init__(self, tower: VisionTower, vision: Mapping[str, Any]) -> None:
        super().__init__()
        self._heads, width, inner = vision["num_attention_heads"], tower.hidden_size, tower.intermediate_size
        self.probe = mx.zeros((1, 1, width))
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)
        self.layernorm = nn.LayerNorm(width, eps=vision.get("layer_norm_eps", 1e-6))
        self.mlp = siglip_tower.TowerMLP(width, inner, activation(vision.get("hidden_act", "gelu_pytorch_tanh")))

    def __call__(self, x: mx.array) -> mx.array:
        """Features (B, 1, D) of rows (B, L, D)."""
        B, _, width = x.shape
        probe = mx.broadcast_to(self.probe, (B, 1, width))
        q = self.in_proj(probe)[..., :width]
        k, v = mx.split(self.in_proj(x)[..., width:], 2, axis=-1)
        q, k, v = (each.reshape(B, -1, self._heads, width // self._heads).transpose(0, 2, 1, 3) for each in (q, k, v))
        # One query per picture: its scores are a row, whatever kernel takes them.
        out = mx.fast.scaled_dot_product_attention(q, k, v, scale=(width // self._heads) ** -0.5)
        x = self.out_proj(out.transpose(0, 2, 1, 3).reshape(B, 1, width))
        return x + self.mlp(self.layernorm(x))
