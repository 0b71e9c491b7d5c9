"""What callers want of continuous batches, their rows, and what a step draws for them. Plans and runs nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

import mlx.core as mx
import numpy as np

from archport.contract import CausalLM, Measured, NonFiniteOutput
from archport.generating.generate import Generator
from archport.generating.pieces import FinishReason, Piece, RowOptions, RowText, TokenLogprob, Usage
from archport.generating.sampling import Sampler


class Constraint(Protocol):
    """What a row's text has to be: which tokens may come next."""

    def allowed(self) -> np.ndarray:
        """(V,) bool."""
        ...

    def take(self, token: int) -> None:
        """Note the token that came."""
        ...


@dataclass(slots=True, eq=False)
class Talk:
    """One caller's prompt.

    Args:
        ids: of the prompt, int32.
        options: what is asked of it.
        told: given every piece, and an error in place of the rest; on the thread that steps.
        answers: texts that are wanted.
        logprobs: how many of the likeliest tokens to tell; None for none.
        measured: the same prompt with its pictures.
        constraints: of each answer, made when it begins; None for none.
        markers: special tokens that stay in its text.

    Attributes:
        gone: set by any thread when nobody wants it any more.
    """

    ids: np.ndarray
    options: RowOptions
    told: Callable[[Piece | Exception], None]
    answers: int = 1
    logprobs: int | None = None
    measured: Measured | None = None
    constraints: Callable[[], Constraint] | None = None
    markers: frozenset[str] = frozenset()
    gone: bool = False

    @property
    def drawn(self) -> int:
        """Texts that are decoded: one stands for all that take the likeliest token."""
        return 1 if self.options.sampling.greedy else self.answers


