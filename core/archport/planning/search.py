"""The search for a schedule: the largest chunk, the most rows and the fewest evaluations that fit.

Monotone in the budget. What it returns was quoted whole; estimates only rule out. Knows nothing of how requests become
batches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from math import ceil

from archport.contract import BatchShape
from archport.planning.batch import Batch, ChunkBound, Estimate, Quote, Request, Schedule
from archport.planning.costs import HOST_SECONDS, STRETCH_SECONDS
from archport.planning.facts import ModelFacts
from archport.planning.in_flight import layer_seconds
from archport.planning.quote import (
    MARGIN,
    estimate,
    least_bytes,
    quote,
    scratch_levels,
)
from archport.planning.shapes import TOKENS_PER_BATCH, chunk_widths, most_that_fits, smallest_chunk
from archport.planning.steps import SAMPLED
from archport.planning.vision import within

# A GPU that is done with a layer sooner than this gets batches of more tokens, up to so many times the usual: 4,096
# texts at BERT-base's shape take 0.53 s in batches of 16,384 tokens and 0.42 s of 32,768: shorter layers end before the
# host, which tokenises too, has the next one ready.
FULL_LAYER_SECONDS = 1.2e-3
MOST_TIMES = 4
# A budget of so many times the least that a batch needs has room for whatever path it takes.
PLENTY = 8
# What a batch costs a CPU per layer however small it is: the host's part of it. all-MiniLM-L6-v2 takes 8 ms for a batch
# and 0.17 ms for each of its tokens on two cores of a Xeon at 2.1 GHz.
BATCH_SECONDS = 1.3e-3
# Largest prefill chunk of a row that is split: longer ones gain no speed, hold more, and leave attention less of the
# work bound.
LARGEST_CHUNK = {"cuda": 8192, "metal": 2048, "cpu": 2048}


def even(model: ModelFacts, request: Request, B: int, L: int, *, others: bool) -> Batch:
    """A batch of equal rows; bidirectional ones are taken as ragged, which costs more."""
    S, ragged = max(request.cached), B > 1 and model.spec.semantics != "causal"
    lengths = (L,) + (max(1, L - 1) if ragged else L,) * (B - 1)
    shape = BatchShape(B=B, L=L, S=S, new_tokens=request.new, ragged=ragged)
    pictures = tuple(patches for row in request.images for patches in row)
    if pictures and model.spec.vision is not None:
        # Which rows share it is not known yet: the largest pictures that so many tokens can hold.
        pictures = within(pictures, B * L, model.spec.vision.rows_per_token)
    visible = (max(1, L - 1),) * B if request.visible else ()
    return Batch(lengths, (S,) * B, shape, request, others=others, pictures=pictures, visible=visible)


def _depth(model: ModelFacts) -> int:
    """Stretches in flight: a GPU starts the next one before it waits; a CPU gains nothing by it."""
    return 1 if model.device.kind == "cpu" else 2


def chunks(model: ModelFacts, batch: Batch) -> tuple[int, ...]:
    """Chunks to try, largest first; none that would cut a span, whoever wishes for less."""
    shape, request = batch.shape, batch.request
    if batch.packed or not model.chunkable:
        return (shape.L,)
    most = min(request.chunk or shape.L, model.chunk_pin(shape)[0] or shape.L)
    # A row that is embedded whole needs no cache at all.
    usual, least = LARGEST_CHUNK[model.device.kind], smallest_chunk(batch.spans)
    widths = chunk_widths(shape.L, most, usual, whole=not request.generates)
    return tuple(dict.fromkeys(max(width, least) for width in widths))


def batch_tokens(model: ModelFacts, request: Request) -> int:
    """Padded tokens per batch: what the caller asked for, or enough of them that one layer keeps the device busy."""
    if request.tokens_per_batch:
        return request.tokens_per_batch
    usual = TOKENS_PER_BATCH[model.device.kind]
    times = 1
    if model.device.kind == "cuda":
        while times < MOST_TIMES and layer_seconds(model, times * usual) < FULL_LAYER_SECONDS:
            times *= 2
    return times * usual


def most_tokens(model: ModelFacts, request: Request) -> int:
    """Tokens that a row of the request may be padded to."""
    return max(model.max_context - max(request.cached) - request.new, max(request.lengths))


def batch_seconds(model: ModelFacts, tokens: int) -> float:
    """Time of a batch of so many padded tokens, attention excluded, to compare batches by."""
    host = BATCH_SECONDS if model.device.kind == "cpu" else HOST_SECONDS[model.device.kind]
    return len(model.layer_classes) * (host + layer_seconds(model, tokens))


def _leanest(model: ModelFacts, chunk: int) -> Schedule:
    """The schedule of a chunk that holds least: on a GPU half a layer per stretch, which costs little."""
    return Schedule(chunk, 1, _depth(model), split=model.device.kind != "cpu")


def admitted(model: ModelFacts, batch: Batch) -> Quote | None:
    """The largest chunk that fits, in its leanest schedule, with what keeps it from being larger; None when none fits.

    What is tried does not depend on the budget but for how much of it is tried, so what fits a budget fits a larger
    one, and more budget never gives a smaller chunk. Every step of what is returned was priced.
    """
    bound, why = _most(model, batch)
    for width in chunks(model, batch):
        lean = replace(_leanest(model, width), bound=bound, why=why)
        found = _within(model, batch, lean)
        if isinstance(found, Quote):
            return found
        bound, why = found
        why = f"steps of {width:,} would not do: {why}"
    return None


def _most(model: ModelFacts, batch: Batch) -> tuple[ChunkBound, str]:
    """What keeps the largest chunk that is tried from being larger."""
    shape, tried = batch.shape, chunks(model, batch)
    if tried[0] >= shape.L:
        return "row", ""
    pinned, who = model.chunk_pin(shape)
    asked, pinned = batch.request.chunk or shape.L, pinned or shape.L
    if min(asked, pinned) >= LARGEST_CHUNK[model.device.kind]:
        return "device", ""
    if asked <= pinned:
        return "caller", f"at most {asked:,} were asked for"
    return "hook", f"archport_prefill_chunk of {who} wishes for at most {pinned:,}"


def _within(model: ModelFacts, batch: Batch, lean: Schedule) -> Quote | tuple[ChunkBound, str]:
    """A whole quote of a schedule that fits the budget, or what keeps every one from fitting."""
    least = least_bytes(model, batch, lean)
    if least > model.budget:
        return "memory", f"it needs {least:,} bytes and more, the budget is {model.budget:,}"
    problem: tuple[ChunkBound, str] = "memory", ""
    levels = scratch_levels(model, int((model.budget - least) / (1 + MARGIN)))
    # What passes the tower together waits together, which reading the text may have no room for.
    towers = (False, True) if batch.pictures else (False,)
    for lean_tower, scratch in product(towers, levels):
        found = _tried(model, batch, replace(lean, scratch=scratch, lean_tower=lean_tower))
        if isinstance(found, Quote) and found.binds is None:
            return found
        if found.binds is not None and (found.binds != "memory" or not problem[1]):
            problem = found.binds, f"it {found.problem}"
    return problem


def _tried(model: ModelFacts, batch: Batch, schedule: Schedule) -> Estimate:
    """The quote of a schedule; where some of its steps break a limit, the estimate that says so."""
    if batch.shape.L > SAMPLED * schedule.chunk:
        found = estimate(model, batch, schedule)
        if found.binds is not None:
            return found
    return quote(model, batch, schedule)


def leanest(model: ModelFacts, batch: Batch) -> Quote:
    """The quote with the smallest peak of all that a budget could admit, or what no budget admits, with its problem."""
    best: Quote | None = None
    schedules = [_leanest(model, width) for width in chunks(model, batch)]
    # The peak grows with the chunk, but a whole row needs no cache.
    for least, lean in sorted(
        ((least_bytes(model, batch, lean), lean) for lean in schedules), key=lambda pair: pair[0]
    ):
        if best is not None and best.binds in (None, "memory") and least >= best.peak:
            break
        for scratch in reversed(scratch_levels(model, model.limits.transient_on(model.device))):
            schedule = replace(lean, scratch=scratch, lean_tower=True)
            found = estimate(model, batch, schedule)
            if scratch == 0:
                # No path has less scratch.
                least += int((1 + MARGIN) * found.bytes["attention"])
            if _better(found, best):
                found = quote(model, batch, schedule)
                best = found if _better(found, best) else best
            if best is not None and best.binds in (None, "memory") and least >= best.peak:
                break
    assert best is not None, "there is always a chunk to try"
    return best


def _better(found: Estimate, best: Quote | None) -> bool:
    """Whether a quote leads to a smaller budget: what breaks another limit than bytes fits none."""
    if best is None:
        return True
    return (found.binds not in (None, "memory"), found.peak) < (best.binds not in (None, "memory"), best.peak)


def rows_that_fit(model: ModelFacts, request: Request, width: int, wanted: int, *, others: bool) -> tuple[int, str]:
    """Rows of `width` tokens, of `wanted`, that may share a batch by their shape, and what keeps one more out in words;
    "" for nothing.

    What does not fit as it is, is divided later.
    """
    if model.device.kind == "cpu":
        # Nothing but memory binds there, and what has so much of it left needs no price.
        many = even(model, request, wanted, width, others=others)
        if PLENTY * least_bytes(model, many, _leanest(model, chunks(model, many)[0])) <= model.budget:
            return wanted, ""
    first = admitted(model, even(model, request, 1, width, others=others))
    if first is None:
        return 1, "not even one row fits as it is padded"
    lean = _leanest(model, first.schedule.chunk)

    def batch(rows: int) -> Batch:
        return even(model, request, rows, width, others=others)

    def tried(rows: int) -> Estimate:
        return estimate(model, batch(rows), first.schedule)

    # Rows that no path could fit are ruled out before any path is priced.
    most = _most_of(wanted, lambda rows: least_bytes(model, batch(rows), lean) <= model.budget)
    most = _most_of(most, lambda rows: tried(rows).binds is None)
    if most == wanted:
        return most, ""
    return most, f"{most + 1} rows of {width:,} tokens would not do: a batch {tried(most + 1).problem}"


def _most_of(most: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to `most` that fits, when 1 does. Usually that is `most`, so it is asked first."""
    return most if most == 1 or fits(most) else most_that_fits(fits, 1, most - 1)


