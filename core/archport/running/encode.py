"""Run batches through a trunk: token ids in, hidden states out. Obeys the batches it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import mlx.core as mx
import numpy as np

from archport.contract import ArchSpec, InputError, Trunk
from archport.running.context import EncodeContext

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Encoder:
    """A loaded trunk with what a pass needs to know.

    Args:
        trunk: ids (B, L) to hidden states (B, L, D).
        spec: its architecture.
        additive_masks: whether this device wants additive key masks.
    """

    trunk: Trunk
    spec: ArchSpec
    additive_masks: bool

    def encode(self, ids: Sequence[np.ndarray]) -> mx.array:
        """Hidden states (B, L, D) of ragged rows, padded on the right; unevaluated, noise past each length."""
        lengths = [len(row) for row in ids]
        L = max(lengths)
        padded = np.zeros((len(ids), L), dtype=np.int32)
        for index, row in enumerate(ids):
            padded[index, : len(row)] = row
        context = EncodeContext(self.spec, lengths, L, additive=self.additive_masks)
        return self.trunk(mx.array(padded), context)

    def forward(self, input_ids: object, attention_mask: object = None) -> mx.array:
        """Hidden states (B, L, D) in the caller's own layout, padded left or right; zeros at padding.

        The rows are moved to the right-padded layout, run, and moved back, so no mask array of (L, L) ever exists.

        Args:
            input_ids: (B, L) integers below the vocabulary size.
            attention_mask: (B, L), 1 or true at real tokens, which are contiguous in each row; None: all are real.

        Raises:
            InputError: for a wrong shape, type, token id, or a mask with holes.
        """
        ids = _token_ids(input_ids)
        L = ids.shape[1]
        if self.spec.max_positions < L:
            raise InputError(f"input_ids is {L} tokens long; this model has {self.spec.max_positions} positions")
        starts, lengths = _extents(attention_mask, ids.shape)
        real = [
            ids[row, start : start + length] for row, (start, length) in enumerate(zip(starts, lengths, strict=True))
        ]
        vocab = self.spec.vocab_size
        for row, tokens in enumerate(real):
            if len(tokens) and (tokens.min() < 0 or tokens.max() >= vocab):
                bad = int(tokens.min() if tokens.min() < 0 else tokens.max())
                raise InputError(f"row {row} of input_ids holds token id {bad}; the vocabulary has {vocab} entries")
        # A row without a single real token still needs one to be a row; its output is replaced by zeros below.
        hidden = self.encode([tokens if len(tokens) else np.zeros(1, np.int32) for tokens in real])
        if all(length == L for length in lengths):
            return hidden
        column = np.arange(L)[None] - np.asarray(starts)[:, None]
        visible = (column >= 0) & (column < np.asarray(lengths)[:, None])
        source = mx.array(np.where(visible, column, 0))
        moved = mx.take_along_axis(hidden, source[..., None], axis=1)
        return mx.where(mx.array(visible)[..., None], moved, mx.zeros((), dtype=moved.dtype))


def _token_ids(value: object) -> np.ndarray:
    ids = np.asarray(value)
    if ids.ndim != 2 or 0 in ids.shape:
        raise InputError(f"input_ids has shape {ids.shape}; expected (B, L), both at least 1")
    if not np.issubdtype(ids.dtype, np.integer):
        raise InputError(f"input_ids holds {ids.dtype}; expected integers")
    return ids.astype(np.int64)


def _extents(attention_mask: object, shape: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """Start and length of the real tokens of each row."""
    B, L = shape
    if attention_mask is None:
        return [0] * B, [L] * B
    mask = np.asarray(attention_mask)
    if mask.shape != shape:
        raise InputError(f"attention_mask has shape {mask.shape}; expected that of input_ids, {shape}")
    if not np.isin(mask, (0, 1)).all():
        raise InputError("attention_mask holds values other than 0 and 1; expected 1 at real tokens, 0 at padding")
    mask = mask.astype(bool)
    lengths = mask.sum(axis=1)
    starts = np.where(lengths > 0, mask.argmax(axis=1), 0)
    for row in range(B):
        if not mask[row, starts[row] : starts[row] + lengths[row]].all():
            raise InputError(
                f"attention_mask of row {row} has a hole; expected real tokens in one stretch, padded left or right"
            )
    return starts.tolist(), lengths.tolist()


def run_ahead(items: Iterable[T], start: Callable[[T], mx.array], depth: int = 2) -> Iterator[tuple[T, mx.array]]:
    """Yield (item, result) with up to `depth` items under way, so that host and device work overlap.

    Args:
        start: called with an item; returns its lazy result, which is evaluated asynchronously.
    """
    waiting: list[tuple[T, mx.array]] = []
    for item in items:
        result = start(item)
        mx.async_eval(result)
        waiting.append((item, result))
        if len(waiting) >= depth:
            yield waiting.pop(0)
    yield from waiting
