"""What is asked of generation and what it answers: a caller's options to what every prompt is generated with, and the
tokens of a row to text, piece by piece, up to its stop strings.

Options are for all prompts or one per prompt: a list or tuple is one value per prompt. `stop`, `stop_token_ids` and
`logit_bias` are collections themselves: there, a list that holds lists (or dicts, or None) is one per prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
from tokenizers import Tokenizer

from archport.contract import InputError
from archport.contract.errors import shown
from archport.generating.detokeniser import Detokeniser
from archport.generating.sampling import Sampling


class RowText:
    """The text of one row.

    Args:
        tokenizer: the model's.
        stop: strings that end the text; they are never part of it.
        whole: give all of it at the end, which saves the work of every token.
        special: the tokenizer's special tokens, where several rows share what finding them costs.
        least: tokens whose text ends no stop string; one that they begin and a later token ends counts.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str],
        *,
        whole: bool = False,
        special: frozenset[str] | None = None,
        least: int = 0,
    ) -> None:
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._detokeniser = None if whole else Detokeniser(tokenizer, special)
        self._ids: list[int] = []
        # Tokens that are still to come before a stop string counts, and characters that end none.
        self._early, self._free = least, 0
        # Settled, but maybe the beginning of a stop string.
        self._held = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """The text that this token settles; "" while it may still belong to a character or to a stop string."""
        if self._detokeniser is None:
            self._ids.append(token)
            return ""
        settled = self._detokeniser.add(token)
        if self._early:
            self._early -= 1
            self._free = len(self._held + settled) + len(self._detokeniser.tail())
        # A text stops where it would end with a stop string if this token were the last.
        return self._given(settled, self._detokeniser.tail()) if self._stop else settled

    def finish(self) -> str:
        """The rest."""
        if self.stopped:
            return ""
        if self._detokeniser is None:
            return self._given(self._tokenizer.decode(self._ids), None)
        rest = self._detokeniser.finish()
        if self._early:
            self._free = len(self._held + rest)
        return self._given(rest, None)

    def _given(self, settled: str, tail: str | None) -> str:
        """What can be given of settled text, up to a stop string in it or in its tail; None for the end of the text."""
        settled = self._held + settled
        text = settled + (tail or "")
        places = [at for each in self._stop if (at := text.find(each, max(0, self._free - len(each) + 1))) >= 0]
        if places:
            self.stopped = True
            return text[: min(places)]
        begun = 0 if tail is None else self._begun(settled)
        self._held = settled[len(settled) - begun :]
        self._free = max(0, self._free - len(settled) + begun)
        return settled[: len(settled) - begun]

    def _begun(self, text: str) -> int:
        """Characters at the end that may be the beginning of a stop string."""
        longest = max(len(each) for each in self._stop) - 1
        for count in range(min(longest, len(text)), 0, -1):
            if any(each.startswith(text[-count:]) for each in self._stop):
                return count
        return 0


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
        logprobs: None for none, else how many of the likeliest tokens to tell besides the drawn one.
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


SAMPLING = (
    *("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed"),
    *("presence_penalty", "frequency_penalty", "logit_bias"),
)


def generate_request(options: Mapping[str, Any], rows: int, vocabulary: int, stops: frozenset[int]) -> GenerateRequest:
    """The request of so many prompts.

    Args:
        options: by the names of `Model.generate`.
        vocabulary: entries of the model's logits.
        stops: the model's own final tokens.

    Raises:
        InputError: naming the option, its value and what was expected; the prompt too, where each has its own value.
    """
    own = {"n", "logprobs", "progress"}
    shared = {name: _kept(value) for name, value in options.items() if name not in own}
    columns = {name: column for name, value in shared.items() if (column := _column(name, value, rows)) is not None}
    each = bool(columns)
    found: list[RowOptions] = []
    for row in range(rows if each else 1):
        values = {**shared, **{name: column[row] for name, column in columns.items()}}
        try:
            found.append(_row(values, vocabulary, stops))
        except InputError as error:
            raise InputError(f"prompt {row}: {error}") if each else error from None
    return GenerateRequest(
        tuple(found) if each else tuple(found) * rows, options["n"], options["logprobs"], options["progress"]
    )


def _kept(value: Any) -> Any:
    """A value that may be read more than once: the items of an iterator or an array as a list."""
    if isinstance(value, Iterator | np.ndarray):
        return list(cast("Iterable[Any]", value))
    return value


def _column(name: str, value: Any, rows: int) -> list[Any] | None:
    """One value per prompt; None for a single one for all of them."""
    if not isinstance(value, list | tuple):
        return None
    items = list(cast("Sequence[Any]", value))
    collected = name in ("stop", "stop_token_ids")
    if collected and not any(item is None or isinstance(item, list | tuple | set | frozenset) for item in items):
        return None
    if len(items) != rows:
        what = "strings" if name == "stop" else "integers" if collected else "one value"
        raise InputError(
            f"{name}={shown(value)} has {len(items)} entries for {rows} prompt{'s'[: rows > 1]}; expected {what} for "
            "all prompts, or a list with one entry for each"
        )
    return items


def _row(values: Mapping[str, Any], vocabulary: int, stops: frozenset[int]) -> RowOptions:
    sampling = Sampling(**{name: values[name] for name in SAMPLING} | {"logit_bias": _bias(values["logit_bias"])})
    for token in sampling.logit_bias or ():
        if token >= vocabulary:
            raise InputError(f"logit_bias holds token id {shown(token)}; the vocabulary has {vocabulary} entries")
    row = RowOptions(
        values["max_tokens"],
        sampling,
        _collected("stop", values["stop"], "a string, several of them, or None"),
        _tokens(values["stop_token_ids"], vocabulary),
        values["min_tokens"],
    )
    if row.min_tokens and len(row.ends(stops)) >= vocabulary:
        raise InputError(
            f"min_tokens={row.min_tokens}, but every token of the vocabulary ends the text; leave some out"
        )
    return row


def _bias(value: Any) -> Any:
    """Biases with numpy's scalars as Python's, which are then checked."""
    if not isinstance(value, Mapping):
        return value
    return {_plain(token): _plain(bias) for token, bias in cast("Mapping[Any, Any]", value).items()}


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.integer | np.floating) else value


def _tokens(value: Any, vocabulary: int) -> frozenset[int]:
    expected = f"token ids from 0 to {vocabulary - 1}, or None"
    if isinstance(value, str):
        raise InputError(f"stop_token_ids={shown(value)}; expected {expected}")
    found = tuple(map(_plain, _collected("stop_token_ids", value, expected)))
    for token in found:
        if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < vocabulary:
            raise InputError(f"stop_token_ids={shown(token)}; expected {expected}")
    return frozenset(found)


def _collected(name: str, value: Any, expected: str) -> tuple[Any, ...]:
    """What may be given as one, several, or None for none."""
    if value is None or isinstance(value, str):
        return () if value is None else (value,)
    if isinstance(value, bytes | Mapping) or not isinstance(value, Iterable):
        raise InputError(f"{name}={shown(value)}; expected {expected}")
    return tuple(cast("Iterable[Any]", value))
