"""What requests call an input, in every interface's shape, to what the library takes: texts, ids, texts with pictures.

Pictures come as data URIs or base64 alone: an address or a path would have the server read what the client can't.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np

from archport.serving.answers import Cutting, Prompt, Truncate
from archport.serving.errors import Refused, refused
from archport.serving.settings import Limits

# What clients say of a text's purpose.
_QUERIES = ("query", "search_query", "retrieval.query", "retrieval_query", "text-matching-query")
_DOCUMENTS = ("document", "passage", "search_document", "retrieval.passage", "retrieval_document")


def items_of(value: Any, param: str, limits: Limits, modality: str = "text") -> list[Any]:
    """The inputs of a request.

    Args:
        value: a text, ids, an object with a text or a picture, or a list of any of these but one kind.
        modality: `image` where texts are data URIs of images.

    Raises:
        Refused: naming the input and what was expected.
    """
    if isinstance(value, str | Mapping):
        entries: list[Any] = [value]
    elif isinstance(value, list) and value and all(type(each) is int for each in value):
        entries = [value]
    else:
        entries = list(value)
    if not entries:
        raise refused(f"{param} is empty; expected at least one input.", "empty_input", param)
    pictures = [0]
    return [_item(each, f"{param}[{index}]", param, limits, modality, pictures) for index, each in enumerate(entries)]


def _item(entry: Any, name: str, param: str, limits: Limits, modality: str, pictures: list[int]) -> Any:
    if isinstance(entry, str):
        if modality == "image":
            return {"image": picture(entry, name, param, limits, pictures)}
        if not entry:
            raise refused(f"{name} is an empty string; expected text.", "empty_input", param)
        return entry
    if isinstance(entry, list):
        if not entry:
            raise refused(f"{name} is an empty array; expected token ids.", "empty_input", param)
        try:
            ids = np.asarray(entry, np.int64)
        except OverflowError:
            raise refused(f"{name} holds a number that is no token id.", "invalid_token_id", param) from None
        return ids
    if not isinstance(entry, Mapping):
        raise refused(f"{name} is no text; expected a string.", "invalid_type", param)
    return _object(entry, name, param, limits, pictures)


def _object(entry: Mapping[str, Any], name: str, param: str, limits: Limits, pictures: list[int]) -> Any:
    """An input of parts: Jina's {text, image}, or Cohere's and Voyage's {content: [...]}."""
    parts = entry.get("content")
    texts: list[str] = []
    images: list[bytes] = []
    found = parts if isinstance(parts, list) else [entry]
    for part in found:
        if isinstance(part, str):
            texts.append(part)
            continue
        if not isinstance(part, Mapping):
            raise refused(f"{name} holds a part that is no object.", "invalid_type", param)
        for key in ("image", "image_url", "image_base64"):
            value = part.get(key)
            if value is not None:
                address = value.get("url") if isinstance(value, Mapping) else value
                images.append(picture(address, name, param, limits, pictures))
        if isinstance(part.get("text"), str):
            texts.append(part["text"])
    if not images:
        text = "\n".join(texts)
        if not text:
            raise refused(f"{name} has neither text nor an image.", "empty_input", param)
        return text
    item: dict[str, Any] = {"image": images if len(images) > 1 else images[0]}
    if texts:
        item["text"] = "\n".join(texts)
    return item


def picture(value: Any, name: str, param: str, limits: Limits, count: list[int]) -> bytes:
    """The bytes of a picture.

    Args:
        count: of pictures of this request so far; one more afterwards.

    Raises:
        Refused: 422 for what is no data URI, 413 for too many or too large ones.
    """
    count[0] += 1
    if count[0] > limits.pictures:
        raise refused(f"{param} holds more than {limits.pictures} images.", "request_too_large", param, 413)
    if not isinstance(value, str):
        raise _no_picture(name, param, "it is no string")
    if "://" in value[:20] or value.startswith(("/", ".", "\\", "~")):
        raise _no_picture(name, param, "it is an address or a path, and this server fetches nothing")
    try:
        if value.startswith("data:"):
            head, _, content = value.partition(",")
            data = base64.b64decode(content, validate=True) if head.endswith(";base64") else unquote_to_bytes(content)
        else:
            data = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise _no_picture(name, param, "its base64 is damaged") from None
    if not data:
        raise _no_picture(name, param, "it is empty")
    if len(data) > limits.picture_bytes:
        raise refused(f"{name} is an image of {len(data):,} bytes; at most {limits.picture_bytes:,} are read.",
                      "request_too_large", param, 413)  # fmt: skip
    return data


def _no_picture(name: str, param: str, why: str) -> Refused:
    return refused(f"{name} is no image that can be read: {why}. Expected data:image/...;base64,...", "invalid_media",
                   param, 422)  # fmt: skip


def messages_item(messages: Sequence[Any], param: str, limits: Limits) -> Any:
    """One input of a chat's messages, as vLLM embeds them: its texts and pictures."""
    parts: list[Any] = []
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else None
        parts += [content] if isinstance(content, str) else content if isinstance(content, list) else []
    return _object({"content": parts}, param, param, limits, [0])


def prompt_of(
    prompt: str | None = None,
    prompt_name: str | None = None,
    input_type: str | None = None,
    task: str | None = None,
) -> Prompt:
    """What stands in front of a text, of the fields that clients say it with; the most exact one counts."""
    if prompt is not None and prompt_name is not None:
        raise refused("Both prompt and prompt_name are given; give one of them.", "invalid_prompt", "prompt")
    if prompt is not None:
        return Prompt(text=prompt, param="prompt")
    if prompt_name is not None:
        return Prompt(name=prompt_name, param="prompt_name")
    purpose, param = (input_type, "input_type") if input_type is not None else (task, "task")
    if purpose is None:
        return Prompt()
    if purpose in _QUERIES:
        return Prompt(role="query", param=param)
    if purpose in _DOCUMENTS:
        return Prompt(role="document", param=param)
    if purpose in ("image", "text"):
        return Prompt()
    return Prompt(name=purpose, param=param)


def cutting_of(
    truncate: Any = None,
    side: str | None = None,
    max_tokens: int | None = None,
    default: Truncate = "none",
) -> Cutting:
    """What to do with long texts.

    Args:
        truncate: ours ("none", "start", "end"), Cohere's in capitals, Text Embeddings Inference's boolean.
        side: "left" or "right", where that is said apart.
        max_tokens: vLLM's `truncate_prompt_tokens`; -1 for the model's own limit. Texts over it are cut, unless
            `truncate` says that none are.
    """
    if max_tokens is not None and (max_tokens == 0 or max_tokens < -1):
        raise refused(f"truncate_prompt_tokens is {max_tokens}; expected -1, or a number above 0.", "invalid_value",
                      "truncate_prompt_tokens")  # fmt: skip
    if side is not None and side.lower() not in ("left", "right"):
        raise refused(f"truncation_direction is {side[:50]!r}; expected left or right.", "invalid_value",
                      "truncation_direction")  # fmt: skip
    wanted: Truncate = "start" if side is not None and side.lower() == "left" else "end"
    if truncate is False:
        truncate = "none"
    if isinstance(truncate, str):
        value = truncate.lower()
        if value not in ("none", "start", "end"):
            raise refused(f"truncate is {truncate[:50]!r}; expected none, start or end.", "invalid_value", "truncate")
        return Cutting(value, None if max_tokens in (None, -1) else max_tokens)  # pyright: ignore[reportArgumentType]
    if truncate is True or max_tokens is not None:
        return Cutting(wanted, None if max_tokens in (None, -1) else max_tokens)
    return Cutting(default)
