"""Multi-head attention over the layer context: project, normalise, rotate, attend, project back.

Blocks find their modules by subscript, in 0.03 us; by attribute it takes 0.4, a dozen times per layer and token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import cast

import mlx.core as mx
import mlx.nn as nn

from archport.contract import AttentionLayer, DistanceBias, LayerContext
from archport.contract.split import Cut, Rank, attention_of, kv_heads, out
from archport.device.ranks import Ranks
from archport.layers.merging import MergedLinear, linear_onto
from archport.layers.norm_rotate import NormRotate
from archport.layers.norms import ZeroCentredRMSNorm
from archport.layers.parallel import SummedLinear
from archport.layers.rotary import Rotary

# (q, k, rope) -> both of them rotated, as a context's `rotate`.
Rotate = Callable[[mx.array, mx.array, Callable[[mx.array, int | mx.array], mx.array]], tuple[mx.array, mx.array]]


class Attention(nn.Module):
    """Grouped-query attention of one layer.

    Parameters: `q_proj`, `k_proj`, `v_proj`, `o_proj`, `q_norm` and `k_norm` when `qk_norm_eps` is given, and `sinks`
    (H,) where the spec has them; `merge` replaces the first three by one product.

    Args:
        index: number of the layer, which is how the context knows its spec and cache.
        spec: its heads and widths.
        hidden_size: model width D.
        bias, output_bias: whether the projections carry biases.
        qk_norm_eps: epsilon of an RMS norm over head_dim of q and k, before rotation; None for none.
        qk_norm: the kind of that norm.
        rotary: position embedding; None where positions were added to the input.
        scale: of the scores; head_dim**-0.5 when left out.
        distance_bias: what distances add to the scores, where the spec says `bias`; not a part of this module's
            parameters, so that layers can share one.
    """

    takes_onto = True

    def __init__(
        self,
        index: int,
        spec: AttentionLayer,
        hidden_size: int,
        *,
        bias: bool,
        output_bias: bool,
        qk_norm_eps: float | None = None,
        qk_norm: type[nn.RMSNorm | ZeroCentredRMSNorm] = nn.RMSNorm,
        rotary: Rotary | None = None,
        scale: float | None = None,
        distance_bias: DistanceBias | None = None,
    ) -> None:
        super().__init__()
        self._index, self._spec, self._rotary = index, spec, rotary
        self._scale = spec.head_dim**-0.5 if scale is None else scale
        self._distance_bias = distance_bias
        self._norm_rotate: NormRotate | None = None
        # A gate as wide as the output lies behind each head's query.
        width = spec.head_dim + (spec.v_head_dim if spec.gated else 0)
        self.q_proj = nn.Linear(hidden_size, spec.n_heads * width, bias=bias)
        self.k_proj = nn.Linear(hidden_size, spec.n_kv_heads * spec.head_dim, bias=bias)
        self.v_proj = nn.Linear(hidden_size, spec.n_kv_heads * spec.v_head_dim, bias=bias)
        self.o_proj = nn.Linear(spec.n_heads * spec.v_head_dim, hidden_size, bias=output_bias)
        if qk_norm_eps is not None:
            self.q_norm = qk_norm(spec.head_dim, eps=qk_norm_eps)
            self.k_norm = qk_norm(spec.head_dim, eps=qk_norm_eps)
        if spec.sinks:
            self.sinks = mx.zeros((spec.n_heads,))

    def merge(self) -> None:
        """Replace q_proj, k_proj and v_proj by one product, where their kinds allow."""
        merged = MergedLinear.of([self.q_proj, self.k_proj, self.v_proj])
        if merged is not None:
            self.qkv_proj = merged
            del self.q_proj, self.k_proj, self.v_proj
            spec = self._spec
            if not spec.gated:
                q_norm, k_norm = self.get("q_norm"), self.get("k_norm")
                self._norm_rotate = NormRotate.of(
                    q_norm, k_norm, spec.n_heads, spec.n_kv_heads, spec.head_dim, self._rotary
                )

    @property
    def layer(self) -> AttentionLayer:
        """What it was made for, or this rank's share of that."""
        return self._spec

    def cuts(self, rank: Rank) -> Mapping[str, Cut]:
        """What one rank of a group keeps of each matrix: whole heads."""
        heads, kv = out(rank, self._spec.n_heads, "attention heads"), kv_heads(self._spec, rank)
        own = {"q_proj": heads, "k_proj": kv, "v_proj": kv, "o_proj": replace(heads, side="in")}
        return own | ({"sinks": heads} if self._spec.sinks else {})

    def split(self, ranks: Ranks) -> None:
        """Run this rank's heads, and sum what all of them make."""
        rule, ((first, last),) = self._distance_bias, self.cuts(ranks.rank)["q_proj"].spans
        if rule is not None:
            self._distance_bias = lambda distances: cast(mx.array, rule(distances))[first:last]
        self._spec = attention_of(self._spec, ranks.rank)
        self.o_proj = SummedLinear(self.o_proj, ranks)

    def __call__(self, x: mx.array, ctx: LayerContext, onto: mx.array | None = None) -> mx.array:
        """Attention output (B, L, D) for x (B, L, D), added to `onto` (B, L, D) where that is given."""
        q, k, v, gate = self.heads(x, ctx.rotate)
        return self.joined(self.attended(ctx, q, k, v), gate, onto)

    @property
    def turning(self) -> NormRotate | None:
        """What normalises and rotates q and k at once, where the layer's kinds allow."""
        return self._norm_rotate

    def attended(self, ctx: LayerContext, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        """What the layer's heads find, (B, H, L, Dv)."""
        return ctx.attend(self._index, q, k, v, scale=self._scale, sinks=self.get("sinks"), bias=self._distance_bias)

    def joined(self, out: mx.array, gate: mx.array | None, onto: mx.array | None = None) -> mx.array:
        """The output (B, L, D) of heads (B, H, L, Dv), added to `onto` where that is given."""
        out = out.transpose(0, 2, 1, 3)
        if gate is not None:
            out = out * gate
        return linear_onto(self["o_proj"], out.reshape(*out.shape[:2], -1), onto)

    def heads(self, x: mx.array, rotate: Rotate) -> tuple[mx.array, mx.array, mx.array, mx.array | None]:
        """(q (B, H, L, Dh), k (B, K, L, Dh), v (B, K, L, Dv), gate (B, L, H, Dv) or None), normalised and rotated.

        Args:
            rotate: a context's.
        """
        B, L, _ = x.shape
        spec = self._spec
        if "qkv_proj" in self:
            merged = self["qkv_proj"]
            product = merged.product(x)
            if self._norm_rotate is not None and self._norm_rotate.worthwhile(product):
                # The context turns two arrays; here the one holds both, and of the other nothing is asked.
                (q, k), _ = rotate(product, product, self._norm_rotate)  # pyright: ignore[reportArgumentType]
                v = merged.split(product)[2].reshape(B, L, spec.n_kv_heads, spec.v_head_dim)
                return q, k, v.transpose(0, 2, 1, 3), None
            q, k, v = merged.split(product)
        else:
            q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        q = q.reshape(B, L, spec.n_heads, -1)
        gate = None
        if spec.gated:
            q, gate = mx.split(q, [spec.head_dim], axis=-1)
            gate = mx.sigmoid(gate)
            # Computed along with q, and v copied: each keeps the whole projection alive, also while attention runs.
            (q,), v = mx.depends([q], [gate]), mx.contiguous(v)
        k = k.reshape(B, L, spec.n_kv_heads, spec.head_dim)
        v = v.reshape(B, L, spec.n_kv_heads, spec.v_head_dim).transpose(0, 2, 1, 3)
        if "q_norm" in self:
            q, k = self["q_norm"](q), self["k_norm"](k)
        q, k = q.transpose(0, 2, 1, 3), k.transpose(0, 2, 1, 3)
        if self._rotary is not None:
            q, k = rotate(q, k, self._rotary)
        return q, k, v, gate
