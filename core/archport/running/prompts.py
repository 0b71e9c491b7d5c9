"""What a caller may generate from, as token ids: a prompt, messages, ids, or several of them.

Knows nothing of generation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from archport.contract import InputError, Measured
from archport.running.chat import ChatTemplate
from archport.running.ids import token_ids
from archport.running.tokenise import TextTokeniser, check_text, check_vocabulary

EXPECTED = "a str (a raw prompt), a list of message dicts (a chat), a list of token ids, or a list of those"


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts as ids.

    Args:
        rows: ids of each, int32.
        measured: of each, with its pictures.
        several: whether a list of prompts was given.
    """

    rows: list[np.ndarray]
    measured: tuple[Measured, ...]
    several: bool


@dataclass(frozen=True, slots=True)
class PromptReader:
    """Turns prompts into ids.

    Args:
        tokeniser: of the model; its reader reads what holds pictures.
        chat: the checkpoint's templates.
        vocabulary: entries of the model's embedding.
    """

    tokeniser: TextTokeniser
    chat: ChatTemplate
    vocabulary: int

    def __call__(
        self,
        prompt: object,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Prompts:
        """Ids of every prompt, what a reader found in them, and whether several were given.

        Args:
            tools, options: handed to the chat template.

        Raises:
            InputError: naming the prompt and what is wrong with it.
        """
        prompts, several = _listed(prompt)
        measured = tuple(self._measured(each, index, tools, options) for index, each in enumerate(prompts))
        rows = [each.ids for each in measured]
        for index, ids in enumerate(rows):
            if not len(ids):
                raise InputError(f"prompt {index} is empty; a model needs at least one token to go on from")
        check_vocabulary(rows, self.vocabulary, "prompt")
        return Prompts(rows, measured, several)

    def _measured(
        self, prompt: Any, index: int, tools: Sequence[Mapping[str, Any]] | None, options: Mapping[str, Any] | None
    ) -> Measured:
        reader = self.tokeniser.inputs.reader
        if reader is not None and (isinstance(prompt, Mapping) or _holds_pictures(prompt) or self._unwritten(prompt)):
            if tools or options:
                raise InputError(f"prompt {index} goes through the model's own reader, which takes no tools or options")
            limit = self.tokeniser.max_tokens
            return reader.measure(prompt, self.tokeniser.encode, self.tokeniser.asked(f"prompt {index}", None, limit))
        return Measured(self._ids(prompt, index, tools, options))

    def _unwritten(self, prompt: Any) -> bool:
        """Whether it is a conversation, and the checkpoint brings no template for it."""
        return "default" not in self.chat.templates and not isinstance(prompt, str) and not _are_ids(prompt)

    def _ids(
        self, prompt: Any, index: int, tools: Sequence[Mapping[str, Any]] | None, options: Mapping[str, Any] | None
    ) -> np.ndarray:
        if (tools or options) and (isinstance(prompt, str) or _are_ids(prompt)):
            names = ", ".join([*(["tools"] if tools else []), *(options or {})])
            raise InputError(
                f"prompt {index} is taken as it is, so {names} would change nothing; generate knows no such argument, "
                "and a chat template gets it with a list of messages only"
            )
        if isinstance(prompt, str):
            check_text(prompt, f"prompt {index}")
            return self._known(self.tokeniser.fitting(prompt, f"prompt {index}", special=True), index)
        if _are_ids(prompt):
            return token_ids(prompt, self.vocabulary, f"prompt {index}")
        text = self.chat(prompt, tools=tools, options=options)
        check_text(text, f"prompt {index}")
        # The template has written every special token itself.
        return self._known(self.tokeniser.fitting(text, f"prompt {index}", special=False), index)

    def _known(self, ids: list[int], index: int) -> np.ndarray:
        """Ids of a tokenizer as int32, none of which the model does not know."""
        row = np.asarray(ids, dtype=np.int64)
        check_vocabulary([row], self.vocabulary, "prompt", index)
        return row.astype(np.int32)


def _holds_pictures(prompt: Any) -> bool:
    """Whether it is a conversation with anything but text in a message."""
    if isinstance(prompt, str | Mapping) or _are_ids(prompt) or not isinstance(prompt, Sequence):
        return False
    contents = [each.get("content") for each in prompt if isinstance(each, Mapping)]
    parts = [part for content in contents if isinstance(content, list | tuple) for part in content]
    return any(isinstance(part, Mapping) and "text" not in part for part in parts)


def _is_input(value: Any) -> bool:
    """Whether it is one input of a model that sees, and no message of a conversation."""
    return isinstance(value, Mapping) and "role" not in value


def _listed(prompt: object) -> tuple[list[Any], bool]:
    """(the prompts, whether there are several)."""
    if isinstance(prompt, str) or _are_ids(prompt) or _is_input(prompt):
        return [prompt], False
    if isinstance(prompt, bytes | Mapping) or not isinstance(prompt, Sequence):
        raise InputError(f"prompt is a {type(prompt).__name__}; expected {EXPECTED}")
    items = list(cast("Sequence[Any]", prompt))
    if not items:
        raise InputError(f"prompt is an empty {type(prompt).__name__}; expected {EXPECTED}")
    if any(isinstance(item, Mapping) and not _is_input(item) for item in items):
        return [items], False
    for index, item in enumerate(items):
        if (
            not _is_input(item)
            and not (isinstance(item, str | Sequence) and not isinstance(item, bytes))
            and not _are_ids(item)
        ):
            raise InputError(f"prompt {index} is a {type(item).__name__}; expected {EXPECTED}")
    return items, True


def _are_ids(value: object) -> bool:
    """Whether it is meant as token ids: numbers of any kind, of which `token_ids` says what is wrong with them."""
    if isinstance(value, np.ndarray):
        return value.ndim == 1
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Sequence) or not value:
        return False
    return all(issubclass(kind, int | float | complex | np.number | np.bool_) for kind in set(map(type, value)))
