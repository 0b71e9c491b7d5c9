"""Pictures through the vision tower as planned, and their features to the tokens they stand for.

Knows nothing of formats, sizes or towers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import mlx.core as mx
import numpy as np

from archport.attention import prepare
from archport.contract import ArchportError, Measured, Picture, Reader, Trunk, VisionTrunk
from archport.device.evaluation import Pipeline, Stretches, finish, traced
from archport.planning import BatchPlan, Plan, VisionStep
from archport.running.pixels import Pixels, pictures_of


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
        self._runners = [None if path is None else prepare(path) for path in step.paths]
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
        run = self._runners[self._kinds[layer]]
        if run is None:
            raise ArchportError(f"block {layer} of the vision tower is declared recurrent but called attend")
        if self._ahead:
            # A stretch per block, started while the one before it runs: waiting costs a GPU more than memory.
            self._evaluate((q, k, v))
        return run(q, k, v, scale=scale)

    def rows(self, function: Callable[..., mx.array], *inputs: mx.array) -> mx.array:
        piece, length = self._step.piece, inputs[0].shape[1]
        if piece >= length and self._ahead:
            return function(*inputs)
        # To ask starts what is asked about, which is why it is not asked above.
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
            finish(out)
        assert out is not None
        return out


class Sight:
    """The pictures of one request, decoded some ahead of the device and run through the tower; closed by its `with`.

    Args:
        trunk: with a tower.
        reader: of the request's inputs.
        stretches: evaluations of the request that are under way.
    """

    def __init__(self, trunk: Trunk, reader: Reader, stretches: Stretches) -> None:
        self._trunk, self._reader, self._stretches = cast(VisionTrunk, trunk), reader, stretches
        self._pixels = Pixels(reader)

    def __enter__(self) -> Sight:
        return self

    def __exit__(self, *_: object) -> None:
        self._pixels.close()

    def ahead(self, batches: Sequence[BatchPlan], measured: Sequence[Measured]) -> None:
        """Start decoding the pictures of the batch that is looked at next, and of the one after it."""
        self._pixels.ahead([(batch.quote.vision, pictures_of(batch, measured)) for batch in batches])

    def look(self, plan: Plan, batch: BatchPlan, measured: Sequence[Measured]) -> BatchVisual | None:
        """Run the tower over a batch's pictures; None when it has none.

        Args:
            measured: of the whole request; the batch's rows index it.
        """
        rows = [measured[row] for row in batch.rows] if measured else []
        if not any(row.pictures for row in rows):
            positions = _positions(batch, rows)
            # Text after a picture that an earlier call has seen stands where the picture put it.
            return None if positions is None else BatchVisual((), _index(batch, rows, {}), positions)
        pictures = pictures_of(batch, measured)
        ahead = batch.schedule.in_flight > 1
        # The plan budgets the tower's temporaries without an earlier batch's; its inputs may be there before.
        settle, patches = self._stretches.drain, self._pixels.of(batch.quote.vision[0], pictures)
        seen: list[list[mx.array]] = []
        first_of: dict[int, int] = {}
        offset = 0
        for step, following in pairwise([*batch.quote.vision, None]):
            assert step is not None
            running = _Pass(self._stretches, settle, step.room if ahead else None)
            if ahead:
                self._pixels.prepare(following, pictures)
            shown = [pictures[index] for index in step.pictures]
            context = TowerStep(plan, step, shown, self._reader, running.evaluate, ahead=ahead)
            features = self._trunk.see(patches, context)
            running.evaluate(tuple(features))
            settle = running.settle
            for index in step.pictures:
                first_of[index], offset = offset, offset + features[0].shape[1]
            seen.append([each.reshape(-1, each.shape[-1]) for each in features])
            if following is not None:
                patches = self._pixels.of(following, pictures)
        settle()
        return BatchVisual(_joined(seen), _index(batch, rows, first_of), _positions(batch, rows))


class _Pass:
    """The evaluations of one pass of the tower, the first of which waits for what ran before.

    Args:
        before: waits for that.
        room: bytes that may be in use when a stretch is started ahead; None to finish each by itself.
    """

    def __init__(self, stretches: Stretches, before: Callable[[], None], room: int | None) -> None:
        self._stretches, self._before, self._room = stretches, before, room
        self._pipeline: Pipeline | None = None

    def evaluate(self, arrays: tuple[mx.array, ...]) -> None:
        if self._pipeline is None:
            self._before()
            self._pipeline = Pipeline(depth=2)
        if self._room is None:
            self._stretches.finish(*arrays)
        else:
            self._pipeline.start(*arrays, room=self._room)

    def settle(self) -> None:
        """Wait for all of it."""
        if self._pipeline is not None:
            self._pipeline.drain()


def _joined(seen: list[list[mx.array]]) -> tuple[mx.array, ...]:
    if len(seen) == 1:
        return tuple(seen[0])
    joined: list[mx.array] = []
    for tap in range(len(seen[0])):
        whole = mx.concatenate([features[tap] for features in seen])
        finish(whole)
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
    """(axes, B, L); rows and tokens without their own stand at their index, cached tokens counted, on every axis."""
    axes = next((len(row.positions) for row in rows if row.positions is not None), 0)
    if not axes:
        return None
    index = np.arange(batch.shape.S, batch.shape.S + batch.shape.L, dtype=np.int32)
    out = np.broadcast_to(index, (axes, batch.shape.B, batch.shape.L)).copy()
    for at, row in enumerate(rows):
        if row.positions is not None:
            out[:, at, : row.positions.shape[1]] = row.positions
    return out
