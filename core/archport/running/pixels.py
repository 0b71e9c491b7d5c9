"""Pixels of the tower's passes: decoded on threads, and stacked there too, ahead of the device that waits for them.

At full size a picture takes far more than the tower sees of it, so only as many are decoded at once as a bound of host
memory holds. Formats, towers and text are not known here.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError
from dataclasses import replace
from functools import partial
from itertools import pairwise

import mlx.core as mx
import numpy as np

from archport.contract import Measured, Picture, Reader, VisionTower
from archport.device.workers import Coming, Threads, cores
from archport.planning import BatchPlan, Plan, VisionStep

# Bytes that pictures may take while they are decoded, all threads together; a larger one is decoded alone.
DECODING = 256 << 20


class Decoder:
    """A reader's `decode` on any number of threads: a picture waits until those under way leave room for it.

    Args:
        reader: decodes a picture, in the bytes that it names.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader, self._taken, self._changed = reader, 0, threading.Condition()

    def __call__(self, picture: Picture) -> np.ndarray:
        """Rows of patches; raises what the reader does."""
        size = picture.decoding
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + size <= DECODING)
            self._taken += size
        try:
            return self._reader.decode(picture)
        finally:
            with self._changed:
                self._taken -= size
                self._changed.notify_all()


def with_host_bytes(plan: Plan, measured: Sequence[Measured], tower: VisionTower) -> Plan:
    """The plan with the bytes of host memory that its pictures take at the peak, as this module decodes them.

    Args:
        measured: the inputs that the plan's batches index; empty without pictures.
    """
    if not any(each.pictures for each in measured):
        return plan
    shown = [pictures_of(batch, measured) for batch in plan.batches]
    # A batch's pictures are decoded while those of the one before it wait for the device.
    rows = [sum(picture.patches for picture in pictures) for pictures in shown]
    waiting = max(one + following for one, following in pairwise([*rows, 0]))
    stacked = max((len(step.lengths) * step.padded for batch in plan.batches for step in batch.quote.vision), default=0)
    decoding = [picture.decoding for pictures in shown for picture in pictures]
    peak = max(max(decoding), min(DECODING, sum(decoding)))
    return replace(plan, host_bytes=3 * 2 * tower.patch_size**2 * (waiting + stacked) + peak)


def pictures_of(batch: BatchPlan, measured: Sequence[Measured]) -> list[Picture]:
    """The pictures of a batch in the order in which a plan counts them: by row, then by token."""
    return [picture for row in batch.rows for picture in measured[row].pictures] if measured else []


# The passes of a batch, and the pictures that they index.
Shown = tuple[Sequence[VisionStep], Sequence[Picture]]


class Pixels:
    """The pixels of one request; close it to stop decoding what nobody will look at.

    Args:
        reader: decodes a picture.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader, self._decoder = reader, Decoder(reader)
        self._threads, self._closed = Threads("archport-decode", cores()), False
        self._decoding: dict[int, Coming[np.ndarray]] = {}
        self._ready: dict[int, Coming[mx.array]] = {}
        self._begun: set[int] = set()
        self._following: Shown | None = None

    def ahead(self, batches: Sequence[Shown]) -> None:
        """Start decoding for a batch and the one after it."""
        for at, (steps, pictures) in enumerate(batches):
            # One picture that is looked at next has nothing to be decoded in parallel with.
            if steps and id(steps[0]) not in self._begun and (at or len(pictures) > 1):
                self._begun.add(id(steps[0]))
                for picture in pictures:
                    self._decode(picture)
        self._following = batches[1] if len(batches) > 1 else None

    def of(self, step: VisionStep, pictures: Sequence[Picture]) -> mx.array:
        """The pixels of one pass (B, L, features), uint8; handed out once.

        Raises:
            InputError: when a picture can't be decoded.
        """
        if id(step) not in self._ready and len(pictures) == 1 and id(pictures[0]) not in self._decoding:
            return self._stacked(step, [self._decoder(pictures[0])])
        self._stack(step, pictures)
        self._begun.discard(id(step))
        return self._ready.pop(id(step)).take()

    def prepare(self, step: VisionStep | None, pictures: Sequence[Picture]) -> None:
        """Have the pixels of the next pass ready when the device is: of this batch, or after its last of the next."""
        if step is not None:
            self._stack(step, pictures)
        elif self._following is not None and self._following[0]:
            self._stack(self._following[0][0], self._following[1])

    def close(self) -> None:
        """Forget what was decoded and not looked at."""
        self._closed = True
        self._threads.close()
        self._decoding.clear()
        self._ready.clear()

    def _decode(self, picture: Picture) -> None:
        if id(picture) not in self._decoding:
            self._decoding[id(picture)] = self._threads.start(partial(self._decoder, picture))

    def _stack(self, step: VisionStep, pictures: Sequence[Picture]) -> None:
        if id(step) in self._ready:
            return
        shown = [pictures[index] for index in step.pictures]
        for picture in shown:
            self._decode(picture)
        decoding = {id(picture): self._decoding.pop(id(picture)) for picture in shown}

        def work() -> mx.array:
            # Threads take their work in order, so what this waits for is done or being done.
            decoded = {key: coming.take() for key, coming in decoding.items()}
            if self._closed:
                raise CancelledError
            return self._stacked(step, [decoded[id(picture)] for picture in shown])

        self._ready[id(step)] = self._threads.start(work)

    def _stacked(self, step: VisionStep, decoded: Sequence[np.ndarray]) -> mx.array:
        return mx.array(_stacked(decoded, step.padded, len(self._reader.normalisation[0])))


def _stacked(rows: Sequence[np.ndarray], padded: int, channels: int) -> np.ndarray:
    """Patches of several pictures as (B, padded, features); a still next to films has its one frame repeated."""
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
