"""The patch-merging vision tower that several families share: patches to tokens, with taps for deep stacking.

Pictures come in rows of patches, `merge` x `merge` of them together and each row one picture; full attention inside a
picture, none between two. Knows nothing of files, sizes of images, or the language model behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from archport.contract.media import TowerContext
from archport.kernels.rotate import turn_heads
from archport.layers.activations import activation, gelu

EPS = 1e-6


@dataclass(frozen=True, slots=True)
class TowerShape:
    """The numbers of a tower.

    Args:
        hidden, inner, heads, depth: of its blocks.
        out: width of the language model.
        channels, patch, temporal: what one patch holds: channels x frames x patch x patch.
        merge: patches per side that become one token.
        table: positions per side of the learned table that is stretched over each picture.
        positions: rows of that table as stored, which may be more; 0 for no more.
        taps: blocks after which a merger of its own looks in, in order.
        act: activation of the blocks; mergers have an erf GELU.
        theta: base of the rotary frequencies of rows and columns.
    """

    hidden: int
    inner: int
    heads: int
    depth: int
    out: int
    channels: int = 3
    patch: int = 16
    temporal: int = 2
    merge: int = 2
    table: int = 48
    taps: tuple[int, ...] = ()
    act: str = "gelu_pytorch_tanh"
    theta: float = 10000.0
    positions: int = 0

    @staticmethod
    def of(vision: Mapping[str, Any], width: int, *, taps: Sequence[int] = ()) -> TowerShape:
        """The tower that a vision config describes, in front of a language model of this width."""
        return TowerShape(
            hidden=vision["hidden_size"],
            inner=vision["intermediate_size"],
            heads=vision["num_heads"],
            depth=vision["depth"],
            out=vision.get("out_hidden_size", width),
            channels=vision.get("in_channels", 3),
            patch=vision["patch_size"],
            temporal=vision.get("temporal_patch_size", 2),
            merge=vision.get("spatial_merge_size", 2),
            table=int(vision.get("num_position_embeddings", 2304) ** 0.5),
            positions=vision.get("num_position_embeddings", 2304),
            taps=tuple(taps),
            act=vision.get("hidden_act", "gelu_pytorch_tanh"),
            theta=vision.get("rope_theta") or 10000.0,
        )


class PatchMergingTower(nn.Module):
    """Parameters `patch_embed.proj`, `pos_embed`, `blocks.N`, `merger`, `deepstack_merger_list.N`."""

    def __init__(self, shape: TowerShape) -> None:
        super().__init__()
        self._shape = shape
        self.patch_embed = PatchEmbed(shape)
        self.pos_embed = nn.Embedding(shape.positions or shape.table**2, shape.hidden)
        self.blocks = [Block(index, shape) for index in range(shape.depth)]
        self.merger = Merger(shape, norm_merged=False)
        self.deepstack_merger_list = [Merger(shape, norm_merged=True) for _ in shape.taps]

    def __call__(self, patches: mx.array, ctx: TowerContext) -> list[mx.array]:
        """Features (B, L / merge^2, out): what the merger makes of the last block, then each tap.

        Args:
            patches: (B, L, channels * frames * patch * patch) uint8; one frame stands for all.
        """
        shape = self._shape
        places, corners, shares = placed(ctx.grids, patches.shape[1], shape.merge, shape.table)

        def embed(patches: mx.array, corners: mx.array, shares: mx.array) -> mx.array:
            return self._embed(ctx.normalise(patches), corners, shares)

        x = ctx.rows(embed, patches, mx.array(corners), mx.array(shares))
        angles = self._angles(mx.array(places))
        turns = mx.cos(angles), mx.sin(angles)
        features: list[mx.array] = []
        for index, block in enumerate(self.blocks):
            x = block(x, turns, ctx)
            if index in shape.taps:
                merger = self.deepstack_merger_list[shape.taps.index(index)]
                features.append(ctx.rows(merger, x))
        return [ctx.rows(self.merger, x), *features]

    def _embed(self, patches: mx.array, corners: mx.array, shares: mx.array) -> mx.array:
        x = self.patch_embed(patches)
        table = self.pos_embed.weight
        for corner in range(4):
            x = x + table[corners[..., corner]] * shares[..., corner, None].astype(table.dtype)
        return x

    def _angles(self, places: mx.array) -> mx.array:
        """Radians (B, L, head_dim / 2) of places (B, L, 2): rows' frequencies, then columns'."""
        half = self._shape.hidden // self._shape.heads // 2
        periods = self._shape.theta ** (np.arange(0, half, 2, dtype=np.float32) / half)
        return (places[..., None] * mx.array(1.0 / periods)).flatten(-2)


class PatchEmbed(nn.Module):
    """One product per patch; parameters `proj.weight` (hidden, channels * temporal * patch^2) and `proj.bias`."""

    def __init__(self, shape: TowerShape) -> None:
        super().__init__()
        self._shape = shape
        self.proj = Projection(shape.channels * shape.temporal * shape.patch**2, shape.hidden)

    def __call__(self, patches: mx.array) -> mx.array:
        weight, shape = self.proj.weight, self._shape
        if patches.shape[-1] < weight.shape[-1]:
            # A still image is a film of equal frames, so their weights add up.
            weight = (
                weight.reshape(shape.hidden, shape.channels, shape.temporal, -1).sum(axis=2).reshape(shape.hidden, -1)
            )
        return patches.astype(weight.dtype) @ weight.T + self.proj.bias


class Projection(nn.Module):
    """A weight and a bias that are never quantised: checkpoints hold them as a convolution."""

    def __init__(self, features: int, out: int) -> None:
        super().__init__()
        self.weight = mx.zeros((out, features))
        self.bias = mx.zeros((out,))


class Block(nn.Module):
    """One pre-norm block; parameters `norm1`, `attn.qkv`, `attn.proj`, `norm2`, `mlp.linear_fc1`, `mlp.linear_fc2`."""

    def __init__(self, index: int, shape: TowerShape) -> None:
        super().__init__()
        self._index, self._heads = index, shape.heads
        self.norm1 = nn.LayerNorm(shape.hidden, eps=EPS)
        self.norm2 = nn.LayerNorm(shape.hidden, eps=EPS)
        self.attn = AttentionWeights(shape.hidden)
        self.mlp = TowerMLP(shape)

    def __call__(self, x: mx.array, angles: tuple[mx.array, mx.array], ctx: TowerContext) -> mx.array:
        B, L, h = x.shape
        width = h // self._heads
        qkv = ctx.rows(self._project, x, *angles).reshape(B, L, 3, self._heads, width).transpose(2, 0, 3, 1, 4)
        # Views: MLX copies what a number picks.
        q, k, v = (part.squeeze(0) for part in mx.split(qkv, 3))
        out = ctx.attend(self._index, q, k, v, scale=width**-0.5)
        del qkv, q, k, v
        return ctx.rows(self._transform, x, out.transpose(0, 2, 1, 3).reshape(B, L, h))

    def _project(self, x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
        """Queries, keys and values (B, L, 3 h) side by side, the first two rotated."""
        qkv = self.attn.qkv(self.norm1(x))
        return turn_heads(qkv, cos, sin, turned=2 * self._heads, head_dim=x.shape[-1] // self._heads)

    def _transform(self, x: mx.array, attended: mx.array) -> mx.array:
        x = x + self.attn.proj(attended)
        return x + self.mlp(self.norm2(x))


class AttentionWeights(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.proj = nn.Linear(hidden, hidden)


class TowerMLP(nn.Module):
    def __init__(self, shape: TowerShape) -> None:
        super().__init__()
        self._act = activation(shape.act)
        self.linear_fc1 = nn.Linear(shape.hidden, shape.inner)
        self.linear_fc2 = nn.Linear(shape.inner, shape.hidden)

    def __call__(self, x: mx.array) -> mx.array:
        return self.linear_fc2(self._act(self.linear_fc1(x)))


class Merger(nn.Module):
    """`merge`^2 patches to one token; parameters `norm`, `linear_fc1`, `linear_fc2`.

    Args:
        norm_merged: whether the norm sees the merged patches together, as taps do, or each by itself.
    """

    def __init__(self, shape: TowerShape, *, norm_merged: bool) -> None:
        super().__init__()
        self._merged, self._norm_merged = shape.hidden * shape.merge**2, norm_merged
        self.norm = nn.LayerNorm(self._merged if norm_merged else shape.hidden, eps=EPS)
        self.linear_fc1 = nn.Linear(self._merged, self._merged)
        self.linear_fc2 = nn.Linear(self._merged, shape.out)

    def __call__(self, x: mx.array) -> mx.array:
        if not self._norm_merged:
            x = self.norm(x)
        x = x.reshape(x.shape[0], -1, self._merged)
        if self._norm_merged:
            x = self.norm(x)
        return self.linear_fc2(gelu(self.linear_fc1(x)))


def placed(
    grids: Sequence[tuple[int, int]], length: int, merge: int, table: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where every patch stands, in the order of merged blocks; zeros past a picture's end.

    Returns:
        Rows and columns (B, L, 2) float32; and on a square table of `table` positions a side, stretched over the
        picture corner on corner, the four entries around it (B, L, 4) int32 and their shares (B, L, 4) float32, which
        sum to 1.
    """
    places = np.zeros((len(grids), length, 2), np.float32)
    corners, shares = np.zeros((len(grids), length, 4), np.int32), np.zeros((len(grids), length, 4), np.float32)
    for at, grid in enumerate(grids):
        patches = grid[0] * grid[1]
        for target, one in zip((places, corners, shares), _placed(grid, merge, table), strict=True):
            target[at, :patches] = one
    return places, corners, shares


# Pictures of a request often have one size, and a pass over 16,384 patches takes the host several milliseconds.
@lru_cache(maxsize=16)
def _placed(grid: tuple[int, int], merge: int, table: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`placed` of one picture."""
    down, across = grid
    places = np.empty((down * across, 2), np.float32)
    low, high, part = [], [], []
    for axis, plane in enumerate(np.indices(grid)):
        blocks = plane.reshape(down // merge, merge, across // merge, merge).transpose(0, 2, 1, 3)
        places[:, axis] = blocks.reshape(-1)
        stretched = places[:, axis] * np.float32(table - 1) / np.float32(max(grid[axis] - 1, 1))
        floor = np.clip(np.floor(stretched).astype(np.int32), 0, table - 1)
        low.append(floor)
        high.append(np.minimum(floor + 1, table - 1))
        part.append((stretched - floor).astype(np.float32))
    corners = [low[0] * table + low[1], low[0] * table + high[1], high[0] * table + low[1], high[0] * table + high[1]]
    y, x = part
    shares = [(1 - y) * (1 - x), (1 - y) * x, y * (1 - x), y * x]
    return places, np.stack(corners, axis=-1), np.stack(shares, axis=-1)
