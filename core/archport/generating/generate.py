"""Prompts to text: prefill as planned, decode one step ahead of the host, and let rows leave as they finish.

Several answers of a prompt share its prefill; equal ones, as temperature 0 gives, are decoded once.
"""

from __future__ import annotations

import itertools
import logging
from collections import abc
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import NoReturn, cast

import mlx.core as mx
import numpy as np
from tokenizers import Tokenizer

from archport.contract import CausalLM, ContextLengthExceeded, Measured, NonFiniteOutput, Reader
from archport.contract.errors import shown
from archport.device.progress import counted
from archport.device.ranks import common_seed
from archport.generating.decode import Decoding
from archport.generating.detokeniser import special_tokens
from archport.generating.pieces import (
    FinishReason,
    GenerateRequest,
    Generation,
    Piece,
    RowOptions,
    RowText,
    TokenLogprob,
    Usage,
)
from archport.generating.prefill import Prefilled, prefill
from archport.generating.sampling import Sampler, drawing_bytes
from archport.memory.snapshot import PrefixCache, PrefixDraft, remember
from archport.planning import Readout
from archport.reading.prompts import of_prompts
from archport.running.encode import Encoder

log = logging.getLogger("archport")


@dataclass(slots=True)
class _Row:
    """A row that is being generated.

    Args:
        index: of its prompt.
        answers: of the prompt's answers those that it stands for.
        key: tells its prompt's pictures apart, too.
        most: tokens that it may have.
        ends: tokens that end it.
    """

    index: int
    answers: tuple[int, ...]
    prompt: np.ndarray
    key: np.ndarray
    text: RowText
    options: RowOptions
    most: int
    ends: frozenset[int]
    tokens: list[int] = field(default_factory=list[int])

    def last(self, piece: Piece, reason: FinishReason, cached: int) -> Piece:
        """The piece that ends the row, with what is told once."""
        asked, usage = self.options.max_tokens, Usage(len(self.prompt), cached, len(self.tokens))
        clamped = self.most if asked is not None and asked > self.most else None
        text = piece.text + self.text.finish()
        return replace(piece, text=text, finish_reason=reason, usage=usage, clamped_to=clamped)


@dataclass(frozen=True, slots=True)
class _Step:
    """What one step draws, unevaluated: tokens (B,), and what was asked for beside them.

    Args:
        finite: () whether no logit is NaN or infinity.
        logits: (B, V), to find the row where one is.
        logprobs: (B,) of the tokens.
        top: the likeliest tokens (B, n) and their log-probabilities.
    """

    tokens: mx.array
    finite: mx.array
    logits: mx.array
    logprobs: mx.array | None = None
    top: tuple[mx.array, mx.array] | None = None

    @property
    def arrays(self) -> tuple[mx.array, ...]:
        more = () if self.logprobs is None else (self.logprobs,)
        return (self.tokens, self.finite, *more, *(self.top or ()))

    def rows(self, index: mx.array) -> _Step:
        """The same of some rows."""
        top = None if self.top is None else (self.top[0][index], self.top[1][index])
        logprobs = None if self.logprobs is None else self.logprobs[index]
        return _Step(self.tokens[index], self.finite, self.logits[index], logprobs, top)


