"""Whether rows of a request run behind one another in one row, without padding, and which share one.

Knows nothing of kernels: rows are packed where every layer has a path that runs all documents of a row at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from archport.contract import AttentionLayer, AttentionPath, BatchShape, InputError
from archport.planning.batch import Batch
from archport.planning.job import Job
from archport.planning.quote import Schedule, quote
from archport.planning.search import batch_tokens
from archport.planning.shapes import Group

# Widths of packed rows per doubling: at most 3 % of one is behind its documents.
WIDTHS_PER_OCTAVE = 32


def packed_groups(job: Job, rows: Sequence[int], cached: Sequence[int]) -> tuple[Group, ...]:
    """Rows in the caller's order, as many behind one another as keep the device busy; () where that can't be run.

    Args:
        rows, cached: tokens per row.
    """
    if not _possible(job, rows, cached):
        return ()
    most = _tokens_that_fit(job, rows)
    return _filled(rows, most) if most >= max(rows) else ()


def width(tokens: int) -> int:
    """Tokens of the row that documents of so many tokens lie in."""
    step = max(1, (1 << tokens.bit_length() - 1) // WIDTHS_PER_OCTAVE)
    return -(-tokens // step) * step


def _possible(job: Job, rows: Sequence[int], cached: Sequence[int]) -> bool:
    """Whether the request leaves it to the planner, and the device has the paths."""
    if not job.pack or len(rows) < 2 or job.mode != "embed" or any(cached):
        return False
    if job.images or job.visible or job.readout is not None or job.chunk or job.backend is not None:
        return False
    if any(not isinstance(layer, AttentionLayer) for layer in job.kinds):
        return False
    batch = _batch(rows[:2])
    if job.pins.prefill_chunk(job.spec, batch.shape, job.device):
        return False
    try:
        found = quote(job, batch, Schedule(batch.shape.L, 1, 2))
    except InputError:
        # A pinned backend that does not know such rows.
        return False
    if any(found.pins):
        return False
    return all(
        isinstance(path, AttentionPath) and not path.price.parts and not path.excess
        for step in found.prefill.steps
        for path in step.paths
    )


def _batch(rows: Sequence[int]) -> Batch:
    shape = BatchShape(B=1, L=width(sum(rows)), S=0, new_tokens=0, ragged=True)
    return Batch(lengths=tuple(rows), cached=(0,) * len(rows), shape=shape, others=True, packed=True)


def _tokens_that_fit(job: Job, rows: Sequence[int]) -> int:
    """Tokens of one packed row: what keeps the device busy, halved until it fits; 0 when the longest row does not."""
    most, longest = max(batch_tokens(job), max(rows)), max(rows)
    return job.number((job.asked, "packed", most, longest), lambda: _fitting(job, most, longest))


def _fitting(job: Job, most: int, longest: int) -> int:
    while most >= longest:
        # Many short rows: what is counted per row weighs most.
        many = _batch((max(1, most // 64),) * 64)
        if not quote(job, many, Schedule(many.shape.L, 1, 2, split=True)).problem:
            break
        most //= 2
    return most


def _filled(rows: Sequence[int], most: int) -> tuple[Group, ...]:
    """Consecutive rows in groups of at most `most` tokens."""
    groups: list[Group] = []
    held: list[int] = []
    tokens = 0
    for row, length in enumerate(rows):
        if held and tokens + length > most:
            groups.append(Group(tuple(held), width(tokens), packed=True))
            held, tokens = [], 0
        held.append(row)
        tokens += length
    groups.append(Group(tuple(held), width(tokens), packed=True))
    return tuple(groups)
