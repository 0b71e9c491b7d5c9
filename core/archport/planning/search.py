"""The search for a schedule: the largest chunk, the most rows and the fewest evaluations that fit.

Monotone in the budget. Knows nothing of how requests become batches.
"""

from __future__ import annotations

from dataclasses import replace

from archport.contract import BatchShape
from archport.planning.batch import Batch
from archport.planning.job import Job
from archport.planning.quote import Quote, Schedule, quote
from archport.planning.refusals import refuse
from archport.planning.shapes import TOKENS_PER_BATCH, chunk_widths

# Largest prefill chunk of a row that is split: longer ones gain no speed, hold more, and leave attention less of the
# work bound.
LARGEST_CHUNK = {"cuda": 8192, "metal": 2048, "cpu": 2048}


def even(job: Job, B: int, L: int, S: int, *, others: bool) -> Batch:
    """A batch of equal rows; bidirectional ones are taken as ragged, which costs more."""
    ragged = B > 1 and job.spec.semantics != "causal"
    lengths = (L,) + (max(1, L - 1) if ragged else L,) * (B - 1)
    shape = BatchShape(B=B, L=L, S=S, new_tokens=job.new, ragged=ragged)
    return Batch(lengths=lengths, cached=(S,) * B, shape=shape, others=others)


def _depth(job: Job) -> int:
    """Stretches in flight: a GPU starts the next one before it waits; a CPU gains nothing by it."""
    return 1 if job.device.kind == "cpu" else 2


def chunks(job: Job, shape: BatchShape) -> tuple[int, ...]:
    """Chunks to try, largest first."""
    if not job.chunkable:
        return (shape.L,)
    pinned = job.pins.prefill_chunk(job.spec, shape, job.device)
    most = min(job.chunk or shape.L, pinned or shape.L)
    # A row that is embedded whole needs no cache at all.
    whole = job.mode == "embed"
    return chunk_widths(shape.L, most, LARGEST_CHUNK[job.device.kind], whole=whole)


def _chunk(job: Job, batch: Batch) -> Quote:
    """The largest chunk that fits, evaluating after every layer; otherwise the cheapest one, with its problem.

    More budget never gives a smaller chunk: what fits a budget fits a larger one, the largest of the fitting is taken,
    and the fallback of waiting for every stretch considers no chunk above the smallest peak with two in flight.
    """
    widths, depth = chunks(job, batch.shape), _depth(job)
    tried: list[Quote] = []
    for width in widths:
        found = quote(job, batch, Schedule(width, 1, depth))
        if not found.problem:
            found = quote(job, batch, Schedule(width, 1, depth), every_step=True)
        if not found.problem:
            return found
        tried.append(found)
    leanest = min(tried, key=lambda each: (each.peak, each.schedule.chunk))
    if depth > 1:
        for width in widths:
            if width <= leanest.schedule.chunk:
                found = quote(job, batch, Schedule(width, 1, 1), every_step=True)
                if not found.problem:
                    return found
                leanest = min(leanest, found, key=lambda each: each.peak)
    # A narrower problem than bytes decides what to say when any chunk fits the budget.
    by_work = [each for each in tried if each.binds in ("work", "buffer")]
    return leanest if leanest.binds != "memory" or not by_work else min(by_work, key=lambda each: each.schedule.chunk)


def rows_that_fit(job: Job, width: int, S: int, *, others: bool) -> int:
    """Rows of `width` tokens that may share a batch; refuses when not even one fits."""
    one = even(job, 1, width, S, others=others)
    first = _chunk(job, one)
    if first.problem:
        refuse(job, one, first, _fits)
    low, high = 1, max(1, (job.tokens_per_batch or TOKENS_PER_BATCH[job.device.kind]) // width)
    schedule = replace(first.schedule)
    while low < high:
        middle = (low + high + 1) // 2
        if quote(job, even(job, middle, width, S, others=others), schedule).problem:
            high = middle - 1
        else:
            low = middle
    return low


def _fits(job: Job, batch: Batch) -> bool:
    return not _chunk(job, batch).problem


def schedule_of(job: Job, batch: Batch) -> Quote:
    """The chunk of a batch, and the fewest evaluations that keep its peak and work within their limits."""
    best = _chunk(job, batch)
    if best.problem:
        refuse(job, batch, best, _fits)
    layers, depth = len(job.layer_classes), best.schedule.in_flight
    if job.device.kind == "cpu" or depth == 1:
        return best
    counts = sorted(
        {layers, *(-(-layers // parts) for parts in (3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96))}, reverse=True
    )
    for count in counts:
        if count <= 1:
            break
        found = quote(job, batch, Schedule(best.schedule.chunk, count, depth))
        if not found.problem:
            found = quote(job, batch, Schedule(best.schedule.chunk, count, depth), every_step=True)
        if not found.problem:
            return found
    return best
