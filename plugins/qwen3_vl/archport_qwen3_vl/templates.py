"""The published formats of the embedder, the reranker and conversations: text and places of pictures. Knows no ids.

The formats are literal: a template engine would add nothing, and the bytes are what the models were trained on.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from archport.contract import Asked, InputError

START, END = "<|im_start|>", "<|im_end|>"
INSTRUCTION = "Represent the user's input."
EMPTY = "NULL"
RERANK_INSTRUCTION = "Given a search query, retrieve relevant candidates that answer the query."
JUDGE = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. Note that the "
    'answer can only be "yes" or "no".'
)
# Where the model begins to answer: what pooling reads is the last token of it.
CLOSING = f"{END}\n{START}assistant\n"
ROLES = ("system", "user", "assistant")
KEYS = ("text", "image", "images", "video", "videos", "instruction", "min_pixels", "max_pixels", "fps", "sample_fps")
OPTIONS = ("min_pixels", "max_pixels", "fps", "sample_fps")

Kind = Literal["text", "image", "video"]


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of text, or the place of an image or a video.

    Args:
        index: which image (or video) of the input it is, for messages.
        min_pixels, max_pixels: the caller's bounds for it; None for the model's.
        fps: frames per second of frames that are given without a file; None when nobody said.
        sample_fps: frames per second that the model is to see; None for its own.
    """

    kind: Kind
    text: str = ""
    source: object = None
    index: int = 0
    min_pixels: int | None = None
    max_pixels: int | None = None
    fps: float | None = None
    sample_fps: float | None = None

    def bounds(self, default: tuple[int, int]) -> tuple[int, int]:
        """(fewest, most) pixels."""
        low = default[0] if self.min_pixels is None else self.min_pixels
        high = default[1] if self.max_pixels is None else self.max_pixels
        # A caller who moves one bound past the model's other one means both.
        return (min(low, high) if self.min_pixels is None else low), (
            max(low, high) if self.max_pixels is None else high
        )


@dataclass(frozen=True, slots=True)
class Document:
    """A rendered input.

    Args:
        parts: in order.
        closing: text at its end that is never cut.
    """

    parts: tuple[Part, ...]
    closing: str = CLOSING


def embedding(item: object, asked: Asked) -> Document:
    """An input in the embedder's format: the instruction as system text; videos, then images, then texts."""
    messages = _messages(item)
    if messages is not None:
        return _rendered(messages, asked)
    fields = _fields(item, asked)
    return Document(tuple(_turns(instruction(fields, asked), contents(fields, asked))))


def conversation(item: object, asked: Asked) -> Document:
    """A conversation, or one user's turn, up to where the model answers."""
    messages = _messages(item)
    if messages is not None:
        return _rendered(messages, asked)
    fields = _fields(item, asked)
    system = fields.get("instruction") or asked.prompt
    return Document(tuple(_turns(system, contents(fields, asked))))


def pair(query: object, document: object, asked: Asked) -> Document:
    """A query and a document in the reranker's format, whose parts touch without a separator."""
    given = RERANK_INSTRUCTION if asked.prompt is None else asked.prompt
    sides: list[list[Part]] = []
    for name, side in (("query", query), ("document", document)):
        if _messages(side) is not None:
            raise InputError(f"{asked.name}: its {name} is a conversation; expected a str or a mapping")
        sides.append(contents(_fields(side, asked), asked))
    opening = f"{START}system\n{JUDGE}{END}\n{START}user\n<Instruct>: {given}<Query>:"
    parts = (Part("text", opening), *sides[0], Part("text", "\n<Document>:"), *sides[1], Part("text", CLOSING))
    return Document(parts)


def instruction(fields: Mapping[str, Any], asked: Asked) -> str:
    """The instruction as the models were trained on it: stripped, and ending in punctuation."""
    given = fields.get("instruction") or asked.prompt or INSTRUCTION
    if not isinstance(given, str):
        raise InputError(f"{asked.name}: instruction is a {type(given).__name__}; expected a str")
    given = given.strip()
    if given and not unicodedata.category(given[-1]).startswith("P"):
        given += "."
    return given


