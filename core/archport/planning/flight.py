"""What MLX has unfinished at once: temporaries of the layers between two evaluations, and of the vision tower.

Knows nothing of budgets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from math import ceil

from archport.contract import AttentionCall, AttentionLayer, AttentionPath, MaskPolicy
from archport.planning.costs import (
    BUSY_SECONDS,
    HOST_BOUND_LAYERS,
    LATER_LAYERS,
    RELEASE_SECONDS,
    in_flight_cap,
    rate,
    vision_token_bytes,
)
from archport.planning.job import Job


def layer_seconds(job: Job, tokens: int) -> float:
    """Time of one layer's matrix products on the device, attention excluded."""
    return tokens * max(each.flops for each in job.classes) / rate(job.device, job.dtype)


def layers_in_flight(job: Job, tokens: int, eval_every_layers: int, in_flight: int, *, others: bool) -> int:
    """Layers whose temporaries may coexist.

    Args:
        tokens: tokens of the step.
        in_flight: stretches that may be unfinished at once.
        others: whether another batch runs behind this one, whose first stretch starts before the last is done.
    """
    layers = len(job.layer_classes)
    if job.device.kind == "cpu":
        return min(eval_every_layers * in_flight, layers)
    seconds = layer_seconds(job, tokens)
    if in_flight > 1:
        late = min(4, ceil(RELEASE_SECONDS / seconds))
        width = eval_every_layers * in_flight + late + (eval_every_layers if others else 0)
    else:
        width = eval_every_layers + (0 if seconds >= RELEASE_SECONDS else 1 if seconds >= BUSY_SECONDS else 2)
    most = 2 * layers if others and in_flight > 1 else layers
    return min(width, most, HOST_BOUND_LAYERS) if seconds < BUSY_SECONDS else min(width, most)


def in_flight(
    job: Job, tokens: int, width: int, paths: Sequence[AttentionPath | None] | None = None
) -> tuple[int, int]:
    """(bytes of temporaries, bytes of attention's scratch) when `width` layers are unfinished at once.

    Args:
        tokens: tokens of the step, padding included.
        paths: per kind of layer the path of its attention; without them everything is taken as one lazy stretch.
    """
    per_kind: list[tuple[str, int]] = [("lazy", 0)] * len(job.kinds)
    if paths is not None:
        per_kind = [_manner(path) for path in paths]
    ends = [manner == "split" for manner, _ in per_kind]
    plain: list[int] = []
    loaded: list[int] = []
    for each in job.classes:
        manner, more = per_kind[each.kind]
        token = each.token
        if manner == "split":
            # The scratch is gone when the rest of the layer runs.
            plain.append(tokens * token.split)
            loaded.append(max(tokens * token.split, tokens * token.held + more))
        else:
            plain.append(tokens * (token.documents if manner == "documents" else token.lazy))
            loaded.append(plain[-1] + more)
    widest = tokens * max(each.token.widest for each in job.classes)
    cap = max(max(plain), in_flight_cap(job.device, widest, job.dtype))
    scratch = heaviest_run(job, [per_kind[each.kind][1] for each in job.classes], ends, width)
    share = LATER_LAYERS[job.device.kind]
    run = share * heaviest_run(job, loaded, ends, width) + (1 - share) * max(loaded)
    total = min(ceil(run), cap + scratch)
    return max(0, total - scratch), min(scratch, total)


def _manner(path: AttentionPath | None) -> tuple[str, int]:
    """(how a layer's temporaries coexist with its attention, the scratch of that)."""
    if path is None:
        return "lazy", 0
    if path.price.evaluations:
        return "split", path.price.transient
    return ("documents" if path.price.parts else "lazy"), path.price.transient


def heaviest_run(job: Job, per_class: Sequence[int], ends: Sequence[bool], width: int) -> int:
    """The heaviest run of at most `width` layers in a row, by bytes per layer class.

    Args:
        ends: per kind of layer whether it evaluates the graph, so that nothing before it is unfinished.
    """
    layers = len(job.layer_classes)
    if len(per_class) == 1:
        return per_class[0] * (1 if ends[job.classes[0].kind] else width)
    run: deque[int] = deque()
    total = best = 0
    # Two batches in flight follow each other: a run may go on in the next one.
    for turn in range(layers if width <= layers else 2 * layers):
        at = job.layer_classes[turn % layers]
        if ends[job.classes[at].kind]:
            run.clear()
            total = 0
        run.append(per_class[at])
        total += per_class[at]
        if len(run) > width:
            total -= run.popleft()
        best = max(best, total)
    return best


def vision_transient(job: Job) -> int:
    """Bytes in flight while the largest image passes one block of the vision tower, which is evaluated per block."""
    vision = job.spec.vision
    if vision is None or not job.images:
        return 0
    patches, largest = max(job.images), 0
    for layer in set(vision.layers):
        if isinstance(layer, AttentionLayer):
            call = AttentionCall.of(
                layer,
                MaskPolicy("none"),
                job.device,
                B=1,
                q_len=patches,
                kv_len=patches,
                dtype=job.dtype,
                limits=job.limits,
            )
            scratch = job.path(call, None).price.transient
            largest = max(largest, patches * vision_token_bytes(job.spec, layer, job.dtype) + scratch)
    return largest
