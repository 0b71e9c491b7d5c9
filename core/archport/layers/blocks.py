"""Blocks of one layer. Decoders normalise first: normalise, mix, add; normalise, transform, add. BERT-like encoders
normalise last: attend, add, normalise; transform, add, normalise.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from archport.contract import LayerContext
from archport.kernels.sum_norm import sum_norm
from archport.layers.compiled import CompiledParts, compilable
from archport.layers.merging import added


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


class PreNormBlock(nn.Module):
    """One decoder layer; parameters `input_layernorm`, `self_attn`, `post_attention_layernorm`, `mlp`.

    Args:
        mixer: name of the first module in checkpoints, where it is not `self_attn`.
    """

    def __init__(
        self, attention: nn.Module, mlp: nn.Module, hidden_size: int, eps: float, *, mixer: str = "self_attn"
    ) -> None:
        super().__init__()
        self._mixer = mixer
        self._compiled = CompiledParts()
        self.input_layernorm = nn.RMSNorm(hidden_size, eps=eps)
        self[mixer] = attention
        self.post_attention_layernorm = nn.RMSNorm(hidden_size, eps=eps)
        self.mlp = mlp

    def __call__(self, x: mx.array, ctx: LayerContext) -> mx.array:
        if ctx.decoding is not None and compilable(self[self._mixer], self["mlp"]):
            parts = (self[name] for name in ("input_layernorm", self._mixer, "post_attention_layernorm", "mlp"))
            return self._compiled.of(*parts, rows=x.shape[0])(x, ctx)
        x = added(self[self._mixer], x, self["input_layernorm"](x), ctx)
        ctx.pause(x)
        x = added(self["mlp"], x, self["post_attention_layernorm"](x))
        ctx.pause(x)
        return x
