"""Pictures decoded within a bound of host memory, and what they take of it in a plan.

At full size a picture takes far more than the tower sees of it, so only as many are decoded at once as the bound holds.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from archport.contract import Measured, Picture, Reader, VisionTower
from archport.planning import BatchPlan, Plan

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


def with_host_bytes(plan: Plan, measured: Sequence[Measured], tower: VisionTower | None) -> Plan:
    """The plan with the bytes of host memory that its pictures take at the peak, as this module decodes them.

    Args:
        measured: the inputs that the plan's batches index; empty without pictures.
    """
    if tower is None or not any(each.pictures for each in measured):
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
