"""Pictures through the vision tower as planned, and their features to the tokens they stand for.

Decodes pixels on threads ahead of the device. Knows nothing of formats, sizes or towers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import cast

import mlx.core as mx
import numpy as np

from archport.attention import attend
from archport.contract import ArchportError, Measured, Picture, Reader, Trunk, VisionTrunk
from archport.device import workers
from archport.device.tracing import traced
from archport.planning import BatchPlan, Plan, VisionStep


class StepVisual:
    """The pictures of one step: a VisualRows.

    Args:
        features: per tap (n, D), token embeddings first.
        index: (B, L) int32 into them; -1 where no picture stands.
    """

    def __init__(self, features: Sequence[mx.array], index: mx.array) -> None:
        self._features, self._index = features, mx.maximum(index, 0)
        self._here = (index >= 0)[..., None]

    def replace(self, x: mx.array) -> mx.array:
        return mx.where(self._here, self._features[0][self._index].astype(x.dtype), x)

    def add(self, x: mx.array, tap: int) -> mx.array:
        if tap + 1 >= len(self._features):
            return x
        return x + mx.where(self._here, self._features[tap + 1][self._index].astype(x.dtype), mx.array(0, x.dtype))


@dataclass(frozen=True, slots=True)
class BatchVisual:
    """The pictures of a batch, seen.

    Args:
        features: per tap (n, D), token embeddings first; empty when no row has a picture.
        index: (B, L) int32 into them; -1 where no picture stands.
        positions: (axes, B, L) int32; None where every token stands at its index.
    """

    features: tuple[mx.array, ...]
    index: np.ndarray
    positions: np.ndarray | None

    def step(self, start: int, tokens: int) -> StepVisual | None:
        """What a step of `tokens` tokens from `start` on sees of them; None when no picture stands there."""
        part = self.index[:, start : start + tokens]
        real = part[part >= 0]
        if not len(real):
            return None
        first, last = int(real.min()), int(real.max()) + 1
        local = np.where(part >= 0, part - first, -1).astype(np.int32)
        return StepVisual([each[first:last] for each in self.features], mx.array(local))

    def axes(self, start: int, tokens: int) -> mx.array | None:
        """Positions (axes, B, tokens) of a step; None where they are the tokens' indices."""
        return None if self.positions is None else mx.array(self.positions[:, :, start : start + tokens])


