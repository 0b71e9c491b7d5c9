"""What one batch costs under one schedule: bytes per component, largest buffer, work, time. Decides nothing.

The paths in a quote are the ones that run, so it is what the runtime will need and not a model of it. An estimate
prices some of the steps only: enough to rule a schedule out, never enough to run it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from archport.contract import AttentionLayer, AttentionLimits, AttentionPath, KVAllocation, RecurrentPath
from archport.contract.device import rate
from archport.contract.spec import itemsize
from archport.planning.batch import (
    GREEDY_LOGITS,
    Batch,
    Buffer,
    ChunkBound,
    Estimate,
    KindPlan,
    Prefill,
    Quote,
    Readout,
    Schedule,
    StepPlan,
    Work,
)
from archport.planning.caches import CacheBytes, allocation, cache_bytes, shared_bytes
from archport.planning.costs import WORKSPACE, collective_bytes
from archport.planning.facts import ModelFacts
from archport.planning.in_flight import (
    decoding_layers,
    evaluation_seconds,
    in_flight,
    layer_seconds,
    layers_in_flight,
    least_in_flight,
    parts,
    prefill_seconds,
)
from archport.planning.shapes import steps_of
from archport.planning.steps import SAMPLED, decode_step, prefill_steps
from archport.planning.vision import TowerQuote, feature_bytes, tower_quote

# Added to everything that is not weights or cache: rounding of allocations, small arrays.
MARGIN = 0.05
PAGE = 16_384
# What larger buffers than asked for add up to on a CPU, ten at a time.
WARM = 80 << 10
# One level of an attention call's scratch is so many times the next.
LEVEL_RATIO = 4


Priced = TypeVar("Priced", Estimate, Quote)


def quote(model: ModelFacts, batch: Batch, schedule: Schedule) -> Quote:
    """The cost of a batch under a schedule, every step priced."""
    return _priced(Quote, model, batch, schedule)


def estimate(model: ModelFacts, batch: Batch, schedule: Schedule) -> Estimate:
    """The cost of a batch under a schedule by three of its steps at most."""
    return _priced(Estimate, model, batch, schedule)


def least_bytes(model: ModelFacts, batch: Batch, schedule: Schedule) -> int:
    """Bytes that every quote of a schedule without stretches ahead reaches, whatever the paths; prices none of them."""
    shape, chunk = batch.shape, schedule.chunk
    kv = tuple(allocation(model, batch, layer, chunk)[0] for layer in model.kinds)
    fixed = _fixed_bytes(model, batch, cache_bytes(model, batch, kv), chunk)
    tokens = shape.B * min(chunk, shape.L)
    if batch.pictures:
        fixed["vision"] = feature_bytes(model, batch.pictures) + _step_features(model, tokens)
    activations = least_in_flight(model, tokens, split=schedule.split)
    return sum(fixed.values()) + activations + _margin(model, activations, fixed, 1)


def scratch_levels(model: ModelFacts, left: int) -> tuple[int, ...]:
    """What one attention call may be allowed when `left` bytes are free, largest first; the first is no less than that.

    The levels are the same at every budget and a larger one only adds some, so what fits a budget fits a larger one.
    """
    floor, usual = _scratch_floor(model), model.limits.transient_on(model.device)
    found = [0, floor]
    while found[-1] < left:
        found.append(found[-1] * LEVEL_RATIO)
    if floor < usual < found[-1]:
        found.append(usual)
    return tuple(sorted(set(found), reverse=True))


def _priced(kind: type[Priced], model: ModelFacts, batch: Batch, schedule: Schedule) -> Priced:
    shape, chunk = batch.shape, schedule.chunk
    kept = tuple(allocation(model, batch, layer, chunk) for layer in model.kinds)
    kv = tuple(answer for answer, _ in kept)
    caches = cache_bytes(model, batch, kv)
    fixed = _fixed_bytes(model, batch, caches, chunk)
    tokens = shape.B * min(chunk, shape.L)
    tower = _tower(model, batch, schedule, fixed)
    width = layers_in_flight(model, tokens, schedule.eval_every_layers, schedule.in_flight, split=schedule.split)
    schedule = replace(schedule, scratch=_scratch_of(model, schedule, fixed, tokens, width))
    limits = _limits(model, schedule.scratch or 0, layer_seconds(model, tokens))
    every = kind is Quote or shape.L <= SAMPLED * chunk
    prefill = _laid_out(model, batch, chunk, limits[:1], kv, every=every)
    if limits[1:] and prefill.exceeds:
        prefill = _laid_out(model, batch, chunk, limits, kv, every=every)
    components = _components(model, batch, prefill.steps, fixed, width, schedule.split)
    buffers = _buffers(model, batch, prefill.steps, caches, components)
    buffers += _add_what_follows(model, batch, tokens, components, tower, caches, kv)
    buffer = max(buffers, key=lambda each: each.bytes)
    work = _work(model, batch, prefill.steps, schedule)
    if tower is not None:
        work = max(work, tower.work, key=lambda each: each.seconds)
    passes = len(steps_of(shape.L, chunk, batch.spans))
    seconds = prefill_seconds(model, batch, prefill.steps) * passes / len(prefill.steps)
    seconds += tower.seconds if tower else 0.0
    evaluations = passes * schedule.stretches(len(model.layer_classes))
    # Each pass ends in an evaluation whatever the plan; those within it are the plan's.
    cost = (evaluations - passes) * evaluation_seconds(
        model, tokens, split=schedule.split, in_flight=schedule.in_flight
    )
    problem, binds = _problem(model, components, buffer, work)
    return kind(
        schedule=schedule,
        kinds=_kinds(model, kept, prefill),
        steps=prefill.steps,
        bytes=components,
        buffer=buffer,
        work=work,
        seconds=seconds + cost,
        overhead=cost / (seconds + cost),
        evaluations=evaluations,
        stretch=_stretch(model, batch, prefill.steps, schedule),
        vision=tower.steps if tower else (),
        problem=problem,
        binds=binds,
    )


def _tower(model: ModelFacts, batch: Batch, schedule: Schedule, fixed: dict[str, int]) -> TowerQuote | None:
    """How the batch's pictures pass the tower, whose features are added to `fixed`; None without pictures."""
    if not batch.pictures:
        return None
    features = _step_features(model, batch.shape.B * min(schedule.chunk, batch.shape.L))
    needed = sum(fixed.values()) + features + _margin(model, 0, fixed, len(model.layer_classes))
    found = tower_quote(model, batch, 0 if schedule.lean_tower else int((model.budget - needed) / (1 + MARGIN)))
    if found is not None:
        fixed["vision"] = found.resident + features
    return found


