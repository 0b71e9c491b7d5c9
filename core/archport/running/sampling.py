"""Logits to the next token of each row: penalties, filters, and a draw with a key of its own.

The filters are mlx-lm's. The draw uses no global random state, so a seed gives the same text whatever else runs.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from archport.contract import InputError
from archport.layers.mlx_lm import reused


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn.

    Args:
        temperature: 0 takes the likeliest token.
        top_p: keep the likeliest tokens that hold this share; 1 keeps all.
        top_k: keep so many; 0 keeps all.
        min_p: keep tokens with at least this share of the likeliest one's probability; 0 keeps all.
        repetition_penalty: above 1 makes tokens of the prompt and of the text so far less likely; None or 1 does not.
        seed: of the draws; None draws differently each time.

    Raises:
        InputError: naming the value that is out of range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0, None)
        _check("top_p", self.top_p, 0, 1)
        _check("min_p", self.min_p, 0, 1)
        if self.top_p == 0:
            raise InputError("top_p=0 keeps no token; expected above 0 and at most 1")
        if not isinstance(self.top_k, int) or isinstance(self.top_k, bool) or self.top_k < 0:
            raise InputError(f"top_k={self.top_k!r}; expected an integer >= 0, where 0 keeps all tokens")
        if self.repetition_penalty is not None:
            _check("repetition_penalty", self.repetition_penalty, 0, None)
            if self.repetition_penalty == 0:
                raise InputError("repetition_penalty=0; expected a number above 0, where 1 changes nothing")
        if self.seed is not None and (not isinstance(self.seed, int) or isinstance(self.seed, bool) or self.seed < 0):
            raise InputError(f"seed={self.seed!r}; expected an integer >= 0, or None")

    @property
    def penalised(self) -> bool:
        return self.repetition_penalty not in (None, 1, 1.0)


def _check(name: str, value: object, low: float, high: float | None) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not value >= low or (high is not None and value > high) or value == float("inf"):  # pyright: ignore[reportOperatorIssue]
        raise InputError(f"{name}={value!r}; expected a number from {low} to {'any' if high is None else high}")


class Sampler:
    """Draws the next token of every row, step after step.

    Args:
        sampling: how.
        vocabulary: entries of the logits.
    """

    def __init__(self, sampling: Sampling, vocabulary: int) -> None:
        self._sampling = sampling
        self._filters: list[Callable[[mx.array], mx.array]] = []
        if sampling.temperature > 0:
            self._key = mx.random.key(secrets.randbits(31) if sampling.seed is None else sampling.seed)
            if sampling.top_p < 1:
                top_p = reused("sample_utils.apply_top_p")
                self._filters.append(lambda x: top_p(x, sampling.top_p))
            if sampling.min_p > 0:
                min_p = reused("sample_utils.apply_min_p")
                self._filters.append(lambda x: min_p(x, sampling.min_p))
            if 0 < sampling.top_k < vocabulary:
                top_k = reused("sample_utils.apply_top_k")
                self._filters.append(lambda x: top_k(x, sampling.top_k))
        if sampling.penalised:
            # All of the text: the default looks at its last 20 tokens.
            everything = 2**31 - 1
            self._penalty = reused("sample_utils.make_repetition_penalty")(sampling.repetition_penalty, everything)

    def penalise(self, logits: mx.array, seen: list[mx.array]) -> mx.array:
        """Logits (B, V) with the penalty for what each row has seen (n,)."""
        return mx.concatenate([self._penalty(row, logits[at : at + 1]) for at, row in enumerate(seen)])

    def __call__(self, logprobs: mx.array) -> mx.array:
        """Tokens (B,) of log-probabilities (B, V)."""
        if self._sampling.temperature == 0:
            return mx.argmax(logprobs, axis=-1)
        for kept in self._filters:
            logprobs = kept(logprobs)
        self._key, key = mx.random.split(self._key)
        return mx.random.categorical(logprobs * (1 / self._sampling.temperature), key=key)
