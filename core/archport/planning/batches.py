"""Which rows of a request share a batch: padded, or as documents of one packed row where that is cheaper.

Knows nothing of chunks, bytes or kernels: rows are packed where every layer has a path that runs all documents of a row
at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from archport.contract import AttentionLayer, AttentionPath, BatchShape, InputError, PluginError
from archport.planning.batch import Batch, Quote, Request, Schedule
from archport.planning.facts import ModelFacts
from archport.planning.quote import quote
from archport.planning.search import batch_seconds, batch_tokens, even, most_tokens, rows_that_fit
from archport.planning.shapes import LAST, Group, group_rows, padded_length, prompt_width, snapped
from archport.planning.steps import path_of

# A smaller share of the time is not worth leaving MLX's own kernels for: prices are not that exact.
WORTH = 0.02
# Widths of packed rows per doubling: at most 3 % of one follows its documents.
WIDTHS_PER_OCTAVE = 32
# Documents of a packed row at most: a kernel that pools them takes no more than 65,535.
MOST_ROWS = 1 << 15


def groups_of(model: ModelFacts, request: Request) -> tuple[Group, ...]:
    """Rows into batches, in the order in which these run."""
    rows, kind, most = request.lengths, model.device.kind, most_tokens(model, request)
    if request.generates:
        # All rows decode together, so they are prefilled together.
        every = tuple(range(len(rows)))
        return (Group(every, prompt_width(max(rows), kind, most), why="all rows decode together"),)
    S, others = max(request.cached), len(rows) > 1
    wishes = (request.wishes, request.images, bool(request.visible))

    def max_rows(width: int, wanted: int) -> tuple[int, str]:
        key = ("rows", *wishes, width, wanted, S, others)
        return model.known(key, lambda: rows_that_fit(model, request, width, wanted, others=others))

    padded = group_rows(
        rows,
        kind=kind,
        tokens_per_batch=batch_tokens(model, request),
        max_rows=max_rows,
        most=most,
        even_alone=model.spec.semantics != "causal",
        # On Metal any number of rows may share a batch, and few are longer than others.
        seconds=None if kind == "metal" else _seconds_of(model),
    )
    packed = packed_groups(model, request)
    try:
        least = (1 - WORTH) * _padded_seconds(model, request, padded) if packed else 0.0
        cheaper = packed and _packed_seconds(model, request, packed) < least
    except (InputError, PluginError):
        # A pin that admits the rows as they would run, and not a sample of them.
        return padded
    return packed if cheaper else padded


def divided(model: ModelFacts, request: Request, group: Group) -> tuple[Group, ...]:
    """What to run in place of a group that does not fit: its halves, or one row by itself; () for nothing else."""
    if request.generates:
        return ()
    rows, kind, most = request.lengths, model.device.kind, most_tokens(model, request)
    why = f"{len(group.rows)} rows in one batch do not fit"

    def part(indices: tuple[int, ...]) -> Group:
        if group.packed:
            return Group(indices, packed_width(sum(rows[index] for index in indices)), packed=True, why=why)
        # Padding would cost a lone row that sees ahead a mask.
        even = len(indices) == 1 and model.spec.semantics != "causal"
        width = prompt_width if even else padded_length
        return Group(indices, width(max(rows[index] for index in indices), kind, most), why=why)

    if len(group.rows) > 1:
        middle = len(group.rows) // 2
        return part(group.rows[:middle]), part(group.rows[middle:])
    alone = Group(group.rows, prompt_width(max(rows[index] for index in group.rows), kind, most), why=group.why)
    return (alone,) if group.packed or alone.padded < group.padded else ()


def _packed_seconds(model: ModelFacts, request: Request, groups: tuple[Group, ...]) -> float:
    """Estimated time of packed batches; attention by rows drawn evenly from the request, as many as one batch takes."""
    rows = request.lengths
    sample = tuple(range(0, len(rows), len(groups)))
    tokens = sum(rows[row] for row in sample)
    attention = _attention_seconds(model, _packed(request, [rows[row] for row in sample]))
    return sum(batch_seconds(model, group.padded) for group in groups) + attention * sum(rows) / tokens


def _seconds_of(model: ModelFacts) -> Callable[[int, int], float]:
    """Time of so many rows of a width, attention excluded."""
    if model.device.kind == "cuda":
        return lambda count, width: batch_seconds(model, count * width)
    # Many are compared there, and the time of tokens is about even.
    begin = batch_seconds(model, 0)
    token = (batch_seconds(model, 1 << 20) - begin) / (1 << 20)
    return lambda count, width: begin + token * count * width


def _padded_seconds(model: ModelFacts, request: Request, groups: tuple[Group, ...]) -> float:
    """The same of batches of padded rows.

    Each shape is priced once, which on CUDA are few: by its longest row and by how much of the others is real, in
    quarters, and never by the rows that came first. Which rows share a batch decides their last bits, and a job that is
    resumed has to find those of one that was not.
    """
    total = 0.0
    for group in groups:
        count, padded = len(group.rows), group.padded
        tokens = sum(request.lengths[row] for row in group.rows)
        quarters = -(-4 * tokens // (count * padded))
        lengths = (padded, *[max(1, padded * quarters // 4)] * (count - 1))
        key = ("attention", request.wishes, count, padded, quarters)
        seconds = model.known(
            key, lambda lengths=lengths: round(1e9 * _attention_seconds(model, _padded(request, lengths)))
        )
        total += seconds / 1e9 + batch_seconds(model, count * padded)
    return total


def _padded(request: Request, lengths: tuple[int, ...]) -> Batch:
    """Padded rows of these lengths, of which nothing is cached."""
    ragged = len(set(lengths)) > 1
    shape = BatchShape(B=len(lengths), L=max(lengths), S=0, new_tokens=request.new, ragged=ragged)
    return Batch(lengths, (0,) * len(lengths), shape, request, others=True)


def _attention_seconds(model: ModelFacts, batch: Batch) -> float:
    """Estimated time of the attention of all layers over a batch."""
    paths = [
        (index, path_of(model, batch, layer, 0, batch.shape.L, (model.limits,), None)[0])
        for index, layer in enumerate(model.kinds)
        if isinstance(layer, AttentionLayer)
    ]
    return sum(model.layer_kinds.count(index) * path.price.seconds for index, path in paths)


def batch_of(request: Request, group: Group, *, others: bool, dense: bool = False) -> Batch:
    """The batch of a group of rows."""
    lengths = tuple(request.lengths[row] for row in group.rows)
    start = tuple(request.cached[row] for row in group.rows)
    shape = BatchShape(
        B=1 if group.packed else len(group.rows),
        L=group.padded,
        S=max(start),
        new_tokens=request.new,
        ragged=len(set(lengths)) > 1 or group.padded != lengths[0] or len(set(start)) > 1,
    )
    spans = tuple(tuple(request.spans[row]) for row in group.rows) if request.spans else ()
    return Batch(
        lengths=lengths,
        cached=start,
        shape=shape,
        request=request,
        others=others,
        dense=dense,
        pictures=tuple(patches for row in group.rows for patches in request.images[row]) if request.images else (),
        visible=tuple(request.visible[row] for row in group.rows) if request.visible else (),
        packed=group.packed,
        spans=spans if any(spans) else (),
    )


def packed_groups(model: ModelFacts, request: Request) -> tuple[Group, ...]:
    """Rows in the caller's order, as many in one packed row as keep the device busy; () where that can't be run."""
    rows = request.lengths
    if len(rows) < 2 or any(request.cached) or not _possible(model, request, max(rows)):
        return ()
    most = max(batch_tokens(model, request), max(rows))
    while most >= max(rows):
        groups = _filled(rows, most)
        # The widest, and the one with most rows, which are counted too; hooks are asked about each width.
        tried = {group.padded: group for group in sorted(groups, key=lambda group: len(group.rows))}
        quotes = [_quoted(model, request, [rows[row] for row in group.rows]) for group in tried.values()]
        if None in quotes:
            return ()
        if not any(each.binds for each in quotes if each is not None):
            return groups
        most //= 2
    return ()


def packed_tightly(model: ModelFacts, request: Request) -> tuple[Group, ...]:
    """Packed rows no longer than the longest of these, whatever they need; () where that can't be run."""
    longest = max(request.lengths)
    if len(request.lengths) < 2 or any(request.cached) or not _alone(model, request, longest):
        return ()
    return _filled(request.lengths, longest)