def schedule_of(model: ModelFacts, batch: Batch) -> Quote | None:
    """The chunk of a batch, and how often the graph is evaluated; None when it does not fit.

    Evaluating with the next stretch already started costs nothing while a stretch keeps the device busy for longer than
    the host needs for it: so many layers as that takes, fewer where they do not fit. Only where not even two layers fit
    are layers split.
    """
    best = admitted(model, batch)
    if best is None or model.device.kind == "cpu" or not model.layer_classes:
        return best
    layers = len(model.layer_classes)
    tokens = batch.shape.B * min(best.schedule.chunk, batch.shape.L)
    wanted = min(layers, ceil(STRETCH_SECONDS / layer_seconds(model, tokens)))
    parts = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96)
    counts = sorted({1, wanted} | {-(-layers // part) for part in parts if -(-layers // part) < wanted}, reverse=True)
    pace = f"{wanted} of {layers} layers are long enough that starting the next ones ahead hides all waiting"
    for count in counts:
        schedule = replace(best.schedule, eval_every_layers=count, split=False, scratch=None, pace=pace)
        found = _tried(model, batch, schedule)
        if isinstance(found, Quote) and found.binds is None:
            return found
        pace = f"{count} layers between evaluations would not do: it {found.problem}"
    return replace(best, schedule=replace(best.schedule, pace=pace))
