"""Prompts to text: prefill as planned, decode one step ahead of the host, and let rows leave as they finish."""

from __future__ import annotations

import itertools
from collections import abc
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import cast

import mlx.core as mx
import numpy as np
from tokenizers import Tokenizer

from archport.contract import CausalLM, ContextLengthExceeded, Measured, NonFiniteOutput, Reader
from archport.planning import Readout
from archport.running.decode import Decoding
from archport.running.detokeniser import special_tokens
from archport.running.encode import Encoder
from archport.running.generation import FinishReason, GenerateRequest, Generation, Piece, TokenLogprob, Usage
from archport.running.prefill import Prefilled, prefill
from archport.running.prefix_cache import PrefixCache, PrefixDraft
from archport.running.progress import counted
from archport.running.sampling import Sampler
from archport.running.text import RowText
from archport.running.visual_prompts import of_prompts


@dataclass(slots=True)
class _Row:
    """A row that is being generated, to at most `most` tokens; `key` tells its prompt's pictures apart, too."""

    index: int
    prompt: np.ndarray
    key: np.ndarray
    text: RowText
    most: int
    tokens: list[int] = field(default_factory=list[int])


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
    ) -> list[Generation]:
        """One `Generation` per prompt, in their order; see `stream` for what is raised."""
        texts = [""] * len(rows)
        tokens: list[tuple[int, ...]] = [()] * len(rows)
        told: list[tuple[TokenLogprob, ...]] = [()] * len(rows)
        ends: dict[int, Piece] = {}
        most = self._most(rows, request)
        # Without a limit nobody knows how many there will be.
        total = None if request.max_tokens is None else sum(most)
        with (
            # Without stop strings nobody needs a text before it is whole.
            closing(self.stream(rows, request, measured, whole=not request.stop)) as pieces,
            counted("generating", total, shown=request.progress) as made,
        ):
            for piece in pieces:
                texts[piece.row] += piece.text
                tokens[piece.row] += piece.tokens
                told[piece.row] += piece.logprobs
                if piece.finish_reason is not None:
                    ends[piece.row] = piece
                # What a row that ends early might have been is not to come.
                made(1, dropped=0 if piece.finish_reason is None else most[piece.row] - len(tokens[piece.row]))
        found: list[Generation] = []
        for row, (text, ids, logprobs) in enumerate(zip(texts, tokens, told, strict=True)):
            end = ends[row]
            assert end.finish_reason is not None
            assert end.usage is not None
            kept = logprobs if request.logprobs is not None else None
            found.append(Generation(text, ids, end.finish_reason, end.usage, kept))
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
        most = self._most(rows, request)
        draft = PrefixDraft(self.prefixes) if self.prefixes.limit else None
        visual = of_prompts(measured, self.reader)
        read = prefill(self.encoder, rows, request.max_tokens, draft, visual, self._readout(request))
        keys = rows if visual is None else visual.keys
        special = frozenset[str]() if whole else special_tokens(self.tokenizer)
        live = [
            _Row(index, ids, key, RowText(self.tokenizer, request.stop, whole=whole, special=special), limit)
            for index, (ids, key, limit) in enumerate(zip(rows, keys, most, strict=True))
        ]
        pieces = self._decode(live, read, request, draft, None if visual is None else visual.next_positions)
        return read.watch.decoding(pieces)

    def _readout(self, request: GenerateRequest) -> Readout:
        """What drawing a token of one row holds."""
        entry = request.sampling.logits(_dtype(self.encoder.plan.dtype or "float32").size, bool(request.logprobs))
        return Readout("the logits", "logits", -(-entry // 4), fixed=4 * self.encoder.spec.vocab_size)

    def _most(self, rows: Sequence[np.ndarray], request: GenerateRequest) -> list[int]:
        """Tokens that each row may be given: what was asked for, or the rest of its own context.

        Raises:
            ContextLengthExceeded: for the longest row, when there is no room for so many.
        """
        ceiling, asked = self.encoder.plan.max_context, request.max_tokens
        longest = max(map(len, rows))
        if longest + (asked or 1) <= ceiling:
            return [asked or ceiling - len(row) for row in rows]
        free = ceiling - longest
        advice = [f"give max_tokens={free:,} at most, or None for as many as there is room for"] if free > 0 else []
        advice += ["shorten the prompt"] if free <= 0 or longest > ceiling // 2 else []
        advice += ["load the model with a larger max_context"] if ceiling < self.encoder.spec.max_positions else []
        told = f"{longest:,} tokens and the context {ceiling:,}"
        raise ContextLengthExceeded(
            f"prompt {[len(row) for row in rows].index(longest)} has {told}, "
            f"which leaves {f'{free:,}, fewer than the {asked:,}' if free > 0 else 'none'} to generate; "
            f"{', or '.join(advice)}",
            requested=longest + (asked or 1),
            ceiling=ceiling,
            max_tokens_that_fit=free if free > 0 else ceiling - 1,
            binding="max_context" if ceiling < self.encoder.spec.max_positions else "the model's positions",
        )

    def _decode(
        self,
        live: list[_Row],
        read: Prefilled,
        request: GenerateRequest,
        draft: PrefixDraft | None,
        positions: list[int] | None,
    ) -> abc.Generator[Piece, None, None]:
        encoder = self.encoder
        prompts, lengths = [row.prompt for row in live], [len(row.prompt) for row in live]
        sampler = Sampler(request.sampling, encoder.spec.vocab_size, prompts, [row.key for row in live])
        decoding = Decoding(encoder.trunk, encoder.spec, encoder.plan, read.plan, read.caches, lengths, positions)
        weights = read.hidden.astype(_dtype(read.plan.dtype))[:, None]
        step = self._draw(weights, sampler, request)
        mx.async_eval(*step.arrays)
        for count in itertools.count(1):
            # The device starts on the next token before the host looks at this one.
            ahead: _Step | None = None
            if count < max(row.most for row in live):
                ahead = self._draw(decoding.step(step.tokens), sampler, request)
                mx.async_eval(*ahead.arrays)
            pieces, staying = self._told(live, step, request, count, cached=read.cached)
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
        finite, sampling = mx.isfinite(given).all(), request.sampling
        if sampling.greedy and not sampling.penalised and request.logprobs is None:
            # The likeliest token needs no probabilities, and passes over a vocabulary are what a step can save.
            return _Step(mx.argmax(given, axis=-1), finite, given)
        logprobs = sampler.logprobs(given)
        tokens = sampler(logprobs)
        if request.logprobs is None:
            return _Step(tokens, finite, given)
        drawn = mx.take_along_axis(logprobs, tokens[:, None], axis=-1)[:, 0]
        top: tuple[mx.array, mx.array] | None = None
        if request.logprobs:
            best = mx.argsort(-logprobs, axis=-1)[:, : request.logprobs]
            top = (best, mx.take_along_axis(logprobs, best, axis=-1))
        return _Step(tokens, finite, given, drawn, top)

    def _told(
        self, live: list[_Row], step: _Step, request: GenerateRequest, count: int, *, cached: int
    ) -> tuple[list[Piece], list[int]]:
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
            ended = token in self.stops
            text = "" if ended else row.text.add(token)
            last = count == row.most
            reason: FinishReason | None = "stop" if ended or row.text.stopped else "length" if last else None
            told: tuple[TokenLogprob, ...] = ()
            if logprobs is not None:
                pairs = [] if top is None else zip(top[0][at].tolist(), top[1][at].tolist(), strict=True)
                told = (TokenLogprob(token, float(logprobs[at]), tuple(pairs)),)
            piece = Piece(text, (token,), row.index, logprobs=told)
            if reason is None:
                staying.append(at)
            else:
                usage = Usage(len(row.prompt), cached, len(row.tokens))
                piece = replace(piece, text=text + row.text.finish(), finish_reason=reason, usage=usage)
            pieces.append(piece)
        return pieces, staying


def _remember(draft: PrefixDraft, live: list[_Row], staying: list[int], decoding: Decoding) -> None:
    """Have what finished rows hold ready for later calls."""
    for at in sorted(set(range(len(live))) - set(staying)):
        row = live[at]
        decoding.remember(draft, at, np.concatenate([row.key, np.asarray(row.tokens, np.int32)]))


def _dtype(name: str) -> mx.Dtype:
    return {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}[name]
