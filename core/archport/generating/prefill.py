"""Prompts through the trunk as planned, into caches from which one token per row can be decoded.

Knows nothing of sampling or text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np

from archport.contract import AdmissionRefused, Span
from archport.device.evaluation import Stretches
from archport.memory import Caches, KVCache, Snapshot, put, put_rows, take
from archport.memory.snapshot import PrefixCache, PrefixDraft, matching, remember
from archport.planning import Plan, Readout, Request
from archport.reading.prompts import VisualPrompts
from archport.running.encode import Encoder, Watch, verified
from archport.running.steps import RowSpans, batch_caches, spans_of


@dataclass(frozen=True, slots=True)
class Prefilled:
    """Prompts that were read.

    Args:
        plan: of the request.
        caches: of all rows, aligned.
        hidden: (B, D) float32 of the rows' last tokens.
        cached: leading tokens of every row that an earlier call had left behind.
        watch: of the request's memory.
        keys: what each prompt is remembered by.
        remembered: whether every prompt is in the draft already.
    """

    plan: Plan
    caches: Caches
    hidden: mx.array
    cached: int
    watch: Watch
    keys: Sequence[np.ndarray]
    remembered: bool = False


def prefill(
    encoder: Encoder,
    rows: Sequence[np.ndarray],
    new_tokens: int | None,
    draft: PrefixDraft | None,
    visual: VisualPrompts | None = None,
    readout: Readout | None = None,
    answers: int = 1,
) -> Prefilled:
    """Read prompts, from where an earlier call with the same beginning left off.

    Args:
        new_tokens: tokens to reserve per row; None when unknown.
        draft: what this run is going to leave behind what earlier ones left; None finds and leaves nothing.
        visual: the same prompts with their pictures; None without any.
        readout: what drawing a token of one row holds; None for the likeliest alone.
        answers: rows that each prompt becomes when it is decoded.

    Raises:
        AdmissionRefused: when prompts and tokens to come do not fit.
    """
    prefixes = None if draft is None else draft.cache
    keys, spans = rows if visual is None else visual.keys, spans_of(encoder.rule, rows)
    keys = keys if spans is None else spans.keys(keys)
    found = _found(keys, prefixes)
    if found is not None and (visual is not None or spans is not None):
        edge = cut_edge(found.tokens, visual, spans)
        found = found.first(edge) if edge else None
    first = found.tokens if found is not None else 0
    seeing = () if spans is None else spans.after(first)
    visual = None if visual is None else visual.behind(first)
    images = () if visual is None else visual.images
    lengths = [len(row) - first for row in rows]
    request = Request(
        lengths=lengths,
        cached=[first] * len(lengths),
        new_tokens=new_tokens,
        mode="generate",
        images=images,
        spans=seeing,
        readout=readout,
        answers=answers,
    )
    plan = encoder.with_pictures(_plan(encoder, request, prefixes), () if visual is None else visual.measured)
    (batch,) = plan.batches
    rest = [row[first:] for row in rows]
    with verified(plan, held=draft) as watch:
        caches = batch_caches(encoder.spec, plan, batch)
        assert caches is not None
        if _forgets(caches) and len({len(row) for row in rest}) > 1 and (len(batch.steps) > 1 or first):
            hidden = _row_by_row(encoder, rest, found, caches, visual, seeing)
            watch.prefilled()
            return Prefilled(plan, caches, hidden, first, watch, keys)
        hidden = _read(encoder, plan, rest, found, caches, visual)
        caches.align([len(row) for row in rows])
        # After generated tokens such a model can't go back to where the prompt ended.
        remembered = not can_be_cut(encoder)
        if draft is not None and remembered:
            longest = max(map(len, rows))
            for index, key in enumerate(keys):
                remember(draft, caches, index, longest - len(key), key, tokens=len(key))
        watch.prefilled()
    return Prefilled(plan, caches, hidden, first, watch, keys, remembered)


def _read(
    encoder: Encoder,
    plan: Plan,
    rows: Sequence[np.ndarray],
    found: Snapshot | None,
    caches: Caches,
    visual: VisualPrompts | None,
) -> mx.array:
    """Hidden states (B, D) of the last tokens of a plan's only batch, read behind what was found into empty caches."""
    (batch,) = plan.batches
    if found is not None:
        put(found, caches)
    stretches = Stretches()
    with encoder.sight(visual.reader if visual else None, stretches) as sight:
        seen = sight.look(plan, batch, visual.measured) if sight is not None and visual is not None else None
        hidden = encoder.last_hidden(plan, batch, rows, caches, stretches, seen)
    mx.eval(hidden)
    return hidden


def cut_edge(tokens: int, visual: VisualPrompts | None, spans: RowSpans | None) -> int:
    """The most leading tokens, at most so many, that cut no picture, which goes through the tower whole, and no span,
    whose tokens have seen all of it."""
    found = tokens if visual is None else visual.edge(tokens)
    found = found if spans is None else spans.edge(found)
    return found if found == tokens else cut_edge(found, visual, spans)


def _found(rows: Sequence[np.ndarray], prefixes: PrefixCache | None) -> Snapshot | None:
    """What is remembered of the tokens that all rows begin with."""
    if prefixes is None or not len(prefixes):
        return None
    shortest = min(rows, key=len)
    shared = min(min(matching(shortest, row) for row in rows), len(shortest) - 1)
    # One token after the shared ones is always computed.
    return prefixes.find(shortest[: shared + 1])


def _plan(encoder: Encoder, request: Request, prefixes: PrefixCache | None) -> Plan:
    """The plan of a request next to what earlier calls left, or in its place where both do not fit."""
    if prefixes is None or not prefixes.limit:
        return encoder.plan(request)
    try:
        return encoder.plan(replace(request, resident=prefixes.limit))
    except AdmissionRefused:
        plan = encoder.plan(request)
        prefixes.clear()
        return plan


def _forgets(caches: Caches) -> bool:
    """Whether some layer drops tokens that its window no longer reaches."""
    return any(isinstance(state, KVCache) and state.allocation.storage == "ring" for state in caches.layers)


def can_be_cut(encoder: Encoder) -> bool:
    """Whether what all layers remember of a row holds what they remembered of its beginning."""
    attention = encoder.spec.attention_layers
    return len(attention) == len(encoder.spec.layers) and not any(layer.is_windowed for layer in attention)


def _row_by_row(
    encoder: Encoder,
    rows: Sequence[np.ndarray],
    found: Snapshot | None,
    caches: Caches,
    visual: VisualPrompts | None,
    spans: Sequence[Sequence[Span]],
) -> mx.array:
    """Rows of different length through layers that forget: each alone, since their windows move apart."""
    first = found.tokens if found is not None else 0
    snapshots: list[Snapshot] = []
    last: list[mx.array] = []
    for index, row in enumerate(rows):
        alone = None if visual is None else visual.only(index)
        images = () if alone is None else alone.images
        seeing = spans[index : index + 1]
        request = Request(lengths=[len(row)], cached=[first], mode="generate", images=images, spans=seeing)
        plan = encoder.plan(request)
        own = batch_caches(encoder.spec, plan, plan.batches[0])
        assert own is not None
        last.append(_read(encoder, plan, [row], found, own, alone))
        own.align([first + len(row)])
        snapshots.append(take(own))
    put_rows(snapshots, caches)
    return mx.concatenate(last)
