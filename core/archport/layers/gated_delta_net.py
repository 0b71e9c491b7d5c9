"""The gated delta net of Qwen3-Next and Qwen3.5: project, convolve, remember by the gated delta rule, gate, project.

State, documents, padding and the form of the rule come from the layer context; nothing is kept here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import mlx.core as mx
import mlx.nn as nn

from archport.contract import DeltaHeads, Documents, LayerContext
from archport.contract.split import Cut, Rank, delta_channels, delta_of, out
from archport.device.ranks import Ranks
from archport.layers.activations import Activation, host_is_faster, silu
from archport.layers.compiled import fused
from archport.layers.gated_delta import run_rule
from archport.layers.merging import MergedLinear, linear_onto
from archport.layers.parallel import SummedLinear
from archport.layers.short_conv import ShortConv

# Added to the sum of squares of a key or query before its root is taken.
UNIT_EPS = 1e-6


class GatedDeltaNet(nn.Module):
    """One recurrent layer.

    Parameters: `in_proj_qkv`, `in_proj_z`, `in_proj_b`, `in_proj_a` (`merge` makes them one product), `conv1d`,
    `A_log`, `dt_bias`, `norm`, `out_proj`.

    Args:
        index: number of the layer, which is how the context knows its spec and state.
        heads: numbers and widths of its heads.
        hidden_size: model width D.
        conv_taps: taps of the convolution over q, k and v.
        eps: of the norm over each value head.
        act: behind the convolution; the gate of the norm is silu in every published model, whatever a config says.
    """

    takes_onto = True

    def __init__(
        self, index: int, heads: DeltaHeads, hidden_size: int, *, conv_taps: int, eps: float, act: Activation = silu
    ) -> None:
        super().__init__()
        self._index, self._heads = index, heads
        self.in_proj_qkv = nn.Linear(hidden_size, heads.channels, bias=False)
        self.in_proj_z = nn.Linear(hidden_size, heads.values, bias=False)
        self.in_proj_b = nn.Linear(hidden_size, heads.n_value_heads, bias=False)
        self.in_proj_a = nn.Linear(hidden_size, heads.n_value_heads, bias=False)
        self.conv1d = ShortConv(heads.channels, conv_taps, act)
        self.dt_bias = mx.ones((heads.n_value_heads,))
        self.A_log = mx.zeros((heads.n_value_heads,))
        self.norm = nn.RMSNorm(heads.value_dim, eps=eps)
        self.out_proj = nn.Linear(heads.values, hidden_size, bias=False)

    def merge(self) -> None:
        """Replace the four input projections by one product, where their kinds allow."""
        merged = MergedLinear.of([self.in_proj_qkv, self.in_proj_z, self.in_proj_b, self.in_proj_a])
        if merged is not None:
            self.in_proj = merged
            del self.in_proj_qkv, self.in_proj_z, self.in_proj_b, self.in_proj_a

    @property
    def heads(self) -> DeltaHeads:
        """What it was made for, or this rank's share of that."""
        return self._heads

    def cuts(self, rank: Rank) -> Mapping[str, Cut]:
        """What one rank of a group keeps of each matrix: whole key heads and the value heads that they serve."""
        channels, heads = delta_channels(self._heads, rank), out(rank, self._heads.n_value_heads, "value heads")
        values = dict.fromkeys(("in_proj_z", "in_proj_b", "in_proj_a", "A_log", "dt_bias"), heads)
        return values | {
            "in_proj_qkv": channels,
            "conv1d": replace(channels, side="channels"),
            "out_proj": replace(heads, side="in"),
        }

    def split(self, ranks: Ranks) -> None:
        """Run this rank's heads, and sum what all of them make."""
        self._heads = delta_of(self._heads, ranks.rank)
        self.out_proj = SummedLinear(self.out_proj, ranks)

    def __call__(self, x: mx.array, ctx: LayerContext, onto: mx.array | None = None) -> mx.array:
        """Output (B, L, D) for x (B, L, D), added to `onto` (B, L, D) where that is given."""
        B, L, _ = x.shape
        heads, documents = self._heads, ctx.documents
        qkv, z, b, a = self._projected(x)
        log_decay, beta = self._gates(a, b, documents)
        step = ctx.state(self._index, qkv, z, log_decay, beta)
        state, tail = cast("tuple[mx.array | None, mx.array | None]", step.arrays or (None, None))
        mixed, tail = self.conv1d(qkv, tail, documents)
        q, k, v = mx.split(mixed, [heads.keys, 2 * heads.keys], axis=-1)
        # A unit key, and a unit query times key_dim**-0.5, in one pass each: RMS norm is off by that root.
        root = heads.key_dim**-0.5
        q, k = (
            mx.fast.rms_norm(
                each.reshape(B, L, heads.n_key_heads, heads.key_dim),
                mx.full((heads.key_dim,), scale, dtype=each.dtype),
                UNIT_EPS / heads.key_dim,
            )
            for each, scale in ((q, root * root), (k, root))
        )
        v = v.reshape(B, L, heads.n_value_heads, heads.value_dim)
        if state is None:
            state = mx.zeros((B, heads.n_value_heads, heads.key_dim, heads.value_dim))
        y, state = run_rule(step.path, q, k, v, log_decay, beta, state)
        out = linear_onto(self.out_proj, self._gated(y, z).reshape(B, L, -1), onto)
        if step.keeps:
            step.store((state, tail))
            # Whoever evaluates the output evaluates the state as well: alone it would keep this step's inputs alive.
            (out,) = mx.depends([out], [state, tail])
        return out

    def _projected(self, x: mx.array) -> list[mx.array]:
        if "in_proj" in self:
            return self.in_proj(x)
        return [self.in_proj_qkv(x), self.in_proj_z(x), self.in_proj_b(x), self.in_proj_a(x)]

    def _gates(self, a: mx.array, b: mx.array, documents: Documents) -> tuple[mx.array, mx.array]:
        """log g and beta, (B, L, Hv) float32: -inf where a document starts, and 0 and 0 at padding."""
        log_decay, beta = _log_decay(a, self.A_log, self.dt_bias), mx.sigmoid(b.astype(mx.float32))
        if documents.age is not None:
            log_decay = mx.where((documents.age == 0)[..., None], -mx.inf, log_decay)
        if documents.real is not None:
            real = documents.real[..., None]
            log_decay, beta = mx.where(real, log_decay, 0.0), mx.where(real, beta, 0.0)
        return log_decay, beta

    def _gated(self, y: mx.array, z: mx.array) -> mx.array:
        """Each head's answer y (B, L, Hv, Dv), normalised, times silu of its gate, in the element type of z."""
        normed, z = self.norm(y), z.reshape(y.shape)
        if host_is_faster(z):
            return normed * silu(z)
        return _gated(normed, z)


@fused
def _log_decay(a: mx.array, A_log: mx.array, dt_bias: mx.array) -> mx.array:
    rate = mx.exp(A_log.astype(mx.float32))
    return -rate * nn.softplus(a.astype(mx.float32) + dt_bias.astype(mx.float32))


@fused
def _gated(normed: mx.array, z: mx.array) -> mx.array:
    return (normed.astype(mx.float32) * nn.silu(z.astype(mx.float32))).astype(z.dtype)
