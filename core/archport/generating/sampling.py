"""Logits to the next token of each row: filters, and a draw with keys of its own.

Filters come in mlx-lm's order and mean what they mean there; nothing is compiled, because a compiled function has its
values built in and every new one would cost a compilation. Rows may differ in every option: options are columns (B, 1)
of numbers, and one that does nothing leaves a row's numbers as they are. A row draws with keys made of its seed and its
own prompt: it draws the same whichever rows are beside it, and whatever else the process draws.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

from archport.contract import InputError
from archport.contract.errors import shown
from archport.generating.adjusting import LARGEST, Adjusting, Adjustment
from archport.planning.batch import GREEDY_LOGITS

# Below it float32 has no number that division leaves alone.
SMALLEST = float(np.finfo(np.float32).tiny)
SEEDS = 2**64


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the tokens of a row are drawn.

    Args:
        temperature: 0 takes the likeliest token, and so does what float32 can't tell from 0.
        top_p: keep the likeliest tokens that hold this share; 1 keeps all.
        top_k: keep so many, and those as likely as the last of them; 0 keeps all.
        min_p: keep tokens with at least this share of the likeliest one's probability; 0 keeps all.
        repetition_penalty: above 1 makes tokens of the prompt and of the text so far less likely; None or 1 does not.
        seed: of the draws, from 0 to 2**64 - 1; None draws differently each time.
        presence_penalty: taken from the logit of every token that was generated before, once. The prompt's tokens do
            not count. -2 to 2, as OpenAI defines it.
        frequency_penalty: taken from it as many times as the token was generated. The prompt's tokens do not count.
        logit_bias: token id -> what is added to its logit, -100 to 100; before the penalties.

    Raises:
        InputError: naming the value that is out of range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float | None = None
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0, None)
        _check("top_p", self.top_p, 0, 1)
        _check("min_p", self.min_p, 0, 1)
        if self.top_p == 0:
            raise InputError("top_p=0 keeps no token; expected above 0 and at most 1")
        if not isinstance(self.top_k, int) or isinstance(self.top_k, bool) or self.top_k < 0:
            raise InputError(f"top_k={shown(self.top_k)}; expected an integer >= 0, where 0 keeps all tokens")
        if self.repetition_penalty is not None:
            _check("repetition_penalty", self.repetition_penalty, 0, None)
            if self.repetition_penalty == 0:
                raise InputError("repetition_penalty=0; expected a number above 0, where 1 changes nothing")
        _check("presence_penalty", self.presence_penalty, -2, 2)
        _check("frequency_penalty", self.frequency_penalty, -2, 2)
        if self.logit_bias is not None:
            if not isinstance(self.logit_bias, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise InputError(f"logit_bias={shown(self.logit_bias)}; expected a dict of token ids and numbers")
            for token, bias in self.logit_bias.items():
                if not isinstance(token, int) or isinstance(token, bool) or token < 0:  # pyright: ignore[reportUnnecessaryIsInstance]
                    raise InputError(f"logit_bias holds {shown(token)}; expected token ids, integers from 0")
                _check(f"logit_bias[{shown(token)}]", bias, -100, 100)
        seed = self.seed
        if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < SEEDS):
            raise InputError(f"seed={shown(seed)}; expected an integer from 0 to 2**64 - 1, or None")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.temperature < SMALLEST

    def adjustment(self, ends: frozenset[int] = frozenset(), least: int = 0) -> Adjustment:
        """What is done to the row's logits first.

        Args:
            ends: tokens that end the row, which can't come before `least` others did.
        """
        repetition = 1.0 if self.repetition_penalty is None else self.repetition_penalty
        bias = tuple((token, float(value)) for token, value in (self.logit_bias or {}).items())
        return Adjustment(repetition, self.presence_penalty, self.frequency_penalty, bias, ends, least)


def _check(name: str, value: object, low: float, high: float | None) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not value >= low or (high is not None and value > high) or value == float("inf"):  # pyright: ignore[reportOperatorIssue]
        raise InputError(f"{name}={shown(value)}; expected a number from {low} to {'any' if high is None else high}")


def drawing_bytes(rows: Sequence[Sampling], itemsize: int, *, logprobs: bool, masked: bool) -> int:
    """Bytes per entry of a vocabulary, and row, that drawing one token holds at once, the next one's included.

    Counted with the host as far ahead as it gets, filter by filter: 4 to 25 % above that. What one row asks for is
    done to all of them.

    Args:
        rows: how each is drawn.
        itemsize: bytes of one logit as the model makes it.
        logprobs: whether the likeliest tokens are told too.
        masked: whether some tokens can't come yet.
    """
    held = GREEDY_LOGITS * itemsize
    repeats = any(row.repetition_penalty not in (None, 1) for row in rows)
    counted = any(row.presence_penalty for row in rows), any(row.frequency_penalty for row in rows)
    biased, counts = any(row.logit_bias for row in rows), {row.top_k for row in rows}
    likely = logprobs or not all(row.greedy for row in rows)
    if not (likely or repeats or any(counted) or biased or masked):
        return held
    held += 0 if itemsize == 4 else 4
    extra = (
        (any(row.top_p < 1 for row in rows), 20),
        (counts != {0}, 12 if len(counts) == 1 else 20),
        (any(row.min_p > 0 for row in rows), 8),
        (logprobs, 12),
        (likely, 14),
        (repeats, 12 if likely else 18),
        (any(counted), 17),
        (all(counted), 5),
        (biased, 7),
        (masked, 7),
    )
    return held + sum(more for asked, more in extra if asked)


class Sampler:
    """Draws the next token of every row, step after step.

    Args:
        rows: how each is drawn.
        vocabulary: entries of the logits.
        prompts: ids of each row.
        names: what tells the prompts apart, where that is more than their ids.
        adjustments: what is done to the logits of each first; what its `Sampling` says when left out.
        drawn: the seed of rows that have none; a new one each time when left out.
    """

    def __init__(
        self,
        rows: Sequence[Sampling],
        vocabulary: int,
        prompts: Sequence[np.ndarray],
        names: Sequence[np.ndarray] | None = None,
        adjustments: Sequence[Adjustment] | None = None,
        drawn: int | None = None,
    ) -> None:
        self._rows, self._vocabulary = list(rows), vocabulary
        # Tokens that were drawn, of each row.
        self._steps = np.zeros(len(rows), np.uint32)
        drawn = secrets.randbits(64) if drawn is None else drawn
        seeds = [drawn if row.seed is None else row.seed for row in rows]
        self._keys = _keys(seeds, prompts if names is None else names)
        self._adjusting = Adjusting(adjustments or [row.adjustment() for row in rows], vocabulary, prompts)
        self._bind()

    def _bind(self) -> None:
        """Columns (B, 1) of the rows there are."""
        rows, whole = self._rows, self._vocabulary
        self._greedy = all(row.greedy for row in rows)
        takes = [row.greedy for row in rows]
        self._takes = mx.array(takes) if any(takes) else None
        # Of a row that takes the likeliest token what is drawn is dropped.
        self._temperature = _column(1.0 if row.greedy else min(row.temperature, LARGEST) for row in rows)
        # Where all are kept no rounding of a sum may drop any.
        self._top_p = _column(row.top_p if row.top_p < 1 else math.inf for row in rows)
        self._min_p = _column(math.log(row.min_p) if row.min_p > 0 else -math.inf for row in rows)
        self._top_k = [row.top_k if 0 < row.top_k < whole else whole for row in rows]
        self._filters = (
            any(row.top_p < 1 for row in rows),
            any(row.min_p > 0 for row in rows),
            min(self._top_k) < whole,
        )

    def __call__(self, logits: mx.array, *, logprobs: bool = False) -> tuple[mx.array, mx.array | None]:
        """The next token (B,) of every row; from now on they count as generated.

        Args:
            logits: (B, V) as the model makes them.
            logprobs: whether to give the log-probabilities (B, V) float32 as well: of adjusted logits, before
                temperature and filters.
        """
        # The likeliest token needs no probabilities, and passes over a vocabulary are what a step can save.
        if not (self._greedy and self._adjusting.nothing):
            logits = self._adjusting(logits.astype(mx.float32))
        shares: mx.array | None = None
        if logprobs or not self._greedy:
            logits = logits.astype(mx.float32)
            shares = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        if self._greedy:
            # Not of log-probabilities, whose rounding can make two tokens equally likely.
            tokens = mx.argmax(logits, axis=-1)
        else:
            assert shares is not None
            tokens = self._drawn(shares)
            if self._takes is not None:
                tokens = mx.where(self._takes, mx.argmax(logits, axis=-1), tokens)
        self._steps = self._steps + np.uint32(1)
        self._adjusting.add(tokens)
        return tokens, shares if logprobs else None

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Go on with these rows only, in this order."""
        self._rows, self._keys = [self._rows[row] for row in rows], self._keys[list(rows)]
        self._steps = self._steps[list(rows)]
        self._adjusting.keep_rows(rows)
        self._bind()

    def join(self, other: Sampler) -> None:
        """Go on with the rows of another batch behind these: each draws on as it would have without the others."""
        self._rows = self._rows + other._rows
        self._keys = np.concatenate([self._keys, other._keys])
        self._steps = np.concatenate([self._steps, other._steps])
        self._adjusting.join(other._adjusting)
        self._bind()

    def _drawn(self, logprobs: mx.array) -> mx.array:
        by_share, by_least, by_count = self._filters
        if by_share:
            logprobs = kept_top_p(logprobs, self._top_p)
        if by_least:
            logprobs = kept_min_p(logprobs, self._min_p)
        if by_count:
            logprobs = kept_top_k(logprobs, self._top_k)
        # The likeliest at 0, so that a division by however little leaves it there.
        scores = logprobs - logprobs.max(axis=-1, keepdims=True)
        moved = np.stack([np.zeros_like(self._steps), self._steps], axis=1)
        keys = mx.array(self._keys + moved)
        draw = mx.vmap(lambda row, key: mx.random.categorical(row, key=key))
        return draw(scores / self._temperature, keys)


