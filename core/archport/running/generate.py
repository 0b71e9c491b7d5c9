"""Prompts to text: prefill as planned, decode one step ahead of the host, and let rows leave as they finish."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import mlx.core as mx
import numpy as np
from tokenizers import Tokenizer

from archport.contract import CausalLM, ContextLengthExceeded, Measured, NonFiniteOutput, Reader
from archport.running.decode import Decoding
from archport.running.encode import Encoder
from archport.running.generation import FinishReason, GenerateRequest, Generation, Piece, TokenLogprob, Usage
from archport.running.prefill import Prefilled, prefill
from archport.running.prefix_cache import PrefixCache
from archport.running.progress import counted
from archport.running.sampling import Sampler
from archport.running.text import RowText
from archport.running.visual_prompts import of_prompts


@dataclass(slots=True)
class _Row:
    """A row that is being generated; its prompt is remembered by `key`, which tells pictures apart."""

    index: int
    prompt: np.ndarray
    key: np.ndarray
    text: RowText
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
        # Without stop strings nobody needs a text before it is whole.
        pieces = self.stream(rows, request, measured, whole=not request.stop)
        most = request.max_tokens or self.encoder.plan.max_context - max(map(len, rows))
        with counted("generating", most * len(rows), shown=request.progress) as made:
            for piece in pieces:
                texts[piece.row] += piece.text
                tokens[piece.row] += piece.tokens
                told[piece.row] += piece.logprobs
                if piece.finish_reason is not None:
                    ends[piece.row] = piece
                # A row that ends early is done with all that it might have been.
                made(1 if piece.finish_reason is None else 1 + most - len(tokens[piece.row]))
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
    ) -> Iterator[Piece]:
        """Pieces of all rows as they are made. Closing the iterator frees what the rows hold.

        Args:
            measured: the same prompts with what a reader found in them, pictures included.
            whole: give each row's text with its last piece only, which saves the host the work of every step.

        Raises:
            AdmissionRefused: prompts and tokens to come do not fit memory or context; before anything runs.
            NonFiniteOutput: a row's logits hold NaN or infinity.
        """
        longest, ceiling = max(map(len, rows)), self.encoder.plan.max_context
        if longest >= ceiling:
            raise ContextLengthExceeded(
                f"prompt {[len(row) for row in rows].index(longest)} has {longest:,} tokens and the context "
                f"{ceiling:,}, which leaves none to generate; shorten it, or raise max_context",
                requested=longest + 1,
                ceiling=ceiling,
                max_tokens_that_fit=ceiling - 1,
                binding="max_context",
            )
        prefixes = self.prefixes if self.prefixes.limit else None
        visual = of_prompts(measured, self.reader)
        read = prefill(self.encoder, rows, request.max_tokens, prefixes, visual)
        keys = rows if visual is None else visual.keys
        live = [
            _Row(index, ids, key, RowText(self.tokenizer, request.stop, whole=whole))
            for index, (ids, key) in enumerate(zip(rows, keys, strict=True))
        ]
        return self._decode(live, read, request, prefixes, None if visual is None else visual.next_positions)

    def _decode(
        self,
        live: list[_Row],
        read: Prefilled,
        request: GenerateRequest,
        prefixes: PrefixCache | None,
        positions: list[int] | None,
    ) -> Iterator[Piece]:
        encoder, sampler = self.encoder, Sampler(request.sampling, self.encoder.spec.vocab_size)
        lengths = [len(row.prompt) for row in live]
        decoding = Decoding(encoder.trunk, encoder.spec, encoder.plan, read.plan, read.caches, lengths, positions)
        most = request.max_tokens or encoder.plan.max_context - max(lengths)
        seen = [mx.array(row.prompt) for row in live] if request.sampling.penalised else None
        weights = read.hidden.astype(_dtype(read.plan.dtype))[:, None]
        step = self._draw(weights, sampler, request, seen)
        mx.async_eval(*step.arrays)
        for count in range(1, most + 1):
            # The device starts on the next token before the host looks at this one.
            ahead: _Step | None = None
            if count < most:
                if seen is not None:
                    seen = [mx.concatenate([ids, step.tokens[at : at + 1]]) for at, ids in enumerate(seen)]
                ahead = self._draw(decoding.step(step.tokens), sampler, request, seen)
                mx.async_eval(*ahead.arrays)
            pieces, staying = self._told(live, step, request, last=count == most, cached=read.cached)
            if prefixes is not None and len(staying) < len(live):
                _keep(prefixes, live, staying, decoding)
            yield from pieces
            if not staying or ahead is None:
                return
            if len(staying) < len(live):
                live = [live[at] for at in staying]
                decoding.keep_rows(staying)
                index = mx.array(staying)
                seen = [seen[at] for at in staying] if seen is not None else None
                ahead = ahead.rows(index)
            step = ahead

    def _draw(self, hidden: mx.array, sampler: Sampler, request: GenerateRequest, seen: list[mx.array] | None) -> _Step:
        """The next token of hidden states (B, 1, D)."""
        logits = cast(CausalLM, self.encoder.trunk).logits(hidden)[:, -1]
        finite, given = mx.isfinite(logits).all(), logits
        if request.sampling.temperature == 0 and seen is None and request.logprobs is None:
            # The likeliest token needs no probabilities, and passes over a vocabulary are what a step can save.
            return _Step(mx.argmax(logits, axis=-1), finite, given)
        logits = logits.astype(mx.float32)
        if seen is not None:
            logits = sampler.penalise(logits, seen)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
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
        self, live: list[_Row], step: _Step, request: GenerateRequest, *, last: bool, cached: int
    ) -> tuple[list[Piece], list[int]]:
        """The pieces of one step, and which rows go on."""
        tokens = cast("list[int]", step.tokens.tolist())
        if not step.finite.item():
            bad = live[int(np.array(mx.isfinite(step.logits).all(axis=-1)).argmin())]
            raise NonFiniteOutput(
                f"the logits of prompt {bad.index} hold NaN or infinity after {len(bad.tokens)} tokens. The weights "
                "may be damaged, or overflow in this dtype: try dtype='float32'"
            )
        logprobs = None if step.logprobs is None else np.array(step.logprobs)
        top = None if step.top is None else (np.array(step.top[0]), np.array(step.top[1]))
        pieces: list[Piece] = []
        staying: list[int] = []
        for at, (row, token) in enumerate(zip(live, tokens, strict=True)):
            row.tokens.append(token)
            ended = token in self.stops
            text = "" if ended else row.text.add(token)
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


def _keep(prefixes: PrefixCache, live: list[_Row], staying: list[int], decoding: Decoding) -> None:
    """Leave what finished rows hold to later calls."""
    for at in sorted(set(range(len(live))) - set(staying)):
        row = live[at]
        decoding.remember(prefixes, at, np.concatenate([row.key, np.asarray(row.tokens, np.int32)]))


def _dtype(name: str) -> mx.Dtype:
    return {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}[name]
