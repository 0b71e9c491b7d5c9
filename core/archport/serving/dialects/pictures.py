"""Messages of a chat to what chat templates and readers take: pictures as bytes, never as an address or a path."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from archport.serving.dialects.items import picture
from archport.serving.errors import refused
from archport.serving.settings import Limits

_KINDS = ("image_url", "input_image", "image")


def messages_of(messages: Sequence[Mapping[str, Any]], limits: Limits, param: str = "messages") -> list[dict[str, Any]]:
    """Messages with their parts checked, and the arguments of earlier calls as values, which templates read.

    Raises:
        Refused: naming the message.
    """
    count = [0]
    return [_message(each, f"{param}[{index}]", param, limits, count) for index, each in enumerate(messages)]


def _message(message: Mapping[str, Any], name: str, param: str, limits: Limits, count: list[int]) -> dict[str, Any]:
    if not isinstance(message.get("role"), str):
        raise refused(f"{name} has no role; expected system, user, assistant or tool.", "invalid_type", param)
    found = dict(message)
    if found["role"] == "developer":
        found["role"] = "system"
    content = message.get("content")
    if content is None:
        found["content"] = ""
    elif isinstance(content, list):
        parts = [_part(part, name, param, limits, count) for part in content]
        texts = [part["text"] for part in parts if set(part) == {"type", "text"}]
        # Many templates take text alone.
        found["content"] = "".join(texts) if len(texts) == len(parts) else parts
    elif not isinstance(content, str):
        raise refused(f"{name}.content is no text; expected a string or an array of parts.", "invalid_type", param)
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        found["tool_calls"] = [_call(each) for each in calls]
    return found


def _part(part: Any, name: str, param: str, limits: Limits, count: list[int]) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, Mapping):
        raise refused(f"{name}.content holds what is no object.", "invalid_type", param)
    kind = part.get("type")
    if kind in ("text", "input_text", "output_text", None) and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if kind in _KINDS:
        value = part.get("image_url", part.get("image"))
        address = value.get("url") if isinstance(value, Mapping) else value
        return {"type": "image", "image": picture(address, f"{name}.content", param, limits, count)}
    raise refused(
        f"{name}.content holds a part of type {str(kind)[:50]!r}; expected text or image_url.", "invalid_value", param
    )


def _call(call: Any) -> Any:
    """A call of an earlier message, its arguments as a value."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    try:
        value = json.loads(function["arguments"])
    except (ValueError, RecursionError):
        return call
    return {**call, "function": {**function, "arguments": value}}
