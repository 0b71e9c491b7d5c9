"""Messages to a prompt, by the checkpoint's own template in a sandbox. Knows nothing of tokens and pictures.

A template is a program from the internet: it runs without access to attributes, files or mutable state, and within
bounds of time, memory and output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn
from warnings import catch_warnings, simplefilter

from archport.contract import CheckpointError, InputError
from archport.contract.errors import shown
from archport.reading.chat_messages import Continued, plain, prepared

if TYPE_CHECKING:
    from jinja2 import Template

    from archport.reading.template_environment import ChatEnvironment

# Characters that a rendered prompt may have.
LONGEST = 16 << 20
# Errors that come of messages that lack what a template reads, as well as of a template that is wrong.
_OF_MESSAGES = (TypeError, KeyError, ValueError, AttributeError, IndexError)


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A checkpoint's chat templates.

    Args:
        templates: name -> Jinja source.
        special: `bos_token` and the like -> its text, which templates may use.
        name: the model's, for messages.
        files: name of a template -> the file that it is from, for messages.
    """

    templates: Mapping[str, str]
    special: Mapping[str, str]
    name: str
    files: Mapping[str, str] = field(default_factory=dict[str, str])
    _compiled: dict[str, Template] = field(default_factory=dict[str, "Template"], init=False, repr=False, compare=False)
    _variables: dict[str, set[str]] = field(default_factory=dict[str, set[str]], init=False, repr=False, compare=False)

    def __call__(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        options: Mapping[str, Any] | None = None,
        continue_final_message: bool | str = False,
    ) -> str:
        """The prompt of a conversation, up to where the assistant speaks.

        Args:
            messages: each with a `role` and a `content`, as the template wants them.
            tools: descriptions of functions the model may call.
            options: whatever else the template reads, such as `enable_thinking`.
            continue_final_message: end the prompt where the last message ends, for the model to go on from there; a
                str names the field that is continued, "content" when it is True.

        Raises:
            InputError: no template, messages that are none, or what the template itself refuses.
            CheckpointError: a template that can't be compiled, breaks out of its sandbox, or goes past its bounds.
        """
        given = {**(options or {})}
        conversation = prepared(messages)
        name = self._selected(tools)
        if tools is not None and (isinstance(tools, str) or not all(isinstance(tool, Mapping) for tool in tools)):
            raise InputError(f"tools is {shown(tools)}; expected a list of dicts that describe functions")
        if "messages" in given:
            raise InputError("messages are the prompt, and no option of the chat template")
        self._check_read(name, [*(["tools"] if tools else []), *given])
        continued: Continued | None = None
        if continue_final_message:
            if given.get("add_generation_prompt"):
                raise InputError(
                    "continue_final_message and add_generation_prompt exclude each other: the prompt ends in the last "
                    "message, or in the beginning of another"
                )
            part = continue_final_message if isinstance(continue_final_message, str) else "content"
            continued = Continued.of(conversation, part, self.templates[name], self.name)
        values = {
            "messages": conversation,
            "tools": plain(None if tools is None else list(tools), "tools"),
            "documents": None,
            "add_generation_prompt": continued is None,
            **plain(given, "an option of the chat template"),
        }
        text = self.rendered(name, values)
        return text if continued is None else continued.cut(text, self.name)

    def _selected(self, tools: object) -> str:
        """The name of the template for a conversation with these tools."""
        if tools is not None and "tool_use" in self.templates:
            return "tool_use"
        if "default" in self.templates:
            return "default"
        if self.templates:
            raise InputError(
                f"{self.name} has chat templates called {', '.join(sorted(self.templates))} and none called default; "
                "add chat_template.jinja, or pass a str, which is taken as is"
            )
        raise InputError(
            f"{self.name} has no chat template, so messages can't become a prompt; pass a str, which is taken as is"
        )

    def rendered(self, name: str, values: Mapping[str, Any]) -> str:
        """What the template of that name makes of these values, which are plain data.

        Raises:
            InputError: what the template itself refuses, or too long a text.
            CheckpointError: a template that is wrong whatever it is given.
        """
        from archport.reading.template_bounds import Meter, extent
        from archport.reading.template_environment import METER

        template = self._template(name)
        pieces: list[str] = []
        length = 0
        try:
            size, _ = extent(values, 1 << 40)
            for piece in template.generate({**self.special, **values, METER: Meter(size)}):
                pieces.append(piece)
                length += len(piece)
                if length > LONGEST:
                    raise InputError(f"{self._called(name)} made more than {LONGEST:,} characters")
            # A filter block may write what is no text.
            return "".join(pieces)
        except InputError:
            raise
        except Exception as error:
            self._fail(name, error)

    def _fail(self, name: str, error: Exception) -> NoReturn:
        """Raise what an error of a template means to who called."""
        from jinja2.exceptions import SecurityError, TemplateError

        from archport.reading.template_bounds import TooMuch

        what, said = self._called(name), f"{error}"[:400]
        if isinstance(error, TooMuch | RecursionError | MemoryError):
            why = said if isinstance(error, TooMuch) else f"it ends in a {type(error).__name__}"
            raise CheckpointError(f"{what} goes past its bounds: {why}. Fetch the file again, or mend it") from None
        if isinstance(error, SecurityError):
            raise CheckpointError(
                f"{what} asks for what no chat template may have: {said}. Fetch the file again, or mend it"
            ) from error
        if isinstance(error, TemplateError):
            hint = "; a content of None is left out, so give '' where it needs one" if "'content'" in said else ""
            raise InputError(f"{what} refuses these messages: {said}{hint}") from error
        kind = f"{type(error).__name__}: {said}"
        if isinstance(error, _OF_MESSAGES):
            raise InputError(
                f"{what} failed on these messages ({kind}); check that every message has the fields it reads"
            ) from error
        raise CheckpointError(f"{what} fails ({kind}). Fetch the file again, or mend it") from error

    def _called(self, name: str) -> str:
        place = self.files.get(name)
        return f"the chat template of {self.name}{f' ({place})' if place else ''}"

    def _check_read(self, name: str, given: Sequence[str]) -> None:
        """Refuse what the template never looks at: a misspelt argument of a call would pass for one of its own."""
        if not given:
            return
        read = self._read(name)
        unread = [each for each in given if each not in read]
        if unread:
            own = sorted(read - {"messages", "add_generation_prompt", *self.special, *_environment().globals})
            raise InputError(
                f"the chat template of {self.name} reads no {', '.join(unread)}, which would change nothing; beside "
                f"messages it reads {', '.join(own) or 'nothing'}"
            )

    def _read(self, name: str) -> set[str]:
        """Names of the variables that a template reads."""
        if name not in self._variables:
            from jinja2 import meta

            self._template(name)
            self._variables[name] = meta.find_undeclared_variables(_environment().parse(self.templates[name]))
        return self._variables[name]

    def _template(self, name: str) -> Template:
        if name not in self._compiled:
            self._compiled[name] = self._compile(name)
        return self._compiled[name]

    def _compile(self, name: str) -> Template:
        from archport.reading.template_environment import LONGEST_SOURCE

        source, what = self.templates[name], self._called(name)
        if len(source) > LONGEST_SOURCE:
            raise CheckpointError(
                f"{what} has {len(source):,} characters; at most {LONGEST_SOURCE:,} are compiled. Fetch the file again"
            )
        try:
            with catch_warnings():
                # Python warns of what jinja2 wrote for `1[2]`.
                simplefilter("ignore", SyntaxWarning)
                return _environment().from_string(source)
        # Python's compiler and jinja2's raise whatever they stumble over.
        except Exception as error:
            raise CheckpointError(
                f"{what} can't be compiled: {type(error).__name__}: {f'{error}'[:400]}. Fetch the file again, or "
                "mend it"
            ) from error


@cache
def _environment() -> ChatEnvironment:
    from archport.reading.template_environment import ChatEnvironment

    return ChatEnvironment()
