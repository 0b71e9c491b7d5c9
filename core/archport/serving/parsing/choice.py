"""Which parser reads a model's text: what its chat template writes decides, not its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from archport.serving.parsing.coder import Coder
from archport.serving.parsing.events import Parser, Plain
from archport.serving.parsing.harmony import MARKERS, Harmony
from archport.serving.parsing.hermes import CLOSE as BLOCK_END
from archport.serving.parsing.hermes import OPEN as BLOCK
from archport.serving.parsing.hermes import Hermes
from archport.serving.parsing.llama import TAG, Llama
from archport.serving.parsing.thinking import OPEN, Thinking

Format = Literal["hermes", "coder", "llama", "harmony", "none"]


@dataclass(frozen=True, slots=True)
class Style:
    """How a model writes.

    Args:
        format: of its calls.
        thinks: whether it may think between <think> and </think>.
    """

    format: Format = "none"
    thinks: bool = False

    @property
    def markers(self) -> tuple[str, ...]:
        """Special tokens that its parser has to see."""
        blocks = (BLOCK, BLOCK_END)
        return {"harmony": MARKERS, "llama": (TAG,), "hermes": blocks, "coder": blocks}.get(self.format, ())

    def parser(self, tools: Sequence[Mapping[str, Any]] | None, *, opened: bool = False) -> Parser:
        """What reads one answer.

        Args:
            tools: that the model may call; None or none: text that looks like a call is text.
            opened: whether the prompt has opened the thinking.
        """
        if self.format == "harmony":
            return Harmony()
        rest: Parser = Plain()
        if tools:
            rest = {"hermes": Hermes, "llama": Llama, "none": Plain}.get(self.format, lambda: Coder(tools))()
        return Thinking(rest, opened=opened) if self.thinks or opened else rest


def style_of(template: str) -> Style:
    """How a model with this chat template writes."""
    if "<|channel|>" in template and "<|message|>" in template:
        return Style("harmony")
    form: Format = "none"
    if "<function=" in template:
        form = "coder"
    elif "<tool_call>" in template:
        form = "hermes"
    elif "<|python_tag|>" in template or '"parameters"' in template:
        form = "llama"
    return Style(form, OPEN in template)
