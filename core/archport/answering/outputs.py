"""Texts through the trunk once, batch by batch, and readers that make of the hidden states what they are for: sparse
vectors of the logits, which are never there whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol, cast

import mlx.core as mx
import numpy as np

from archport.answering.collecting import Errors, rows_named, rows_together
from archport.answering.sparse_vectors import SparseRow, handed_out, largest, nonzero
from archport.contract import NonFiniteOutput
from archport.contract.heads import MaskedLM, SparseHead
from archport.device.progress import Counter, nothing_shown
from archport.planning import Readout
from archport.reading.texts import Overflow, TextTokeniser, check_vocabulary, iterable
from archport.running.encode import Encoder, verified
from archport.running.steps import run_steps
from archport.running.stretches import Stretches

# Texts tokenised and sorted together.
_WINDOW = 2048
# Bytes of the logits that exist at once: as many tokens of the batch as these hold, one at the least.
_PIECE = 1 << 26


class Reader(Protocol):
    """What one output makes of the hidden states of a batch."""

    def readout(self) -> Readout:
        """The arrays that it needs for that."""
        ...

    def read(self, hidden: mx.array, ids: Sequence[np.ndarray]) -> list[Any]:
        """A result for each row, on the host.

        Args:
            hidden: (B, L, D), padded on the right.
            ids: of each row, as many as it has real tokens.
        """
        ...

    def finite(self, result: Any) -> bool:
        """Whether a row's result holds numbers alone."""
        ...

    def together(self, results: Sequence[Any]) -> Any:
        """The results of all rows as a caller gets them."""
        ...


