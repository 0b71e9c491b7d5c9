"""The search for a schedule: the largest chunk, the most rows and the fewest evaluations that fit.

Monotone in the budget. Knows nothing of how requests become batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from archport.contract import BatchShape
from archport.planning.batch import Batch
from archport.planning.costs import BUSY_SECONDS
from archport.planning.flight import layer_seconds
from archport.planning.job import Job
from archport.planning.quote import Quote, Schedule, quote
from archport.planning.refusals import refuse
from archport.planning.shapes import TOKENS_PER_BATCH, chunk_widths
from archport.planning.vision import within

# Largest prefill chunk of a row that is split: longer ones gain no speed, hold more, and leave attention less of the
# work bound.
LARGEST_CHUNK = {"cuda": 8192, "metal": 2048, "cpu": 2048}


def even(job: Job, B: int, L: int, S: int, *, others: bool) -> Batch:
    """A batch of equal rows; bidirectional ones are taken as ragged, which costs more."""
    ragged = B > 1 and job.spec.semantics != "causal"
    lengths = (L,) + (max(1, L - 1) if ragged else L,) * (B - 1)
    shape = BatchShape(B=B, L=L, S=S, new_tokens=job.new, ragged=ragged)
    pictures = tuple(patches for row in job.images for patches in row)
    if pictures and job.spec.vision is not None:
        # Which rows share it is not known yet: the largest pictures that so many tokens can hold.
        pictures = within(pictures, B * L, job.spec.vision.merge_size**2)
    return Batch(lengths=lengths, cached=(S,) * B, shape=shape, others=others, mixed=others, pictures=pictures)


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


def _chunk(job: Job, batch: Batch, *, every_step: bool = True) -> Quote:
    """The largest chunk that fits, evaluating after every layer; without one the leanest quote, with its problem.

    On a GPU two stretches are in flight, which hides the waiting. Where that is what does not fit, a chunk may wait for
    each stretch, but only one whose peak is then below the smallest of any chunk with two. So more budget never gives a
    smaller chunk: both sets of candidates only grow with it.
    """
    widths, depth = chunks(job, batch.shape), _depth(job)
    fitting = _largest(job, batch, widths, depth, every_step=every_step)
    if fitting is not None and (depth == 1 or fitting.schedule.chunk == widths[0]):
        return fitting
    if depth > 1:
        bar = min(quote(job, batch, Schedule(width, 1, depth), least=True).peak for width in _ends(widths))
        larger = [width for width in widths if fitting is None or width > fitting.schedule.chunk]
        lean = replace(job, budget=min(job.budget, bar))
        waiting = _largest(lean, batch, larger, 1, every_step=every_step)
        if waiting is not None:
            return waiting
    return fitting or _leanest(job, batch, widths)


def _largest(job: Job, batch: Batch, widths: Sequence[int], depth: int, *, every_step: bool) -> Quote | None:
    """The first of the chunks, largest first, that fits with `depth` stretches in flight."""
    for width in widths:
        schedule = Schedule(width, 1, depth)
        found = quote(job, batch, schedule)
        if not found.problem and every_step:
            found = quote(job, batch, schedule, every_step=True)
        if not found.problem:
            return found
    return None


def _ends(widths: Sequence[int]) -> tuple[int, ...]:
    """The two chunks of which one has the smallest peak: it grows with the chunk, but a whole row needs no cache."""
    return tuple(dict.fromkeys((widths[0], widths[-1])))


def _leanest(job: Job, batch: Batch, widths: Sequence[int]) -> Quote:
    """The quote that comes closest, for a refusal: what breaks a limit other than bytes where bytes would do."""
    tried = [quote(job, batch, Schedule(width, 1, 1), least=True) for width in _ends(widths)]
    affordable = [found for found in tried if found.binds != "memory"]
    return min(affordable or tried, key=lambda found: found.peak)


def minimum(job: Job, batch: Batch) -> int:
    """The smallest peak of any schedule of a batch, in bytes."""
    return _leanest(job, batch, chunks(job, batch.shape)).peak


def rows_that_fit(job: Job, width: int, S: int, *, others: bool) -> int:
    """Rows of `width` tokens that may share a batch; refuses when not even one fits."""
    one = even(job, 1, width, S, others=others)
    first = _chunk(job, one)
    if first.problem:
        refuse(job, one, first, _fits)
    low, high = 1, max(1, (job.tokens_per_batch or TOKENS_PER_BATCH[job.device.kind]) // width)
    # Usually all of them fit, and a search would price a dozen batches to find that out.
    if high > 1 and not quote(job, even(job, high, width, S, others=others), first.schedule).problem:
        return high
    high = max(1, high - 1)
    while low < high:
        middle = (low + high + 1) // 2
        if quote(job, even(job, middle, width, S, others=others), first.schedule).problem:
            high = middle - 1
        else:
            low = middle
    return low


def _fits(job: Job, batch: Batch) -> bool:
    # A refusal asks this often; it names what would fit, and does not plan it.
    return not _chunk(job, batch, every_step=False).problem


def schedule_of(job: Job, batch: Batch) -> Quote:
    """The chunk of a batch, and how often the graph is evaluated.

    Evaluating after every layer with the next one already started costs nothing while layers keep the device busy, and
    holds the least. Where layers are so small that the host binds, the fewest evaluations that fit are taken.
    """
    best = _chunk(job, batch)
    if best.problem:
        refuse(job, batch, best, _fits)
    layers, depth = len(job.layer_classes), best.schedule.in_flight
    tokens = batch.shape.B * min(best.schedule.chunk, batch.shape.L)
    if job.device.kind == "cpu" or depth == 1 or layer_seconds(job, tokens) >= BUSY_SECONDS:
        return best
    parts = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96)
    for count in sorted({-(-layers // part) for part in parts}, reverse=True):
        if count <= 1:
            break
        found = quote(job, batch, Schedule(best.schedule.chunk, count, depth))
        if not found.problem:
            found = quote(job, batch, Schedule(best.schedule.chunk, count, depth), every_step=True)
        if not found.problem:
            return found
    return best