def _scratch_of(model: ModelFacts, schedule: Schedule, fixed: dict[str, int], tokens: int, width: int) -> int:
    """What one attention call may use: as the schedule says, or the largest level that the budget leaves."""
    if schedule.scratch is not None:
        return schedule.scratch
    activations, _ = in_flight(model, tokens, width, split=schedule.split)
    spent = sum(fixed.values()) + activations + _margin(model, activations, fixed, width)
    left = max(_scratch_floor(model), int((model.budget - spent) / ((1 + MARGIN) * width)))
    return next(level for level in scratch_levels(model, left) if level <= left)


def _kinds(
    model: ModelFacts, kept: tuple[tuple[KVAllocation | None, str], ...], prefill: Prefill
) -> tuple[KindPlan, ...]:
    """What was decided per kind of layer."""
    return tuple(
        KindPlan(layer, model.layer_kinds.count(index), mask, kv, (word, *words) if word else words)
        for index, (layer, (kv, word), mask, words) in enumerate(
            zip(model.kinds, kept, prefill.masks, prefill.pins, strict=True)
        )
    )


def _add_what_follows(
    model: ModelFacts,
    batch: Batch,
    tokens: int,
    components: dict[str, int],
    tower: TowerQuote | None,
    caches: CacheBytes,
    kv: tuple[KVAllocation | None, ...],
) -> list[Buffer]:
    """Add to the components what runs before or after the layers and needs more than they did; its largest arrays."""
    request, arrays = batch.request, list[Buffer]()

    def add(component: str, more: int, moving: int) -> None:
        components[component] = components.get(component, 0) + more
        components["margin"] += int(MARGIN * moving)

    if tower is not None:
        # The tower runs before the text: what it needs beyond the text's own peak comes on top.
        more = max(0, tower.transient - components["activations"] - components["attention"])
        add("vision", more, more)
        arrays.append(tower.buffer)
    if request.generates and request.new_tokens != 0:
        # Tokens are drawn when the prompts are read.
        more, moving, array = decoding_bytes(model, batch, components, caches, kv)
        if more:
            add("decoding", more, moving)
        arrays.append(array)
    elif request.readout is not None:
        # A head reads the hidden states when the layers are done.
        more, array = readout_bytes(model, request.readout, tokens, components)
        add(request.readout.component, more, more)
        arrays.append(array)
    return arrays


