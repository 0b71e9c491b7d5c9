"""What several families read off a config or a checkpoint in the same way."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from importlib import import_module
from operator import attrgetter
from typing import Any

from archport.contract import CheckpointView, Task, TextInputs

# What transformers' classes of an encoder are for, by the ends of their names.
TASKS: Mapping[str, tuple[Task, ...]] = {
    "Model": ("embed", "rerank"),
    "ForMaskedLM": ("embed", "fill_mask"),
    "ForSequenceClassification": ("classify", "rerank"),
    "ForTokenClassification": ("tag",),
}
# The words that Nomic's cards ask for.
NOMIC_PROMPTS = {
    "query": "search_query: ",
    "document": "search_document: ",
    "classification": "classification: ",
    "clustering": "clustering: ",
}


def tasks_of(*prefixes: str) -> dict[str, tuple[Task, ...]]:
    """Architecture -> tasks, for every class of an encoder under these names."""
    return {f"{prefix}{suffix}": tasks for prefix in prefixes for suffix, tasks in TASKS.items()}


def named(config: Mapping[str, Any], names: Collection[str]) -> str | None:
    """The first of the config's architectures that is among `names`, None when none is."""
    return next((name for name in config.get("architectures") or [] if name in names), None)


def of_model(family: str, name: str) -> Callable[..., Any]:
    """A function of a family's `model.py`, which is imported when it is called: it imports mlx.

    Args:
        family: the family's package.
        name: of the function, or of an object and its method ("NAMES.published").
    """
    return partial(_called, family, name)


def _called(family: str, name: str, *arguments: Any) -> Any:
    return attrgetter(name)(import_module(f"{family}.model"))(*arguments)


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
