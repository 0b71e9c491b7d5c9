"""What MLX has unfinished at once, and how long that takes: bytes and seconds between two evaluations.

Knows nothing of budgets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

from archport.contract import AttentionLayer, AttentionPath, DeviceFacts, DType, KVAllocation, RecurrentPath
from archport.contract.device import rate
from archport.contract.spec import itemsize
from archport.planning.activations import LayerClass
from archport.planning.batch import Batch, Decoding, StepPlan
from archport.planning.costs import (
    BUSY_SECONDS,
    HOST_BOUND_LAYERS,
    HOST_SECONDS,
    MIB,
    POINTWISE_BANDWIDTH,
    WAIT_SECONDS,
    mlp_matrices,
)
from archport.planning.facts import ModelFacts

# Of a graph that nothing evaluates in between: MLX stops the host a hundred dispatches ahead, and a layer takes some
# fifty.
CPU_LAYERS = 4
# MLX queues at most this many command buffers (tasks) before it waits, whatever the graph holds.
TASKS_IN_FLIGHT = 10

Path = AttentionPath | RecurrentPath
Manner = Literal["lazy", "unfused", "documents", "mixed", "split"]


def layer_seconds(model: ModelFacts, tokens: int) -> float:
    """Time of one layer on the device, attention excluded: matrix products, and passes over its temporaries."""
    bandwidth = POINTWISE_BANDWIDTH * model.device.bandwidth
    seconds = (
        tokens * each.flops / rate(model.device, model.dtype)
        + (tokens * each.token.lazy / bandwidth if bandwidth else 0.0)
        for each in model.classes
    )
    # A table of vectors has no layer.
    return max(seconds, default=0.0)


def layers_in_flight(model: ModelFacts, tokens: int, eval_every_layers: int, in_flight: int, *, split: bool) -> int:
    """Layers whose temporaries may coexist: the runtime starts no stretch before there is room for it.

    Args:
        tokens: tokens of the step.
        in_flight: stretches that may be unfinished at once, counted over all batches.
        split: whether a stretch ends before and after each attention, so that two of them are one layer.
    """
    if split:
        return 1
    width = max(1, min(eval_every_layers * in_flight, len(model.layer_classes)))
    host_bound = model.device.kind != "cpu" and layer_seconds(model, tokens) < BUSY_SECONDS
    return min(width, max(1, HOST_BOUND_LAYERS * in_flight // 2)) if host_bound else width


def decoding_layers(model: ModelFacts, rows: int) -> int:
    """Layers of one decoded token per row whose temporaries may coexist: their graph is evaluated as one."""
    most = len(model.layer_classes)
    return min(most, CPU_LAYERS) if model.device.kind == "cpu" else layers_in_flight(model, rows, most, 2, split=False)


def in_flight_cap(device: DeviceFacts, widest: int, dtype: DType) -> int:
    """Bytes of temporaries that MLX has unfinished at most, however long the graph is.

    It queues ten command buffers and closes one when its operations touched enough: 1,000 MiB on large CUDA cards,
    50 x 2^20 elements on Metal. One operation more always fits in. A CPU queues ten tasks of ten operations.

    Args:
        widest: bytes of the largest temporary.
    """
    if device.kind == "cuda":
        return TASKS_IN_FLIGHT * (1000 * MIB + widest)
    if device.kind == "metal":
        return TASKS_IN_FLIGHT * (50 * MIB * itemsize(dtype) + widest)
    return TASKS_IN_FLIGHT * 10 * widest


def in_flight(
    model: ModelFacts,
    tokens: int,
    width: int,
    *,
    split: bool,
    paths: Sequence[AttentionPath | RecurrentPath] | None = None,
) -> tuple[int, int]:
    """(bytes of temporaries, bytes of attention's scratch) when `width` layers are unfinished at once.

    Args:
        tokens: tokens of the step, padding included.
        split: whether stretches end before and after each attention.
        paths: per kind of layer the path of its attention; without them everything is taken as one lazy stretch.
    """
    if not model.classes:
        # A table's rows are the hidden states, which a CPU counts apart. Pooling blanks padding in place, once they are
        # in float32.
        size = itemsize(model.dtype)
        return tokens * model.spec.hidden_size * (
            (0 if model.device.kind == "cpu" else size) + (4 if size < 4 else 0)
        ), 0
    per_kind: list[tuple[Manner, int]] = [("lazy", 0)] * len(model.kinds)
    if paths is not None:
        per_kind = [_manner(path) for path in paths]
    if split:
        # While attention runs, what follows it is started: its inputs and the residual are still there.
        most = max(
            tokens * (_held(each, per_kind[each.kind][0], tokens) + each.token.carried) for each in model.classes
        )
        return most, max(more for _, more in per_kind)
    ends = [path.price.evaluations > 0 for path in paths] if paths is not None else [False] * len(model.kinds)
    on_cpu, once = model.device.kind == "cpu", 0
    plain: list[int] = []
    loaded: list[int] = []
    for each in model.classes:
        manner, more = per_kind[each.kind]
        plain.append(tokens * _held(each, manner, tokens))
        if ends[each.kind]:
            # The scratch is gone when the rest of the layer runs, and was never there with another layer's.
            once = max(once, more)
            loaded.append(max(plain[-1], tokens * each.token.held + more) if on_cpu else plain[-1])
        else:
            loaded.append(plain[-1] + more)
    widest = tokens * max(each.token.widest for each in model.classes)
    cap = max(max(plain), in_flight_cap(model.device, widest, model.dtype))
    lazy = [0 if ends[each.kind] else per_kind[each.kind][1] for each in model.classes]
    scratch = max(once, heaviest_run(model, lazy, ends, width))
    total = min(heaviest_run(model, loaded, ends, width) + (0 if on_cpu else once), cap + scratch)
    return max(0, total - scratch), min(scratch, total)


def least_in_flight(model: ModelFacts, tokens: int, *, split: bool) -> int:
    """Bytes that are in flight at least when one layer is at a time, whatever the paths of its attention."""
    least = 0
    for each in model.classes:
        held = min(_held(each, manner, tokens) for manner in get_args(Manner))
        least = max(least, tokens * (held + (each.token.carried if split else 0)))
    return least


def parts(model: ModelFacts, tokens: int, paths: Sequence[Path]) -> tuple[int, int]:
    """Bytes of the heaviest part of a split layer, where its block pauses before the MLP and where it does not."""
    paused = unpaused = 0
    for each in model.classes:
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


def _manner(path: Path) -> tuple[Manner, int]:
    """(how a layer's temporaries coexist with its attention, the scratch of that)."""
    price = path.price
    if price.evaluations:
        waits = any(not part.price.evaluations for part in price.parts)
        return "mixed" if waits else "split", price.transient
    return "documents" if price.parts else "unfused" if price.route == "composite" else "lazy", price.transient


def heaviest_run(model: ModelFacts, per_class: Sequence[int], ends: Sequence[bool], width: int) -> int:
    """The heaviest run of at most `width` layers in a row, by bytes per layer class.

    Args:
        ends: per kind of layer whether it evaluates the graph, so that what was before it is finished. On a GPU the
            layer before it is released late.
    """
    layers, kept = len(model.layer_classes), 0 if model.device.kind == "cpu" else 1
    if len(per_class) == 1:
        return per_class[0] * (min(width, 1 + kept) if ends[model.classes[0].kind] else width)
    run: deque[int] = deque()
    total = best = 0
    # Batches follow each other: a run may go on in the next one.
    for turn in range(layers + width - 1):
        at = model.layer_classes[turn % layers]
        while ends[model.classes[at].kind] and len(run) > kept:
            total -= run.popleft()
        run.append(per_class[at])
        total += per_class[at]
        if len(run) > width:
            total -= run.popleft()
        best = max(best, total)
    return best


# Stretches of decoding that are timed at their ends, and taken as growing evenly between them.
STRETCHES = 8


def evaluation_seconds(model: ModelFacts, tokens: int, *, split: bool, in_flight: int) -> float:
    """What one evaluation inside a pass of so many tokens costs in time."""
    stretch = layer_seconds(model, tokens) / (2 if split else 1)
    return max(WAIT_SECONDS[model.device.kind], BUSY_SECONDS - stretch if in_flight > 1 else 0.0)


def prefill_seconds(model: ModelFacts, batch: Batch, steps: tuple[StepPlan, ...]) -> float:
    """Estimated time of the steps, evaluations aside."""
    speed, bandwidth = rate(model.device, model.dtype), model.device.bandwidth or float("inf")
    pointwise = POINTWISE_BANDWIDTH * bandwidth
    total = 0.0
    for step in steps:
        tokens = batch.shape.B * step.tokens
        if not model.classes:
            # Rows of a table are read, and written; a batch takes its time however small it is.
            moved = 2 * tokens * model.spec.hidden_size * itemsize(model.dtype)
            total += max(moved / bandwidth, HOST_SECONDS[model.device.kind], WAIT_SECONDS["cpu"])
        for each in model.classes:
            path = step.paths[each.kind]
            device = max(tokens * each.flops / speed, each.matrix_bytes / bandwidth)
            device += tokens * each.token.lazy / pointwise
            device += path.price.seconds
            total += each.count * max(device, HOST_SECONDS[model.device.kind])
    return total


def decoding_seconds(model: ModelFacts, batch: Batch, kv: Sequence[KVAllocation | None]) -> Decoding | None:
    """Estimated time of decoding the new tokens that a batch reserves room for; None when nothing is decoded.

    Each pass reads the weights, the head's included, and what the rows have cached by then; the host starts its layers
    one by one. Where the number of new tokens is unknown, only a single pass is told.
    """
    if not batch.request.generates:
        return None
    # The first new token is read from the prefill.
    steps = max(0, batch.shape.new_tokens - 1)
    held = max(cached + new for cached, new in zip(batch.cached, batch.lengths, strict=True))
    first, last = held + 1, held + max(1, steps)
    widths = [first + (last - first) * index // STRETCHES for index in range(STRETCHES + 1)]
    at = {width: _pass_seconds(model, batch.shape.B * batch.request.answers, width, kv) for width in widths}
    # Passes in between take the mean of the ends of their stretch; each end but the first and the last is in two.
    seconds = sum((high - low) * (at[low] + at[high]) / 2 for low, high in pairwise(widths))
    seconds += (at[first] + at[last]) / 2
    return Decoding(steps=steps, seconds=seconds if steps else 0.0, first=at[first], last=at[last])


def _pass_seconds(model: ModelFacts, B: int, tokens: int, kv: Sequence[KVAllocation | None]) -> float:
    """Time of one token of B rows, each of which has so many tokens by then."""
    speed, bandwidth = rate(model.device, model.dtype), model.device.bandwidth or float("inf")
    size, total = itemsize(model.dtype), 0.0
    # Bytes of one element of a matrix; the head's are held as the layers' are.
    element = 2 * model.classes[0].matrix_bytes / model.classes[0].flops
    for each in model.classes:
        layer, kept = model.kinds[each.kind], kv[each.kind]
        read, flops = float(each.matrix_bytes), each.flops
        experts = model.spec.experts
        if experts is not None and each.experts:
            # Rows meet experts of their own, until all are met.
            met = min(experts.count, B * experts.per_token) - experts.per_token
            read += element * mlp_matrices(model.spec) * model.spec.hidden_size * experts.intermediate_size * met
        keys = 0
        if isinstance(layer, AttentionLayer):
            keys = tokens if layer.reach[0] is None else min(tokens, layer.reach[0] + 1)
            flops += 2.0 * keys * layer.n_heads * (layer.head_dim + layer.v_head_dim)
        if kept is not None:
            # A state is written as well.
            read += B * kept.row_bytes(layer, keys, size) * (1 if isinstance(layer, AttentionLayer) else 2)
        total += each.count * max(B * flops / speed, read / bandwidth, HOST_SECONDS[model.device.kind])
    head = model.spec.vocab_size * model.spec.hidden_size
    return total + max(2.0 * B * head / speed, head * element / bandwidth)
