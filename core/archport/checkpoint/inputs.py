"""What a checkpoint's files say of texts on their way in: limits, prompts and their roles, lower-casing, messages.

Reads small JSON files only. Roles are those of sentence-transformers 6.2: `encode_query` has the prompt called "query"
and `encode_document` the one called "document", and neither ever falls back to another or to the default prompt.
"""

from __future__ import annotations

from typing import Any

from archport.checkpoint.files import Opened, body_folder
from archport.checkpoint.pipeline import pipeline_settings
from archport.checkpoint.transformer import TransformerSettings, token_count, transformer_settings
from archport.contract.errors import CheckpointError
from archport.contract.inputs import TextInputs


def read_inputs(checkpoint: Opened) -> TextInputs:
    """How text becomes tokens.

    The limit is the pipeline's, else the tokenizer's; None when neither states one.

    Raises:
        CheckpointError: prompts that are not text, a default prompt that does not exist, or a limit that is none.
    """
    transformer, stated = transformer_settings(checkpoint.folder, checkpoint.route), pipeline_settings(checkpoint)
    prompts = _prompts(checkpoint, stated)
    default = stated.get("default_prompt_name")
    # Both roles have a prompt, be it none.
    if default is not None and default not in {**prompts, "query": "", "document": ""}:
        raise CheckpointError(
            f"{checkpoint.folder}: default_prompt_name={default!r} is not among the prompts {', '.join(prompts)}."
        )
    # A limit of the tokenizer's call wins over that of a role.
    by_role = transformer.truncates and transformer.call_limit is None
    spoke = [
        *(["config_sentence_transformers.json"] if stated else []),
        *([transformer.source.rsplit("/", 1)[-1]] if transformer.source else []),
    ]
    return TextInputs(
        max_tokens=_max_tokens(checkpoint, transformer),
        prompts=prompts,
        query_prompt="query" if "query" in prompts else None,
        document_prompt="document" if "document" in prompts else None,
        default_prompt=default if default in prompts else None,
        lowercase=transformer.lowercase,
        query_tokens=transformer.query_tokens if by_role else None,
        document_tokens=transformer.document_tokens if by_role else None,
        messages=transformer.messages,
        source=" and ".join(spoke) or "default",
    )


def _prompts(checkpoint: Opened, stated: dict[str, Any]) -> dict[str, str]:
    prompts = stated.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(text is None or isinstance(text, str) for text in prompts.values()):
        raise CheckpointError(
            f"{checkpoint.folder}: config_sentence_transformers.json: prompts={prompts!r}; expected name to text."
        )
    return {name: text or "" for name, text in prompts.items()}


def _max_tokens(checkpoint: Opened, transformer: TransformerSettings) -> int | None:
    if not transformer.truncates:
        return None
    if transformer.call_limit is not None:
        return transformer.call_limit
    body = body_folder(checkpoint.folder, checkpoint.route)
    if transformer.plain_tokenizer:
        own = (checkpoint.json(f"{body}/tokenizer.json" if body else "tokenizer.json") or {}).get("truncation") or {}
        return token_count(str(checkpoint.folder), "tokenizer.json: truncation.max_length", own.get("max_length"))
    name = "tokenizer_config.json"
    # Old pipelines keep the tokenizer next to the transformer, some next to the pipeline.
    tokenizer = (checkpoint.json(f"{body}/{name}") if body else None) or checkpoint.json(name) or {}
    handed = "model_max_length" in transformer.tokenizer
    if not handed and transformer.max_tokens is not None:
        return transformer.max_tokens
    own = {**tokenizer, **transformer.tokenizer}
    return token_count(str(checkpoint.folder), "model_max_length", own.get("model_max_length", own.get("max_len")))
