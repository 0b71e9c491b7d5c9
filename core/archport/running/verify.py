"""Run plans within the pool that they say; with ARCHPORT_VERIFY_MEMORY=1, compare what they predict with what MLX says.

Measuring waits for the device and makes each batch wait for the one before it, so that what is read belongs to one
batch; it is off by default. Two batches that overlap are measured by `archport.testing.measure`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

import mlx.core as mx

from archport.device.pool import bounded, pool, wired
from archport.planning import BatchPlan, Plan
from archport.running.device_failures import note

VARIABLE = "ARCHPORT_VERIFY_MEMORY"

# Components of a plan that may be there when a batch is done: what the caller still reads, and what is decoded from.
_KEPT = ("weights", "outputs", "logits", "margin")
_CACHES = ("kv_cached", "kv", "kv_growth", "kv_conversion")

T = TypeVar("T")

log = logging.getLogger("archport")


def verifying() -> bool:
    """Whether plans are compared with what they take."""
    return os.environ.get(VARIABLE) == "1"


@dataclass(frozen=True, slots=True)
class MemoryReading:
    """What one batch took, beside what its plan said. Bytes; what others of the process hold is left out.

    Args:
        stage: `batch`, `prefill` or `decode`.
        rows, tokens: of the batch, padding included.
        measured, planned: the highest active bytes, and the plan's peak with no more of the prefix cache than there is.
        left, resident: active bytes when it was done, and those that may be there.
        pool, pool_limit: freed buffers that MLX kept, and those that it may keep.
    """

    stage: str
    rows: int
    tokens: int
    measured: int
    planned: int
    left: int
    resident: int
    pool: int
    pool_limit: int

    @property
    def holds(self) -> bool:
        """Whether the peak, and what was left in use and in the pool, are within the plan."""
        return self.measured <= self.planned and self.left + self.pool <= self.resident + self.pool_limit

    def log(self) -> None:
        """One line; the record carries this reading as its attribute `reading`."""
        log.warning(
            "memory of a %s: measured %s bytes, predicted %s, predicted/measured %.2f; %s left, %s in the pool%s",
            f"{self.stage} of {self.rows} x {self.tokens:,} tokens",
            f"{self.measured:,}",
            f"{self.planned:,}",
            self.planned / max(self.measured, 1),
            f"{self.left:,}",
            f"{self.pool:,}",
            "" if self.holds else "; the plan was too low, please report it",
            extra={"reading": self},
        )


class Held(Protocol):
    """What outlives a request, such as a prefix cache: its bytes now, and at most while the request ran."""

    @property
    def bytes(self) -> int: ...

    @property
    def most(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Kept:
    """So many bytes, all the while."""

    bytes: int = 0

    @property
    def most(self) -> int:
        return self.bytes


class Watch:
    """Measures the batches of a plan while it runs; does nothing unless the variable is set.

    Args:
        plan: of the request.
        limit: bytes that the pool may hold.
        held: of what the plan counts as resident.
    """

    def __init__(self, plan: Plan, limit: int, held: Held) -> None:
        self._plan, self._on, self._held, self._others, self._peak = plan, verifying(), held, 0, 0
        # A larger request of a little while ago may have left its buffers.
        self._limit = max(limit, plan.pool)
        if self._on:
            mx.synchronize()
            mx.clear_cache()
            mx.reset_peak_memory()
            # Other models of this process are not part of the plan.
            self._others = max(0, mx.get_active_memory() - plan.bytes["weights"] - held.bytes)

    @contextmanager
    def limits(self) -> Iterator[None]:
        """Keep to what the plan may hold together inside this block, and keep the model resident on a Mac."""
        plan = self._plan
        note(plan, getattr(self._held, "cache", None))
        with wired(plan.device), bounded(plan.device, plan.together - plan.peak + plan.moving):
            yield

    @contextmanager
    def batch(self, batch: BatchPlan) -> Iterator[None]:
        """Run a batch inside this block, results taken to the host included."""
        self._start()
        yield
        self._take()
        self._tell("batch", batch)

    def batches(self, batches: Iterable[BatchPlan]) -> Iterator[BatchPlan]:
        """The batches; each is done when the next one is asked for."""
        for batch in batches:
            with self.batch(batch):
                yield batch

    def prefilled(self, copied: Held | None = None) -> None:
        """Note that the prompts are read, of a plan with one batch whose caches stay.

        Args:
            copied: what was made of them, where the plan counts that as resident.
        """
        self._take()
        self._held = copied or self._held
        self._tell("prefill", self._plan.batches[0], _CACHES)

    def decoding(self, pieces: Generator[T, None, None]) -> Generator[T, None, None]:
        """The pieces of a generation, closed with this; what the caller does between two of them is not measured."""
        with self.limits():
            if not self._on:
                yield from pieces
                return
            try:
                while True:
                    self._start()
                    piece = next(pieces, None)
                    self._take()
                    if piece is None:
                        break
                    yield piece
            finally:
                pieces.close()
            # With the generator, its caches go.
            del pieces, piece
            self._tell("decode", self._plan.batches[0])

    def _start(self) -> None:
        if self._on:
            mx.reset_peak_memory()

    def _take(self) -> None:
        if self._on:
            mx.synchronize()
            self._peak = max(self._peak, mx.get_peak_memory() - self._others)

    def _tell(self, stage: str, batch: BatchPlan, more: Iterable[str] = ()) -> None:
        if not self._on:
            return
        # An allocation makes MLX trim its pool; until then it may be a buffer above its limit.
        mx.eval(mx.zeros((2,)) + 1)
        mx.synchronize()
        left = mx.get_active_memory() - self._others
        resident = self._held.bytes + sum(batch.bytes.get(name, 0) for name in (*_KEPT, *more))
        planned = batch.peak - batch.bytes.get("resident", 0) + max(self._held.bytes, self._held.most)
        kept = mx.get_cache_memory()
        peak, self._peak = self._peak, 0
        shape = batch.shape
        MemoryReading(stage, shape.B, shape.L, peak, planned, left, resident, kept, self._limit).log()


@contextmanager
def verified(plan: Plan, held: Held | None = None) -> Iterator[Watch]:
    """Run a plan inside this block: MLX's pool keeps no more than it says, and a Mac keeps the model resident.

    Args:
        held: of what the plan counts as resident; nothing when left out.
    """
    watch = Watch(plan, pool().hold(plan.pool, plan.room), held or Kept())
    with watch.limits():
        yield watch
