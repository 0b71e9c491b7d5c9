"""The SigLIP vision tower: patches of one square picture to rows after the last norm. Knows no tiles and no text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from archport.contract import TowerContext, VisionTower
from archport.layers import activation


class SiglipTower(nn.Module):
    """Parameters `embeddings`, `layers.N` and `post_layernorm`.

    Args:
        side: patches per side of a picture; each has a learned position.
    """

    def __init__(self, tower: VisionTower, config: Mapping[str, Any], side: int) -> None:
        super().__init__()
        self._side, self._merge = side, tower.merge_size
        features = config.get("num_channels", 3) * tower.patch_size**2
        eps = config.get("layer_norm_eps", 1e-6)
        self.embeddings = PatchEmbeddings(features, tower.hidden_size, side * side)
        self.layers = [Block(index, tower, config, eps) for index in range(len(tower.layers))]
        self.post_layernorm = nn.LayerNorm(tower.hidden_size, eps=eps)

    def __call__(self, patches: mx.array, ctx: TowerContext) -> mx.array:
        """Rows (B, L, hidden) of patches (B, L, features) uint8, in the order in which they are merged."""
        order = merged_order(self._side, self._merge)
        # Past a picture's end a plan may have padded; those rows take any position.
        order = np.pad(order, (0, patches.shape[1] - len(order)))
        places = mx.array(np.broadcast_to(order, patches.shape[:2]))

        def embed(patches: mx.array, places: mx.array) -> mx.array:
            return self.embeddings(ctx.normalise(patches), places)

        x = ctx.rows(embed, patches, places)
        for block in self.layers:
            x = block(x, ctx)
        return ctx.rows(self.post_layernorm, x)


def merged_order(side: int, merge: int) -> np.ndarray:
    """The row-major index of each patch of a square picture, `merge` x `merge` neighbours together."""
    grid = np.arange(side * side, dtype=np.int32).reshape(side // merge, merge, side // merge, merge)
    return grid.transpose(0, 2, 1, 3).reshape(-1)


class PatchEmbeddings(nn.Module):
    """A product per patch and a learned position; its weight is never quantised, as files hold a convolution."""

    def __init__(self, features: int, width: int, positions: int) -> None:
        super().__init__()
        self.patch_embedding = Projection(features, width)
        self.position_embedding = nn.Embedding(positions, width)

    def __call__(self, patches: mx.array, places: mx.array) -> mx.array:
        weight = self.patch_embedding.weight
        return patches.astype(weight.dtype) @ weight.T + self.patch_embedding.bias + self.position_embedding(places)


class Projection(nn.Module):
    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.weight, self.bias = mx.zeros((width, features)), mx.zeros((width,))


class Block(nn.Module):
    """One pre-norm block; parameters `layer_norm1`, `self_attn`, `layer_norm2`, `mlp`."""

    def __init__(self, index: int, tower: VisionTower, config: Mapping[str, Any], eps: float) -> None:
        super().__init__()
        self._index, self._layer, width = index, tower.layers[index], tower.hidden_size
        self.layer_norm1 = nn.LayerNorm(width, eps=eps)
        self.layer_norm2 = nn.LayerNorm(width, eps=eps)
        self.self_attn = AttentionWeights(width)
        act = activation(config.get("hidden_act", "gelu_pytorch_tanh"))
        self.mlp = TowerMLP(width, tower.intermediate_size, act)

    def __call__(self, x: mx.array, ctx: TowerContext) -> mx.array:
        B, L, width = x.shape
        heads = getattr(self._layer, "n_heads", 1)
        qkv = ctx.rows(self._project, x).reshape(B, L, 3, heads, width // heads).transpose(2, 0, 3, 1, 4)
        # Views: MLX copies what a number picks.
        q, k, v = (part.squeeze(0) for part in mx.split(qkv, 3))
        out = ctx.attend(self._index, q, k, v, scale=(width // heads) ** -0.5)
        del qkv, q, k, v
        return ctx.rows(self._transform, x, out.transpose(0, 2, 1, 3).reshape(B, L, width))

    def _project(self, x: mx.array) -> mx.array:
        """Queries, keys and values (B, L, 3 width) side by side."""
        return self.self_attn.qkv_proj(self.layer_norm1(x))

    def _transform(self, x: mx.array, attended: mx.array) -> mx.array:
        x = x + self.self_attn.out_proj(attended)
        return x + self.mlp(self.layer_norm2(x))


class AttentionWeights(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)


class TowerMLP(nn.Module):
    def __init__(self, width: int, inner: int, act: Any) -> None:
        super().__init__()
        self._act = act
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def __call__(self, x: mx.array) -> mx.array:
        return self.fc2(self._act(self.fc1(x)))


_PARTS = ("q_proj", "k_proj", "v_proj")


def sanitized(weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """A published tower's tensors, its own prefix taken off, under this module's names; the pooling head is dropped."""
    kept: dict[str, mx.array] = {}
    for name, value in weights.items():
        name = name.removeprefix("vision_model.").replace("encoder.layers.", "layers.")
        if name.startswith("head.") or name.endswith("position_ids"):
            continue
        if name.endswith("patch_embedding.weight") and value.ndim == 4:
            # (out, channels, down, across) as published; MLX conversions put channels last.
            value = value.transpose(0, 3, 1, 2) if value.shape[-1] == 3 and value.shape[1] != 3 else value
            value = value.reshape(value.shape[0], -1)
        kept[name] = value
    for name in [name for name in kept if ".self_attn.q_proj." in name]:
        parts = [kept.pop(name.replace("q_proj", part)) for part in _PARTS]
        kept[name.replace("q_proj", "qkv_proj")] = mx.concatenate(parts, axis=0)
    return kept


def published(weights: Mapping[str, mx.array], channels: int = 3) -> dict[str, mx.array]:
    """The inverse of `sanitized`, with the prefix that the tower's own class gives it."""
    named: dict[str, mx.array] = {}
    for name, value in weights.items():
        name = f"vision_model.{name}".replace("vision_model.layers.", "vision_model.encoder.layers.")
        if name.endswith("patch_embedding.weight"):
            patch = round((value.shape[1] / channels) ** 0.5)
            value = value.reshape(value.shape[0], channels, patch, patch)
        if ".qkv_proj." in name:
            for part, rows in zip(_PARTS, mx.split(value, 3, axis=0), strict=True):
                named[name.replace("qkv_proj", part)] = rows
            continue
        named[name] = value
    return named