def _fixed_bytes(model: ModelFacts, batch: Batch, caches: CacheBytes, chunk: int) -> dict[str, int]:
    """Components that do not depend on the attention path."""
    shape, spec, size = batch.shape, model.spec, itemsize(model.dtype)
    rows, embeds = len(batch.lengths), not batch.request.generates
    hidden = 0
    if model.device.kind == "cpu":
        # The hidden states that are pooled, and those of the batch before while the host takes its rows. On a GPU they
        # are the last stretch's, which holds less than the others.
        hidden = shape.B * min(chunk, shape.L) * spec.hidden_size * size * (2 if batch.others else 1)
    fixed = {
        "weights": model.weights.total,
        "kv_cached": caches.cached,
        "kv": caches.new,
        "kv_growth": caches.growth,
        "kv_conversion": caches.conversion,
        "mask": 4 * rows * shape.L * (shape.S + shape.L) if batch.dense else 0,
        "inputs": 16 * shape.B * shape.L + _table_bytes(model, batch, chunk),
        "outputs": rows * spec.hidden_size * 4 + hidden if embeds else 0,
        "logits": 0 if embeds else rows * spec.vocab_size * (4 + size),
        "vision": 0,
    }
    if model.split is not None:
        drawn = 0 if embeds else rows * batch.request.answers
        fixed["collective"] = collective_bytes(spec, model.split, size, shape.B * min(chunk, shape.L), drawn)
    shared = shared_bytes(model, shape.B * min(chunk, shape.L))
    if shared:
        fixed["kv_shared"] = shared
    if batch.request.resident:
        fixed["resident"] = batch.request.resident
    return fixed


def _step_features(model: ModelFacts, tokens: int) -> int:
    """Bytes of a step with pictures beside their features: places of its tokens, two copies of its hidden states."""
    return tokens * (2 * model.spec.hidden_size * itemsize(model.dtype) + 8)


def _table_bytes(model: ModelFacts, batch: Batch, chunk: int) -> int:
    """Angles of a step's positions with their cosines and sines in float32: for two sets of frequencies that layers
    share, on a CPU those that MLX makes for q and for k."""
    if model.device.kind == "metal" and not batch.pictures:
        return 0
    rows = 1 if batch.even_start and not batch.pictures else batch.shape.B
    widest = max((layer.head_dim for layer in model.kinds if isinstance(layer, AttentionLayer)), default=0)
    return (12 if model.device.kind == "cpu" else 10) * widest * rows * min(chunk, batch.shape.L)


