"""What one batch costs under one schedule: bytes per component, largest buffer, work, time. Decides nothing.

The paths it asks for are the ones that run, so a quote is what the runtime will need and not a model of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from archport.contract import (
    AttentionCall,
    AttentionLayer,
    AttentionLimits,
    AttentionPath,
    BatchShape,
    KVAllocation,
    MaskPolicy,
)
from archport.planning.caches import CacheBytes, allocation, cache_bytes
from archport.planning.costs import (
    OVERLAPPED_SECONDS,
    WAIT_SECONDS,
    in_flight_cap,
    itemsize,
    rate,
    vision_token_bytes,
)
from archport.planning.job import Job
from archport.planning.masks import DENSE, check_pin, policies
from archport.planning.plan import Buffer, StepPlan, Work

# Added to everything that is not weights or cache: rounding of allocations, small arrays, positions.
MARGIN = 0.05
PAGE = 16_384


@dataclass(frozen=True, slots=True)
class Schedule:
    """How a batch is run: tokens per step, layers between evaluations, stretches unfinished at once."""

    chunk: int
    eval_every_layers: int
    in_flight: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows that run together, before a schedule is found.

    Args:
        lengths: new tokens per row.
        cached: cached tokens per row.
        shape: their padded shape.
        others: whether other batches run before or after this one.
        dense: whether one mask of (B,1,S,S) in float32 is to be built, as a naive implementation does.
    """

    lengths: tuple[int, ...]
    cached: tuple[int, ...]
    shape: BatchShape
    others: bool = False
    dense: bool = False

    @property
    def even_start(self) -> bool:
        return min(self.cached) == max(self.cached)


@dataclass(frozen=True, slots=True)
class Quote:
    """The cost of a batch under a schedule; `problem` says what breaks a limit, in words, "" when nothing does."""

    schedule: Schedule
    kv: tuple[KVAllocation | None, ...]
    masks: tuple[MaskPolicy | None, ...]
    pins: tuple[tuple[str, ...], ...]
    steps: tuple[StepPlan, ...]
    bytes: dict[str, int]
    buffer: Buffer
    work: Work
    seconds: float
    overhead: float
    evaluations: int
    problem: str = ""
    binds: str = ""

    @property
    def peak(self) -> int:
        return sum(self.bytes.values())


def quote(job: Job, batch: Batch, schedule: Schedule, *, every_step: bool = False, least: bool = False) -> Quote:
    """The cost of a batch under a schedule.

    Args:
        every_step: price all prefill steps; otherwise the first, the last full one and the last.
        least: let attention take the paths that need the fewest bytes, to find the smallest peak there is.
    """
    shape, chunk = batch.shape, schedule.chunk
    kept = tuple(allocation(job, layer, shape, chunk) for layer in job.kinds)
    kv = tuple(answer for answer, _ in kept)
    caches = cache_bytes(job, kv, shape)
    fixed = _fixed_bytes(job, batch, caches, chunk)
    tokens = shape.B * min(chunk, shape.L)
    width = _layers_in_flight(job, batch, schedule)
    activations, widest, widest_name = _activations(job, tokens, width, ())
    linear = max(tokens * each.flops for each in job.classes) / rate(job.device, job.dtype)
    room = _room(job, sum(fixed.values()) + int(activations * (1 + MARGIN)), width, linear, least=least)
    steps: list[StepPlan] = []
    masks: list[MaskPolicy | None] = [None] * len(job.kinds)
    words: list[list[str]] = [[word] if word else [] for _, word in kept]
    # Backwards: hooks are asked once, with the call that sees most.
    for start in reversed(_starts(shape.L, chunk, every_step=every_step)):
        paths: list[AttentionPath | None] = []
        for index, layer in enumerate(job.kinds):
            if not isinstance(layer, AttentionLayer):
                paths.append(None)
                continue
            path, mask, word = _path(job, batch, layer, start, min(chunk, shape.L - start), room, kv[index])
            paths.append(path)
            masks[index] = masks[index] or mask
            words[index] += [each for each in word if each not in words[index]]
        steps.append(StepPlan(start=start, tokens=min(chunk, shape.L - start), paths=tuple(paths)))
    return _settle(
        job,
        batch,
        schedule,
        kv,
        tuple(masks),
        tuple(map(tuple, words)),
        tuple(steps[::-1]),
        fixed,
        caches,
        widest,
        widest_name,
    )


