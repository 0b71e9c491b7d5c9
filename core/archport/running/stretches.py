"""Stretches of layers that are being evaluated, held within what a plan allows. Knows no layer and no cache."""

from __future__ import annotations

import mlx.core as mx

from archport.device.evaluation import Pipeline, finish, traced
from archport.planning import BatchPlan, Plan


class Stretches:
    """Stretches of layers that are being evaluated, over all batches of a request, within what its plan may hold."""

    def __init__(self) -> None:
        self._pipeline = Pipeline(depth=4)

    def start(self, plan: Plan, batch: BatchPlan, *arrays: mx.array, paused: bool = True) -> None:
        """Evaluate `arrays`; with stretches in flight, start that as soon as the plan's peak has room for it.

        Args:
            paused: whether the stretch is one of those that the plan counted on.
        """
        if batch.schedule.in_flight > 1:
            room = plan.moving - batch.quote.stretch[0 if paused else 1]
            self._pipeline.start(*arrays, room=room)
        elif not traced(*arrays):
            finish(*arrays)

    def finish(self, *arrays: mx.array) -> None:
        """Evaluate `arrays` and have back what that took, before anything else is started."""
        if not traced(*arrays):
            finish(*arrays)

    def drain(self) -> None:
        """Wait for all stretches, so that what comes next finds none of their temporaries."""
        self._pipeline.drain()