class TowerStep:
    """What the tower's blocks see of one pass: a TowerContext."""

    def __init__(
        self,
        plan: Plan,
        step: VisionStep,
        pictures: Sequence[Picture],
        reader: Reader,
        evaluate: Callable[[tuple[mx.array, ...]], None],
    ) -> None:
        self._kinds, self._step, self._evaluate = plan.vision_kinds, step, evaluate
        self._grids = [picture.grid for picture in pictures]
        mean, std = reader.normalisation
        self._mean, self._std = mx.array(list(mean), dtype=mx.float32), mx.array(list(std), dtype=mx.float32)

    @property
    def grids(self) -> Sequence[tuple[int, int]]:
        return self._grids

    def normalise(self, patches: mx.array) -> mx.array:
        channels = len(self._mean)
        x = patches.reshape(*patches.shape[:-1], channels, -1).astype(mx.float32)
        x = (x * (1 / 255) - self._mean[:, None]) / self._std[:, None]
        return x.reshape(patches.shape)

    def attend(self, layer: int, q: mx.array, k: mx.array, v: mx.array, *, scale: float) -> mx.array:
        path = self._step.paths[self._kinds[layer]]
        if path is None:
            raise ArchportError(f"block {layer} of the vision tower is declared recurrent but called attend")
        return attend(path, q, k, v, scale=scale, zero_padding=False)

    def rows(self, function: Callable[..., mx.array], *inputs: mx.array) -> mx.array:
        piece, length = self._step.piece, inputs[0].shape[1]
        if traced(*inputs):
            return function(*inputs)
        if piece >= length:
            whole = function(*inputs)
            # Or the insides of all parts of a block would lie in one graph.
            self._evaluate((whole,))
            return whole
        out, merged = None, 1
        for start in range(0, length, piece):
            got = function(*(each[:, start : start + piece] for each in inputs))
            if out is None:
                # Its own width says how much a function merges.
                merged = piece // got.shape[1]
                out = mx.zeros((got.shape[0], length // merged, got.shape[2]), dtype=got.dtype)
            at = start // merged
            out[:, at : at + got.shape[1]] = got
            del got
            # A piece is as much as may be under way.
            mx.eval(out)
        assert out is not None
        return out


class Decoder:
    """Decodes pictures on threads, some ahead of when they are asked for."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._pool: ThreadPoolExecutor | None = None
        self._waiting: dict[int, Future[np.ndarray]] = {}

    def ahead(self, pictures: Sequence[Picture]) -> None:
        """Start decoding pictures that will be asked for."""
        if not pictures:
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(max(1, workers.cores()), thread_name_prefix="archport-decode")
        for picture in pictures:
            if id(picture) not in self._waiting:
                self._waiting[id(picture)] = self._pool.submit(self._reader.decode, picture)

    def __call__(self, picture: Picture) -> np.ndarray:
        """Rows of patches of one picture."""
        self.ahead([picture])
        return self._waiting.pop(id(picture)).result()

    def close(self) -> None:
        """Forget what was not asked for."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        self._pool = None
        self._waiting.clear()


def batch_pictures(batch: BatchPlan, measured: Sequence[Measured]) -> list[Picture]:
    """The pictures of a batch in the order in which a plan counts them: by row, then by token."""
    return [picture for row in batch.rows for picture in measured[row].pictures]


def look(
    trunk: Trunk,
    plan: Plan,
    batch: BatchPlan,
    measured: Sequence[Measured],
    reader: Reader,
    decode: Callable[[Picture], np.ndarray],
    evaluate: Callable[[tuple[mx.array, ...]], None],
) -> BatchVisual | None:
    """Run the tower over a batch's pictures; None when nothing about the batch is visual.

    Args:
        measured: of the whole request; the batch's rows index it.
        evaluate: evaluates what a block has made before the next one begins.
    """
    rows = [measured[row] for row in batch.rows]
    if not any(row.pictures for row in rows):
        return None
    pictures = batch_pictures(batch, measured)
    seen: list[list[mx.array]] = []
    offset, first_of = 0, {}
    for step in batch.vision:
        chosen = [pictures[index] for index in step.pictures]
        patches = _stacked([decode(picture) for picture in chosen], step.padded, len(reader.normalisation[0]))
        context = TowerStep(plan, step, chosen, reader, evaluate)
        features = cast(VisionTrunk, trunk).see(mx.array(patches), context)
        evaluate(tuple(features))
        width = features[0].shape[1]
        for index in step.pictures:
            first_of[index], offset = offset, offset + width
        seen.append([each.reshape(-1, each.shape[-1]) for each in features])
    return BatchVisual(_joined(seen), _index(batch, rows, first_of), _positions(batch, rows))


def _stacked(rows: Sequence[np.ndarray], padded: int, channels: int) -> np.ndarray:
    """Patches of several pictures as (B, padded, features); a still beside films has its one frame repeated."""
    width = max(each.shape[1] for each in rows)
    if len(rows) == 1 and rows[0].shape[0] == padded:
        return rows[0][None]
    out = np.zeros((len(rows), padded, width), rows[0].dtype)
    for at, each in enumerate(rows):
        if each.shape[1] < width:
            frames = each.reshape(len(each), channels, 1, -1)
            each = np.repeat(frames, width // each.shape[1], axis=2).reshape(len(each), width)
        out[at, : len(each)] = each
    return out


def _joined(seen: list[list[mx.array]]) -> tuple[mx.array, ...]:
    if len(seen) == 1:
        return tuple(seen[0])
    joined: list[mx.array] = []
    for tap in range(len(seen[0])):
        whole = mx.concatenate([features[tap] for features in seen])
        mx.eval(whole)
        for features in seen:
            features[tap] = mx.zeros((0,))
        joined.append(whole)
    return tuple(joined)


def _index(batch: BatchPlan, rows: Sequence[Measured], first_of: dict[int, int]) -> np.ndarray:
    index = np.full((batch.shape.B, batch.shape.L), -1, np.int32)
    for at, (row, picture) in enumerate(_numbered(rows)):
        first = first_of[at]
        index[row, picture.start : picture.start + picture.tokens] = np.arange(first, first + picture.tokens)
    return index


def _numbered(rows: Sequence[Measured]) -> Iterator[tuple[int, Picture]]:
    return ((at, picture) for at, row in enumerate(rows) for picture in row.pictures)


def _positions(batch: BatchPlan, rows: Sequence[Measured]) -> np.ndarray | None:
    """(axes, B, L); rows and tokens without their own stand at their index, on every axis."""
    axes = next((len(row.positions) for row in rows if row.positions is not None), 0)
    if not axes:
        return None
    out = np.broadcast_to(np.arange(batch.shape.L, dtype=np.int32), (axes, batch.shape.B, batch.shape.L)).copy()
    for at, row in enumerate(rows):
        if row.positions is not None:
            out[:, at, : row.positions.shape[1]] = row.positions
    return out