def packed_alone(model: ModelFacts, batch: Batch) -> Batch | None:
    """One of several embedded rows as a packed row of its own, which needs less padding; None where none can be."""
    if len(batch.lengths) > 1 or not batch.others or batch.packed or any(batch.cached):
        return None
    return _packed(batch.request, batch.lengths) if _alone(model, batch.request, max(batch.lengths)) else None


def packed_width(tokens: int) -> int:
    """Tokens of the row that documents of so many tokens lie in."""
    return snapped(tokens, WIDTHS_PER_OCTAVE)


def _alone(model: ModelFacts, request: Request, longest: int) -> bool:
    """Whether a row of so many tokens may be all of a packed row but for a token."""
    return _possible(model, request, longest) and _quoted(model, request, (longest, 1)) is not None


def _possible(model: ModelFacts, request: Request, longest: int) -> bool:
    """Whether the request leaves it to the planner, and the device has paths for packed rows of so many tokens."""
    if not request.pack or request.generates:
        return False
    wishes = (request.images, request.visible, request.spans, request.readout, request.chunk, request.backend)
    if any(wish is not None and wish != () for wish in wishes):
        return False
    if model.limits.force_chunk or any(not isinstance(layer, AttentionLayer) for layer in model.kinds):
        return False
    key = request.wishes
    if not model.known(("packable", key), lambda: _quoted(model, request, (64, 63)) is not None):
        return False
    # What a hook wishes for a row by itself, it does not get in one of many.
    return not model.known(("wished", key, longest), lambda: _wished(model, request, longest))


