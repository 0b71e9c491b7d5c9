"""Compare what a plan predicted with what MLX measured, when ARCHPORT_VERIFY_MEMORY=1 asks for it.

Measuring waits for the device between requests, so it is off by default.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx

from archport.device.pool import bounded, pool, wired
from archport.planning import Plan

VARIABLE = "ARCHPORT_VERIFY_MEMORY"

log = logging.getLogger("archport")


@contextmanager
def verified(plan: Plan) -> Iterator[None]:
    """Run a plan inside this block: MLX's pool keeps no more than it says, and a Mac keeps the model resident.

    With the variable set, the measured peak is logged beside the predicted one.
    """
    pool().hold(plan.pool, plan.room)
    moving = plan.together - plan.peak + plan.moving
    with wired(plan.device), bounded(plan.device, moving), _measured(plan):
        yield


@contextmanager
def _measured(plan: Plan) -> Iterator[None]:
    if os.environ.get(VARIABLE) != "1":
        yield
        return
    mx.synchronize()
    mx.clear_cache()
    mx.reset_peak_memory()
    # Other models of this process are not part of the plan.
    others = max(0, mx.get_active_memory() - plan.bytes["weights"])
    yield
    mx.synchronize()
    measured = mx.get_peak_memory() - others
    verdict = "" if measured <= plan.peak else "; the plan was too low, please report it"
    log.warning(
        "memory of %d batches: measured %s bytes, predicted %s, predicted/measured %.2f%s",
        len(plan.batches),
        f"{measured:,}",
        f"{plan.peak:,}",
        plan.peak / max(measured, 1),
        verdict,
    )
