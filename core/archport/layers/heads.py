"""Output heads: rows of one without the rest of it, and whether a checkpoint's head is its embedding matrix.

Knows nothing of what the rows are for.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

log = logging.getLogger("archport")

# All that a matrix may be stored as.
LEAVES = ("weight", "scales", "biases")


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


def settle_head(
    weights: Mapping[str, mx.array], head: str, embedding: str, *, tied: bool
) -> tuple[dict[str, mx.array], bool]:
    """(the tensors, whether the head has a matrix of its own), as transformers 5 settles a flag against what is stored.

    A stored head that differs from the embedding matrix is kept whatever the flag says; an equal one of a tied model is
    dropped, and one without an embedding matrix beside it serves as both.

    Args:
        weights: a checkpoint's tensors under the module's names.
        head, embedding: paths of the two matrices, such as "lm_head" and "model.embed_tokens".
        tied: what the config says.
    """
    found = dict(weights)
    stored = {leaf: found[f"{head}.{leaf}"] for leaf in LEAVES if f"{head}.{leaf}" in found}
    if not tied or "weight" not in stored:
        return found, not tied
    words = {leaf: found[f"{embedding}.{leaf}"] for leaf in LEAVES if f"{embedding}.{leaf}" in found}
    same = words.keys() == stored.keys() and all(_equal(words[leaf], stored[leaf]) for leaf in words)
    if words and not same:
        log.warning(
            "tie_word_embeddings is true, and the stored %s.weight differs from %s.weight: the stored head is used. "
            "Set tie_word_embeddings to false in config.json to say so",
            head,
            embedding,
        )
        return found, True
    for leaf in stored:
        value = found.pop(f"{head}.{leaf}")
        found.setdefault(f"{embedding}.{leaf}", value)
    return found, False


def _equal(one: mx.array, other: mx.array) -> bool:
    return one.shape == other.shape and bool(mx.array_equal(one, other).item())
