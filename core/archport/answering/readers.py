"""What outputs make of a batch's hidden states: dense vectors, sparse ones, a vector per token, or several of them.

Each is a reader: it says what it needs for the plan, and reads. Knows nothing of how the states were made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from archport.answering.sparse_vectors import SparseRow, handed_out, largest, nonzero
from archport.answering.token_vectors import objects, projection
from archport.contract.heads import MaskedLM, SparseHead, TokenHead
from archport.planning import Readout
from archport.planning.readouts import logits_of_tokens, tokens_at_once, vectors_of_tokens, weights_of_tokens
from archport.running.pool import Pooling, VectorHead, project


class Reader(Protocol):
    """What one output makes of the hidden states of a batch."""

    def readout(self) -> Readout:
        """The arrays that it needs for that."""
        ...

    def read(self, hidden: mx.array, ids: Sequence[np.ndarray], prompt_tokens: int) -> list[Any]:
        """A result for each row, on the host.

        Args:
            hidden: (B, L, D), padded on the right.
            ids: of each row, as many as it has real tokens.
            prompt_tokens: leading ones of each row that belong to a prompt.
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
        return tokens_at_once(self.width)

    def readout(self) -> Readout:
        """See `Reader`."""
        return logits_of_tokens(self.width, wide=self.wide)

    def read(self, hidden: mx.array, ids: Sequence[np.ndarray], prompt_tokens: int) -> list[SparseRow]:
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


@dataclass(frozen=True, slots=True)
class OwnWeightReader:
    """Sparse vectors by a layer that gives each token one weight, which is that of its own word.

    Args:
        weights: (weight, bias) of the head's layer.
        width, top_k: as SparseReader has them.
    """

    head: SparseHead
    weights: tuple[mx.array, mx.array | None]
    width: int
    top_k: int | None = None

    def readout(self) -> Readout:
        """See `Reader`."""
        assert self.head.own is not None
        return weights_of_tokens(self.head.own)

    def read(self, hidden: mx.array, ids: Sequence[np.ndarray], prompt_tokens: int) -> list[SparseRow]:
        """See `Reader`."""
        assert self.head.own is not None
        weighed = mx.maximum(project(hidden.astype(mx.float32), [self.head.own], [self.weights])[..., 0], 0.0)
        for _ in range(self.head.logarithms):
            weighed = mx.log1p(weighed)
        return [self._row(row, weights) for row, weights in zip(ids, np.array(weighed), strict=True)]

    def _row(self, ids: np.ndarray, weights: np.ndarray) -> SparseRow:
        words, places = np.unique(ids, return_inverse=True)
        pooled = np.zeros(len(words), np.float32)
        pool = np.maximum if self.head.pooling == "max" else np.add
        pool.at(pooled, places, weights[: len(ids)])
        pooled[np.isin(words, self.head.skipped)] = 0
        at, kept = nonzero(pooled)
        return largest((words[at].astype(np.int32), kept), self.top_k)

    def finite(self, result: SparseRow) -> bool:
        """See `Reader`."""
        return bool(np.isfinite(result[1]).all())

    def together(self, results: Sequence[SparseRow]) -> Any:
        """See `Reader`."""
        return handed_out(results, self.width)


@dataclass(frozen=True, slots=True)
class VectorReader:
    """A dense vector of each text.

    Args:
        hidden: width of the hidden states.
        width: of the vectors.
        dimensions, normalize: as `VectorHead.finish` takes them.
    """

    head: VectorHead
    hidden: int
    width: int
    dimensions: int | None = None
    normalize: bool | None = None

    def readout(self) -> Readout:
        """See `Reader`."""
        # Means and maxima are taken of a copy in float32.
        return Readout("hidden states in float32", "outputs", 2, token=4 * self.hidden)

    def read(self, hidden: mx.array, ids: Sequence[np.ndarray], prompt_tokens: int) -> list[np.ndarray]:
        """See `Reader`."""
        skip = self.head.skipped(prompt_tokens)
        pooling = Pooling([len(row) for row in ids], self.head.head.pooling, skip)
        pooling.add(hidden)
        rows = self.head.project(pooling.rows())
        return list(np.array(self.head.finish(rows, dimensions=self.dimensions, normalize=self.normalize)))

    def finite(self, result: np.ndarray) -> bool:
        """See `Reader`."""
        return bool(np.isfinite(result).all())

    def together(self, results: Sequence[np.ndarray]) -> np.ndarray:
        """See `Reader`."""
        return np.stack(results) if results else np.zeros((0, self.dimensions or self.width), np.float32)


@dataclass(frozen=True, slots=True)
class TokenReader:
    """A vector of each token that counts.

    Args:
        weights: (weight, bias) of each of the head's Dense layers.
        hidden: width of the hidden states.
    """

    head: TokenHead
    weights: tuple[tuple[mx.array, mx.array | None], ...]
    hidden: int

    def readout(self) -> Readout:
        """See `Reader`."""
        return vectors_of_tokens(self.head, self.hidden)

    def read(self, hidden: mx.array, ids: Sequence[np.ndarray], prompt_tokens: int) -> list[np.ndarray]:
        """See `Reader`."""
        projected = np.array(projection(hidden, self.head, self.weights))
        return [vectors[self.head.leading : len(row)].copy() for vectors, row in zip(projected, ids, strict=True)]

    def finite(self, result: np.ndarray) -> bool:
        """See `Reader`."""
        return bool(np.isfinite(result).all())

    def together(self, results: Sequence[np.ndarray]) -> np.ndarray:
        """See `Reader`."""
        return objects(results)


@dataclass(frozen=True, slots=True)
class SeveralReader:
    """Several outputs of the same hidden states, one after another; a row's result is one of each.

    Args:
        readers: by the output's name.
    """

    readers: Mapping[str, Reader]

    def readout(self) -> Readout:
        """See `Reader`."""
        found: Readout | None = None
        for reader in self.readers.values():
            found = replace(reader.readout(), then=found)
        assert found is not None, "there is an output at the least"
        return found

    def read(self, hidden: mx.array, ids: Sequence[np.ndarray], prompt_tokens: int) -> list[Any]:
        """See `Reader`."""
        found = [reader.read(hidden, ids, prompt_tokens) for reader in self.readers.values()]
        return list(zip(*found, strict=True))

    def finite(self, result: Any) -> bool:
        """See `Reader`."""
        return all(reader.finite(each) for reader, each in zip(self.readers.values(), result, strict=True))

    def together(self, results: Sequence[Any]) -> dict[str, Any]:
        """See `Reader`."""
        return {
            name: reader.together([result[at] for result in results])
            for at, (name, reader) in enumerate(self.readers.items())
        }


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
