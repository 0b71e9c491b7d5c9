"""Which rows of a request share a batch. Knows nothing of chunks, paths or bytes."""

from __future__ import annotations

from archport.contract import BatchShape
from archport.planning.batch import Batch
from archport.planning.job import Job
from archport.planning.packing import packed_groups
from archport.planning.search import batch_seconds, batch_tokens, rows_that_fit
from archport.planning.shapes import Group, group_rows, padded_length


def groups_of(job: Job, rows: tuple[int, ...], cached: tuple[int, ...]) -> tuple[Group, ...]:
    """Rows into batches, in the order in which these run."""
    most = job.max_context - max(cached) - job.new
    kind = job.device.kind
    if job.mode == "generate":
        # All rows decode together, so they are prefilled together.
        return (Group(rows=tuple(range(len(rows))), padded=padded_length(max(rows), kind, max(most, max(rows)))),)
    S, others, asked = max(cached), len(rows) > 1, (job.asked, job.images, bool(job.visible))

    def max_rows(width: int) -> int:
        return job.number((*asked, width, S, others), lambda: rows_that_fit(job, width, S, others=others))

    most = max(most, max(rows))
    padded = group_rows(
        rows,
        kind=kind,
        tokens_per_batch=batch_tokens(job),
        max_rows=max_rows,
        most=most,
        # Elsewhere any number of rows may share a batch, and few are longer than others.
        seconds=(lambda count, width: batch_seconds(job, count * width)) if kind == "cuda" else None,
    )
    return packed_groups(job, rows, cached, padded) or padded


def batch_of(job: Job, group: Group, rows: tuple[int, ...], cached: tuple[int, ...], *, others: bool) -> Batch:
    """The batch of a group of rows."""
    lengths, start = tuple(rows[row] for row in group.rows), tuple(cached[row] for row in group.rows)
    shape = BatchShape(
        B=1 if group.packed else len(group.rows),
        L=group.padded,
        S=max(start),
        new_tokens=job.new,
        ragged=len(set(lengths)) > 1 or group.padded != lengths[0] or len(set(start)) > 1,
    )
    pictures = tuple(patches for row in group.rows for patches in job.images[row]) if job.images else ()
    visible = tuple(job.visible[row] for row in group.rows) if job.visible else ()
    return Batch(
        lengths=lengths,
        cached=start,
        shape=shape,
        others=others,
        pictures=pictures,
        visible=visible,
        packed=group.packed,
    )
