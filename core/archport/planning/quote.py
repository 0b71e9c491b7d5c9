"""What one batch costs under one schedule: bytes per component, largest buffer, work, time. Decides nothing.

The paths in a quote are the ones that run, so it is what the runtime will need and not a model of it. An estimate
prices some of the steps only: enough to rule a schedule out, never enough to run it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeVar

from archport.contract import (
    ArchportError,
    AttentionLayer,
    AttentionLimits,
    AttentionPath,
    KVAllocation,
    RecurrentPath,
)
from archport.planning.batch import Batch, Steps
from archport.planning.caches import CacheBytes, allocation, cache_bytes
from archport.planning.costs import WORKSPACE, itemsize, rate
from archport.planning.flight import (
    in_flight,
    layer_seconds,
    layers_in_flight,
    least_in_flight,
    parts,
)
from archport.planning.job import Job
from archport.planning.outputs import decoding_bytes, readout_bytes
from archport.planning.plan import Buffer, ChunkBound, StepPlan, VisionStep, Work
from archport.planning.spans import steps_of
from archport.planning.steps import SAMPLED, prefill_steps
from archport.planning.timing import evaluation_seconds, prefill_seconds
from archport.planning.vision import feature_bytes, tower_quote

# Added to everything that is not weights or cache: rounding of allocations, small arrays.
MARGIN = 0.05
PAGE = 16_384
# What larger buffers than asked for add up to on a CPU, ten at a time.
WARM = 80 << 10
# One level of an attention call's scratch is so many times the next.
LEVEL_RATIO = 4


@dataclass(frozen=True, slots=True)
class Schedule:
    """How a batch is run: tokens per step, layers between evaluations, stretches unfinished at once.

    With `split` a stretch ends before and after every attention: two stretches are then one layer.

    Args:
        scratch: bytes above its inputs that one attention call may use; where no path does with so little, the one that
            needs least is taken. None: what the budget leaves, rounded down to one of `scratch_levels`.
        lean_tower: whether pictures pass the tower in the fewest bytes, whatever the budget leaves.
        bound, why: what keeps the chunk from being larger, and that in words; "" where `bound` says it all.
    """

    chunk: int
    eval_every_layers: int
    in_flight: int
    split: bool = False
    scratch: int | None = None
    lean_tower: bool = False
    bound: ChunkBound = "row"
    why: str = ""

    def stretches(self, layers: int) -> int:
        """Evaluations of one pass through so many layers."""
        return 2 * layers if self.split else -(-layers // self.eval_every_layers)


@dataclass(frozen=True, slots=True)
class Estimate:
    """The cost of a batch under a schedule by the first of its steps, the last full one and the last.

    No byte, buffer or stretch of it is above what all steps together need, so its problem is theirs.

    Args:
        schedule: with its scratch settled.
        kv: per kind of layer how its cache is held.
        stretch: bytes that one stretch may hold, in a block that pauses and in one that does not.
        vision: passes through the vision tower.
        problem: what breaks a limit, in words; "" when nothing does.
        binds: `memory`, `buffer` or `work`; None without a problem.
    """

    schedule: Schedule
    kv: tuple[KVAllocation | None, ...]
    prefill: Steps
    pins: tuple[tuple[str, ...], ...]
    bytes: dict[str, int]
    buffer: Buffer
    work: Work
    seconds: float
    overhead: float
    evaluations: int
    stretch: tuple[int, int]
    vision: tuple[VisionStep, ...] = ()
    problem: str = ""
    binds: ChunkBound | None = None

    @property
    def peak(self) -> int:
        return sum(self.bytes.values())


@dataclass(frozen=True, slots=True)
class Quote(Estimate):
    """The cost of a batch under a schedule by all of its steps: what a batch can run by.

    Raises:
        ArchportError: when its steps leave a gap.
    """

    def __post_init__(self) -> None:
        steps = self.prefill.steps
        for step, following in pairwise(steps):
            if step.start + step.tokens != following.start:
                raise ArchportError(
                    f"a quote of steps {step.start:,} + {step.tokens:,} and {following.start:,} leaves tokens out; "
                    "only an estimate may price some of the steps"
                )


Priced = TypeVar("Priced", Estimate, Quote)


def quote(job: Job, batch: Batch, schedule: Schedule) -> Quote:
    """The cost of a batch under a schedule, every step priced."""
    return _priced(Quote, job, batch, schedule)


def estimate(job: Job, batch: Batch, schedule: Schedule) -> Estimate:
    """The cost of a batch under a schedule by three of its steps at most."""
    return _priced(Estimate, job, batch, schedule)


def least_bytes(job: Job, batch: Batch, schedule: Schedule) -> int:
    """Bytes that every quote of a schedule without stretches ahead reaches, whatever the paths; prices none of them."""
    shape, chunk = batch.shape, schedule.chunk
    kv = tuple(allocation(job, layer, shape, chunk)[0] for layer in job.kinds)
    fixed = _fixed_bytes(job, batch, cache_bytes(job, kv, shape), chunk)
    tokens = shape.B * min(chunk, shape.L)
    if batch.pictures:
        fixed["vision"] = feature_bytes(job, batch.pictures) + _step_features(job, tokens)
    activations = least_in_flight(job, tokens, split=schedule.split)
    return sum(fixed.values()) + activations + _margin(job, activations, fixed, 1)


def scratch_levels(job: Job, left: int) -> tuple[int, ...]:
    """What one attention call may be allowed when `left` bytes are free, largest first; the first is no less than that.

    The levels are the same at every budget and a larger one only adds some, so what fits a budget fits a larger one.
    """
    floor, usual = _scratch_floor(job), job.limits.transient_on(job.device)
    found = [0, floor]
    while found[-1] < left:
        found.append(found[-1] * LEVEL_RATIO)
    if floor < usual < found[-1]:
        found.append(usual)
    return tuple(sorted(set(found), reverse=True))


def _priced(kind: type[Priced], job: Job, batch: Batch, schedule: Schedule) -> Priced:
    shape, chunk, every_step = batch.shape, schedule.chunk, kind is Quote
    kept = tuple(allocation(job, layer, shape, chunk) for layer in job.kinds)
    kv = tuple(answer for answer, _ in kept)
    caches = cache_bytes(job, kv, shape)
    fixed = _fixed_bytes(job, batch, caches, chunk)
    tokens = shape.B * min(chunk, shape.L)
    tower = None
    if batch.pictures:
        beside = sum(fixed.values()) + _step_features(job, tokens) + _margin(job, 0, fixed, len(job.layer_classes))
        tower = tower_quote(
            job, batch.pictures, 0 if schedule.lean_tower else int((job.budget - beside) / (1 + MARGIN))
        )
    if tower is not None:
        fixed["vision"] = tower.resident + _step_features(job, tokens)
    width = layers_in_flight(job, tokens, schedule.eval_every_layers, schedule.in_flight, split=schedule.split)
    activations, _ = in_flight(job, tokens, width, split=schedule.split)
    spent = sum(fixed.values()) + activations + _margin(job, activations, fixed, width)
    scratch = schedule.scratch
    if scratch is None:
        left = max(_scratch_floor(job), int((job.budget - spent) / ((1 + MARGIN) * width)))
        scratch = next(level for level in scratch_levels(job, left) if level <= left)
    room = _room(job, scratch, layer_seconds(job, tokens))
    prefill = _laid_out(job, batch, chunk, room[:1], kv, every=every_step)
    if room[1:] and prefill.exceeds:
        prefill = _laid_out(job, batch, chunk, room, kv, every=every_step)
    pins = tuple((word, *words) if word else words for (_, word), words in zip(kept, prefill.pins, strict=True))
    components = _components(job, batch, prefill.steps, fixed, width, schedule.split)
    buffer = _largest_buffer(job, batch, prefill.steps, caches, components, tokens)
    bound = job.limits.seconds_on(job.device)
    work = _work(job, batch, prefill.steps, schedule, bound)
    if tower is not None:
        # The tower runs before the text: what it needs beyond the text's own peak comes on top.
        more = max(0, tower.transient - components["activations"] - components["attention"])
        components["vision"] += more
        components["margin"] += int(MARGIN * more)
        buffer = max(buffer, tower.buffer, key=lambda each: each.bytes)
        work = max(work, tower.work, key=lambda each: each.seconds)
    if job.mode == "generate" and job.new_tokens != 0:
        # Tokens are drawn when the prompts are read.
        more, moving, array = decoding_bytes(job, batch, components, caches, kv)
        if more:
            components["decoding"] = more
            components["margin"] += int(MARGIN * moving)
        buffer = max(buffer, array, key=lambda each: each.bytes)
    elif job.readout is not None:
        # A head reads the hidden states when the layers are done.
        more, array = readout_bytes(job, job.readout, tokens, components)
        components[job.readout.component] += more
        components["margin"] += int(MARGIN * more)
        buffer = max(buffer, array, key=lambda each: each.bytes)
    passes = len(steps_of(shape.L, chunk, batch.spans))
    seconds = prefill_seconds(job, batch, prefill.steps) * passes / len(prefill.steps) + (
        tower.seconds if tower else 0.0
    )
    evaluations = passes * schedule.stretches(len(job.layer_classes))
    # Each pass ends in an evaluation whatever the plan; those within it are the plan's.
    cost = (evaluations - passes) * evaluation_seconds(job, tokens, split=schedule.split, in_flight=schedule.in_flight)
    problem, binds = _problem(job, components, buffer, work)
    return kind(
        schedule=replace(schedule, scratch=scratch),
        kv=kv,
        prefill=prefill,
        pins=pins,
        bytes=components,
        buffer=buffer,
        work=work,
        seconds=seconds + cost,
        overhead=cost / (seconds + cost),
        evaluations=evaluations,
        stretch=_stretch(job, batch, prefill.steps, schedule),
        vision=tower.steps if tower else (),
        problem=problem,
        binds=binds,
    )


def _fixed_bytes(job: Job, batch: Batch, caches: CacheBytes, chunk: int) -> dict[str, int]:
    """Components that do not depend on the attention path."""
    shape, spec, size = batch.shape, job.spec, itemsize(job.dtype)
    rows, embeds = len(batch.lengths), job.mode == "embed"
    hidden = 0
    if job.device.kind == "cpu":
        # The hidden states that are pooled, and those of the batch before while the host takes its rows. On a GPU they
        # are the last stretch's, which holds less than the others.
        hidden = shape.B * min(chunk, shape.L) * spec.hidden_size * size * (2 if batch.others else 1)
    fixed = {
        "weights": job.weights.total,
        "kv_cached": caches.cached,
        "kv": caches.new,
        "kv_growth": caches.growth,
        "kv_conversion": caches.conversion,
        "mask": 4 * rows * shape.L * (shape.S + shape.L) if batch.dense else 0,
        "inputs": 16 * shape.B * shape.L + _table_bytes(job, batch, chunk),
        "outputs": rows * spec.hidden_size * 4 + hidden if embeds else 0,
        "logits": 0 if embeds else rows * spec.vocab_size * (4 + size),
        "vision": 0,
    }
    shared = _shared_bytes(job, shape.B * min(chunk, shape.L))
    if shared:
        fixed["kv_shared"] = shared
    if job.resident:
        fixed["resident"] = job.resident
    return fixed


def _shared_bytes(job: Job, tokens: int) -> int:
    """Bytes of keys and values that a step keeps until the last layer that reads them again."""
    layers = job.spec.layers
    read = {layer.kv_group for layer in job.kinds if isinstance(layer, AttentionLayer) and layer.kv == "shared"}
    numbers = 0
    for group in read:
        owners = [each for each in layers if isinstance(each, AttentionLayer) and each.keeps and each.kv_group == group]
        # Where another layer takes over, its keys are made while those before are still read.
        numbers += min(2, len(owners)) * owners[0].n_kv_heads * sum(owners[0].kv_widths)
    return tokens * numbers * itemsize(job.dtype)


def _step_features(job: Job, tokens: int) -> int:
    """Bytes of a step with pictures beside their features: places of its tokens, two copies of its hidden states."""
    return tokens * (2 * job.spec.hidden_size * itemsize(job.dtype) + 8)


def _table_bytes(job: Job, batch: Batch, chunk: int) -> int:
    """Angles of a step's positions with their cosines and sines in float32: for two sets of frequencies that layers
    share, on a CPU those that MLX makes for q and for k."""
    if job.device.kind == "metal" and not batch.pictures:
        return 0
    rows = 1 if batch.even_start and not batch.pictures else batch.shape.B
    widest = max((layer.head_dim for layer in job.kinds if isinstance(layer, AttentionLayer)), default=0)
    return (12 if job.device.kind == "cpu" else 10) * widest * rows * min(chunk, batch.shape.L)


def _margin(job: Job, moving: int, fixed: dict[str, int], width: int) -> int:
    """A share of everything that comes and goes, and two pages for each buffer that a GPU's allocator rounds.

    There are about ten such buffers per layer in flight and two per layer at rest.
    """
    share = int(MARGIN * (moving + fixed["logits"] + fixed["outputs"]))
    if job.device.kind == "cpu":
        # Sizes are exact there, but an array may take a freed buffer that is up to two pages of 4 KiB larger, and is
        # counted with all of it: a tenth of what is small, and nothing to speak of for large arrays.
        return share + min(moving // 10, WARM) + PAGE
    buffers = 10 * width + 2 * len(job.layer_classes)
    return share + 2 * PAGE * buffers + WORKSPACE[job.device.kind]


def _scratch_floor(job: Job) -> int:
    """Below it only tiles of a few rows are left; on a GPU every fused call is priced at half of it or more."""
    return 1 << 14 if job.device.kind == "cpu" else 1 << 20


def _room(job: Job, scratch: int, linear: float) -> tuple[AttentionLimits, ...]:
    """What one attention call may use of `scratch` bytes, when a layer takes `linear` seconds beside it.

    The second entry is for calls that no path runs within the usual scratch.
    """
    usual = job.limits.transient_on(job.device)
    bound = job.limits.seconds_on(job.device)
    seconds = job.limits.dispatch_seconds if bound is None else max(bound - linear, bound / 10)
    levels = (scratch,) if scratch <= usual else (usual, scratch)
    return tuple(replace(job.limits, transient_bytes=each, dispatch_seconds=seconds) for each in levels)


def _laid_out(
    job: Job,
    batch: Batch,
    chunk: int,
    room: tuple[AttentionLimits, ...],
    kv: tuple[KVAllocation | None, ...],
    *,
    every: bool,
) -> Steps:
    """The steps of a prefill; schedules that differ in evaluations only share them."""
    every = every or batch.shape.L <= SAMPLED * chunk
    key = (batch, chunk, room, every)
    found = job.prefills.get(key)
    if found is None:
        found = job.prefills[key] = prefill_steps(job, batch, chunk, room, kv, every=every)
    return found


def _components(
    job: Job, batch: Batch, steps: tuple[StepPlan, ...], fixed: dict[str, int], width: int, split: bool
) -> dict[str, int]:
    """Everything that adds up to the peak."""
    activations = attention = 0
    # Steps that differ in their keys only are taken together, by the one with the most scratch.
    alike: dict[tuple[object, ...], StepPlan] = {}
    for step in steps:
        key = (step.tokens, *((path.price.evaluations > 0, bool(path.price.parts)) for path in step.paths))
        if key not in alike or _scratch(step) > _scratch(alike[key]):
            alike[key] = step
    for step in alike.values():
        here, scratch = in_flight(job, batch.shape.B * step.tokens, width, split=split, paths=step.paths)
        total, attention = max(activations + attention, here + scratch), max(attention, scratch)
        activations = total - attention
    components = {**fixed, "activations": activations, "attention": attention}
    components["margin"] = _margin(job, activations + attention, fixed, width)
    return components


def _stretch(job: Job, batch: Batch, steps: tuple[StepPlan, ...], schedule: Schedule) -> tuple[int, int]:
    """Bytes that the heaviest stretch may hold of its own, in a block that pauses and in one that does not."""
    most = (0, 0)
    for step in steps:
        tokens = batch.shape.B * step.tokens
        if schedule.split:
            found = parts(job, tokens, step.paths)
        else:
            width = layers_in_flight(job, tokens, schedule.eval_every_layers, 1, split=False)
            found = (sum(in_flight(job, tokens, width, split=False, paths=step.paths)),) * 2
        most = max(most[0], found[0]), max(most[1], found[1])
    return most


def _scratch(step: StepPlan) -> int:
    return sum(path.price.transient for path in step.paths)


def _largest_buffer(
    job: Job, batch: Batch, steps: tuple[StepPlan, ...], caches: CacheBytes, components: dict[str, int], tokens: int
) -> Buffer:
    cap, size = job.device.max_buffer, itemsize(job.dtype)
    widest = max((each.token for each in job.classes), key=lambda token: token.widest)
    candidates = [
        Buffer(job.weights.largest_name, job.weights.largest, cap),
        Buffer("the keys or values of one layer", caches.largest, cap),
        Buffer(widest.widest_name, tokens * widest.widest, cap),
        Buffer("the mask", components["mask"], cap),
        Buffer("the logits", components["logits"] * 4 // (4 + size), cap),
    ]
    candidates += [Buffer(_words(path), path.price.largest_buffer, cap) for step in steps for path in step.paths]
    return max(candidates, key=lambda each: each.bytes)


def _words(path: AttentionPath | RecurrentPath) -> str:
    return f"{path.backend.name} attention" if isinstance(path, AttentionPath) else f"{path.form} recurrence"


def _work(job: Job, batch: Batch, steps: tuple[StepPlan, ...], schedule: Schedule, bound: float | None) -> Work:
    """The largest stretch between two evaluations."""
    speed = rate(job.device, job.dtype)
    layer = tile = (0.0, 0.0, "")
    for step in steps:
        tokens = batch.shape.B * step.tokens
        for each in job.classes:
            path, flops = step.paths[each.kind], tokens * each.flops
            seconds = flops / speed
            price = path.price
            if price.evaluations:
                tile = max(tile, (price.dispatch_seconds, price.dispatch_flops, _words(path)))
            else:
                flops, seconds = flops + price.dispatch_flops, seconds + price.dispatch_seconds
            layer = max(layer, (seconds, flops, ""))
    # The heaviest layer stands for all of its stretch: the bound is a safety, and stretches are short.
    count = min(schedule.eval_every_layers, len(job.layer_classes))
    if tile[0] > count * layer[0]:
        return Work(f"one {tile[2]} tile", tile[1], tile[0], bound)
    return Work("one layer" if count == 1 else f"{count} layers", count * layer[1], count * layer[0], bound)


def _problem(job: Job, components: dict[str, int], buffer: Buffer, work: Work) -> tuple[str, ChunkBound | None]:
    """What breaks a limit, in words, and which limit; memory last, for more of it would not mend the others.

    A path's own excess needs no look: its scratch, buffer and dispatch are in these numbers.
    """
    total = sum(components.values())
    if buffer.cap is not None and buffer.bytes > buffer.cap:
        words = f"holds {buffer.name} in {buffer.bytes:,} bytes, the device's largest buffer is {buffer.cap:,}"
        return words, "buffer"
    if work.limit is not None and work.seconds > work.limit:
        return f"takes {work.seconds:.2f} s for {work.name} without a pause, the bound is {work.limit:.2f} s", "work"
    if total > job.budget:
        return f"needs {total:,} bytes, the budget is {job.budget:,}", "memory"
    return "", None
