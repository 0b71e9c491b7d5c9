"""Logits to the next token of each row: penalties, filters, and a draw with keys of its own.

Filters come in mlx-lm's order and mean what they mean there; nothing is compiled, because a compiled function has its
values built in and every new one would cost a compilation. A row draws with keys made of the seed and its own prompt:
it draws the same whichever rows are beside it, and whatever else the process draws.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import mlx.core as mx
import numpy as np

from archport.contract import InputError
from archport.planning.readout import GREEDY_LOGITS

# Beyond these float32 has no number, or makes infinity of what is multiplied or divided by it.
SMALLEST, LARGEST = float(np.finfo(np.float32).tiny), 1e30
SEEDS = 2**64


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn.

    Args:
        temperature: 0 takes the likeliest token, and so does what float32 can't tell from 0.
        top_p: keep the likeliest tokens that hold this share; 1 keeps all.
        top_k: keep so many, and those as likely as the last of them; 0 keeps all.
        min_p: keep tokens with at least this share of the likeliest one's probability; 0 keeps all.
        repetition_penalty: above 1 makes tokens of the prompt and of the text so far less likely; None or 1 does not.
        seed: of the draws, from 0 to 2**64 - 1; None draws differently each time.

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
        seed = self.seed
        if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < SEEDS):
            raise InputError(f"seed={seed!r}; expected an integer from 0 to 2**64 - 1, or None")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.temperature < SMALLEST

    def logits(self, itemsize: int, logprobs: bool) -> int:
        """Bytes per entry of a vocabulary, and row, that drawing one token holds at once, the next one's included.

        Counted with the host as far ahead as it gets, filter by filter: 4 to 25 % above that.

        Args:
            itemsize: bytes of one logit as the model makes it.
            logprobs: whether the likeliest tokens are told too.
        """
        held = GREEDY_LOGITS * itemsize
        if self.greedy and not self.penalised and not logprobs:
            return held
        held += 14 if itemsize == 4 else 18
        extra = ((self.top_p < 1, 20), (self.top_k > 0, 12), (self.min_p > 0, 8), (logprobs, 12), (self.penalised, 12))
        return held + sum(more for asked, more in extra if asked)

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
        prompts: ids of each row.
        names: what tells the prompts apart, where that is more than their ids.
    """

    def __init__(
        self,
        sampling: Sampling,
        vocabulary: int,
        prompts: Sequence[np.ndarray],
        names: Sequence[np.ndarray] | None = None,
    ) -> None:
        self._sampling = sampling
        seed = secrets.randbits(64) if sampling.seed is None else sampling.seed
        self._keys, self._step = _keys(seed, prompts if names is None else names), 0
        self._filters: list[Callable[[mx.array], mx.array]] = []
        if sampling.top_p < 1:
            self._filters.append(lambda x: kept_top_p(x, sampling.top_p))
        if sampling.min_p > 0:
            self._filters.append(lambda x: kept_min_p(x, sampling.min_p))
        if 0 < sampling.top_k < vocabulary:
            self._filters.append(lambda x: kept_top_k(x, sampling.top_k))
        # (B, V) whether a token was seen in the row.
        self._seen: mx.array | None = None
        if sampling.penalised:
            seen = np.zeros((len(prompts), vocabulary), bool)
            for row, ids in enumerate(prompts):
                seen[row, ids] = True
            self._seen = mx.array(seen)

    def logprobs(self, logits: mx.array) -> mx.array:
        """Log-probabilities (B, V) float32 of logits, with the penalty for what each row has seen."""
        logits = logits.astype(mx.float32)
        if self._seen is not None:
            penalty = min(max(cast(float, self._sampling.repetition_penalty), 1 / LARGEST), LARGEST)
            penalised = mx.where(logits < 0, logits * penalty, logits / penalty)
            logits = mx.where(self._seen, penalised, logits)
        return logits - mx.logsumexp(logits, axis=-1, keepdims=True)

    def __call__(self, logprobs: mx.array) -> mx.array:
        """The next tokens (B,), drawn from log-probabilities (B, V); they count as seen from now on."""
        tokens = mx.argmax(logprobs, axis=-1) if self._sampling.greedy else self._drawn(logprobs)
        if self._seen is not None:
            self._seen = mx.put_along_axis(self._seen, tokens[:, None], mx.array(True), axis=-1)
        return tokens

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Go on with these rows only, in this order."""
        self._keys = self._keys[list(rows)]
        if self._seen is not None:
            self._seen = self._seen[mx.array(list(rows))]

    def _drawn(self, logprobs: mx.array) -> mx.array:
        for kept in self._filters:
            logprobs = kept(logprobs)
        # The likeliest at 0, so that a division by however little leaves it there.
        scores = logprobs - logprobs.max(axis=-1, keepdims=True)
        keys = mx.array(self._keys + np.array([0, self._step], np.uint32))
        self._step += 1
        draw = mx.vmap(lambda row, key: mx.random.categorical(row, key=key))
        return draw(scores / min(self._sampling.temperature, LARGEST), keys)


def _keys(seed: int, names: Sequence[np.ndarray]) -> np.ndarray:
    """Keys (B, 2) uint32 of rows: of the seed, the prompt, and how many equal ones are in front of it."""
    earlier: Counter[bytes] = Counter()
    keys: list[np.ndarray] = []
    for name in names:
        digest = hashlib.blake2b(name.astype(np.int64).tobytes(), digest_size=8).digest()
        keys.append(np.random.SeedSequence([seed, int.from_bytes(digest, "little"), earlier[digest]]).generate_state(2))
        earlier[digest] += 1
    return np.stack(keys)


def kept_top_p(logprobs: mx.array, share: float) -> mx.array:
    """Log-probabilities (B, V), -inf for all but the likeliest tokens that hold this share together."""
    ordered = mx.sort(logprobs, axis=-1)
    probabilities = mx.exp(ordered)
    above = mx.cumsum(probabilities, axis=-1, reverse=True, inclusive=False)
    total = above[:, :1] + probabilities[:, :1]
    dropped = (above >= share * total).sum(axis=-1, keepdims=True)
    # However small the share, the likeliest token stays.
    least = mx.take_along_axis(ordered, mx.minimum(dropped, ordered.shape[-1] - 1), axis=-1)
    return _at_least(logprobs, least)


def kept_min_p(logprobs: mx.array, share: float) -> mx.array:
    """Log-probabilities (B, V), -inf for tokens below this share of the likeliest one's probability."""
    return _at_least(logprobs, logprobs.max(axis=-1, keepdims=True) + math.log(share))


def kept_top_k(logprobs: mx.array, count: int) -> mx.array:
    """Log-probabilities (B, V), -inf for tokens less likely than `count` others."""
    first = logprobs.shape[-1] - count
    return _at_least(logprobs, mx.partition(logprobs, first, axis=-1)[:, first : first + 1])


def _at_least(logprobs: mx.array, least: mx.array) -> mx.array:
    return mx.where(logprobs < least, -mx.inf, logprobs)
