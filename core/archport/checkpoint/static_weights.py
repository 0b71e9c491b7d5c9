"""The table of a SparseStaticEmbedding: a weight for every word, and the tokenizer that finds the words of a text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from archport.checkpoint.checkpoint import Checkpoint
from archport.checkpoint.disk import inside, read_object
from archport.checkpoint.headers import read_header
from archport.checkpoint.tokenizer import duplicate, load_tokenizer, put_nothing_around, truncation_side
from archport.checkpoint.transformer import token_count
from archport.checkpoint.weights import load_arrays
from archport.contract.errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class StaticTable:
    """What a text's words weigh, whatever stands around them.

    Args:
        weights: (V,) float32.
        tokenizer: puts no special tokens around a text.
        max_tokens: tokens of a text that count, None for all.
        side: the end at which a longer text is cut.
    """

    weights: np.ndarray
    tokenizer: Tokenizer
    max_tokens: int | None
    side: Literal["right", "left"]


def load_static_table(checkpoint: Checkpoint, folder: str) -> StaticTable:
    """The table in a folder of a checkpoint.

    Raises:
        CheckpointError: no weights, or of another shape than one number per word; a table that is named by a path; no
            tokenizer, or one of words that have no weight.
    """
    import mlx.core as mx
    import numpy as np

    place = inside(checkpoint.folder, folder, "router_config.json")
    config = read_object(inside(place, "config.json", "a pipeline")) or {}
    if config.get("path"):
        raise CheckpointError(
            f"{place}/config.json: path={config['path']!r} names a table elsewhere; save the model with "
            "sentence-transformers, which writes the weights next to it as model.safetensors."
        )
    path = inside(place, "model.safetensors", "a pipeline")
    shapes = {name: info.shape for name, info in read_header(path, f"{folder}/model.safetensors").items()}
    if set(shapes) != {"weight"} or len(shapes["weight"]) != 1:
        raise CheckpointError(f"{path}: holds {shapes}; expected a vector `weight`, one number for each word.")
    weights = np.array(load_arrays(path)["weight"].astype(mx.float32))
    if not np.isfinite(weights).all():
        raise CheckpointError(f"{path}: holds NaN or infinity among its {len(weights):,} weights; fetch it again.")
    # Its tokenizer's files, with the words of the transformer's config where they leave one out.
    own = replace(checkpoint, folder=place, body="", memo={})
    tokenizer = duplicate(load_tokenizer(own))
    put_nothing_around(tokenizer)
    most = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if most >= len(weights):
        raise CheckpointError(
            f"{path}: has {len(weights):,} weights, and its tokenizer has a token {most}; expected one weight for each."
        )
    stated = read_object(inside(place, "tokenizer_config.json", "a pipeline")) or {}
    limit = token_count(str(place), "model_max_length", stated.get("model_max_length"))
    return StaticTable(weights, tokenizer, limit, truncation_side(own))
