"""What MLX has unfinished at once: temporaries of the layers between two evaluations.

Knows nothing of budgets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Literal, get_args

from archport.contract import AttentionPath, RecurrentPath
from archport.planning.costs import (
    BUSY_SECONDS,
    HOST_BOUND_LAYERS,
    POINTWISE_BANDWIDTH,
    in_flight_cap,
    rate,
)
from archport.planning.job import Job, LayerClass

# Of a graph that nothing evaluates in between: MLX stops the host a hundred dispatches ahead, and a layer takes some
# fifty.
CPU_LAYERS = 4

Manner = Literal["lazy", "unfused", "documents", "mixed", "split"]


def layer_seconds(job: Job, tokens: int) -> float:
    """Time of one layer on the device, attention excluded: matrix products, and passes over its temporaries."""
    bandwidth = POINTWISE_BANDWIDTH * job.device.bandwidth
    return max(
        tokens * each.flops / rate(job.device, job.dtype) + (tokens * each.token.lazy / bandwidth if bandwidth else 0.0)
        for each in job.classes
    )


def layers_in_flight(job: Job, tokens: int, eval_every_layers: int, in_flight: int, *, split: bool) -> int:
    """Layers whose temporaries may coexist: the runtime starts no stretch before there is room for it.

    Args:
        tokens: tokens of the step.
        in_flight: stretches that may be unfinished at once, counted over all batches.
        split: whether a stretch ends before and after each attention, so that two of them are one layer.
    """
    if split:
        return 1
    width = min(eval_every_layers * in_flight, len(job.layer_classes))
    host_bound = job.device.kind != "cpu" and layer_seconds(job, tokens) < BUSY_SECONDS
    return min(width, max(1, HOST_BOUND_LAYERS * in_flight // 2)) if host_bound else width


def decoding_layers(job: Job, rows: int) -> int:
    """Layers of one decoded token per row whose temporaries may coexist: their graph is evaluated as one."""
    most = len(job.layer_classes)
    return min(most, CPU_LAYERS) if job.device.kind == "cpu" else layers_in_flight(job, rows, most, 2, split=False)


def in_flight(
    job: Job, tokens: int, width: int, *, split: bool, paths: Sequence[AttentionPath | RecurrentPath] | None = None
) -> tuple[int, int]:
    """(bytes of temporaries, bytes of attention's scratch) when `width` layers are unfinished at once.

    Args:
        tokens: tokens of the step, padding included.
        split: whether stretches end before and after each attention.
        paths: per kind of layer the path of its attention; without them everything is taken as one lazy stretch.
    """
    per_kind: list[tuple[Manner, int]] = [("lazy", 0)] * len(job.kinds)
    if paths is not None:
        per_kind = [_manner(path) for path in paths]
    if split:
        # While attention runs, what follows it is started: its inputs and the residual are still there.
        most = max(tokens * (_held(each, per_kind[each.kind][0], tokens) + each.token.carried) for each in job.classes)
        return most, max(more for _, more in per_kind)
    ends = [path.price.evaluations > 0 for path in paths] if paths is not None else [False] * len(job.kinds)
    on_cpu, once = job.device.kind == "cpu", 0
    plain: list[int] = []
    loaded: list[int] = []
    for each in job.classes:
        manner, more = per_kind[each.kind]
        plain.append(tokens * _held(each, manner, tokens))
        if ends[each.kind]:
            # The scratch is gone when the rest of the layer runs, and was never there with another layer's.
            once = max(once, more)
            loaded.append(max(plain[-1], tokens * each.token.held + more) if on_cpu else plain[-1])
        else:
            loaded.append(plain[-1] + more)
    widest = tokens * max(each.token.widest for each in job.classes)
    cap = max(max(plain), in_flight_cap(job.device, widest, job.dtype))
    lazy = [0 if ends[each.kind] else per_kind[each.kind][1] for each in job.classes]
    scratch = max(once, heaviest_run(job, lazy, ends, width))
    total = min(heaviest_run(job, loaded, ends, width) + (0 if on_cpu else once), cap + scratch)
    return max(0, total - scratch), min(scratch, total)


def least_in_flight(job: Job, tokens: int, *, split: bool) -> int:
    """Bytes that are in flight at least when one layer is at a time, whatever the paths of its attention."""
    least = 0
    for each in job.classes:
        held = min(_held(each, manner, tokens) for manner in get_args(Manner))
        least = max(least, tokens * (held + (each.token.carried if split else 0)))
    return least


def parts(job: Job, tokens: int, paths: Sequence[AttentionPath | RecurrentPath]) -> tuple[int, int]:
    """Bytes of the heaviest part of a split layer, where its block pauses before the MLP and where it does not."""
    paused = unpaused = 0
    for each in job.classes:
        manner, more = _manner(paths[each.kind])
        out, part, whole = (tokens * size for size in (each.token.output, each.token.part, _held(each, manner, tokens)))
        if isinstance(paths[each.kind], RecurrentPath):
            # It computes inside the stretch that its projections begin.
            paused, unpaused = max(paused, part + more), max(unpaused, whole + more)
        else:
            paused, unpaused = max(paused, part, out + more), max(unpaused, whole - out, out + more)
    return paused, unpaused


def _held(each: LayerClass, manner: Manner, tokens: int) -> int:
    """Bytes of a token's temporaries in one layer, in a step of so many tokens."""
    token = each.token
    if tokens < token.fewest:
        return token.small
    return {
        "lazy": token.lazy,
        "unfused": token.unfused,
        "documents": token.documents,
        "mixed": token.mixed,
        "split": token.split,
    }[manner]


def _manner(path: AttentionPath | RecurrentPath) -> tuple[Manner, int]:
    """(how a layer's temporaries coexist with its attention, the scratch of that)."""
    price = path.price
    if price.evaluations:
        waits = any(not part.price.evaluations for part in price.parts)
        return "mixed" if waits else "split", price.transient
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
