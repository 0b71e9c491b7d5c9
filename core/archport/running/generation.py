"""What is asked of generation and what it answers. Pure data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, cast

from archport.contract import InputError
from archport.running.sampling import Sampling

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one row: of its prompt, of those the ones an earlier call had computed, and generated ones."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One generated token, its log-probability before temperature and filters, and the likeliest (token, logprob)."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Generation:
    """One row's text.

    Args:
        text: without the stop string or the final token.
        tokens: all generated ids, the final one included.
        finish_reason: `stop` at a final token or a stop string, `length` at `max_tokens`.
        logprobs: one per token where they were asked for.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    logprobs: tuple[TokenLogprob, ...] | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """What one step adds to one row.

    Args:
        text: what is settled; may be "" while a character or a stop string is incomplete.
        tokens: the ids of this step.
        row: which prompt it belongs to.
        finish_reason, usage: of the row's last piece, None before it.
        logprobs: of `tokens`, where they were asked for.
    """

    text: str
    tokens: tuple[int, ...]
    row: int = 0
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """What a caller asked of `generate`, checked.

    Args:
        max_tokens: per row; None until a final token or the end of the context.
        sampling: how tokens are drawn.
        stop: strings that end a row.
        progress: whether a bar shows how many tokens are made, where nothing is streamed.
        logprobs: None for none, else how many of the likeliest tokens to tell beside the drawn one.
    """

    max_tokens: int | None = 256
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        count, top = self.max_tokens, self.logprobs
        if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
            raise InputError(f"max_tokens={count!r}; expected a positive integer, or None for the rest of the context")
        if top is not None and (not isinstance(top, int) or isinstance(top, bool) or not 0 <= top <= 100):
            raise InputError(f"logprobs={top!r}; expected None, or 0 to 100 of the likeliest tokens")
        if any(not isinstance(each, str) or not each for each in self.stop):
            raise InputError(f"stop={self.stop!r}; expected one or more strings that are not empty")


def stop_strings(stop: object) -> tuple[str, ...]:
    """The strings that end a text, of what a caller may give: one, several, or None for none.

    Raises:
        InputError: for anything else.
    """
    if stop is None or isinstance(stop, str):
        return () if stop is None else (stop,)
    if isinstance(stop, bytes) or not isinstance(stop, Iterable):
        raise InputError(f"stop={stop!r}; expected a string, several of them, or None")
    return cast("tuple[str, ...]", tuple(cast("Iterable[object]", stop)))
