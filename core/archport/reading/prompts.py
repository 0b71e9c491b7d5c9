"""What a caller may generate from, as token ids: a prompt, messages, ids, or several of them; pictures included.

Knows nothing of generation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from archport.contract import ChatReader, InputError, Measured, Reader
from archport.reading.chat import ChatTemplate
from archport.reading.ids import token_ids
from archport.reading.texts import TextTokeniser, check_text, check_vocabulary


@dataclass(frozen=True, slots=True)
class VisualPrompts:
    """The prompts of a request, some of which hold pictures.

    Args:
        measured: one per prompt.
        reader: what decodes their pictures.
    """

    measured: tuple[Measured, ...]
    reader: Reader

    @property
    def keys(self) -> list[np.ndarray]:
        """What prompts are remembered by: ids, and numbers below zero made from a picture's pixels in its place."""
        return [_keys(each) for each in self.measured]

    @property
    def images(self) -> tuple[tuple[int, ...], ...]:
        """Per prompt the patches of its pictures, as plans take them."""
        return tuple(tuple(picture.patches for picture in each.pictures) for each in self.measured)

    @property
    def next_positions(self) -> list[int]:
        """Where the token after each prompt stands."""
        return [len(each.ids) if each.next_position is None else each.next_position for each in self.measured]

    def edge(self, tokens: int) -> int:
        """The most leading tokens, at most so many, that cut no prompt inside a picture."""
        for each in self.measured:
            for picture in each.pictures:
                if picture.start < tokens < picture.start + picture.tokens:
                    return self.edge(picture.start)
        return tokens

    def only(self, row: int) -> VisualPrompts:
        """One of the prompts, alone."""
        return replace(self, measured=self.measured[row : row + 1])

    def behind(self, tokens: int) -> VisualPrompts:
        """The same prompts without their leading tokens, of which no picture is cut."""
        if not tokens:
            return self
        return replace(self, measured=tuple(_behind(each, tokens) for each in self.measured))


def _behind(measured: Measured, tokens: int) -> Measured:
    # Positions go on from where they were, so a row that only had pictures needs its own from here on.
    positions = measured.positions
    kept = [picture for picture in measured.pictures if picture.start >= tokens]
    return replace(
        measured,
        ids=measured.ids[tokens:],
        pictures=tuple(replace(picture, start=picture.start - tokens) for picture in kept),
        positions=None if positions is None else positions[:, tokens:],
    )


def _keys(measured: Measured) -> np.ndarray:
    keys = measured.ids.astype(np.int64)
    for picture in measured.pictures:
        digest = hashlib.blake2b(picture.digest() + repr(picture.grid).encode(), digest_size=8).digest()
        first = int.from_bytes(digest, "little") >> 2
        keys[picture.start : picture.start + picture.tokens] = -1 - (first + np.arange(picture.tokens)) % 2**62
    return keys


