"""What is asked of generation and what it answers. Pure data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from archport.contract import InputError
from archport.contract.errors import shown
from archport.generating.sampling import Sampling

FinishReason = Literal["stop", "length"]
# Of one prompt.
MOST_ANSWERS = 1024


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
    """One generated token, its log-probability and the likeliest (token, logprob), without those that can't come.

    Both after biases and penalties, before temperature and filters.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Generation:
    """One row's text.

    Args:
        text: without the stop string or the final token.
        tokens: all generated ids, the final one included.
        finish_reason: `stop` at a final token or a stop string, `length` at `max_tokens` or the end of the context.
        logprobs: one per token where they were asked for.
        clamped_to: the tokens that the context had room for, where `max_tokens` asked for more; else None.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    logprobs: tuple[TokenLogprob, ...] | None = None
    clamped_to: int | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """What one step adds to one row.

    Args:
        text: what is settled; may be "" while a character or a stop string is incomplete.
        tokens: the ids of this step.
        row: which prompt it belongs to.
        finish_reason, usage: of the row's last piece, None before it.
        logprobs: of `tokens`, where they were asked for.
        answer: which of the prompt's answers it belongs to.
        clamped_to: on a row's last piece, as in `Generation`.
    """

    text: str
    tokens: tuple[int, ...]
    row: int = 0
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    answer: int = 0
    clamped_to: int | None = None


@dataclass(frozen=True, slots=True)
class RowOptions:
    """What a caller asked of one prompt, checked.

    Args:
        max_tokens: tokens to generate; None until a final token or the end of the context, 0 only reads the prompt.
        sampling: how tokens are drawn.
        stop: strings that end the text.
        stop_token_ids: tokens that end it, as well as the model's own.
        min_tokens: tokens before which none of these comes and no stop string counts.
    """

    max_tokens: int | None = 256
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    min_tokens: int = 0

    def __post_init__(self) -> None:
        most, least = self.max_tokens, self.min_tokens
        if most is not None and not _whole(most):
            raise InputError(
                f"max_tokens={shown(most)}; expected an integer from 0, where 0 only reads the prompt, "
                "or None for the rest of the context"
            )
        if not _whole(least):
            raise InputError(f"min_tokens={shown(least)}; expected an integer from 0")
        if most is not None and least > most:
            raise InputError(f"min_tokens={shown(least)} is above max_tokens={shown(most)}; expected at most as many")
        if any(not isinstance(each, str) or not each for each in self.stop):
            raise InputError(f"stop={shown(self.stop)}; expected one or more strings that are not empty")

    def ends(self, own: frozenset[int]) -> frozenset[int]:
        """Tokens that end the text: the model's own and those asked for."""
        return own | self.stop_token_ids


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """What a caller asked of `generate`, checked.

    Args:
        rows: one per prompt.
        answers: how many of each prompt; None for one that is not told as a list.
        progress: whether a bar shows how many tokens are made, where nothing is streamed.
        logprobs: None for none, else how many of the likeliest tokens to tell beside the drawn one.
    """

    rows: tuple[RowOptions, ...]
    answers: int | None = None
    logprobs: int | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        count, top = self.answers, self.logprobs
        if count is not None and (not _whole(count) or not 1 <= count <= MOST_ANSWERS):
            raise InputError(f"n={shown(count)}; expected 1 to {MOST_ANSWERS} answers of each prompt, or None")
        if top is not None and (not _whole(top) or top > 100):
            raise InputError(f"logprobs={shown(top)}; expected None, or 0 to 100 of the likeliest tokens")

    def drawn(self, row: int) -> int:
        """How many answers of a prompt are decoded: of those that take the likeliest token one stands for all."""
        return 1 if self.rows[row].sampling.greedy else self.answers or 1


def _whole(value: object) -> bool:
    """Whether it is an integer from 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
