"""Conversations that a checkpoint's own chat template renders: messages for it, and pictures in what it made of them.

Knows no template and no ids.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from archport.contract import Asked, InputError
from archport.media.conversations import (
    OPTIONS,
    Document,
    Part,
    fields_of,
    messages_of,
    picture_of,
    picture_part,
    several,
)

# What templates write in the place of a picture; they write the marks around it, too.
PLACES = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
_PLACE = re.compile("(" + "|".join(map(re.escape, PLACES.values())) + ")")


def chat_messages(item: object, asked: Asked) -> list[dict[str, Any]]:
    """A conversation, or one user's turn, as messages for a chat template.

    Every part of a content has a type, and a picture stands under the name of its type. Other parts stay as they are.

    Raises:
        InputError: for what is neither, or a part that is no text, image or video.
    """
    messages = messages_of(item)
    if messages is None:
        return _turn(fields_of(item, asked))
    if isinstance(messages, str) or not isinstance(messages, Sequence):
        raise InputError(
            f"{asked.name}: messages is {messages!r:.60}; expected a list of mappings with role and content"
        )
    return [_message(message, asked) for message in messages]


def _turn(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a mapping of texts, images and videos says: videos first, then images, then texts."""
    options = {name: fields[name] for name in OPTIONS if fields.get(name) is not None}
    parts: list[dict[str, Any]] = []
    for kind in ("video", "image", "text"):
        one = fields.get(kind)
        # A list of frames is one video.
        sources = [one] if kind == "video" and one is not None else several(one)
        told = {} if kind == "text" else options
        parts += [{"type": kind, kind: source, **told} for source in [*sources, *several(fields.get(f"{kind}s"))]]
    system = fields.get("instruction")
    opening = [{"role": "system", "content": system}] if system else []
    return [*opening, {"role": "user", "content": parts}]


def _message(message: Any, asked: Asked) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InputError(
            f"{asked.name}: a message is a {type(message).__name__}; expected a dict with role and content"
        )
    content = message.get("content")
    if isinstance(content, str):
        _check(content, asked)
    parts = [content] if isinstance(content, Mapping) and message.get("role") != "tool" else content
    if not isinstance(parts, list | tuple):
        return dict(message)
    return {**message, "content": [_part(part, asked) for part in parts]}


def _part(part: Any, asked: Asked) -> Any:
    if isinstance(part, str):
        _check(part, asked)
        return {"type": "text", "text": part}
    if not isinstance(part, Mapping):
        raise InputError(f"{asked.name}: content holds a {type(part).__name__}; expected text, image or video parts")
    given = picture_of(part, asked)
    if given is not None:
        kind, source = given
        return {"type": kind, kind: source, **{name: part[name] for name in OPTIONS if name in part}}
    if "text" in part:
        text = part["text"]
        if not isinstance(text, str):
            raise InputError(f"{asked.name}: text is a {type(text).__name__}; expected a str")
        _check(text, asked)
        return {"type": "text", **part}
    if "type" not in part or "audio" in str(part["type"]):
        raise InputError(f"{asked.name}: a content part has the keys {sorted(part)}; expected text, image or video")
    return dict(part)


def _check(text: str, asked: Asked) -> None:
    if (found := _PLACE.search(text)) is not None:
        raise InputError(
            f"{asked.name}: its text holds {found[0]!r}, which stands for a picture; take it out of the text, and give "
            "images and video as parts of their own"
        )


def placed(text: str, messages: Sequence[Mapping[str, Any]], asked: Asked) -> Document:
    """The text that a template made of messages, with their pictures where it left a place for them, in order.

    Raises:
        InputError: the text has not as many places as the messages have pictures.
    """
    waiting: dict[str, list[Part]] = {kind: [] for kind in PLACES}
    for message in messages:
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            kind = part.get("type") if isinstance(part, Mapping) else None
            if kind == "image" or kind == "video":
                index = len(waiting[kind])
                waiting[kind].append(picture_part(kind, part[kind], index, part, asked, framed=True))
    pieces = _PLACE.split(text)
    for kind, pictures in waiting.items():
        places = pieces.count(PLACES[kind])
        if places != len(pictures):
            raise InputError(
                f"{asked.name} has {len(pictures)} {kind} parts, and the chat template made places for {places}; give "
                "them in messages of a role whose pictures it renders (most take the user's)"
            )
    kinds = {place: kind for kind, place in PLACES.items()}
    ordered = {kind: iter(pictures) for kind, pictures in waiting.items()}
    parts = [next(ordered[kinds[piece]]) if piece in kinds else Part("text", piece) for piece in pieces]
    return Document(tuple(parts), closing="")
