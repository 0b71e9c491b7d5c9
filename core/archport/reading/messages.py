"""Texts and pairs to token ids through the checkpoint's chat template, as a pipeline that takes messages asks for it.

Source of the format: sentence-transformers 6.2. Knows nothing of scores, batches or pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from archport.contract import CheckpointError, ContextLengthExceeded, InputError, Messages, TextInputs
from archport.reading.chat import ChatTemplate
from archport.reading.long_texts import LongTexts
from archport.reading.texts import Overflow, Side, TextTokeniser, Tokens, check_text, encoded, token_limit

# Two contents whose renders end alike in what the template adds, and in nothing else.
_FILLERS = ("0", "1 2 3 4")
# A pair, and the same with another query or another document.
_PROBES = (("alpha", "bravo"), ("charlie", "bravo"), ("alpha", "foxtrot"))


@dataclass(frozen=True, slots=True)
class Conversation:
    """Renders texts as messages and makes ids of them.

    Args:
        tokenizer: without padding and truncation.
        chat: the checkpoint's templates.
        messages: how texts become messages.
        side: the end at which a longer row is cut.
    """

    tokenizer: Tokenizer
    chat: ChatTemplate
    messages: Messages
    side: Side = "right"
    _long: LongTexts = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_long", LongTexts(self.tokenizer))
        if "default" not in self.chat.templates:
            raise CheckpointError(
                f"{self.chat.name}: its pipeline reads texts as chat messages, and there is no chat template; expected "
                "chat_template.jinja, or chat_template in tokenizer_config.json"
            )

    def render(self, said: Sequence[tuple[str, str]], prompt: str) -> str:
        """The text of (role, content) pairs, a prompt in front of them as the system's."""
        everything = [("system", prompt), *said] if prompt else list(said)
        messages = [{"role": role, "content": self._content(text)} for role, text in everything]
        values: dict[str, Any] = {
            "messages": messages,
            "tools": None,
            "documents": None,
            "add_generation_prompt": False,
        }
        return self.chat.rendered("default", {**values, **self.messages.options})

    def _content(self, text: str) -> str | list[Mapping[str, str]]:
        return text if self.messages.form == "flat" else [{"type": "text", "text": text}]

    def ids(
        self,
        rows: Sequence[Sequence[tuple[str, str]]],
        prompt: str,
        limit: int,
        overflow: Overflow,
        what: str,
        first: int = 0,
    ) -> tuple[list[np.ndarray], list[int]]:
        """(ids of every row, indices of those that were cut).

        Args:
            rows: what is said in each, as (role, content).
            what, first: how messages call a row ("document"), and number the first one.
        """
        found: list[np.ndarray] = []
        cut: list[int] = []
        texts = [self.render(row, prompt) for row in rows]
        # One token more shows that a text is too long; of one that is cut at its left the end is kept.
        begun = [(text, False) for text in texts]
        if overflow == "error" or self.side == "right":
            begun = self._long.beginnings(texts, limit + 1, exact=overflow == "truncate")
        for index, encoding in enumerate(
            encoded(self.tokenizer, [text for text, _ in begun], add_special_tokens=False)
        ):
            ids = encoding.ids
            if len(ids) > limit:
                if overflow == "error":
                    tokens, count = self._long.count(len(ids), begun[index][1], len(begun[index][0]), len(texts[index]))
                    raise ContextLengthExceeded(
                        f"{what} {first + index} has {count} tokens with its chat template; the limit is {limit}. "
                        "Pass overflow='truncate' to cut it",
                        requested=tokens,
                        ceiling=limit,
                        max_tokens_that_fit=limit,
                        binding=f"max_tokens {limit}",
                    )
                suffix = self._suffix([role for role, _ in rows[index]], prompt) if self.messages.restore_suffix else []
                kept = suffix[-limit:]
                ids = ids[:limit] if self.side == "right" else ids[-limit:]
                ids = [*ids[: limit - len(kept)], *kept]
                cut.append(first + index)
            if not ids:
                raise InputError(f"{what} {first + index} has no tokens; this model needs at least one")
            found.append(np.asarray(ids, dtype=np.int32))
        return found, cut

    def _suffix(self, roles: Sequence[str], prompt: str) -> list[int]:
        """The tokens that the template puts after every content."""
        one, other = (
            self.tokenizer.encode(self.render([(role, filler) for role in roles], prompt), add_special_tokens=False).ids
            for filler in _FILLERS
        )
        count = 0
        while count < min(len(one), len(other)) and one[-1 - count] == other[-1 - count]:
            count += 1
        return one[len(one) - count :] if count < min(len(one), len(other)) else []


class MessageTokeniser(TextTokeniser):
    """Turns texts into ids as what a user says in a chat.

    Args:
        conversation: renders and encodes.
        inputs, max_tokens, ceiling: as TextTokeniser takes them.
    """

    def __init__(
        self, conversation: Conversation, inputs: TextInputs, max_tokens: int, ceiling: int | None = None
    ) -> None:
        super().__init__(conversation.tokenizer, inputs, max_tokens, ceiling, conversation.side)
        self._conversation = conversation

    def __call__(
        self,
        texts: Sequence[str],
        *,
        prompt: str = "",
        max_tokens: int | None = None,
        overflow: Overflow = "error",
        first: int = 0,
    ) -> Tokens:
        """See TextTokeniser; of a text that is cut, what the template puts after it is kept."""
        limit = self._limit(max_tokens, overflow)
        for index, text in enumerate(texts):
            check_text(text, f"text {first + index}")
        rows = [[("user", text)] for text in texts]
        ids, cut = self._conversation.ids(rows, prompt, limit, overflow, "text", first)
        # Where a prompt stands is the template's to say, so pooling counts it.
        return Tokens(tuple(ids), 0, tuple(cut))


@dataclass(frozen=True, slots=True)
class MessagePairs:
    """Turns pairs into ids as a query and a document in a chat. Says when made if the template passes one of them over.

    Args:
        max_tokens: tokens that a pair may have by default.
        prompt: the default one.
    """

    conversation: Conversation
    max_tokens: int
    prompt: str = ""

    def __post_init__(self) -> None:
        base, *others = (self.conversation.render(_said(*probe), self.prompt) for probe in _PROBES)
        lost = [role for role, other in zip(("query", "document"), others, strict=True) if other == base]
        if lost:
            raise InputError(
                f"the chat template of {self.conversation.chat.name} renders no message of the role "
                f"{' and '.join(lost)}, so the model would score a pair without it; put a template for both roles into "
                "chat_template.jinja"
            )

    def __call__(
        self,
        query: str,
        documents: Sequence[str],
        *,
        instruction: str | None = None,
        max_tokens: int | None = None,
        overflow: Overflow = "error",
    ) -> tuple[np.ndarray, ...]:
        """Ids of every pair, one int32 array per document.

        Args:
            instruction: what the system says; the stored prompt when left out.

        Raises:
            InputError: for a query or instruction that is no text.
            ContextLengthExceeded: for a pair over the limit, unless truncation was asked for.
        """
        limit = token_limit(max_tokens, self.max_tokens, self.max_tokens)
        prompt = self.prompt if instruction is None else instruction
        check_text(query, "the query")
        check_text(prompt, "the instruction")
        for index, document in enumerate(documents):
            check_text(document, f"document {index}")
        rows = [_said(query, document) for document in documents]
        return tuple(self.conversation.ids(rows, prompt, limit, overflow, "document")[0])


def _said(query: str, document: str) -> list[tuple[str, str]]:
    return [("query", query), ("document", document)]
