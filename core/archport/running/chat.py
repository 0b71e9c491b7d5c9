"""Messages to a prompt, by the checkpoint's own template in a sandbox. Knows nothing of tokens.

A template is a program from the internet: it runs without access to attributes, files or mutable state, and its output
is capped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from archport.contract import CheckpointError, InputError
from archport.contract.errors import shown

ROLES = ("system", "developer", "user", "assistant", "tool")
# Characters that a rendered prompt may have.
LONGEST = 16 << 20


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A checkpoint's chat templates.

    Args:
        templates: name -> Jinja source.
        special: `bos_token` and the like -> its text, which templates may use.
        name: the model's, for messages.
    """

    templates: Mapping[str, str]
    special: Mapping[str, str]
    name: str
    _compiled: dict[str, Any] = field(default_factory=dict[str, Any], init=False, repr=False, compare=False)

    def __call__(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt of a conversation, up to where the assistant speaks.

        Args:
            messages: each with a `role` and a `content`, as the template wants them.
            tools: descriptions of functions the model may call.
            options: whatever else the template reads, such as `enable_thinking`.

        Raises:
            InputError: no template, messages that are none, an unknown role, or what the template itself refuses.
        """
        check_messages(messages)
        name = "tool_use" if tools and "tool_use" in self.templates else "default"
        if name not in self.templates:
            raise InputError(
                f"{self.name} has no chat template, so messages can't become a prompt; pass a str, which is taken as is"
            )
        self._check_read(name, [*(["tools"] if tools else []), *(options or {})])
        values = {"messages": list(messages), "tools": tools, "add_generation_prompt": True}
        return self.rendered(name, {**values, **(options or {})})

    def rendered(self, name: str, values: Mapping[str, Any]) -> str:
        """What the template of that name makes of these values.

        Raises:
            InputError: what the template itself refuses, or too long a text.
        """
        from jinja2 import TemplateError

        pieces: list[str] = []
        length = 0
        try:
            for piece in self._template(name).generate(**{**self.special, **values}):
                pieces.append(piece)
                length += len(piece)
                if length > LONGEST:
                    raise InputError(f"the chat template of {self.name} made more than {LONGEST:,} characters")
        except TemplateError as error:
            raise InputError(f"the chat template of {self.name} refuses these messages: {error}") from error
        except (TypeError, KeyError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"the chat template of {self.name} failed on these messages ({type(error).__name__}: {error}); check "
                "that every message has the fields it reads"
            ) from error
        return "".join(pieces)

    def _check_read(self, name: str, given: Sequence[str]) -> None:
        """Refuse what the template never looks at: a misspelt argument of a call would pass for one of its own."""
        if not given:
            return
        from jinja2 import meta

        self._template(name)
        read = meta.find_undeclared_variables(_environment().parse(self.templates[name]))
        unread = [each for each in given if each not in read]
        if unread:
            own = sorted(read - {"messages", "add_generation_prompt", *self.special, *_environment().globals})
            raise InputError(
                f"the chat template of {self.name} reads no {', '.join(unread)}, which would change nothing; beside "
                f"messages it reads {', '.join(own) or 'nothing'}"
            )

    def _template(self, name: str) -> Any:
        if name not in self._compiled:
            from jinja2 import TemplateError

            try:
                self._compiled[name] = _environment().from_string(self.templates[name])
            except TemplateError as error:
                raise CheckpointError(f"the chat template of {self.name} can't be compiled: {error}") from error
        return self._compiled[name]


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
        if not isinstance(message.get("role"), str) or message["role"] not in ROLES:
            raise InputError(
                f"message {index} has role {shown(message.get('role'))}; expected one of {', '.join(ROLES)}"
            )
        content = message.get("content")
        if content is None and message["role"] == "assistant":
            continue
        if not isinstance(content, str | Sequence):
            raise InputError(f"message {index} has a content of type {type(content).__name__}; expected a str")


def _environment() -> Any:
    from jinja2.exceptions import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def to_json(value: Any, indent: int | None = None, **options: Any) -> str:
        # As the reference renders it: no HTML escapes, and letters as they are.
        return json.dumps(value, ensure_ascii=options.get("ensure_ascii", False), indent=indent)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment
