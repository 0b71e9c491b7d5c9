"""What several families read off a config or a checkpoint in the same way."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from archport.contract import CheckpointView, TextInputs


def named(config: Mapping[str, Any], names: Collection[str]) -> str | None:
    """The first of the config's architectures that is among `names`, None when none is."""
    return next((name for name in config.get("architectures") or [] if name in names), None)


def has_pipeline(checkpoint: CheckpointView) -> bool:
    """Whether the checkpoint says itself how rows become vectors."""
    return checkpoint.modules is not None


def prompted(checkpoint: CheckpointView, known: Mapping[str, str], *, query: str, document: str) -> TextInputs:
    """The checkpoint's own inputs, with the prompts of its model card where no file of it could hold any.

    Args:
        known: name -> text.
        query, document: names in `known` for the two roles.
    """
    stored = checkpoint.stored_inputs()
    if has_pipeline(checkpoint) and checkpoint.json("config_sentence_transformers.json") is not None:
        return stored
    return replace(
        stored, prompts=known, query_prompt=query, document_prompt=document, source="prompts of the model card"
    )
