"""The post-norm block of BERT-like encoders: attend, add, normalise; transform, add, normalise."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from archport.contract import LayerContext
from archport.kernels.sum_norm import sum_norm


class PostNormBlock(nn.Module):
    """One encoder layer; parameters `attention`, `attention_norm`, `mlp`, `output_norm`."""

    def __init__(self, attention: nn.Module, mlp: nn.Module, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.attention = attention
        self.attention_norm = nn.LayerNorm(hidden_size, eps=eps)
        self.mlp = mlp
        self.output_norm = nn.LayerNorm(hidden_size, eps=eps)

    def __call__(self, x: mx.array, ctx: LayerContext) -> mx.array:
        x = sum_norm(self.attention_norm, x, self.attention(x, ctx))  # pyright: ignore[reportCallIssue]
        ctx.pause(x)
        x = sum_norm(self.output_norm, x, self.mlp(x))  # pyright: ignore[reportCallIssue]
        ctx.pause(x)
        return x