def decode_step(job: Job, batch: Batch, kv: Sequence[KVAllocation | None]) -> StepPlan | None:
    """One decoded token at the fullest cache; None when nothing is decoded."""
    if job.mode != "generate":
        return None
    shape = batch.shape
    start = shape.L + max(shape.new_tokens, 1) - 1
    paths: list[AttentionPath | None] = []
    for index, layer in enumerate(job.kinds):
        if isinstance(layer, AttentionLayer):
            paths.append(_path(job, batch, layer, start, 1, (job.limits,), kv[index], decode=True)[0])
        else:
            paths.append(None)
    return StepPlan(start=start, tokens=1, paths=tuple(paths))


def _starts(length: int, chunk: int, *, every_step: bool) -> list[int]:
    starts = list(range(0, length, chunk))
    if every_step or len(starts) <= 3:
        return starts
    return [starts[0], starts[-2], starts[-1]]


def _layers_in_flight(job: Job, batch: Batch, schedule: Schedule) -> int:
    layers = len(job.layer_classes)
    most = 2 * layers if batch.others and schedule.in_flight > 1 else layers
    return min(schedule.eval_every_layers * schedule.in_flight, most)


def _fixed_bytes(job: Job, batch: Batch, caches: CacheBytes, chunk: int) -> dict[str, int]:
    """Components that do not depend on the attention path."""
    shape, spec, size = batch.shape, job.spec, itemsize(job.dtype)
    rows = shape.B
    out = rows * spec.hidden_size * 4
    # Two batches: the finished rows of the one before wait for the host.
    hidden = rows * min(chunk, shape.L) * spec.hidden_size * size if batch.others else 0
    fixed = {
        "weights": job.weights.total,
        "kv_cached": caches.cached,
        "kv": caches.new,
        "kv_growth": caches.growth,
        "kv_conversion": caches.conversion,
        "mask": 4 * rows * shape.L * (shape.S + shape.L) if batch.dense else 0,
        "inputs": 16 * rows * shape.L,
        "outputs": out + hidden if job.mode == "embed" else 0,
        "logits": rows * spec.vocab_size * (4 + size) if job.mode == "generate" else 0,
    }
    if spec.vision is not None and job.images:
        merged = sum(job.images) // spec.vision.merge_size**2
        fixed["vision"] = merged * spec.hidden_size * size
    return fixed


def _activations(job: Job, tokens: int, width: int, evaluated: Sequence[bool]) -> tuple[int, int, str]:
    """(bytes in flight, bytes of the widest temporary, its name) when `width` layers are unfinished at once.

    Args:
        evaluated: per kind, whether its attention evaluates the graph by itself; empty for none.
    """
    widest_class = max(job.classes, key=lambda each: each.token.widest)
    widest = tokens * widest_class.token.widest
    per_class = [tokens * each.token.total for each in job.classes]
    ends = [bool(evaluated) and evaluated[each.kind] for each in job.classes]
    most = _heaviest(job, per_class, ends, width)
    cap = max(max(per_class), in_flight_cap(job.device, widest, job.dtype))
    return min(most, cap), widest, widest_class.token.widest_name


def _heaviest(job: Job, per_class: Sequence[int], ends: Sequence[bool], width: int) -> int:
    """The heaviest run of at most `width` layers in a row; a class that ends a run evaluates what was before it."""
    layers = len(job.layer_classes)
    if len(per_class) == 1:
        return per_class[0] * (1 if ends[0] else min(width, max(layers, width)))
    run: deque[int] = deque()
    total = best = 0
    # Two batches in flight follow each other: the run may wrap around.
    for turn in range(layers if width <= layers else 2 * layers):
        at = job.layer_classes[turn % layers]
        if ends[at]:
            run.clear()
            total = 0
        run.append(per_class[at])
        total += per_class[at]
        if len(run) > width:
            total -= run.popleft()
        best = max(best, total)
    return best


def _room(job: Job, spent: int, width: int, linear: float, *, least: bool) -> tuple[AttentionLimits, ...]:
    """What one attention call may use when everything else takes `spent` bytes and `linear` seconds per layer.

    The second entry is for calls that no path runs within the usual scratch: all that the budget leaves.
    """
    left = max(0, int((job.budget - spent) / ((1 + MARGIN) * width)))
    usual = job.limits.transient_on(job.device)
    bound = job.limits.seconds_on(job.device)
    seconds = job.limits.dispatch_seconds if bound is None else max(bound - linear, bound / 10)
    scratch = (0,) if least else (left,) if left <= usual else (usual, left)
    return tuple(replace(job.limits, transient_bytes=bytes_, dispatch_seconds=seconds) for bytes_ in scratch)


