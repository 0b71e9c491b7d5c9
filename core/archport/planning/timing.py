"""Estimated seconds of a batch: of its steps, and of evaluations between them. Knows nothing of bytes."""

from __future__ import annotations

from archport.planning.batch import Batch
from archport.planning.costs import BUSY_SECONDS, HOST_SECONDS, POINTWISE_BANDWIDTH, WAIT_SECONDS, rate
from archport.planning.flight import layer_seconds
from archport.planning.job import Job
from archport.planning.plan import StepPlan


def evaluation_seconds(job: Job, tokens: int, *, split: bool, in_flight: int) -> float:
    """What one evaluation inside a pass of so many tokens costs in time."""
    stretch = layer_seconds(job, tokens) / (2 if split else 1)
    return max(WAIT_SECONDS[job.device.kind], BUSY_SECONDS - stretch if in_flight > 1 else 0.0)


def prefill_seconds(job: Job, batch: Batch, steps: tuple[StepPlan, ...]) -> float:
    """Estimated time of the steps, evaluations aside."""
    speed, bandwidth = rate(job.device, job.dtype), job.device.bandwidth or float("inf")
    pointwise = POINTWISE_BANDWIDTH * bandwidth
    counts = [0] * len(job.classes)
    for index in job.layer_classes:
        counts[index] += 1
    total = 0.0
    for step in steps:
        tokens = batch.shape.B * step.tokens
        for each, count in zip(job.classes, counts, strict=True):
            path = step.paths[each.kind]
            device = max(tokens * each.flops / speed, each.matrix_bytes / bandwidth)
            device += tokens * each.token.lazy / pointwise
            device += path.price.seconds
            total += count * max(device, HOST_SECONDS[job.device.kind])
    return total
