"""What MLX has unfinished at once: temporaries of the layers between two evaluations.

Knows nothing of budgets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from math import ceil
from typing import Literal

from archport.contract import AttentionPath, RecurrentPath
from archport.planning.costs import (
    BUSY_SECONDS,
    HOST_BOUND_LAYERS,
    LATER_LAYERS,
    POINTWISE_BANDWIDTH,
    RELEASE_SECONDS,
    in_flight_cap,
    rate,
)
from archport.planning.job import Job

Manner = Literal["lazy", "unfused", "documents", "split"]


def layer_seconds(job: Job, tokens: int) -> float:
    """Time of one layer on the device, attention excluded: matrix products, and passes over its temporaries."""
    bandwidth = POINTWISE_BANDWIDTH * job.device.bandwidth
    return max(
        tokens * each.flops / rate(job.device, job.dtype) + (tokens * each.token.lazy / bandwidth if bandwidth else 0.0)
        for each in job.classes
    )


def layers_in_flight(job: Job, tokens: int, eval_every_layers: int, in_flight: int, *, mixed: bool) -> int:
    """Layers whose temporaries may coexist.

    Args:
        tokens: tokens of the step.
        in_flight: stretches that may be unfinished at once, counted over all batches.
        mixed: whether batches of other shapes run before or after, whose buffers these can't take over.
    """
    layers = len(job.layer_classes)
    if job.device.kind == "cpu":
        return min(eval_every_layers * in_flight, layers)
    seconds = layer_seconds(job, tokens)
    late = next((count for bound, count in RELEASE_SECONDS if seconds < bound), 0)
    if in_flight == 1:
        late = min(late, 1)
    elif late and mixed:
        late += eval_every_layers
    width = min(eval_every_layers * in_flight + late, layers)
    return min(width, HOST_BOUND_LAYERS) if seconds < BUSY_SECONDS else width


def in_flight(
    job: Job, tokens: int, width: int, paths: Sequence[AttentionPath | RecurrentPath] | None = None
) -> tuple[int, int]:
    """(bytes of temporaries, bytes of attention's scratch) when `width` layers are unfinished at once.

    Args:
        tokens: tokens of the step, padding included.
        paths: per kind of layer the path of its attention; without them everything is taken as one lazy stretch.
    """
    per_kind: list[tuple[Manner, int]] = [("lazy", 0)] * len(job.kinds)
    if paths is not None:
        per_kind = [_manner(path) for path in paths]
    ends = [manner == "split" for manner, _ in per_kind]
    on_cpu, once = job.device.kind == "cpu", 0
    plain: list[int] = []
    loaded: list[int] = []
    for each in job.classes:
        manner, more = per_kind[each.kind]
        token = each.token
        if manner == "split":
            # The scratch is gone when the rest of the layer runs, and was never there with another layer's.
            once = max(once, more)
            plain.append(tokens * token.split)
            loaded.append(max(tokens * token.split, tokens * token.held + more) if on_cpu else plain[-1])
        else:
            held = {"lazy": token.lazy, "unfused": token.unfused, "documents": token.documents}[manner]
            plain.append(tokens * held)
            loaded.append(plain[-1] + more)
    widest = tokens * max(each.token.widest for each in job.classes)
    cap = max(max(plain), in_flight_cap(job.device, widest, job.dtype))
    lazy = [0 if per_kind[each.kind][0] == "split" else per_kind[each.kind][1] for each in job.classes]
    scratch = max(once, heaviest_run(job, lazy, ends, width))
    # The reuse needs a device that keeps up; a host-bound graph holds all that is in it.
    share = LATER_LAYERS[job.device.kind] if layer_seconds(job, tokens) >= BUSY_SECONDS else 1.0
    run = share * heaviest_run(job, loaded, ends, width) + (1 - share) * max(loaded)
    total = min(ceil(run) + (0 if on_cpu else once), cap + scratch)
    return max(0, total - scratch), min(scratch, total)


def _manner(path: AttentionPath | RecurrentPath) -> tuple[Manner, int]:
    """(how a layer's temporaries coexist with its attention, the scratch of that)."""
    price = path.price
    if price.evaluations:
        return "split", price.transient
    return "documents" if price.parts else "unfused" if price.route == "composite" else "lazy", price.transient


def heaviest_run(job: Job, per_class: Sequence[int], ends: Sequence[bool], width: int) -> int:
    """The heaviest run of at most `width` layers in a row, by bytes per layer class.

    Args:
        ends: per kind of layer whether it evaluates the graph, so that what was before it is finished. On a GPU the
            layer before it is released late.
    """
    layers, kept = len(job.layer_classes), 0 if job.device.kind == "cpu" else 1
    if len(per_class) == 1:
        return per_class[0] * (min(width, 1 + kept) if ends[job.classes[0].kind] else width)
    run: deque[int] = deque()
    total = best = 0
    # Batches follow each other: a run may go on in the next one.
    for turn in range(layers + width - 1):
        at = job.layer_classes[turn % layers]
        while ends[job.classes[at].kind] and len(run) > kept:
            total -= run.popleft()
        run.append(per_class[at])
        total += per_class[at]
        if len(run) > width:
            total -= run.popleft()
        best = max(best, total)
    return best