@dataclass(slots=True, eq=False)
class Row:
    """One text that is being generated; see `Talk`."""

    talk: Talk
    answers: tuple[int, ...]
    key: np.ndarray
    text: RowText
    most: int
    ends: frozenset[int]
    cached: int
    constraint: Constraint | None
    tokens: list[int] = field(default_factory=list[int])
    # Why what it has to be can't be followed; its next token says so, to its own caller.
    failure: Exception | None = None

    @property
    def columns(self) -> int:
        """Tokens that it may come to hold."""
        return len(self.talk.ids) + self.most

    def allowed(self, vocabulary: int) -> np.ndarray:
        """(V,) bool: which tokens may come next."""
        if self.constraint is not None and self.failure is None:
            try:
                return self.constraint.allowed()[:vocabulary]
            except Exception as error:
                self.failure = error
        return np.ones(vocabulary, bool)

    def take(self, token: int, at: int, scores: np.ndarray | None, top: tuple[np.ndarray, np.ndarray] | None) -> Piece:
        """The piece that a token makes.

        Args:
            at: the row's place in `scores` (B,) and `top` (B, n), as `Drawn` has them.

        Raises:
            Exception: whatever the row's constraint fails with.
        """
        if self.failure is not None:
            raise self.failure
        self.tokens.append(token)
        ended = token in self.ends
        if self.constraint is not None and not ended:
            self.constraint.take(token)
        text = "" if ended else self.text.add(token)
        last = len(self.tokens) == self.most
        reason: FinishReason | None = "stop" if ended or self.text.stopped else "length" if last else None
        told: tuple[TokenLogprob, ...] = ()
        wanted = self.talk.logprobs
        if wanted is not None and scores is not None:
            pairs = [] if top is None else zip(top[0][at].tolist(), top[1][at].tolist(), strict=True)
            likeliest = tuple((each, score) for each, score in list(pairs)[:wanted] if score > -np.inf)
            told = (TokenLogprob(token, float(scores[at]), likeliest),)
        piece = Piece(text, (token,), logprobs=told)
        if reason is None:
            return piece
        asked, usage = self.talk.options.max_tokens, Usage(len(self.talk.ids), self.cached, len(self.tokens))
        clamped = self.most if asked is not None and asked > self.most else None
        return replace(piece, text=text + self.text.finish(), finish_reason=reason, usage=usage, clamped_to=clamped)


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a step drew, unevaluated: tokens and whether their logits are finite (B,), and what was asked for."""

    tokens: mx.array
    finite: mx.array
    logprobs: mx.array | None = None
    top: tuple[mx.array, mx.array] | None = None

    @property
    def arrays(self) -> tuple[mx.array, ...]:
        more = () if self.logprobs is None else (self.logprobs,)
        return (self.tokens, self.finite, *more, *(self.top or ()))

    def rows(self, rows: Sequence[int]) -> Drawn:
        """The same of some rows."""
        index = mx.array(list(rows))
        top = None if self.top is None else (self.top[0][index], self.top[1][index])
        return Drawn(
            self.tokens[index], self.finite[index], None if self.logprobs is None else self.logprobs[index], top
        )

    def join(self, other: Drawn) -> Drawn:
        """Both, where one may tell less than the other."""
        counts = self.tokens.shape[0], other.tokens.shape[0]
        scores = [
            mx.zeros((count,)) if each.logprobs is None else each.logprobs
            for each, count in zip((self, other), counts, strict=True)
        ]
        width = max(0 if each.top is None else each.top[0].shape[1] for each in (self, other))
        tops = [each._wide(width, count) for each, count in zip((self, other), counts, strict=True)]
        return Drawn(
            mx.concatenate([self.tokens, other.tokens]),
            mx.concatenate([self.finite, other.finite]),
            mx.concatenate(scores),
            (mx.concatenate([each[0] for each in tops]), mx.concatenate([each[1] for each in tops])) if width else None,
        )

    def _wide(self, width: int, count: int) -> tuple[mx.array, mx.array]:
        ids, scores = self.top or (mx.zeros((count, 0), mx.uint32), mx.zeros((count, 0)))
        more = [(0, 0), (0, width - ids.shape[1])]
        return mx.pad(ids, more), mx.pad(scores, more, constant_values=-mx.inf)


def draw(trunk: CausalLM, hidden: mx.array, sampler: Sampler, rows: Sequence[Row]) -> Drawn:
    """The next token of hidden states (B, 1, D)."""
    given = trunk.logits(hidden)[:, -1]
    finite = mx.isfinite(given).all(axis=-1)
    if any(row.constraint is not None for row in rows):
        vocabulary = given.shape[-1]
        allowed = np.stack([row.allowed(vocabulary) for row in rows])
        given = mx.where(mx.array(cast(Any, allowed)), given, -mx.inf)
    told = [row.talk.logprobs for row in rows if row.talk.logprobs is not None]
    tokens, logprobs = sampler(given, logprobs=bool(told))
    if logprobs is None:
        return Drawn(tokens, finite)
    scores = mx.take_along_axis(logprobs, tokens[:, None], axis=-1)[:, 0]
    top: tuple[mx.array, mx.array] | None = None
    if max(told):
        best = mx.argsort(-logprobs, axis=-1)[:, : max(told)]
        top = (best, mx.take_along_axis(logprobs, best, axis=-1))
    return Drawn(tokens, finite, scores, top)


def rows_of(generator: Generator, special: frozenset[str], talk: Talk, key: np.ndarray, cached: int) -> list[Row]:
    """The rows of a caller, none of which has a token yet.

    Args:
        special: the tokenizer's special tokens.
        key: what tells its prompt's pictures apart, too.
        cached: leading tokens of the prompt that an earlier call had left behind.
    """
    every, options = tuple(range(talk.answers)), talk.options
    groups = [every] if talk.drawn == 1 else [(answer,) for answer in every]
    tokenizer, ends = generator.tokenizer, options.ends(generator.stops)
    return [
        Row(
            talk,
            answers,
            key,
            RowText(tokenizer, options.stop, special=special - talk.markers, least=options.min_tokens),
            generator.most_of([talk.ids], [talk.options])[0],
            ends,
            cached,
            None if talk.constraints is None else talk.constraints(),
        )
        for answers in groups
    ]


def sampler_of(rows: Sequence[Row], vocabulary: int) -> Sampler:
    """Draws for one caller's rows as a call of its own would."""
    return Sampler(
        [row.talk.options.sampling for row in rows],
        vocabulary,
        [row.talk.ids for row in rows],
        [row.key for row in rows],
        [row.talk.options.sampling.adjustment(row.ends, row.talk.options.min_tokens) for row in rows],
    )


def not_finite(row: Row) -> NonFiniteOutput:
    """What a caller is told whose row went wrong."""
    return NonFiniteOutput(
        f"the logits hold NaN or infinity after {len(row.tokens)} tokens. The weights may be damaged, or overflow in "
        "this dtype: start the server with --dtype float32"
    )