def _path(
    job: Job,
    batch: Batch,
    layer: AttentionLayer,
    start: int,
    q_len: int,
    room: tuple[AttentionLimits, ...],
    kept: KVAllocation | None,
    *,
    decode: bool = False,
) -> tuple[AttentionPath, MaskPolicy, list[str]]:
    """The path of one layer in one step, its mask policy, and what hooks fixed in words."""
    shape, words = batch.shape, list[str]()
    before = shape.S + start
    kv_len = before + q_len
    left = layer.reach[0]
    if kept is not None and kept.storage == "ring" and left is not None:
        kv_len = min(kv_len, left + q_len)
    ragged = shape.ragged and (layer.semantics == "bidirectional" or decode or not batch.even_start)
    options = policies(layer, q_len=q_len, kv_len=kv_len, ragged=ragged)
    if batch.dense:
        options = (DENSE,)
    else:
        pin = job.mask_pin(layer, replace(shape, L=q_len) if decode else shape)
        if pin is not None:
            options = (check_pin(pin, layer, options, job.plugin),)
            words.append(f"archport_mask_policy of {job.plugin}: {pin.kind}")
    lengths, q_lengths = _lengths(batch, start, q_len, kv_len, decode=decode) if ragged else ((), ())
    found: list[tuple[bool, float, int, AttentionPath, MaskPolicy]] = []
    for order, policy in enumerate(options):
        call = AttentionCall.of(
            layer,
            policy,
            job.device,
            B=shape.B,
            q_len=q_len,
            kv_len=kv_len,
            dtype=job.dtype,
            lengths=lengths,
            q_lengths=q_lengths,
            limits=room[0],
        )
        if batch.dense:
            call = replace(call, mask_shape=(shape.B, 1, q_len, kv_len), additive=True)
        name = job.backend
        if name is None:
            name = job.backend_pin(layer, call)
            if name is not None:
                words.append(f"archport_sdpa_backend of {job.plugin}: {name}")
        path = job.path(call, name)
        if path.excess and len(room) > 1:
            path = job.path(replace(call, limits=room[1]), name)
        found.append((bool(path.excess), path.price.seconds, order, path, policy))
    *_, path, policy = min(found, key=lambda entry: entry[:3])
    return path, policy, words