@dataclass(frozen=True, slots=True)
class Generator:
    """The generation path of a loaded model.

    Args:
        tokenizer: ids to text.
        encoder: the trunk and its planner.
        stops: ids after which nothing is generated.
        prefixes: what calls leave behind for later ones.
        reader: of prompts with pictures; None for a model of text.
    """

    tokenizer: Tokenizer
    encoder: Encoder
    stops: frozenset[int]
    prefixes: PrefixCache
    reader: Reader | None = None

    def run(
        self, rows: Sequence[np.ndarray], request: GenerateRequest, measured: Sequence[Measured] = ()
    ) -> list[list[Generation]]:
        """The answers of every prompt, in the prompts' order; see `stream` for what is raised."""
        told: dict[tuple[int, int], list[Piece]] = {
            (row, answer): [] for row in range(len(rows)) for answer in range(request.answers or 1)
        }
        most = self.most_of(rows, request.rows)
        # Without a limit nobody knows how many there will be.
        known = all(options.max_tokens is not None for options in request.rows)
        whole = not any(options.stop for options in request.rows)
        with (
            # Without stop strings nobody needs a text before it is whole.
            closing(self._pieces(rows, request, measured, most, whole=whole)) as pieces,
            counted(
                "generating", sum(most) * (request.answers or 1) if known else None, shown=request.progress
            ) as made,
        ):
            for piece in pieces:
                told[piece.row, piece.answer].append(piece)
                # What a row that ends early might have been is not to come.
                left = 0 if piece.usage is None else most[piece.row] - piece.usage.completion_tokens
                made(len(piece.tokens), dropped=left)
        found: list[list[Generation]] = [[] for _ in rows]
        for (row, _), pieces in told.items():
            found[row].append(_generation(pieces, logprobs=request.logprobs is not None))
        return found

    def stream(
        self,
        rows: Sequence[np.ndarray],
        request: GenerateRequest,
        measured: Sequence[Measured] = (),
        *,
        whole: bool = False,
    ) -> abc.Generator[Piece, None, None]:
        """Pieces of all rows as they are made. Closing the iterator frees what the rows hold.

        Args:
            measured: the same prompts with what a reader found in them, pictures included.
            whole: give each row's text with its last piece only, which saves the host the work of every step.

        Raises:
            AdmissionRefused: prompts and tokens to come do not fit memory or context; before anything runs.
            NonFiniteOutput: a row's logits hold NaN or infinity.
        """
        return self._pieces(rows, request, measured, self.most_of(rows, request.rows), whole=whole)

    def _pieces(
        self,
        rows: Sequence[np.ndarray],
        request: GenerateRequest,
        measured: Sequence[Measured],
        most: list[int],
        *,
        whole: bool,
    ) -> abc.Generator[Piece, None, None]:
        """`stream` of rows that may be given so many tokens each."""
        _tell_clamped(rows, request, most, self.encoder.plan.max_context)
        draft = PrefixDraft(self.prefixes) if self.prefixes.limit else None
        visual = of_prompts(measured, self.reader)
        answers = max(request.drawn(row) for row in range(len(rows)))
        reserved = _reserved(rows, request, most)
        readout = self.readout(request) if any(most) else None
        read = prefill(self.encoder, rows, reserved, draft, visual, readout, answers)
        special = frozenset[str]() if whole else special_tokens(self.tokenizer)
        live: list[_Row] = []
        for index, (ids, key, options) in enumerate(zip(rows, read.keys, request.rows, strict=True)):
            # Equal answers are decoded once.
            every = tuple(range(request.answers or 1))
            for group in [every] if request.drawn(index) == 1 else [(answer,) for answer in every]:
                text = RowText(self.tokenizer, options.stop, whole=whole, special=special, least=options.min_tokens)
                live.append(_Row(index, group, ids, key, text, options, most[index], options.ends(self.stops)))
        pieces = self._decode(live, rows, read, request, draft, None if visual is None else visual.next_positions)
        return read.watch.decoding(pieces)

    def readout(self, request: GenerateRequest) -> Readout:
        """What drawing a token of one row holds."""
        size = _dtype(self.encoder.plan.dtype).size
        masked = any(options.min_tokens for options in request.rows)
        samplings = {id(options): options.sampling for options in request.rows}
        entry = drawing_bytes(list(samplings.values()), size, logprobs=bool(request.logprobs), masked=masked)
        return Readout("the logits", "logits", -(-entry // 4), fixed=4 * self.encoder.spec.vocab_size)

    def most_of(self, rows: Sequence[np.ndarray], options: Sequence[RowOptions]) -> list[int]:
        """Tokens that each row may be given: what was asked for, but no more than its context has room for.

        Raises:
            ContextLengthExceeded: for a prompt that leaves no room, or is itself beyond the context.
        """
        ceiling, found = self.encoder.plan.max_context, list[int]()
        for index, (row, each) in enumerate(zip(rows, options, strict=True)):
            room, asked = ceiling - len(row), each.max_tokens
            if room < 0 or (room == 0 and asked != 0):
                self._refuse(index, len(row))
            found.append(room if asked is None else min(asked, room))
        return found

    def _refuse(self, index: int, length: int) -> NoReturn:
        ceiling, positions = self.encoder.plan.max_context, self.encoder.spec.max_positions
        more = ", or load the model with a larger max_context" if ceiling < positions else ""
        raise ContextLengthExceeded(
            f"prompt {index} has {length:,} tokens and the context {ceiling:,}, which leaves none to generate; "
            f"shorten the prompt{more}",
            requested=length + 1,
            ceiling=ceiling,
            max_tokens_that_fit=ceiling - 1,
            binding="max_context" if ceiling < positions else "the model's positions",
        )

    def _decode(
        self,
        live: list[_Row],
        prompts: Sequence[np.ndarray],
        read: Prefilled,
        request: GenerateRequest,
        draft: PrefixDraft | None,
        positions: list[int] | None,
    ) -> abc.Generator[Piece, None, None]:
        encoder, lengths = self.encoder, [len(prompt) for prompt in prompts]
        unasked, live = [row for row in live if not row.most], [row for row in live if row.most]
        if draft is not None:
            # A prompt that reading has remembered needs no second copy.
            for index in () if read.remembered else sorted({row.index for row in unasked}):
                row = next(row for row in unasked if row.index == index)
                skip = max(lengths) - len(row.prompt)
                remember(draft, read.caches, index, skip, row.key, tokens=len(row.key))
            if not live:
                draft.keep()
        for row in unasked:
            yield from _shared(row, row.last(Piece("", (), row.index), "length", read.cached))
        if not live:
            return
        sampler = Sampler(
            [row.options.sampling for row in live],
            encoder.spec.vocab_size,
            [row.prompt for row in live],
            [row.key for row in live],
            [row.options.sampling.adjustment(row.ends, row.options.min_tokens) for row in live],
            drawn=common_seed() if read.plan.split is not None else None,
        )
        decoding = Decoding(encoder.trunk, encoder.spec, encoder.plan, read.plan, read.caches, lengths, positions)
        hidden, order = read.hidden, [row.index for row in live]
        if order != list(range(len(prompts))):
            decoding.keep_rows(order)
            hidden = hidden[mx.array(order)]
        step = self._draw(hidden.astype(_dtype(read.plan.dtype))[:, None], sampler, request)
        mx.async_eval(*step.arrays)
        for count in itertools.count(1):
            # The device starts on the next token before the host looks at this one.
            ahead: _Step | None = None
            if count < max(row.most for row in live):
                ahead = self._draw(decoding.step(step.tokens), sampler, request)
                mx.async_eval(*ahead.arrays)
            pieces, staying = _told(live, step, count, cached=read.cached)
            if draft is not None:
                _remember(draft, live, staying, decoding)
                if not staying:
                    # Before the last pieces are told, behind which a caller need not ask for more.
                    draft.keep()
            yield from pieces
            if not staying:
                return
            assert ahead is not None
            if len(staying) < len(live):
                live = [live[at] for at in staying]
                decoding.keep_rows(staying)
                sampler.keep_rows(staying)
                ahead = ahead.rows(mx.array(staying))
            step = ahead

    def _draw(self, hidden: mx.array, sampler: Sampler, request: GenerateRequest) -> _Step:
        """The next token of hidden states (B, 1, D)."""
        given = cast(CausalLM, self.encoder.trunk).logits(hidden)[:, -1]
        finite = mx.isfinite(given).all()
        tokens, logprobs = sampler(given, logprobs=request.logprobs is not None)
        if logprobs is None:
            return _Step(tokens, finite, given)
        drawn = mx.take_along_axis(logprobs, tokens[:, None], axis=-1)[:, 0]
        top: tuple[mx.array, mx.array] | None = None
        if request.logprobs:
            best = mx.argsort(-logprobs, axis=-1)[:, : request.logprobs]
            top = (best, mx.take_along_axis(logprobs, best, axis=-1))
        return _Step(tokens, finite, given, drawn, top)


def _told(live: list[_Row], step: _Step, count: int, *, cached: int) -> tuple[list[Piece], list[int]]:
    """The pieces of step number `count`, and which rows go on."""
    tokens = cast("list[int]", step.tokens.tolist())
    if not step.finite.item():
        # Not where only a row is wrong that has left since the step was started.
        finite = np.array(mx.isfinite(step.logits).all(axis=-1))
        for row in (live[at] for at in np.flatnonzero(~finite)):
            raise NonFiniteOutput(
                f"the logits of prompt {row.index} hold NaN or infinity after {len(row.tokens)} tokens. The "
                "weights may be damaged, or overflow in this dtype: try dtype='float32'"
            )
    logprobs = None if step.logprobs is None else np.array(step.logprobs)
    top = None if step.top is None else (np.array(step.top[0]), np.array(step.top[1]))
    pieces: list[Piece] = []
    staying: list[int] = []
    for at, (row, token) in enumerate(zip(live, tokens, strict=True)):
        row.tokens.append(token)
        ended = token in row.ends
        text = "" if ended else row.text.add(token)
        last = count == row.most
        reason: FinishReason | None = "stop" if ended or row.text.stopped else "length" if last else None
        told: tuple[TokenLogprob, ...] = ()
        if logprobs is not None:
            pairs = [] if top is None else zip(top[0][at].tolist(), top[1][at].tolist(), strict=True)
            # What is masked can't come, whatever place it has.
            likeliest = tuple((each, score) for each, score in pairs if score > -np.inf)
            told = (TokenLogprob(token, float(logprobs[at]), likeliest),)
        piece = Piece(text, (token,), row.index, logprobs=told)
        if reason is None:
            staying.append(at)
        else:
            piece = row.last(piece, reason, cached)
        pieces += _shared(row, piece)
    return pieces, staying


def _shared(row: _Row, piece: Piece) -> list[Piece]:
    """A row's piece, told for every answer that the row stands for."""
    return [replace(piece, answer=answer) for answer in row.answers]


def _generation(pieces: Sequence[Piece], *, logprobs: bool) -> Generation:
    end = pieces[-1]
    assert end.finish_reason is not None
    assert end.usage is not None
    tokens = tuple(token for piece in pieces for token in piece.tokens)
    told = tuple(each for piece in pieces for each in piece.logprobs) if logprobs else None
    text = "".join(piece.text for piece in pieces)
    return Generation(text, tokens, end.finish_reason, end.usage, told, end.clamped_to)


def _reserved(rows: Sequence[np.ndarray], request: GenerateRequest, most: Sequence[int]) -> int | None:
    """Tokens to reserve behind the longest prompt; None where caches grow with the text.

    Rows end at one column, and longer ones leave their columns to shorter ones that go on: no row needs more columns
    than the fullest of them has tokens.
    """
    if any(options.max_tokens is None for options in request.rows):
        return None
    spare = max(len(row) + more for row, more in zip(rows, most, strict=True)) - max(map(len, rows))
    return spare or (None if any(most) else 0)


def _tell_clamped(rows: Sequence[np.ndarray], request: GenerateRequest, most: Sequence[int], ceiling: int) -> None:
    """Say aloud that a context has less room than was asked for, once per call."""
    asked = [options.max_tokens for options in request.rows]
    clamped = [
        row for row, (want, more) in enumerate(zip(asked, most, strict=True)) if want is not None and want > more
    ]
    if clamped:
        row, others = clamped[0], len(clamped) - 1
        log.warning(
            "max_tokens=%s is more than the context of %s tokens has room for: prompt %d has %s, so at most %s are "
            "generated%s",
            shown(asked[row]),
            f"{ceiling:,}",
            row,
            f"{len(rows[row]):,}",
            f"{most[row]:,}",
            f"; {others:,} more prompt{'s' * (others > 1)} alike" if others else "",
        )


def _remember(draft: PrefixDraft, live: list[_Row], staying: list[int], decoding: Decoding) -> None:
    """Have what finished rows hold ready for later calls."""
    for at in sorted(set(range(len(live))) - set(staying)):
        row = live[at]
        decoding.remember(draft, at, np.concatenate([row.key, np.asarray(row.tokens, np.int32)]))


def _dtype(name: str) -> mx.Dtype:
    return {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}[name]
