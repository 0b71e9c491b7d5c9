"""Pixels of the tower's passes: decoded on threads, and stacked there too, ahead of the device that waits for them.

Knows nothing of formats, towers or text.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import CancelledError
from functools import partial

import mlx.core as mx
import numpy as np

from archport.contract import Picture, Reader
from archport.device.workers import Coming, Threads, cores
from archport.planning import VisionStep
from archport.running.decoding import Decoder

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
        """Start decoding for a batch and the one behind it."""
        for at, (steps, pictures) in enumerate(batches):
            # One picture that is looked at next has nothing to be decoded beside.
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
        """Have the pixels of the next pass ready when the device is: of this batch, or behind its last of the next."""
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
