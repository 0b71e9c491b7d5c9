"""Whether rows of a request run behind one another in one row, without padding, and which share one.

Knows nothing of kernels: rows are packed where every layer has a path that runs all documents of a row at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from archport.contract import AttentionLayer, AttentionPath, BatchShape, InputError, PluginError
from archport.planning.batch import Batch
from archport.planning.job import Job
from archport.planning.quote import Quote, Schedule, quote
from archport.planning.search import batch_tokens, even
from archport.planning.shapes import Group, snapped

# Widths of packed rows per doubling: at most 3 % of one is behind its documents.
WIDTHS_PER_OCTAVE = 32
# Rows behind one another at most: a kernel that pools them takes no more than 65,535.
MOST_ROWS = 1 << 15


def packed_groups(job: Job, rows: Sequence[int], cached: Sequence[int]) -> tuple[Group, ...]:
    """Rows in the caller's order, as many behind one another as keep the device busy; () where that can't be run.

    Args:
        rows, cached: tokens per row.
    """
    if not _possible(job, rows, cached):
        return ()
    longest = max(rows)
    most = max(batch_tokens(job), longest)
    while most >= longest:
        groups = _filled(rows, most)
        # The widest, and the one with most rows, which are counted too; hooks are asked about each width.
        tried = {group.padded: group for group in sorted(groups, key=lambda group: len(group.rows))}
        found = [_quoted(job, [rows[row] for row in group.rows]) for group in tried.values()]
        if any(each is None for each in found):
            return ()
        if not any(each.binds for each in found if each is not None):
            return groups
        most //= 2
    return ()


def packed_tightly(job: Job, rows: Sequence[int], cached: Sequence[int]) -> tuple[Group, ...]:
    """Packed rows no longer than the longest of these, whatever they need; () where that can't be run."""
    if not _possible(job, rows, cached) or _quoted(job, (max(rows), 1)) is None:
        return ()
    return _filled(rows, max(rows))


def packed_alone(job: Job, batch: Batch) -> Batch | None:
    """One of several embedded rows as a packed row of its own, which needs less padding; None where none can be."""
    if len(batch.lengths) > 1 or not batch.others or batch.packed:
        return None
    rows = batch.lengths * 2
    return _batch(batch.lengths) if packed_tightly(job, rows, batch.cached * 2) else None


def packed_width(tokens: int) -> int:
    """Tokens of the row that documents of so many tokens lie in."""
    return snapped(tokens, WIDTHS_PER_OCTAVE)


def _possible(job: Job, rows: Sequence[int], cached: Sequence[int]) -> bool:
    """Whether the request leaves it to the planner, and the device has paths for such rows."""
    if not job.pack or len(rows) < 2 or job.mode != "embed" or any(cached):
        return False
    if job.images or job.visible or job.spans or job.readout is not None or job.chunk or job.backend is not None:
        return False
    if job.limits.force_chunk or any(not isinstance(layer, AttentionLayer) for layer in job.kinds):
        return False
    if not job.number((job.asked, "packable"), lambda: _quoted(job, (64, 63)) is not None):
        return False
    # What a hook wishes for a row by itself, it does not get in one of many.
    return not job.number((job.asked, "wished", max(rows)), lambda: _wished(job, max(rows)))


def _wished(job: Job, longest: int) -> bool:
    """Whether a hook fixes something about a row of so many tokens."""
    batch = even(job, 1, longest, 0, others=True)
    if job.chunk_pin(batch.shape)[0]:
        return True
    try:
        return any(quote(job, batch, Schedule(longest, 1, 2)).pins)
    except (InputError, PluginError):
        return True


def _quoted(job: Job, lengths: Sequence[int]) -> Quote | None:
    """The leanest quote of rows behind one another; None where a layer can't run them, or a hook wishes otherwise."""
    batch = _batch(lengths)
    if job.chunk_pin(batch.shape)[0]:
        return None
    try:
        usual = job.limits.transient_on(job.device)
        found = quote(job, batch, Schedule(batch.shape.L, 1, 2, split=job.device.kind != "cpu", scratch=usual))
    except (InputError, PluginError):
        # A pin that such rows do not admit.
        return None
    if any(found.pins):
        return None
    apart = any(
        not isinstance(path, AttentionPath) or path.price.parts or path.excess
        for step in found.prefill.steps
        for path in step.paths
    )
    return None if apart else found


def _batch(rows: Sequence[int]) -> Batch:
    shape = BatchShape(B=1, L=packed_width(sum(rows)), S=0, new_tokens=0, ragged=True)
    return Batch(lengths=tuple(rows), cached=(0,) * len(rows), shape=shape, others=True, packed=True)


def _filled(rows: Sequence[int], most: int) -> tuple[Group, ...]:
    """Consecutive rows in groups of at most `most` tokens."""
    groups: list[Group] = []
    held: list[int] = []
    tokens = 0
    for row, length in enumerate(rows):
        if held and (tokens + length > most or len(held) == MOST_ROWS):
            groups.append(Group(tuple(held), packed_width(tokens), packed=True))
            held, tokens = [], 0
        held.append(row)
        tokens += length
    groups.append(Group(tuple(held), packed_width(tokens), packed=True))
    return tuple(groups)
