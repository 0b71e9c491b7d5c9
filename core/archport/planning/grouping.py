"""Which rows of a request share a batch. Knows nothing of chunks, paths or bytes."""

from __future__ import annotations

from collections import Counter

from archport.contract import AttentionLayer, BatchShape, InputError, PluginError, Span
from archport.planning.batch import Batch
from archport.planning.job import Job
from archport.planning.packing import packed_groups, packed_width
from archport.planning.search import batch_seconds, batch_tokens, rows_that_fit
from archport.planning.shapes import Group, group_rows, padded_length, prompt_width
from archport.planning.steps import path_of

# A smaller share of the time is not worth leaving MLX's own kernels for: prices are not that exact.
WORTH = 0.02


def groups_of(job: Job, rows: tuple[int, ...], cached: tuple[int, ...]) -> tuple[Group, ...]:
    """Rows into batches, in the order in which these run."""
    most = job.max_context - max(cached) - job.new
    kind = job.device.kind
    if job.mode == "generate":
        # All rows decode together, so they are prefilled together.
        return (Group(rows=tuple(range(len(rows))), padded=prompt_width(max(rows), kind, max(most, max(rows)))),)
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
        even_alone=job.spec.semantics != "causal",
        # Elsewhere any number of rows may share a batch, and few are longer than others.
        seconds=(lambda count, width: batch_seconds(job, count * width)) if kind == "cuda" else None,
    )
    packed = packed_groups(job, rows, cached)
    try:
        cheaper = packed and _packed_seconds(job, packed, rows) < (1 - WORTH) * _padded_seconds(job, padded, rows)
    except (InputError, PluginError):
        # A pin that admits the rows as they would run, and not a sample of them.
        return padded
    return packed if cheaper else padded


def divided(job: Job, group: Group, rows: tuple[int, ...], cached: tuple[int, ...]) -> tuple[Group, ...]:
    """What to run in place of a group that does not fit: its halves, or one row by itself; () for nothing else."""
    if job.mode == "generate":
        return ()
    most = max(job.max_context - max(cached) - job.new, max(rows))

    def part(indices: tuple[int, ...]) -> Group:
        if group.packed:
            return Group(indices, packed_width(sum(rows[index] for index in indices)), packed=True)
        # Padding would cost a lone row that sees ahead a mask.
        even = len(indices) == 1 and job.spec.semantics != "causal"
        width = prompt_width if even else padded_length
        return Group(indices, width(max(rows[index] for index in indices), job.device.kind, most))

    if len(group.rows) > 1:
        middle = len(group.rows) // 2
        return part(group.rows[:middle]), part(group.rows[middle:])
    alone = Group(group.rows, prompt_width(max(rows[index] for index in group.rows), job.device.kind, most))
    return (alone,) if group.packed or alone.padded < group.padded else ()


def _packed_seconds(job: Job, groups: tuple[Group, ...], rows: tuple[int, ...]) -> float:
    """Estimated time of packed batches; attention by rows drawn evenly from the request, as many as one batch takes."""
    sample = tuple(range(0, len(rows), len(groups)))
    tokens = sum(rows[row] for row in sample)
    attention = _attention_seconds(job, Group(sample, packed_width(tokens), packed=True), rows)
    return sum(batch_seconds(job, group.padded) for group in groups) + attention * sum(rows) / tokens


def _padded_seconds(job: Job, groups: tuple[Group, ...], rows: tuple[int, ...]) -> float:
    """The same of batches of padded rows. On CUDA these have few shapes, each of which is priced once."""
    total = 0.0
    for group in groups:
        even = all(rows[row] == group.padded for row in group.rows)
        key = (job.asked, "attention", len(group.rows), group.padded, even)
        nanoseconds = job.number(key, lambda group=group: round(1e9 * _attention_seconds(job, group, rows)))
        total += batch_seconds(job, len(group.rows) * group.padded) + nanoseconds / 1e9
    return total


def _attention_seconds(job: Job, group: Group, rows: tuple[int, ...]) -> float:
    """Estimated time of the attention of all layers over a group's rows."""
    batch = batch_of(job, group, rows, (0,) * len(rows), others=True)
    layers = Counter(job.classes[index].kind for index in job.layer_classes)
    paths = [
        (layers[index], path_of(job, batch, layer, 0, batch.shape.L, (job.limits,), None)[0])
        for index, layer in enumerate(job.kinds)
        if isinstance(layer, AttentionLayer)
    ]
    return sum(count * path.price.seconds for count, path in paths)


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
        spans=_spans(job, group),
    )


def _spans(job: Job, group: Group) -> tuple[tuple[Span, ...], ...]:
    spans = tuple(job.spans[row] for row in group.rows) if job.spans else ()
    return spans if any(spans) else ()
