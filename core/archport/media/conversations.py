"""A conversation with images and video in it, as text and places of pictures. Knows no ids and no pixels.

The format is ChatML's, literal, as models that embed and rerank were trained on it, and for checkpoints without a chat
template; what a template renders is chats.py's.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from archport.contract import Asked, InputError
from archport.contract.errors import shown

START, END = "<|im_start|>", "<|im_end|>"
# Where the model begins to answer: what pooling reads is the last token of it.
CLOSING = f"{END}\n{START}assistant\n"
ROLES = ("system", "user", "assistant")
KEYS = ("text", "image", "images", "video", "videos", "instruction", "min_pixels", "max_pixels", "fps", "sample_fps")
OPTIONS = ("min_pixels", "max_pixels", "fps", "sample_fps")

# Of any picture, and of any camera.
_MOST_PIXELS, _MOST_FPS = 1 << 40, 1e6

Kind = Literal["text", "image", "video"]
# What a content part's type, or its key, says that it is, and under which keys a picture may stand.
_KINDS: Mapping[str, Literal["image", "video"]] = {
    "image": "image",
    "image_url": "image",
    "video": "video",
    "video_url": "video",
}
_SOURCES: Mapping[Literal["image", "video"], tuple[str, ...]] = {
    "image": ("image", "url", "path", "base64", "image_url"),
    "video": ("video", "url", "path", "video_url"),
}


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of text, or the place of an image or a video.

    Args:
        index: which image (or video) of the input it is, for messages.
        min_pixels, max_pixels: the caller's bounds for it; None for the model's.
        fps: frames per second of frames that are given without a file; None when nobody said.
        sample_fps: frames per second that the model is to see; None for its own.
        framed: whether the text around it holds the marks before and after a picture.
    """

    kind: Kind
    text: str = ""
    source: object = None
    index: int = 0
    min_pixels: int | None = None
    max_pixels: int | None = None
    fps: float | None = None
    sample_fps: float | None = None
    framed: bool = False

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


def conversation(item: object, asked: Asked, *, empty: str | None = None) -> Document:
    """A conversation, or one user's turn, up to where the model answers.

    Args:
        item: a str, a mapping of texts, images and videos, or a list of messages.
        empty: what a turn without anything in it says; None refuses it.

    Raises:
        InputError: for what is none of these, naming what is wrong.
    """
    messages = messages_of(item)
    if messages is not None:
        return rendered(messages, asked)
    fields = fields_of(item, asked)
    instruction = fields.get("instruction")
    system = asked.prompt if instruction is None else _text(instruction, asked).text or asked.prompt
    return Document(tuple(turns(system, contents(fields, asked, empty=empty))))


def plain(text: object, asked: Asked) -> Part:
    """A string without a frame around it, after the prompt."""
    part = _text(text, asked)
    return replace(part, text=(asked.prompt or "") + part.text)


def contents(fields: Mapping[str, Any], asked: Asked, *, empty: str | None = None) -> list[Part]:
    """Videos, images and texts of one turn, in that order; nothing at all is the text `empty`, if there is one."""
    parts: list[Part] = []
    kinds: tuple[tuple[Kind, list[Any]], ...] = (
        ("video", [*_one(fields.get("video")), *several(fields.get("videos"))]),
        ("image", [*several(fields.get("image")), *several(fields.get("images"))]),
    )
    for kind, sources in kinds:
        for index, source in enumerate(sources):
            parts.append(picture_part(kind, source, index, fields, asked))
    for text in several(fields.get("text")):
        parts.append(_text(text, asked))
    if empty is not None and not any(part.kind != "text" or part.text for part in parts):
        return [Part("text", empty)]
    if not parts:
        raise InputError(f"{asked.name} is empty; expected any of {', '.join(KEYS[:5])}")
    return parts


def turns(system: str | None, parts: Sequence[Part]) -> Iterator[Part]:
    """A system's text, if there is one, a user's turn, and the beginning of the answer."""
    if system:
        yield Part("text", f"{START}system\n{system}{END}\n")
    yield Part("text", f"{START}user\n")
    yield from parts
    yield Part("text", CLOSING)


def messages_of(item: object) -> Sequence[Any] | None:
    """The messages of an input that is a conversation; None for one that is not."""
    if isinstance(item, Mapping) and "messages" in item:
        return item["messages"]
    if isinstance(item, list | tuple) and item and isinstance(item[0], Mapping) and "role" in item[0]:
        return item
    return None


def fields_of(item: object, asked: Asked) -> Mapping[str, Any]:
    """An input that is no conversation as a mapping with known keys.

    Raises:
        InputError: for another type, or a key that is not known.
    """
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
        known = ", ".join((*KEYS, "messages"))
        raise InputError(f"{asked.name} has the unknown key {shown(unknown[0])}; known: {known}{hint}")
    return item