def _lengths(
    batch: Batch, start: int, q_len: int, kv_len: int, *, decode: bool
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(keys per row, queries per row) of one step."""
    if decode:
        ahead = start - batch.shape.L + 1
        keys = tuple(min(kv_len, c + n + ahead) for c, n in zip(batch.cached, batch.lengths, strict=True))
        return keys, (1,) * len(keys)
    queries = tuple(max(0, min(q_len, n - start)) for n in batch.lengths)
    keys = tuple(
        min(kv_len, c + min(start, n) + q) for c, n, q in zip(batch.cached, batch.lengths, queries, strict=True)
    )
    return keys, queries


def _settle(
    job: Job,
    batch: Batch,
    schedule: Schedule,
    kv: tuple[KVAllocation | None, ...],
    masks: tuple[MaskPolicy | None, ...],
    pins: tuple[tuple[str, ...], ...],
    steps: tuple[StepPlan, ...],
    fixed: dict[str, int],
    caches: CacheBytes,
    widest: int,
    widest_name: str,
) -> Quote:
    """Sum up the steps."""
    width = _layers_in_flight(job, batch, schedule)
    layers, bound = len(job.layer_classes), job.limits.seconds_on(job.device)
    speed = rate(job.device, job.dtype)
    activations = attention = 0
    scratch = Buffer("attention scratch", 0, job.device.max_buffer)
    work = Work("nothing", 0.0, 0.0, bound)
    seconds = 0.0
    problem = binds = ""
    for step in steps:
        tokens = batch.shape.B * step.tokens
        prices = [path.price if path else None for path in step.paths]
        evaluated = [price is not None and price.evaluations > 0 for price in prices]
        bytes_, _, _ = _activations(job, tokens, width, evaluated)
        activations = max(activations, bytes_)
        transient = [0 if p is None else p.transient for p in prices]
        lazy = [transient[each.kind] for each in job.classes]
        ends = [evaluated[each.kind] for each in job.classes]
        attention = max(attention, _heaviest(job, lazy, ends, width))
        for path in step.paths:
            if path is None:
                continue
            if path.price.largest_buffer > scratch.bytes:
                scratch = Buffer(f"{path.backend.name} attention", path.price.largest_buffer, job.device.max_buffer)
            if path.excess and not problem:
                problem, binds = f"{path.backend.name} attention {path.excess}", "attention"
        work = max(work, _largest_work(job, step, tokens, schedule, speed, bound), key=lambda each: each.seconds)
        seconds += _step_seconds(job, step, tokens, speed)
    passes = -(-batch.shape.L // schedule.chunk)
    seconds *= passes / len(steps)
    waits = WAIT_SECONDS if schedule.in_flight == 1 else OVERLAPPED_SECONDS
    per_pass = -(-layers // schedule.eval_every_layers)
    cost = passes * per_pass * waits[job.device.kind]
    components = dict(fixed)
    components["activations"], components["attention"] = activations, attention
    if "vision" in components:
        components["vision"] += max(0, _vision_transient(job) - activations - attention)
    transient_total = activations + attention + components["logits"] + components["outputs"]
    components["margin"] = int(MARGIN * transient_total) + (2 * PAGE * (10 * width + 2 * layers))
    buffer = max(
        Buffer(job.weights.largest_name, job.weights.largest, job.device.max_buffer),
        Buffer("the keys or values of one layer", caches.largest, job.device.max_buffer),
        Buffer(widest_name, widest, job.device.max_buffer),
        Buffer("the logits", components["logits"] * 2 // 3, job.device.max_buffer),
        Buffer("the mask", components["mask"], job.device.max_buffer),
        scratch,
        key=lambda each: each.bytes,
    )
    total = sum(components.values())
    if total > job.budget:
        problem, binds = f"needs {total:,} bytes, the budget is {job.budget:,}", "memory"
    elif buffer.cap is not None and buffer.bytes > buffer.cap:
        problem = f"{buffer.name} takes {buffer.bytes:,} bytes, the device's largest buffer is {buffer.cap:,}"
        binds = "buffer"
    elif bound is not None and work.seconds > bound:
        problem = f"{work.name} takes about {work.seconds:.2f} s without a pause, the bound is {bound:.2f} s"
        binds = "work"
    elif binds == "attention":
        binds = "work" if "dispatch" in problem else "memory"
    return Quote(
        schedule=schedule,
        kv=kv,
        masks=masks,
        pins=pins,
        steps=steps,
        bytes=components,
        buffer=buffer,
        work=work,
        seconds=seconds + cost,
        overhead=cost / (seconds + cost) if seconds else 0.0,
        evaluations=passes * per_pass,
        problem=problem,
        binds=binds,
    )


def _largest_work(job: Job, step: StepPlan, tokens: int, schedule: Schedule, speed: float, bound: float | None) -> Work:
    """The largest stretch between two evaluations in a step."""
    per_class: list[float] = []
    flops: list[float] = []
    tile = Work("attention", 0.0, 0.0, bound)
    for each in job.classes:
        path = step.paths[each.kind]
        linear = tokens * each.flops
        seconds, attention = linear / speed, 0.0
        if path is not None:
            price = path.price
            if price.evaluations:
                here = Work(
                    f"one {path.backend.name} attention tile", price.dispatch_flops, price.dispatch_seconds, bound
                )
                tile = max(tile, here, key=lambda work: work.seconds)
            else:
                seconds += price.dispatch_seconds or price.seconds
                attention = price.flops
        per_class.append(seconds)
        flops.append(linear + attention)
    # Layers of the heaviest class stand for all: a stretch is short, and the bound is a safety.
    heaviest = max(range(len(per_class)), key=lambda at: per_class[at])
    count = min(schedule.eval_every_layers, len(job.layer_classes))
    name = "one layer" if count == 1 else f"{count} layers"
    stretch = Work(name, count * flops[heaviest], count * per_class[heaviest], bound)
    return max(stretch, tile, key=lambda work: work.seconds)


def _step_seconds(job: Job, step: StepPlan, tokens: int, speed: float) -> float:
    bandwidth = job.device.bandwidth or float("inf")
    per_class: list[float] = []
    for each in job.classes:
        path = step.paths[each.kind]
        linear = max(tokens * each.flops / speed, each.matrix_bytes / bandwidth)
        per_class.append(linear + (path.price.seconds if path else 0.0))
    return sum(per_class[at] for at in job.layer_classes)


def _vision_transient(job: Job) -> int:
    """Bytes in flight while the largest image passes one block of the vision tower, which is evaluated per block."""
    vision = job.spec.vision
    assert vision is not None
    largest = 0
    patches = max(job.images)
    for layer in set(vision.layers):
        if not isinstance(layer, AttentionLayer):
            continue
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
        price = job.path(call, None).price
        largest = max(largest, patches * vision_token_bytes(job.spec, layer, job.dtype) + price.transient)
    return largest
