"""Pictures through the vision tower as planned, and their features to the tokens they stand for.

Decodes pixels on threads ahead of the device. Knows nothing of formats, sizes or towers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import mlx.core as mx
import numpy as np

from archport.attention import attend
from archport.contract import ArchportError, Measured, Picture, Reader, Trunk, VisionTrunk
from archport.device import workers
from archport.device.evaluation import Pipeline
from archport.device.tracing import traced
from archport.planning import BatchPlan, Plan, VisionStep

if TYPE_CHECKING:
    from archport.running.context import Stretches


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
        *,
        ahead: bool = False,
    ) -> None:
        self._kinds, self._step, self._evaluate, self._ahead = plan.vision_kinds, step, evaluate, ahead
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
        if self._ahead and not traced(q, k, v):
            # A stretch per block, started while the one before it runs: waiting costs a GPU more than memory.
            self._evaluate((q, k, v))
        return attend(path, q, k, v, scale=scale, zero_padding=False)

    def rows(self, function: Callable[..., mx.array], *inputs: mx.array) -> mx.array:
        piece, length = self._step.piece, inputs[0].shape[1]
        if traced(*inputs):
            return function(*inputs)
        if piece >= length:
            whole = function(*inputs)
            if not self._ahead:
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


class Sight:
    """The pictures of one request: decoded on threads some ahead of the device, and run through the tower.

    Args:
        trunk: with a tower.
        reader: of the request's inputs.
        stretches: evaluations of the request that are under way.
    """

    def __init__(self, trunk: Trunk, reader: Reader, stretches: Stretches) -> None:
        self._trunk, self._reader, self._stretches = cast(VisionTrunk, trunk), reader, stretches
        self._pool: ThreadPoolExecutor | None = None
        self._waiting: dict[int, Future[np.ndarray]] = {}

    def ahead(self, batches: Sequence[BatchPlan], measured: Sequence[Measured]) -> None:
        """Start decoding the pictures of batches that will be looked at."""
        for batch in batches:
            for picture in _pictures(batch, measured):
                self._decode(picture)

    def _decode(self, picture: Picture) -> Future[np.ndarray]:
        found = self._waiting.get(id(picture))
        if found is None:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(max(1, workers.cores()), thread_name_prefix="archport-decode")
            found = self._waiting[id(picture)] = self._pool.submit(self._reader.decode, picture)
        return found

    def close(self) -> None:
        """Forget what was decoded and not looked at."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        self._pool = None
        self._waiting.clear()

    def look(self, plan: Plan, batch: BatchPlan, measured: Sequence[Measured]) -> BatchVisual | None:
        """Run the tower over a batch's pictures; None when it has none.

        Args:
            measured: of the whole request; the batch's rows index it.
        """
        rows = [measured[row] for row in batch.rows] if measured else []
        if not any(row.pictures for row in rows):
            positions = _positions(batch, rows)
            # Text behind a picture that an earlier call has seen stands where the picture put it.
            return None if positions is None else BatchVisual((), _index(batch, rows, {}), positions)
        pictures = _pictures(batch, measured)
        # The plan has the tower's temporaries beside none of an earlier batch's.
        self._stretches.drain()
        seen: list[list[mx.array]] = []
        first_of: dict[int, int] = {}
        offset = 0
        for step in batch.vision:
            features = self._see(plan, batch, step, [pictures[index] for index in step.pictures])
            for index in step.pictures:
                first_of[index], offset = offset, offset + features[0].shape[1]
            seen.append([each.reshape(-1, each.shape[-1]) for each in features])
        return BatchVisual(_joined(seen), _index(batch, rows, first_of), _positions(batch, rows))

    def _see(self, plan: Plan, batch: BatchPlan, step: VisionStep, pictures: Sequence[Picture]) -> list[mx.array]:
        futures = [self._decode(picture) for picture in pictures]
        decoded = [future.result() for future in futures]
        for picture in pictures:
            self._waiting.pop(id(picture), None)

        pipeline = Pipeline(depth=2)

        def evaluate(arrays: tuple[mx.array, ...]) -> None:
            if batch.in_flight == 1:
                self._stretches.finish(*arrays)
            else:
                pipeline.start(*arrays, room=step.room)

        patches = mx.array(_stacked(decoded, step.padded, len(self._reader.normalisation[0])))
        ahead = batch.in_flight > 1
        features = self._trunk.see(patches, TowerStep(plan, step, pictures, self._reader, evaluate, ahead=ahead))
        evaluate(tuple(features))
        pipeline.drain()
        return features


@contextmanager
def sight_of(trunk: Trunk, reader: Reader | None, stretches: Stretches) -> Iterator[Sight | None]:
    """The sight of one request, closed behind it; None for a model that reads text only."""
    if reader is None:
        yield None
        return
    sight = Sight(trunk, reader, stretches)
    try:
        yield sight
    finally:
        sight.close()


def _pictures(batch: BatchPlan, measured: Sequence[Measured]) -> list[Picture]:
    """The pictures of a batch in the order in which a plan counts them: by row, then by token."""
    return [picture for row in batch.rows for picture in measured[row].pictures] if measured else []


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
