"""Static embeddings: a table of vectors, one per token, and no layer (sentence-transformers, model2vec, potion)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from archport.contract import ArchSpec, CheckpointView, ConfigKeys, Example, Head, TextInputs, Trunk

ARCHS = ("static",)
# What a checkpoint's config is called that has none of its own; sizes are those of the stored table.
ARCHITECTURES = ("StaticEmbedding",)
KEYS = ConfigKeys("static", obeyed=("hidden_size", "vocab_size"))
MODELS = {
    name: name
    for name in (
        "minishlab/potion-base-8M",
        "minishlab/potion-base-32M",
        "minishlab/potion-multilingual-128M",
        "minishlab/potion-retrieval-32M",
        "sentence-transformers/static-retrieval-mrl-en-v1",
        "sentence-transformers/static-similarity-mrl-multilingual-v1",
    )
}
# A mean has no position; this bounds what one text may ask for.
LONGEST = 1 << 20
# Tokens of a text that model2vec keeps where its config does not say.
_KEPT = 512


def claim(config: Mapping[str, Any], _: str) -> ArchSpec:
    KEYS.check(config)
    return ArchSpec(
        arch="static",
        tasks=("embed",),
        layers=(),
        # The last row is that of a text without any token.
        vocab_size=config["vocab_size"] + 1,
        hidden_size=config["hidden_size"],
        intermediate_size=config["hidden_size"],
        max_positions=LONGEST,
        dtype=config.get("dtype", "float32"),
        gated_mlp=False,
        qk_norm=False,
    )


def build(spec: ArchSpec, config: Mapping[str, Any]) -> Trunk:
    from archport_bidirectional.static.model import Table

    return Table(spec.vocab_size, spec.hidden_size)


def head(spec: ArchSpec, checkpoint: CheckpointView) -> Head | None:
    return None


def inputs(spec: ArchSpec, checkpoint: CheckpointView) -> TextInputs | None:
    """Tokens as tokenizer.json gives them, at most as many as it keeps of a text; no other file has a limit."""
    stored = checkpoint.stored_inputs()
    limit, dropped = stored.max_tokens, tuple[int, ...]()
    if not (checkpoint.folder / "modules.json").is_file():
        # As model2vec reads its own layout: unknown tokens do not count.
        limit = (checkpoint.json("config.json") or {}).get("max_length", limit or _KEPT)
        dropped = _unknown((checkpoint.json("tokenizer.json") or {}).get("model") or {})
    return replace(stored, max_tokens=limit, empty_token=spec.vocab_size - 1, dropped=dropped)


def _unknown(model: Mapping[str, Any]) -> tuple[int, ...]:
    """The id of the token that stands for what a tokenizer's model does not know."""
    vocabulary, found = model.get("vocab"), model.get("unk_id")
    if isinstance(vocabulary, Mapping):
        found = vocabulary.get(model.get("unk_token"))
    return () if found is None else (int(found),)


def examples() -> Sequence[Example]:
    # The kit builds trunks with layers from a config.json; a table has neither.
    return []
