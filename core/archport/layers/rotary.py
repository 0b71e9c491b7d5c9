"""Rotary position embedding (RoPE), applied at positions that the layer context supplies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from archport.contract import SpecError


class Rotary:
    """Rotates the first `dims` of each head.

    Args:
        dims: rotated width, even and at most head_dim.
        theta: base of the frequencies.
        scaling: `rope_scaling` of the config; None or type `default` leaves frequencies alone, `linear` divides
            positions by `factor`.
        interleaved: rotate neighbouring pairs instead of the two halves.

    Raises:
        SpecError: for a scaling type this block does not know, before any weight is read.
    """

    def __init__(
        self, dims: int, theta: float, scaling: Mapping[str, Any] | None = None, *, interleaved: bool = False
    ) -> None:
        if dims <= 0 or dims % 2:
            raise SpecError(f"rotary embedding: {dims=} is not a positive even number")
        self.dims, self.theta, self.interleaved, self.scale = dims, theta, interleaved, 1.0
        kind = (scaling or {}).get("rope_type") or (scaling or {}).get("type") or "default"
        if kind == "linear":
            self.scale = 1.0 / float((scaling or {})["factor"])
        elif kind != "default":
            raise SpecError(f"rotary embedding: rope_type={kind!r} is not supported; known: default, linear")

    def __call__(self, x: mx.array, offset: int | mx.array) -> mx.array:
        """Rotate x (B, H, L, Dh); token i of row b stands at position offset[b] + i (or offset + i)."""
        return mx.fast.rope(
            x, self.dims, traditional=self.interleaved, base=self.theta, scale=self.scale, offset=offset
        )