def _column(values: Iterable[float]) -> mx.array:
    """Numbers as (B, 1) float32."""
    return mx.array(list(values), mx.float32)[:, None]


def _keys(seeds: Sequence[int], names: Sequence[np.ndarray]) -> np.ndarray:
    """Keys (B, 2) uint32 of rows: of the seed, the prompt, and how many equal ones are in front of it."""
    earlier: Counter[tuple[int, bytes]] = Counter()
    keys: list[np.ndarray] = []
    for seed, name in zip(seeds, names, strict=True):
        digest = hashlib.blake2b(name.astype(np.int64).tobytes(), digest_size=8).digest()
        count = earlier[seed, digest]
        keys.append(np.random.SeedSequence([seed, int.from_bytes(digest, "little"), count]).generate_state(2))
        earlier[seed, digest] += 1
    return np.stack(keys)


def kept_top_p(logprobs: mx.array, share: float | mx.array) -> mx.array:
    """Log-probabilities (B, V), -inf for all but the likeliest tokens that hold this share together.

    Args:
        share: for all rows, or (B, 1); infinity keeps all of a row.
    """
    ordered = mx.sort(logprobs, axis=-1)
    probabilities = mx.exp(ordered)
    above = mx.cumsum(probabilities, axis=-1, reverse=True, inclusive=False)
    total = above[:, :1] + probabilities[:, :1]
    dropped = (above >= share * total).sum(axis=-1, keepdims=True)
    # However small the share, the likeliest token stays.
    least = mx.take_along_axis(ordered, mx.minimum(dropped, ordered.shape[-1] - 1), axis=-1)
    return _at_least(logprobs, least)


def kept_min_p(logprobs: mx.array, logarithm: float | mx.array) -> mx.array:
    """Log-probabilities (B, V), -inf for tokens below a share of the likeliest one's probability.

    Args:
        logarithm: of the share, for all rows, or (B, 1); -inf keeps all of a row.
    """
    return _at_least(logprobs, logprobs.max(axis=-1, keepdims=True) + logarithm)


def kept_top_k(logprobs: mx.array, counts: Sequence[int]) -> mx.array:
    """Log-probabilities (B, V), -inf for tokens less likely than so many others of their row."""
    first = [logprobs.shape[-1] - count for count in counts]
    if len(set(first)) == 1:
        return _at_least(logprobs, mx.partition(logprobs, first[0], axis=-1)[:, first[0] : first[0] + 1])
    return _at_least(logprobs, mx.take_along_axis(mx.sort(logprobs, axis=-1), mx.array(first)[:, None], axis=-1))


def _at_least(logprobs: mx.array, least: mx.array) -> mx.array:
    return mx.where(logprobs < least, -mx.inf, logprobs)
