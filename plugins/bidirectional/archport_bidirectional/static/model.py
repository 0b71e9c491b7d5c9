"""A table of vectors as a trunk: hidden states are its rows."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from archport.contract import LayerContext
from archport.layers import Embedding


class Table(nn.Module):
    """Parameters `embedding`, (V + 1, D): the last row, of zeros, stands for a text without tokens."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.embedding = Embedding(rows, width)

    def __call__(self, input_ids: mx.array, ctx: LayerContext) -> mx.array:
        return self.embedding(input_ids)

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """The table of either layout; model2vec's may map tokens to rows that they share, and weigh each."""
        table = weights.get("embedding.weight")
        if table is None:
            table = weights["embeddings"]
            if "mapping" in weights:
                table = table[weights["mapping"]]
            if not mx.issubdtype(table.dtype, mx.floating):
                table = table.astype(mx.float32)
            if "weights" in weights:
                table = table.astype(mx.float32) * weights["weights"].astype(mx.float32)[:, None]
        return {"embedding.weight": mx.concatenate([table, mx.zeros((1, table.shape[1]), table.dtype)])}