@dataclass(frozen=True, slots=True)
class SparseReader:
    """Sparse vectors by the trunk's masked-LM head: relu, logarithms and pooling over the tokens, piece by piece.

    Args:
        trunk: what has logits.
        width: V, entries of the vocabulary.
        wide: whether the trunk computes in float32.
        top_k: weights that a row keeps; None for all.
    """

    trunk: MaskedLM
    head: SparseHead
    width: int
    wide: bool = True
    top_k: int | None = None

    @property
    def most(self) -> int:
        """Tokens whose logits exist at once."""
        return max(1, _PIECE // (4 * self.width))

    def readout(self) -> Readout:
        """See `Reader`."""
        # A row's pooled logits are there beside those of its tokens, three at the least; in 16 bits these are there
        # twice, in the model's type too.
        arrays, token = (1, 16 * self.width // 3) if self.wide else (2, 4 * self.width)
        return Readout("the logits of the vocabulary", "logits", arrays, token=token, most=self.most)

    def read(self, hidden: mx.array, ids: Sequence[np.ndarray]) -> list[SparseRow]:
        """See `Reader`."""
        L, flat = hidden.shape[1], hidden.reshape(-1, hidden.shape[2])
        found: list[SparseRow] = []
        # The row that goes on in the next piece, pooled so far.
        begun: mx.array | None = None
        for piece in _pieces([len(row) for row in ids], self.most):
            places = np.concatenate([np.arange(row * L + start, row * L + stop) for row, start, stop in piece])
            logits = self.trunk.logits(flat[mx.array(places.astype(np.int32))]).astype(mx.float32)
            if self.head.pooling == "sum":
                logits = self._weighed(logits)
            pooled: list[mx.array] = []
            first = 0
            for row, start, stop in piece:
                own = logits[first : first + stop - start]
                own, first = own.max(axis=0) if self.head.pooling == "max" else own.sum(axis=0), first + stop - start
                if begun is not None and start:
                    own = mx.maximum(begun, own) if self.head.pooling == "max" else begun + own
                begun = own if stop < len(ids[row]) else None
                if begun is None:
                    # What follows a maximum grows with it, so that the largest logit alone goes through it.
                    pooled.append(self._weighed(own) if self.head.pooling == "max" else own)
            mx.eval(pooled, [] if begun is None else [begun])
            del logits
            found += [self._row(np.array(row)) for row in pooled]
        return found

    def _row(self, weights: np.ndarray) -> SparseRow:
        weights[list(self.head.skipped)] = 0
        return largest(nonzero(weights), self.top_k)

    def _weighed(self, logits: mx.array) -> mx.array:
        logits = mx.maximum(logits, 0.0)
        for _ in range(self.head.logarithms):
            logits = mx.log1p(logits)
        return logits

    def finite(self, result: SparseRow) -> bool:
        """See `Reader`."""
        return bool(np.isfinite(result[1]).all())

    def together(self, results: Sequence[SparseRow]) -> Any:
        """See `Reader`."""
        return handed_out(results, self.width)


def _pieces(lengths: Sequence[int], most: int) -> Iterator[list[tuple[int, int, int]]]:
    """Tokens of all rows, at most so many at a time, and a third as many rows: (row, first token, the one after)."""
    piece: list[tuple[int, int, int]] = []
    left = most
    for row, length in enumerate(lengths):
        start = 0
        while start < length:
            stop = min(length, start + left)
            piece.append((row, start, stop))
            left -= stop - start
            if not left or len(piece) >= max(1, most // 3):
                yield piece
                piece, left = [], most
            start = stop
    if piece:
        yield piece


@dataclass(frozen=True, slots=True)
class OutputEmbedder:
    """Texts to what a reader makes of them.

    Args:
        reader: what reads each batch's hidden states.
    """

    tokeniser: TextTokeniser
    encoder: Encoder
    reader: Reader

    def __call__(
        self,
        texts: Sequence[str],
        prompt: str = "",
        *,
        max_tokens: int | None = None,
        overflow: Overflow = "error",
        done: Counter = nothing_shown,
    ) -> list[Any]:
        """A result per text, in their order; `done` is told of every batch.

        Raises:
            InputError, ContextLengthExceeded: for a text that can't be embedded.
            NonFiniteOutput: when a result holds NaN or infinity.
        """
        found: list[Any] = []
        for first in range(0, len(texts), _WINDOW):
            some = texts[first : first + _WINDOW]
            rows = self.read(some, prompt, max_tokens, overflow, first)
            for index, result in enumerate(self.run(rows, done, first)):
                if not self.reader.finite(result):
                    raise NonFiniteOutput(
                        f"the vector of text {first + index} holds NaN or infinity; it is not returned. The weights "
                        "may be damaged, or overflow in this dtype: try dtype='float32'"
                    )
                found.append(result)
        return found

    def read(
        self,
        texts: Sequence[str],
        prompt: str = "",
        max_tokens: int | None = None,
        overflow: Overflow = "error",
        first: int = 0,
    ) -> tuple[np.ndarray, ...]:
        """Ids of every text; may be called from any thread. Raises as the call does."""
        tokens = self.tokeniser(texts, prompt=prompt, max_tokens=max_tokens, overflow=overflow, first=first)
        check_vocabulary(tokens.ids, self.encoder.spec.vocab_size, "text", first)
        return tokens.ids

    def run(self, rows: Sequence[np.ndarray], done: Counter = nothing_shown, first: int = 0) -> list[Any]:
        """Results of rows that were read, all planned together; nobody has looked at whether they are finite."""
        found: list[Any] = [None] * len(rows)
        if not rows:
            return found
        stretches = Stretches()
        with rows_named("text", lambda row: first + row):
            plan = self.encoder.planned(rows, readout=self.reader.readout())
        with verified(plan) as watch:
            for batch in watch.batches(plan.batches):
                ids = [rows[row] for row in batch.rows]
                with closing(run_steps(self.encoder.trunk, plan, batch, ids, stretches=stretches)) as steps:
                    # A bidirectional batch runs in one step.
                    ((_, hidden),) = steps
                # Finish the layers first: the plan does not budget their temporaries and the reader's together.
                stretches.finish(hidden)
                stretches.drain()
                for row, result in zip(batch.rows, self.reader.read(hidden, ids), strict=True):
                    found[row] = result
                done(len(ids), tokens=sum(map(len, ids)))
        return found

    def answer(
        self,
        texts: object,
        *,
        prompt: str | None,
        prompt_name: str | None,
        max_tokens: int | None,
        overflow: Overflow,
        progress: bool | Counter,
        errors: Errors,
    ) -> Any:
        """What `Model.embed` answers: the reader's results together, or with `collect` a `Collected` of them."""
        text = self.tokeniser.prompt(prompt, prompt_name)
        items = cast("list[str]", [texts] if isinstance(texts, str | Mapping) else list(iterable(texts)))

        def run(some: Sequence[str], done: Counter) -> list[Any]:
            return self(some, text, max_tokens=max_tokens, overflow=overflow, done=done)

        def check() -> None:
            self.tokeniser([], prompt=text, max_tokens=max_tokens, overflow=overflow)

        return rows_together(run, check, items, self.reader.together, progress=progress, errors=errors)
