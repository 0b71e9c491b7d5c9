"""Estimated seconds of a batch: of its steps, of evaluations between them, and of decoding. Decides nothing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from archport.contract import AttentionLayer, KVAllocation
from archport.planning.batch import Batch
from archport.planning.costs import (
    BUSY_SECONDS,
    HOST_SECONDS,
    POINTWISE_BANDWIDTH,
    WAIT_SECONDS,
    has_experts,
    itemsize,
    rate,
)
from archport.planning.flight import layer_seconds
from archport.planning.job import Job
from archport.planning.plan import Decoding, StepPlan

# Stretches of decoding that are timed at their ends, and taken as growing evenly between them.
STRETCHES = 8


def evaluation_seconds(job: Job, tokens: int, *, split: bool, in_flight: int) -> float:
    """What one evaluation inside a pass of so many tokens costs in time."""
    stretch = layer_seconds(job, tokens) / (2 if split else 1)
    return max(WAIT_SECONDS[job.device.kind], BUSY_SECONDS - stretch if in_flight > 1 else 0.0)


def prefill_seconds(job: Job, batch: Batch, steps: tuple[StepPlan, ...]) -> float:
    """Estimated time of the steps, evaluations aside."""
    speed, bandwidth = rate(job.device, job.dtype), job.device.bandwidth or float("inf")
    pointwise = POINTWISE_BANDWIDTH * bandwidth
    counts = _counts(job)
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


def decoding_seconds(job: Job, batch: Batch, kv: Sequence[KVAllocation | None]) -> Decoding | None:
    """Estimated time of decoding the new tokens that a batch reserves room for; None when nothing is decoded.

    Each pass reads the weights, the head's included, and what the rows have cached by then; the host starts its layers
    one by one. Where the number of new tokens is unknown, only a single pass is told.
    """
    if job.mode != "generate":
        return None
    # The first new token is read from the prefill.
    steps = max(0, batch.shape.new_tokens - 1)
    held = max(cached + new for cached, new in zip(batch.cached, batch.lengths, strict=True))
    first, last = held + 1, held + max(1, steps)
    widths = [first + (last - first) * index // STRETCHES for index in range(STRETCHES + 1)]
    at = {width: _pass_seconds(job, batch.shape.B * job.answers, width, kv) for width in widths}
    # Passes in between take the mean of the ends of their stretch; each end but the first and the last is in two.
    seconds = sum((high - low) * (at[low] + at[high]) / 2 for low, high in pairwise(widths))
    seconds += (at[first] + at[last]) / 2
    return Decoding(steps=steps, seconds=seconds if steps else 0.0, first=at[first], last=at[last])


def _pass_seconds(job: Job, B: int, tokens: int, kv: Sequence[KVAllocation | None]) -> float:
    """Time of one token of B rows, each of which has so many tokens by then."""
    speed, bandwidth = rate(job.device, job.dtype), job.device.bandwidth or float("inf")
    size, total = itemsize(job.dtype), 0.0
    # Bytes of one element of a matrix; the head's are held as the layers' are.
    element = 2 * job.classes[0].matrix_bytes / job.classes[0].flops
    for index, (each, count) in enumerate(zip(job.classes, _counts(job), strict=True)):
        layer, kept = job.kinds[each.kind], kv[each.kind]
        read, flops = float(each.matrix_bytes), each.flops
        experts = job.spec.experts
        if experts is not None and has_experts(job.spec, job.layer_classes.index(index)):
            # Rows meet experts of their own, until all are met.
            met = min(experts.count, B * experts.per_token) - experts.per_token
            read += element * 3 * job.spec.hidden_size * experts.intermediate_size * met
        keys = 0
        if isinstance(layer, AttentionLayer):
            keys = tokens if layer.reach[0] is None else min(tokens, layer.reach[0] + 1)
            flops += 2.0 * keys * layer.n_heads * (layer.head_dim + layer.v_head_dim)
        if kept is not None:
            # A state is written as well.
            read += B * kept.row_bytes(layer, keys, size) * (1 if isinstance(layer, AttentionLayer) else 2)
        total += count * max(B * flops / speed, read / bandwidth, HOST_SECONDS[job.device.kind])
    head = job.spec.vocab_size * job.spec.hidden_size
    return total + max(2.0 * B * head / speed, head * element / bandwidth)


def _counts(job: Job) -> list[int]:
    """Layers of each class."""
    counts = [0] * len(job.classes)
    for index in job.layer_classes:
        counts[index] += 1
    return counts
