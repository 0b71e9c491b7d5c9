"""The layer context of an encode pass: right-padded rows, no cache. It owns the masks and positions of one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx

from archport.contract import ArchportError, ArchSpec, AttentionLayer


class EncodeContext:
    """What layers see of one batch of right-padded rows.

    Right padding makes a causal batch exact without any padding mask: no real token sees a later one. A bidirectional
    batch needs none when all rows are equally long, else one key mask (B, 1, 1, L), shared by all layers.

    Args:
        spec: the architecture, for each layer's semantics.
        lengths: real tokens per row.
        L: padded length.
        additive: whether a key mask is added to the scores instead of a bool; on CUDA a bool costs 60 times the memory.
    """

    def __init__(self, spec: ArchSpec, lengths: Sequence[int], L: int, *, additive: bool) -> None:
        self._spec, self._lengths, self._L, self._additive = spec, tuple(lengths), L, additive
        self._positions = mx.broadcast_to(mx.arange(L, dtype=mx.int32), (len(lengths), L))
        self._key_mask: mx.array | None = None

    def _padding_mask(self, dtype: mx.Dtype) -> mx.array | None:
        """The key mask (B, 1, 1, L) of a ragged batch, built once; None when all rows are equally long."""
        if self._key_mask is None and any(length != self._L for length in self._lengths):
            real = mx.arange(self._L)[None] < mx.array(self._lengths)[:, None]
            mask = real[:, None, None, :]
            # The smallest finite value, not -inf: a row of padding must stay finite.
            self._key_mask = mx.where(mask, 0.0, mx.finfo(dtype).min).astype(dtype) if self._additive else mask
        return self._key_mask

    @property
    def positions(self) -> mx.array:
        return self._positions

    def rotate(
        self, q: mx.array, k: mx.array, rope: Callable[[mx.array, int | mx.array], mx.array]
    ) -> tuple[mx.array, mx.array]:
        return rope(q, 0), rope(k, 0)

    def attend(
        self,
        layer: int,
        q: mx.array,
        k: mx.array,
        v: mx.array,
        *,
        scale: float,
        sinks: mx.array | None = None,
    ) -> mx.array:
        spec = self._spec.layers[layer]
        if not isinstance(spec, AttentionLayer):
            raise ArchportError(f"layer {layer} is declared recurrent but called attend; declare it an AttentionLayer")
        if spec.is_windowed and self._L - 1 > min(side for side in spec.reach if side):
            raise ArchportError(
                f"layer {layer} reaches {spec.reach} tokens and the batch is {self._L} tokens long; attention windows "
                "shorter than the text are not implemented yet"
            )
        mask = "causal" if spec.semantics == "causal" else self._padding_mask(q.dtype)
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask, sinks=sinks)