def contents(fields: Mapping[str, Any], asked: Asked) -> list[Part]:
    """Videos, images and texts of one side of an input, in that order; nothing at all is the text NULL."""
    options = {name: fields[name] for name in OPTIONS if fields.get(name) is not None}
    parts: list[Part] = []
    kinds: tuple[tuple[Kind, list[Any]], ...] = (
        ("video", [*_one(fields.get("video")), *_several(fields.get("videos"))]),
        ("image", [*_several(fields.get("image")), *_several(fields.get("images"))]),
    )
    for kind, sources in kinds:
        for index, source in enumerate(sources):
            parts.append(_picture(kind, source, index, options, asked))
    for text in _several(fields.get("text")):
        parts.append(_text(text, asked))
    if not any(part.kind != "text" or part.text for part in parts):
        parts = [Part("text", EMPTY)]
    return parts


def _turns(system: str | None, parts: Sequence[Part]) -> Iterator[Part]:
    if system:
        yield Part("text", f"{START}system\n{system}{END}\n")
    yield Part("text", f"{START}user\n")
    yield from parts
    yield Part("text", CLOSING)


def _messages(item: object) -> Sequence[Any] | None:
    if isinstance(item, Mapping) and "messages" in item:
        return item["messages"]
    if isinstance(item, list | tuple) and item and isinstance(item[0], Mapping) and "role" in item[0]:
        return item
    return None


def _fields(item: object, asked: Asked) -> Mapping[str, Any]:
    if isinstance(item, str):
        return {"text": item}
    if not isinstance(item, Mapping):
        raise InputError(
            f"{asked.name} is a {type(item).__name__}; expected a str, a mapping with any of {', '.join(KEYS[:5])}, or "
            "a list of messages with role and content"
        )
    unknown = [key for key in item if key not in KEYS]
    if unknown:
        hint = "; a message belongs in a list of messages" if "role" in unknown else ""
        raise InputError(f"{asked.name} has the unknown key {unknown[0]!r}; known: {', '.join(KEYS)}, messages{hint}")
    return item


def _rendered(messages: Sequence[Any], asked: Asked) -> Document:
    if isinstance(messages, str) or not isinstance(messages, Sequence) or not messages:
        raise InputError(
            f"{asked.name}: messages is {messages!r:.60}; expected a list of mappings with role and content"
        )
    parts: list[Part] = []
    counts = {"image": 0, "video": 0}
    for number, message in enumerate(messages):
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in ROLES or "content" not in message:
            raise InputError(
                f"{asked.name}: message {number} is {message!r:.80}; expected a mapping with content and a role among "
                f"{', '.join(ROLES)}"
            )
        parts.append(Part("text", f"{START}{role}\n"))
        content = message["content"]
        for piece in [content] if isinstance(content, str | Mapping) else content:
            parts.append(_piece(piece, counts, asked))
        # The closing begins with the end of the last turn.
        if number + 1 < len(messages):
            parts.append(Part("text", f"{END}\n"))
    return Document((*parts, Part("text", CLOSING)))


def _piece(piece: object, counts: dict[str, int], asked: Asked) -> Part:
    if isinstance(piece, str):
        return _text(piece, asked)
    if not isinstance(piece, Mapping):
        raise InputError(f"{asked.name}: content holds a {type(piece).__name__}; expected text, image or video parts")
    options = {name: piece[name] for name in OPTIONS if piece.get(name) is not None}
    if "text" in piece:
        return _text(piece["text"], asked)
    for kind in ("image", "video"):
        source = piece.get(kind)
        if source is None and f"{kind}_url" in piece:
            source = piece[f"{kind}_url"]
            source = source.get("url") if isinstance(source, Mapping) else source
        if source is not None:
            counts[kind] += 1
            return _picture(kind, source, counts[kind] - 1, options, asked)
    raise InputError(f"{asked.name}: a content part has the keys {sorted(piece)}; expected text, image or video")


def _text(text: object, asked: Asked) -> Part:
    if not isinstance(text, str):
        raise InputError(f"{asked.name}: text is a {type(text).__name__}; expected a str")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{asked.name} holds a lone surrogate, U+{ord(text[error.start]):04X}, at character {error.start}; it has "
            "no encoding. Repair it, for example with text.encode('utf-8', 'replace').decode()"
        ) from error
    return Part("text", text)


def _picture(kind: Kind, source: object, index: int, options: Mapping[str, Any], asked: Asked) -> Part:
    for name in ("min_pixels", "max_pixels"):
        value = options.get(name, 1)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"{asked.name}: {name}={value!r}; expected a number of pixels >= 1")
    return Part(kind, source=source, index=index, **options)


def _one(value: Any) -> list[Any]:
    return [] if value is None else [value]


def _several(value: Any) -> list[Any]:
    """One thing or a list of them; but a video's list is its frames, so that one goes by `_one`."""
    return list(value) if isinstance(value, list | tuple) else _one(value)