def of_prompts(measured: Sequence[Measured], reader: Reader | None) -> VisualPrompts | None:
    """The prompts, where any of them holds a picture or stands on places of its own."""
    if reader is None or not any(each.pictures or each.positions is not None for each in measured):
        return None
    return VisualPrompts(tuple(measured), reader)


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
class Told:
    """What a call says of how messages become a prompt; see `ChatTemplate`."""

    tools: Sequence[Mapping[str, Any]] | None = None
    options: Mapping[str, Any] | None = None
    continue_final_message: bool | str = False

    @property
    def names(self) -> list[str]:
        """The arguments that were given."""
        own = {"tools": self.tools, "continue_final_message": self.continue_final_message}
        return [*(name for name, value in own.items() if value), *(self.options or {})]


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
        continue_final_message: bool | str = False,
    ) -> Prompts:
        """Ids of every prompt, what a reader found in them, and whether several were given.

        Args:
            tools, options, continue_final_message: handed to the chat template.

        Raises:
            InputError: naming the prompt and what is wrong with it.
        """
        prompts, several = _listed(prompt)
        told = Told(tools, options, continue_final_message)
        measured = tuple(self._measured(each, index, told) for index, each in enumerate(prompts))
        rows = [each.ids for each in measured]
        for index, ids in enumerate(rows):
            if not len(ids):
                raise InputError(f"prompt {index} is empty; a model needs at least one token to go on from")
        check_vocabulary(rows, self.vocabulary, "prompt")
        return Prompts(rows, measured, several)

    def _measured(self, prompt: Any, index: int, told: Told) -> Measured:
        reader, name = self.tokeniser.inputs.reader, f"prompt {index}"
        if reader is None or isinstance(prompt, str) or _are_ids(prompt):
            return Measured(self._ids(prompt, index, told))
        asked = self.tokeniser.asked(name, None, self.tokeniser.max_tokens)
        if isinstance(reader, ChatReader) and self.chat.templates:
            messages = reader.messages(prompt, asked)
            if not _holds_pictures(messages):
                return Measured(self._ids(messages, index, told))
            text = self._rendered(messages, name, told)
            return reader.measure_chat(text, messages, self.tokeniser.encode, asked)
        # Without a template, or a reader that places pictures in what it makes, the reader's own format counts.
        if isinstance(prompt, Mapping) or _holds_pictures(prompt) or not self.chat.templates:
            if told.names:
                raise InputError(
                    f"{name} goes through the model's own reader, which takes no {', '.join(told.names)}; "
                    f"{self.chat.name} has {'no chat template' if not self.chat.templates else 'one for text only'}"
                )
            return reader.measure(prompt, self.tokeniser.encode, asked)
        return Measured(self._ids(prompt, index, told))

    def _ids(self, prompt: Any, index: int, told: Told) -> np.ndarray:
        name, taken = f"prompt {index}", isinstance(prompt, str) or _are_ids(prompt)
        if taken and told.names:
            raise InputError(
                f"{name} is taken as it is, so {', '.join(told.names)} would change nothing; generate knows no such "
                "argument, and a chat template gets it with a list of messages only"
            )
        if isinstance(prompt, str):
            check_text(prompt, name)
            return self._known(self.tokeniser.fitting(prompt, name, special=True), index)
        if taken:
            return token_ids(prompt, self.vocabulary, name)
        if self.tokeniser.inputs.reader is None and _shows(prompt):
            raise InputError(f"{name} holds an image or a video, and {self.chat.name} reads text only")
        # The template has written every special token itself.
        return self._known(self.tokeniser.fitting(self._rendered(prompt, name, told), name, special=False), index)

    def _rendered(self, messages: Any, name: str, told: Told) -> str:
        text = self.chat(
            messages,
            tools=told.tools,
            options=told.options,
            continue_final_message=told.continue_final_message,
        )
        check_text(text, name)
        return text

    def _known(self, ids: list[int], index: int) -> np.ndarray:
        """Ids of a tokenizer as int32, none of which the model does not know."""
        row = np.asarray(ids, dtype=np.int64)
        check_vocabulary([row], self.vocabulary, "prompt", index)
        return row.astype(np.int32)


def _parts(prompt: Any) -> list[Mapping[str, Any]]:
    """The parts of all messages of a conversation that are more than a str."""
    messages = prompt if isinstance(prompt, Sequence) and not isinstance(prompt, str) else ()
    contents = [each.get("content") for each in messages if isinstance(each, Mapping)]
    parts = [part for content in contents if isinstance(content, list | tuple) for part in content]
    return [part for part in parts if isinstance(part, Mapping)]


def _holds_pictures(prompt: Any) -> bool:
    """Whether it is a conversation with anything but text in a message."""
    return any("text" not in part for part in _parts(prompt))


def _shows(prompt: Any) -> bool:
    kinds = [part.get("type") for part in _parts(prompt)]
    return any(kind.startswith(("image", "video")) for kind in kinds if isinstance(kind, str))


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