def rendered(messages: Sequence[Any], asked: Asked) -> Document:
    """Messages in their own order, up to where the model answers."""
    if isinstance(messages, str) or not isinstance(messages, Sequence) or not messages:
        raise InputError(
            f"{asked.name}: messages is {shown(messages)}; expected a list of mappings with role and content"
        )
    parts: list[Part] = []
    counts = {"image": 0, "video": 0}
    for number, message in enumerate(messages):
        role = message.get("role") if isinstance(message, Mapping) else None
        if not isinstance(role, str) or role not in ROLES or "content" not in message:
            raise InputError(
                f"{asked.name}: message {number} is {shown(message)}; expected a mapping with content and a role among "
                f"{', '.join(ROLES)}"
            )
        parts.append(Part("text", f"{START}{role}\n"))
        content = message["content"]
        if not isinstance(content, str | Mapping | list | tuple):
            raise InputError(
                f"{asked.name}: the content of message {number} is a {type(content).__name__}; expected a str or a list"
            )
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
    given = picture_of(piece, asked)
    if given is not None:
        kind, source = given
        counts[kind] += 1
        return picture_part(kind, source, counts[kind] - 1, piece, asked)
    if "text" in piece:
        return _text(piece["text"], asked)
    raise InputError(f"{asked.name}: a content part has the keys {shown(list(piece))}; expected text, image or video")


def picture_of(piece: Mapping[str, Any], asked: Asked) -> tuple[Literal["image", "video"], Any] | None:
    """(kind, what it is made from) of a content part that is an image or a video; None for another part.

    The keys are those of transformers and of OpenAI's API: `image`, `url`, `path`, `base64`, `image_url`.

    Raises:
        InputError: no source, two of them, an address on the network, or damaged base64.
    """
    named = piece.get("type")
    kind: Literal["image", "video"] | None = _KINDS.get(named) if isinstance(named, str) else None
    if kind is None:
        kind = next((_KINDS[key] for key in _KINDS if piece.get(key) is not None and "text" not in piece), None)
    if kind is None:
        return None
    keys = [key for key in _SOURCES[kind] if piece.get(key) is not None]
    if len(keys) != 1:
        raise InputError(
            f"{asked.name}: {kind} part has {' and '.join(keys) or 'no source'} among its keys "
            f"{shown(list(piece))}; expected one of {', '.join(_SOURCES[kind])}"
        )
    source = piece[keys[0]]
    if isinstance(source, Mapping):
        source = source.get("url")
    if isinstance(source, str) and source[:8].lower().startswith(("http://", "https://")):
        raise InputError(
            f"{asked.name}: {kind} part has the address {shown(source)}; archport fetches nothing: download it, and "
            "give a path or a data URI"
        )
    return kind, _decoded(source, asked) if keys[0] == "base64" else source


def _decoded(text: Any, asked: Asked) -> bytes | str:
    if not isinstance(text, str | bytes):
        raise InputError(f"{asked.name}: base64 is a {type(text).__name__}; expected a str")
    if isinstance(text, str) and text[:5].lower() == "data:":
        return text
    try:
        return base64.b64decode(b"".join((text.encode() if isinstance(text, str) else text).split()), validate=True)
    except ValueError as error:
        raise InputError(
            f"{asked.name}: the base64 of an image is damaged ({error}); expected its file's bytes"
        ) from error


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


def picture_part(
    kind: Kind, source: object, index: int, given: Mapping[str, Any], asked: Asked, *, framed: bool = False
) -> Part:
    """The place of a picture, with what a caller said of it.

    Args:
        index: which image or video of the input it is.
        given: a mapping with any of OPTIONS in it.
        framed: see Part.

    Raises:
        InputError: options that are none.
    """
    pixels = {name: given[name] for name in ("min_pixels", "max_pixels") if given.get(name) is not None}
    rates = {name: given[name] for name in ("fps", "sample_fps") if given.get(name) is not None}
    for name, value in pixels.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 1 <= value <= _MOST_PIXELS:
            raise InputError(f"{asked.name}: {name}={shown(value)}; expected a number of pixels >= 1")
    for name, value in rates.items():
        number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
        if not number or not 0 < value <= _MOST_FPS:
            raise InputError(f"{asked.name}: {name}={shown(value)}; expected frames per second > 0")
    part = Part(kind, source=source, index=index, framed=framed)
    part = replace(part, **{name: int(value) for name, value in pixels.items()})
    return replace(part, **{name: float(value) for name, value in rates.items()})


def _one(value: Any) -> list[Any]:
    return [] if value is None else [value]


def several(value: Any) -> list[Any]:
    """One thing or a list of them; but a video's list is its frames, so that one goes by `_one`."""
    return list(value) if isinstance(value, list | tuple) else _one(value)
