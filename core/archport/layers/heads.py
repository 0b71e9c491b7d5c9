"""Rows of an output head, without the rest of it. Knows nothing of what the rows are for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn


def head_rows(head: nn.Module, ids: Sequence[int]) -> mx.array:
    """Rows (n, D) of a linear layer's or an embedding's matrix; of a packed one only these are unpacked."""
    rows, packed = mx.array(list(ids)), cast(Any, head)
    if "scales" not in head:
        return packed.weight[rows]
    biases = packed.biases[rows] if packed.get("biases") is not None else None
    return mx.dequantize(
        packed.weight[rows],
        packed.scales[rows],
        biases,
        group_size=packed.group_size,
        bits=packed.bits,
        mode=packed.mode,
    )