def _margin(model: ModelFacts, moving: int, fixed: dict[str, int], width: int) -> int:
    """A share of everything that comes and goes, and two pages for each buffer that a GPU's allocator rounds.

    There are about ten such buffers per layer in flight and two per layer at rest.
    """
    share = int(MARGIN * (moving + fixed["logits"] + fixed["outputs"]))
    if model.device.kind == "cpu":
        # Sizes are exact there, but an array may take a freed buffer that is up to two pages of 4 KiB larger, and is
        # counted with all of it: a tenth of what is small, and nothing to speak of for large arrays.
        return share + min(moving // 10, WARM) + PAGE
    buffers = 10 * width + 2 * len(model.layer_classes)
    return share + 2 * PAGE * buffers + WORKSPACE[model.device.kind]


def _scratch_floor(model: ModelFacts) -> int:
    """Below it only tiles of a few rows are left; on a GPU every fused call is priced at half of it or more."""
    return 1 << 14 if model.device.kind == "cpu" else 1 << 20


def _limits(model: ModelFacts, scratch: int, linear: float) -> tuple[AttentionLimits, ...]:
    """What one attention call may use of `scratch` bytes, when a layer takes `linear` seconds beside it.

    The second entry is for calls that no path runs within the usual scratch.
    """
    usual = model.limits.transient_on(model.device)
    bound = model.limits.seconds_on(model.device)
    seconds = model.limits.dispatch_seconds if bound is None else max(bound - linear, bound / 10)
    levels = (scratch,) if scratch <= usual else (usual, scratch)
    return tuple(replace(model.limits, transient_bytes=each, dispatch_seconds=seconds) for each in levels)


def _laid_out(
    model: ModelFacts,
    batch: Batch,
    chunk: int,
    limits: tuple[AttentionLimits, ...],
    kv: tuple[KVAllocation | None, ...],
    *,
    every: bool,
) -> Prefill:
    """The steps of a prefill; schedules that differ in evaluations only share them."""
    key = (batch, batch.request.wishes, chunk, limits, every)
    found = model.laid_out.get(key)
    if found is None:
        found = model.laid_out[key] = prefill_steps(model, batch, chunk, limits, kv, every=every)
    return found


def _components(
    model: ModelFacts, batch: Batch, steps: tuple[StepPlan, ...], fixed: dict[str, int], width: int, split: bool
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
        here, scratch = in_flight(model, batch.shape.B * step.tokens, width, split=split, paths=step.paths)
        total, attention = max(activations + attention, here + scratch), max(attention, scratch)
        activations = total - attention
    components = {**fixed, "activations": activations, "attention": attention}
    components["margin"] = _margin(model, activations + attention, fixed, width)
    return components


def _stretch(model: ModelFacts, batch: Batch, steps: tuple[StepPlan, ...], schedule: Schedule) -> tuple[int, int]:
    """Bytes that the heaviest stretch may hold of its own, in a block that pauses and in one that does not."""
    most = (0, 0)
    for step in steps:
        tokens = batch.shape.B * step.tokens
        if schedule.split:
            found = parts(model, tokens, step.paths)
        else:
            width = layers_in_flight(model, tokens, schedule.eval_every_layers, 1, split=False)
            found = (sum(in_flight(model, tokens, width, split=False, paths=step.paths)),) * 2
        most = max(most[0], found[0]), max(most[1], found[1])
    return most


def _scratch(step: StepPlan) -> int:
    return sum(path.price.transient for path in step.paths)


def _buffers(
    model: ModelFacts, batch: Batch, steps: tuple[StepPlan, ...], caches: CacheBytes, components: dict[str, int]
) -> list[Buffer]:
    """The largest arrays, one of each sort."""
    tokens = batch.shape.B * max(step.tokens for step in steps)
    cap, size = model.device.max_buffer, itemsize(model.dtype)
    widest = max((each.token for each in model.classes), key=lambda token: token.widest, default=None)
    largest = (
        (widest.widest_name, widest.widest) if widest else ("the rows of the table", model.spec.hidden_size * size)
    )
    candidates = [
        Buffer(model.weights.largest_name, model.weights.largest, cap),
        Buffer("the keys or values of one layer", caches.largest, cap),
        Buffer(largest[0], tokens * largest[1], cap),
        Buffer("the mask", components["mask"], cap),
        Buffer("the logits", components["logits"] * 4 // (4 + size), cap),
    ]
    candidates += [Buffer(_words(path), path.price.largest_buffer, cap) for step in steps for path in step.paths]
    return candidates


def _words(path: AttentionPath | RecurrentPath) -> str:
    return f"{path.backend.name} attention" if isinstance(path, AttentionPath) else f"{path.form} recurrence"


def _work(model: ModelFacts, batch: Batch, steps: tuple[StepPlan, ...], schedule: Schedule) -> Work:
    """The largest stretch between two evaluations."""
    speed, bound = rate(model.device, model.dtype), model.limits.seconds_on(model.device)
    layer = tile = (0.0, 0.0, "")
    for step in steps:
        tokens = batch.shape.B * step.tokens
        for each in model.classes:
            path, flops = step.paths[each.kind], tokens * each.flops
            seconds = flops / speed
            price = path.price
            if price.evaluations:
                tile = max(tile, (price.dispatch_seconds, price.dispatch_flops, _words(path)))
            else:
                flops, seconds = flops + price.dispatch_flops, seconds + price.dispatch_seconds
            layer = max(layer, (seconds, flops, ""))
    # The heaviest layer stands for all of its stretch: the bound is a safety, and stretches are short.
    count = min(schedule.eval_every_layers, len(model.layer_classes))
    if tile[0] > count * layer[0]:
        return Work(f"one {tile[2]} tile", tile[1], tile[0], bound)
    return Work("one layer" if count == 1 else f"{count} layers", count * layer[1], count * layer[0], bound)


def _problem(
    model: ModelFacts, components: dict[str, int], buffer: Buffer, work: Work
) -> tuple[str, ChunkBound | None]:
    """What breaks a limit, in words, and which limit; memory last, for more of it would not mend the others.

    A path's own excess needs no look: its scratch, buffer and dispatch are in these numbers.
    """
    total = sum(components.values())
    if buffer.cap is not None and buffer.bytes > buffer.cap:
        words = f"holds {buffer.name} in {buffer.bytes:,} bytes, the device's largest buffer is {buffer.cap:,}"
        return words, "buffer"
    if work.limit is not None and work.seconds > work.limit:
        return f"takes {work.seconds:.2f} s for {work.name} without a pause, the bound is {work.limit:.2f} s", "work"
    if total > model.budget:
        return f"needs {total:,} bytes, the budget is {model.budget:,}", "memory"
    return "", None


def readout_bytes(model: ModelFacts, readout: Readout, tokens: int, components: dict[str, int]) -> tuple[int, Buffer]:
    """What a head needs beyond what the layers needed, and its largest array."""
    needed = readout.total(tokens)
    if model.device.kind != "cpu":
        # There the hidden states are not counted apart.
        needed += tokens * model.spec.hidden_size * itemsize(model.dtype)
    more = max(0, needed - components["activations"] - components["attention"])
    return more, Buffer(readout.name, readout.each(tokens), model.device.max_buffer)


def decoding_bytes(
    model: ModelFacts, batch: Batch, components: dict[str, int], caches: CacheBytes, kv: tuple[KVAllocation | None, ...]
) -> tuple[int, int, Buffer]:
    """What decoding needs beyond what the prompts needed, how much of that comes and goes, and its largest array.

    Several answers of a prompt add copies of its caches, which are made when the prompts are read and stay.
    """
    answers = batch.request.answers
    rows, cap = len(batch.lengths) * answers, model.device.max_buffer
    head = itemsize(model.dtype) * model.spec.vocab_size
    readout = batch.request.readout or Readout("the logits", "logits", GREEDY_LOGITS, fixed=head)
    step = decode_step(model, batch)
    assert step is not None
    layers = sum(in_flight(model, rows, decoding_layers(model, rows), split=False, paths=step.paths))
    needed, copied = layers + rows * readout.total(1) - components["logits"], 0
    array = Buffer(readout.name, rows * readout.each(1), cap)
    if answers > 1:
        # One array after the other, when rows have been moved to end at one column.
        copies = cache_bytes(model, replace(batch, shape=replace(batch.shape, B=rows, ragged=False)), kv)
        needed, copied = max(needed, caches.largest), max(0, copies.total - caches.total)
        largest = Buffer("the keys or values of one layer", copies.largest, cap)
        array = max(array, largest, key=lambda each: each.bytes)
    more = max(0, needed + copied - components["activations"] - components["attention"])
    return more, min(more, needed), array