def _wished(model: ModelFacts, request: Request, longest: int) -> bool:
    """Whether a hook fixes something about a row of so many tokens."""
    batch = even(model, request, 1, longest, others=True)
    if model.chunk_pin(batch.shape)[0]:
        return True
    try:
        return any(kind.pins for kind in quote(model, batch, Schedule(longest, 1, 2)).kinds)
    except (InputError, PluginError):
        return True


def _quoted(model: ModelFacts, request: Request, lengths: Sequence[int]) -> Quote | None:
    """The leanest quote of a packed row; None where a layer can't run it, or a hook wishes otherwise."""
    batch = _packed(request, lengths)
    if model.chunk_pin(batch.shape)[0]:
        return None
    try:
        usual = model.limits.transient_on(model.device)
        lean = Schedule(batch.shape.L, 1, 2, split=model.device.kind != "cpu", scratch=usual)
        quoted = quote(model, batch, lean)
    except (InputError, PluginError):
        # A pin that such rows do not admit.
        return None
    apart = any(
        not isinstance(path, AttentionPath) or path.price.parts or path.excess
        for step in quoted.steps
        for path in step.paths
    )
    return None if apart or any(kind.pins for kind in quoted.kinds) else quoted


def _packed(request: Request, rows: Sequence[int]) -> Batch:
    shape = BatchShape(B=1, L=packed_width(sum(rows)), S=0, new_tokens=0, ragged=True)
    return Batch(tuple(rows), (0,) * len(rows), shape, request, others=True, packed=True)


def _filled(rows: Sequence[int], most: int) -> tuple[Group, ...]:
    """Consecutive rows in groups of at most `most` tokens."""
    groups, rows_now, tokens = list[Group](), list[int](), 0
    for row, length in enumerate(rows):
        if rows_now and (tokens + length > most or len(rows_now) == MOST_ROWS):
            why = f"{most:,} tokens in a packed row keep this device busy, or are all that fits"
            groups.append(Group(tuple(rows_now), packed_width(tokens), packed=True, why=why))
            rows_now, tokens = [], 0
        rows_now.append(row)
        tokens += length
    groups.append(Group(tuple(rows_now), packed_width(tokens), packed=True, why=LAST))
    return tuple(groups)
