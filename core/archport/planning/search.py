"""The search for a schedule: the largest chunk, the most rows and the fewest evaluations that fit.

Monotone in the budget. Knows nothing of how requests become batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from archport.contract import BatchShape
from archport.planning.batch import Batch
from archport.planning.costs import HOST_SECONDS, STRETCH_SECONDS
from archport.planning.flight import layer_seconds
from archport.planning.job import Job
from archport.planning.quote import Quote, Schedule, quote
from archport.planning.refusals import refuse
from archport.planning.shapes import TOKENS_PER_BATCH, chunk_widths
from archport.planning.vision import within

# A GPU that is done with a layer sooner than this gets batches of more tokens, up to so many times the usual: 4,096
# texts at BERT-base's shape take 0.53 s in batches of 16,384 tokens and 0.42 s of 32,768: shorter layers end before the
# host, which tokenises too, has the next one ready.
FULL_LAYER_SECONDS = 1.2e-3
MOST_TIMES = 4
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
    visible = (max(1, L - 1),) * B if job.visible else ()
    return Batch(lengths=lengths, cached=(S,) * B, shape=shape, others=others, pictures=pictures, visible=visible)


def _depth(job: Job) -> int:
    """Stretches in flight: a GPU starts the next one before it waits; a CPU gains nothing by it."""
    return 1 if job.device.kind == "cpu" else 2


def chunks(job: Job, shape: BatchShape, *, packed: bool = False) -> tuple[int, ...]:
    """Chunks to try, largest first."""
    if packed or not job.chunkable:
        return (shape.L,)
    pinned = job.pins.prefill_chunk(job.spec, shape, job.device)
    most = min(job.chunk or shape.L, pinned or shape.L)
    # A row that is embedded whole needs no cache at all.
    whole = job.mode == "embed"
    return chunk_widths(shape.L, most, LARGEST_CHUNK[job.device.kind], whole=whole)


def batch_tokens(job: Job) -> int:
    """Padded tokens per batch: what the caller asked for, or enough of them that one layer keeps the device busy."""
    if job.tokens_per_batch:
        return job.tokens_per_batch
    usual = TOKENS_PER_BATCH[job.device.kind]
    times = 1
    if job.device.kind == "cuda":
        while times < MOST_TIMES and layer_seconds(job, times * usual) < FULL_LAYER_SECONDS:
            times *= 2
    return times * usual


def batch_seconds(job: Job, tokens: int) -> float:
    """Time of a batch of so many padded tokens, attention excluded, to compare batches by."""
    layers = len(job.layer_classes)
    return layers * (HOST_SECONDS[job.device.kind] + layer_seconds(job, tokens))


def _leanest(job: Job, chunk: int) -> Schedule:
    """The schedule of a chunk that holds least: on a GPU half a layer per stretch, which costs little."""
    return Schedule(chunk, 1, _depth(job), split=job.device.kind != "cpu")


def _chunk(job: Job, batch: Batch, *, every_step: bool = True) -> Quote:
    """The largest chunk that fits, in its leanest schedule; without one the leanest quote, with its problem.

    What fits a budget fits a larger one, so more budget never gives a smaller chunk.
    """
    widths = chunks(job, batch.shape, packed=batch.packed)
    for width in widths:
        found = quote(job, batch, _leanest(job, width))
        if not found.problem and every_step:
            found = quote(job, batch, _leanest(job, width), every_step=True)
        if not found.problem:
            return found
    return _closest(job, batch, widths)


def _closest(job: Job, batch: Batch, widths: Sequence[int]) -> Quote:
    """The quote that comes closest, for a refusal: what breaks a limit other than bytes where bytes would do."""
    # The peak grows with the chunk, but a whole row needs no cache: one of the two ends has the smallest.
    ends = dict.fromkeys((widths[0], widths[-1]))
    tried = [quote(job, batch, _leanest(job, width), least=True) for width in ends]
    affordable = [found for found in tried if found.binds != "memory"]
    return min(affordable or tried, key=lambda found: found.peak)


def minimum(job: Job, batch: Batch) -> int:
    """The smallest peak of any schedule of a batch, in bytes."""
    return _closest(job, batch, chunks(job, batch.shape)).peak


def rows_that_fit(job: Job, width: int, S: int, *, others: bool) -> int:
    """Rows of `width` tokens that may share a batch; refuses when not even one fits."""
    one = even(job, 1, width, S, others=others)
    first = _chunk(job, one)
    if first.problem:
        refuse(job, one, first, _fits)
    low, high = 1, max(1, batch_tokens(job) // width)
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

    Evaluating with the next stretch already started costs nothing while a stretch keeps the device busy for longer than
    the host needs for it: so many layers as that takes, fewer where they do not fit. Only where not even two layers fit
    are layers split.
    """
    best = _chunk(job, batch)
    if best.problem:
        refuse(job, batch, best, _fits)
    if job.device.kind == "cpu":
        return best
    layers, depth = len(job.layer_classes), best.schedule.in_flight
    tokens = batch.shape.B * min(best.schedule.chunk, batch.shape.L)
    wanted = min(layers, ceil(STRETCH_SECONDS / layer_seconds(job, tokens)))
    parts = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96)
    counts = sorted({1, wanted} | {-(-layers // part) for part in parts if -(-layers // part) < wanted}, reverse=True)
    for count in counts:
        found = quote(job, batch, Schedule(best.schedule.chunk, count, depth))
        if not found.problem:
            found = quote(job, batch, Schedule(best.schedule.chunk, count, depth), every_step=True)
        if not found.problem:
            return found
    return best
