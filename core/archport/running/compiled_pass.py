"""Short texts through a trunk as one compiled function each: a GPU does them faster than the host can say what to do.

On an H200 the 28 layers of Qwen3-Embedding-0.6B take the host some 5 ms to describe, whatever the length of a text, and
the device less. Only what a plan holds in one evaluation is compiled, so no plan grows by it.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from archport.contract import AttentionPath, Trunk
from archport.kernels.launches import described_once
from archport.layers.compiled import Entry, compiles, unchanged, weights_and_modules
from archport.planning import BatchPlan, Plan, StepPlan
from archport.running.context import StepContext
from archport.running.stretches import Stretches

# Shapes with a trace, per thread: more than there are widths of short rows.
MOST = 32

log = logging.getLogger("archport")


@dataclass(frozen=True, slots=True)
class _Trace:
    """A pass as MLX keeps it: by these paths, and with these weights and modules inside."""

    paths: Sequence[object]
    entries: tuple[Entry, ...]
    run: Any

    def serves(self, paths: Sequence[object]) -> bool:
        return paths == self.paths and unchanged(self.entries)


class _Shapes(threading.local):
    """What one thread has traced; MLX's traces belong to the thread that made them."""

    def __init__(self) -> None:
        self.traces = OrderedDict[object, _Trace]()


class CompiledPasses:
    """The compiled passes of one trunk, from a shape's first time on: the same text has the same vector each time.

    A copy starts with none.
    """

    def __init__(self) -> None:
        self._shapes, self._refused = _Shapes(), False

    def __reduce__(self) -> tuple[type[CompiledPasses], tuple[()]]:
        return CompiledPasses, ()

    def hidden(self, trunk: Trunk, plan: Plan, batch: BatchPlan, step: StepPlan, ids: mx.array) -> mx.array | None:
        """Hidden states (B, L, D) for ids (B, L), unevaluated; None where the pass is to be run in the usual way.

        Args:
            batch: one whose passes keep nothing: no caches, no pictures.
        """
        if self._refused or not (compiles(plan.device.kind) and compilable(plan, batch, step)):
            return None
        mine, key = self._shapes, _key(batch, step)
        found = mine.traces.get(key)
        if found is not None and found.serves(step.paths):
            mine.traces.move_to_end(key)
            return found.run(ids)
        return self._traced(trunk, plan, batch, step, key, ids)

    def _traced(
        self, trunk: Trunk, plan: Plan, batch: BatchPlan, step: StepPlan, key: object, ids: mx.array
    ) -> mx.array | None:
        def run(ids: mx.array) -> mx.array:
            with described_once():
                return trunk(ids, StepContext(plan, batch, step, (0,) * batch.shape.B, None, Stretches()))

        compiled: Any = mx.compile(run)
        try:
            hidden = compiled(ids)
        except ValueError as error:
            # MLX's, for modules that read values while they run: slower so, and as right as ever.
            if "transformation" not in str(error):
                raise
            self._refused = True
            log.debug("short passes are not compiled: %s", error)
            return None
        entries = tuple(weights_and_modules(trunk)) if isinstance(trunk, nn.Module) else ()
        self._shapes.traces[key] = _Trace(step.paths, entries, compiled)
        if len(self._shapes.traces) > MOST:
            self._shapes.traces.popitem(last=False)
        return hidden


def compilable(plan: Plan, batch: BatchPlan, step: StepPlan) -> bool:
    """Whether a batch is one row in one pass that its plan holds in one evaluation: all stretches in flight at once."""
    schedule = batch.schedule
    # Several rows come in too many shapes to trace each.
    if batch.shape.B > 1 or len(batch.steps) > 1 or batch.packed or schedule.split:
        return False
    together = max(schedule.in_flight, 1) if len(plan.batches) == 1 else 1
    if schedule.stretches(len(plan.layer_kinds)) > together:
        return False
    paths = [path for path in step.paths if isinstance(path, AttentionPath)]
    # A trace for each length of a text would be used once.
    return not any(path.call.lengths for path in paths) and all(path.price.evaluations <= 1 for path in paths)


def _key(batch: BatchPlan, step: StepPlan) -> object:
    """What two passes of the same work have in common."""
    work = tuple(
        (path.call, path.backend.name, path.price.route) if isinstance(path, AttentionPath) else path.form
        for path in step.paths
    )
    return batch.shape, work, batch.batch.visible
