"""Texts to vectors: tokenise, batch, encode, pool, stage by stage, in bounded memory for any number of texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import mlx.core as mx
import numpy as np

from archport.contract import DeviceKind, NonFiniteOutput
from archport.planning import BatchPlan, Plan
from archport.running.ahead import TokensAhead
from archport.running.context import Stretches
from archport.running.encode import Encoder, run_ahead
from archport.running.pool import VectorHead
from archport.running.tokenise import Overflow, TextTokeniser, Tokens, check_vocabulary
from archport.running.verify import verified
from archport.running.vision import Sight, sight_of

# Texts tokenised and sorted together: enough to fill batches with equal lengths, few enough to hold. A GPU waits for
# the first of several, and four times as many are tokenised while it is busy with some.
_WINDOWS: dict[DeviceKind, tuple[int, ...]] = {"cpu": (2048,), "metal": (256, 1024, 4096), "cuda": (256, 1024, 4096)}


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """What a caller asked of `embed`, checked.

    Args:
        prompt: text in front of every input.
        dimensions: leading dimensions to keep; None for all.
        normalize: unit length; None where the model says so.
        max_tokens, overflow: as TextTokeniser takes them.
    """

    prompt: str
    dimensions: int | None
    normalize: bool | None
    max_tokens: int | None
    overflow: Overflow


@dataclass(frozen=True, slots=True)
class _Window:
    """Some consecutive texts, tokenised and planned, and where their vectors go."""

    first: int
    tokens: Tokens
    plan: Plan
    vectors: list[np.ndarray | None]


@dataclass(frozen=True, slots=True)
class Embedder:
    """The embedding path of a loaded model: the stages of one request, in order."""

    tokeniser: TextTokeniser
    encoder: Encoder
    head: VectorHead

    def stream(self, texts: Iterable[str], request: EmbedRequest) -> Iterator[np.ndarray]:
        """Vectors (n, D) float32 of consecutive texts, in order, as they are done.

        Raises:
            InputError, ContextLengthExceeded: for a text that can't be embedded, when it is reached.
            NonFiniteOutput: when a vector holds NaN or infinity.
        """
        stretches = Stretches()
        with sight_of(self.encoder.trunk, self.tokeniser.inputs.reader, stretches) as sight:
            yield from self._run(texts, request, stretches, sight)

    def _run(
        self, texts: Iterable[str], request: EmbedRequest, stretches: Stretches, sight: Sight | None
    ) -> Iterator[np.ndarray]:
        finished: _Window | None = None
        for (window, batch), rows in run_ahead(
            self._batches(texts, request, sight), lambda item: self._start(*item, request, stretches, sight)
        ):
            if finished is not None and window is not finished:
                yield _stack(finished)
            finished = window
            vectors = np.array(rows)
            bad = ~np.isfinite(vectors).all(axis=1)
            if bad.any():
                text = window.first + batch.rows[int(bad.argmax())]
                raise NonFiniteOutput(
                    f"the vector of text {text} holds NaN or infinity; it is not returned. The weights may be damaged, "
                    "or overflow in this dtype: try dtype='float32'"
                )
            for row, vector in zip(batch.rows, vectors, strict=True):
                window.vectors[row] = vector
        if finished is not None:
            yield _stack(finished)

    def _batches(
        self, texts: Iterable[str], request: EmbedRequest, sight: Sight | None
    ) -> Iterator[tuple[_Window, BatchPlan]]:
        sizes = _WINDOWS[self.encoder.plan.device.kind]
        if not isinstance(texts, Sequence) or len(texts) <= sizes[1 % len(sizes)]:
            # Nothing is read ahead, or too little to be worth two windows.
            sizes = sizes[-1:]
        with TokensAhead(texts, lambda chunk, at: self._tokens(chunk, request, at), sizes) as ahead:
            for first, tokens in ahead:
                plan = self.encoder.plan(tokens.lengths, images=tokens.images)
                window = _Window(first, tokens, plan, [None] * len(tokens.ids))
                with verified(window.plan):
                    for batch, following in pairwise([*window.plan.batches, None]):
                        assert batch is not None
                        if sight is not None:
                            sight.ahead([batch, following] if following else [batch], tokens.measured)
                        yield window, batch

    def _tokens(self, texts: Sequence[str], request: EmbedRequest, first: int) -> Tokens:
        tokens = self.tokeniser(
            texts, prompt=request.prompt, max_tokens=request.max_tokens, overflow=request.overflow, first=first
        )
        check_vocabulary(tokens.ids, self.encoder.spec.vocab_size, "text", first)
        return tokens

    def _start(
        self, window: _Window, batch: BatchPlan, request: EmbedRequest, stretches: Stretches, sight: Sight | None
    ) -> mx.array:
        tokens = window.tokens
        ids = [tokens.ids[row] for row in batch.rows]
        visual = sight.look(window.plan, batch, tokens.measured) if sight is not None else None
        rows = self.encoder.pooled(window.plan, batch, ids, self.head, tokens.prompt_tokens, stretches, visual)
        return self.head.finish(rows, dimensions=request.dimensions, normalize=request.normalize)


def _stack(window: _Window) -> np.ndarray:
    return np.stack([vector for vector in window.vectors if vector is not None])
