"""What a caller may generate from, as token ids: a prompt, messages, ids, or several of them.

Knows nothing of generation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from tokenizers import Tokenizer

from archport.contract import InputError
from archport.running.chat import ChatTemplate
from archport.running.tokenise import check_text, check_vocabulary

EXPECTED = "a str (a raw prompt), a list of message dicts (a chat), a list of token ids, or a list of those"


@dataclass(frozen=True, slots=True)
class PromptReader:
    """Turns prompts into ids.

    Args:
        tokenizer: without padding and truncation.
        chat: the checkpoint's templates.
        vocabulary: entries of the model's embedding.
    """

    tokenizer: Tokenizer
    chat: ChatTemplate
    vocabulary: int

    def __call__(
        self,
        prompt: object,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> tuple[list[np.ndarray], bool]:
        """(ids of every prompt as int32, whether several were given).

        Args:
            tools, options: handed to the chat template.

        Raises:
            InputError: naming the prompt and what is wrong with it.
        """
        prompts, several = _listed(prompt)
        rows = [self._ids(each, index, tools, options) for index, each in enumerate(prompts)]
        for index, ids in enumerate(rows):
            if not len(ids):
                raise InputError(f"prompt {index} is empty; a model needs at least one token to go on from")
        check_vocabulary(rows, self.vocabulary, "prompt")
        return rows, several

    def _ids(
        self, prompt: Any, index: int, tools: Sequence[Mapping[str, Any]] | None, options: Mapping[str, Any] | None
    ) -> np.ndarray:
        if isinstance(prompt, str):
            check_text(prompt, f"prompt {index}")
            return np.asarray(self.tokenizer.encode(prompt).ids, dtype=np.int32)
        if _are_ids(prompt):
            return np.asarray(prompt, dtype=np.int64).astype(np.int32)
        text = self.chat(prompt, tools=tools, options=options)
        check_text(text, f"prompt {index}")
        # The template has written every special token itself.
        return np.asarray(self.tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int32)


def _listed(prompt: object) -> tuple[list[Any], bool]:
    """(the prompts, whether there are several)."""
    if isinstance(prompt, str) or _are_ids(prompt):
        return [prompt], False
    if isinstance(prompt, bytes | Mapping) or not isinstance(prompt, Sequence):
        raise InputError(f"prompt is a {type(prompt).__name__}; expected {EXPECTED}")
    items = list(cast("Sequence[Any]", prompt))
    if not items:
        raise InputError(f"prompt is an empty {type(prompt).__name__}; expected {EXPECTED}")
    if any(isinstance(item, Mapping) for item in items):
        return [items], False
    for index, item in enumerate(items):
        if not (isinstance(item, str | Sequence) and not isinstance(item, bytes)) and not _are_ids(item):
            raise InputError(f"prompt {index} is a {type(item).__name__}; expected {EXPECTED}")
    return items, True


def _are_ids(value: object) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim == 1 and np.issubdtype(value.dtype, np.integer)
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Sequence) or not value:
        return False
    return all(isinstance(each, int | np.integer) and not isinstance(each, bool) for each in value)
