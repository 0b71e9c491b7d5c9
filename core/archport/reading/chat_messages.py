"""Messages as a chat template sees them: checked, in plain data, and marked where the last one is to be continued.

As transformers 5.23 prepares them: keys whose value is None are left out, reasoning is found under each of its names,
and what is no plain data (pictures, arrays) is only a name. Renders nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np

from archport.contract import InputError
from archport.contract.errors import shown

# Roles whose messages say something: a text, or parts. A call of a tool or a role of the model's own may hold any data.
SPEAKING = ("system", "developer", "user", "assistant")
# Names that a message's reasoning has; templates read the first, and a few the second.
REASONING = ("reasoning_content", "thinking", "reasoning")
# Levels of lists and mappings in a message.
_DEPTH = 100
_TAG = "CONTINUE_FINAL_MESSAGE_TAG "


def check_messages(messages: object) -> None:
    """Refuse what is no conversation, naming the message.

    Raises:
        InputError: with the index, what it has and what was expected.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise InputError(f"messages is {shown(messages)}; expected a list of at least one message")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise InputError(f"message {index} is a {type(message).__name__}; expected a dict with role and content")
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not role:
            raise InputError(
                f"message {index} has role {shown(role)}; expected a name such as {', '.join(SPEAKING)} or tool"
            )
        if role not in SPEAKING or (content is None and role == "assistant"):
            continue
        if not isinstance(content, str | list | tuple | Mapping):
            raise InputError(
                f"message {index} ({role}) has a content of type {type(content).__name__}; expected a str, or a list "
                "of parts"
            )


def plain(value: Any, what: str, depth: int = 0) -> Any:
    """A value in texts, numbers, lists and mappings: a template gets hold of nothing else.

    Raises:
        InputError: lists in lists without an end, naming `what` holds them.
    """
    if value is None or type(value) in (str, int, float, bool):
        return value
    if depth > _DEPTH:
        raise InputError(f"{what} holds lists and mappings more than {_DEPTH} deep; expected plain data")
    if isinstance(value, np.generic):
        return plain(value.item(), what, depth + 1)
    # Subclasses bring methods of their own.
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {plain(key, what, depth + 1): plain(item, what, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item, what, depth + 1) for item in value]
    if isinstance(value, tuple):
        return tuple(plain(item, what, depth + 1) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name), what, depth + 1) for field in fields(value)}
    return f"<{type(value).__name__}>"


def prepared(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages as a template is given them, a copy.

    Raises:
        InputError: what is no conversation.
    """
    check_messages(messages)
    found: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        # Templates handle a key that is missing, and write "None" for one that is None.
        kept = plain({key: value for key, value in message.items() if value is not None}, f"message {index}")
        reasoning = next((kept[key] for key in REASONING if key in kept), None)
        if reasoning is not None:
            kept = {"thinking": reasoning, **kept, "reasoning_content": reasoning}
        found.append(kept)
    return found


@dataclass(frozen=True, slots=True)
class Continued:
    """A last message that is to be continued, marked at its end.

    Args:
        text: what the message says so far.
    """

    text: str

    @classmethod
    def of(cls, messages: list[dict[str, Any]], field: str, source: str, name: str) -> Continued:
        """Mark a field of the last message, in place.

        Args:
            messages: as `prepared` gives them.
            source: the template's, which has to read the field.
            name: the model's, for messages.

        Raises:
            InputError: nothing to continue there.
        """
        last = messages[-1]
        value = last.get(field)
        if value is None:
            raise InputError(
                f"continue_final_message: the last message ({last['role']}) has no {field!r} to continue; it has "
                f"{', '.join(last)}"
            )
        same = [key for key in REASONING if last.get(key) == value] if field in REASONING else [field]
        if not any(key in source for key in same):
            raise InputError(f"continue_final_message: the chat template of {name} reads no {field!r} of a message")
        if isinstance(value, list | tuple):
            for part in reversed(value):
                if isinstance(part, dict) and isinstance(part.get("text"), str):
                    found = cls(part["text"])
                    part["text"] += _TAG
                    return found
            raise InputError("continue_final_message: the last message has no text part to continue")
        if not isinstance(value, str):
            raise InputError(
                f"continue_final_message: {field!r} of the last message is a {type(value).__name__}; expected a str"
            )
        for key in same:
            last[key] = value + _TAG
        return cls(value)

    def cut(self, rendered: str, name: str) -> str:
        """The rendered conversation up to where the message ends.

        Raises:
            InputError: the template leaves the message out, or a part of it.
        """
        tag = _TAG.strip()
        if self.text.strip() not in rendered or tag not in rendered:
            raise InputError(
                f"continue_final_message: the chat template of {name} does not render the last message as it is, so "
                "there is no place to go on from"
            )
        at = rendered.rindex(tag)
        # A template that trims its messages has trimmed the tag's space, too.
        return rendered[:at] if rendered[at : at + len(_TAG)] == _TAG else rendered[:at].rstrip()
