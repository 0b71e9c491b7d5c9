"""The attention path of each layer in each step: which mask policies are right, which paths they lead to.

Asks hooks and the chooser; sums nothing up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from archport.contract import (
    AttentionCall,
    AttentionLayer,
    AttentionLimits,
    AttentionPath,
    InputError,
    KVAllocation,
    MaskPolicy,
    RecurrentLayer,
    RecurrentPath,
    Span,
)
from archport.contract.masks import (
    DENSE,
    HIDDEN_ENDS,
    HIDDEN_FRONTS,
    ONE_QUERY,
    PACKED,
    SEGMENTS,
    check_pin,
    mask_policies,
    needs_lengths,
)
from archport.contract.spec import kv_sources
from archport.planning.batch import Batch, Steps
from archport.planning.job import Job
from archport.planning.plan import StepPlan
from archport.planning.recurrence import choose_form
from archport.planning.spans import among_keys, steps_of

# Steps that stand for all of a prefill in an estimate: the first, the last full one and the last.
SAMPLED = 3
# On CUDA each length of a row that runs by itself is a shape of its own, and takes tens of milliseconds to prepare. So
# many are worth a look; with more, hiding the padding is cheaper whatever the lengths are.
MOST_LENGTHS = 8
# Documents that a packed row is chosen a path for; some backends price one by one.
MOST_DOCUMENTS = 128


def prefill_steps(
    job: Job,
    batch: Batch,
    chunk: int,
    room: tuple[AttentionLimits, ...],
    kv: Sequence[KVAllocation | None],
    *,
    every: bool,
) -> Steps:
    """The steps of a prefill in chunks.

    Args:
        room: what one attention call may use; later entries are tried where no path keeps the ones before.
        every: all steps; otherwise the first, the last full one and the last, which is enough for an estimate alone.
    """
    L = batch.shape.L
    steps: list[StepPlan] = []
    masks: list[MaskPolicy | None] = [None] * len(job.kinds)
    words: list[list[str]] = [[] for _ in job.kinds]
    # Backwards: hooks are asked once, with the call that sees most.
    for start, stop in reversed(_steps(L, chunk, batch, every=every)):
        paths: list[AttentionPath | RecurrentPath] = []
        for index, layer in enumerate(job.kinds):
            if not isinstance(layer, AttentionLayer):
                paths.append(_form(job, layer, batch.shape.B, stop - start))
                continue
            path, mask, pinned = path_of(job, batch, layer, start, stop - start, room, kv[_keeper(job, index)])
            paths.append(path)
            masks[index] = masks[index] or mask
            words[index] += [word for word in pinned if word not in words[index]]
        steps.append(StepPlan(start=start, tokens=stop - start, paths=tuple(paths)))
    return Steps(steps=tuple(steps[::-1]), masks=tuple(masks), pins=tuple(map(tuple, words)))


def _keeper(job: Job, kind: int) -> int:
    """The kind of layer whose cache a kind reads."""
    layer = job.kinds[kind]
    if isinstance(layer, AttentionLayer) and layer.kv == "shared":
        source = kv_sources(job.spec.layers)[job.spec.layers.index(layer)]
        assert source is not None, "a spec is checked for it"
        return job.kinds.index(job.spec.layers[source])
    return kind


def decode_step(job: Job, batch: Batch) -> StepPlan | None:
    """One decoded token at the fullest cache; None when nothing is decoded."""
    if job.mode != "generate":
        return None
    # Padding is never cached, so the fullest row counts, not the padded one.
    held = max(cached + new for cached, new in zip(batch.cached, batch.lengths, strict=True))
    start = held - batch.shape.S + max(batch.shape.new_tokens, 1) - 1
    paths = tuple(
        _decode_path(job, batch, layer, batch.shape.S + start + 1)
        if isinstance(layer, AttentionLayer)
        else _form(job, layer, batch.shape.B * job.answers, 1)
        for layer in job.kinds
    )
    return StepPlan(start=start, tokens=1, paths=paths)


def _decode_path(job: Job, batch: Batch, layer: AttentionLayer, kv_len: int) -> AttentionPath:
    """The path of one query per row, in the form in which it runs: rows end at one column, and what stands in front of
    short ones is hidden by a mask of one line per row."""
    if layer.reach[0] is not None:
        kv_len = min(kv_len, layer.reach[0] + 1)
    padded, rows = not batch.even_end, batch.shape.B * job.answers
    call = AttentionCall.of(
        layer,
        HIDDEN_FRONTS if padded else ONE_QUERY,
        job.device,
        B=rows,
        q_len=1,
        kv_len=kv_len,
        dtype=job.dtype,
        limits=job.limits,
    )
    # One query's chunk is where its keys are cut, or a row's columns hidden.
    call = replace(call, chunk=None, start=0)
    if padded:
        call = replace(call, mask_shape=(rows, 1, 1, kv_len))
    name = job.backend or job.backend_pin(layer, call)[0]
    return job.path(call, name)


def _form(job: Job, layer: RecurrentLayer, B: int, tokens: int) -> RecurrentPath:
    return choose_form(layer, job.device, B=B, tokens=tokens, dtype=job.dtype)


def _steps(length: int, chunk: int, batch: Batch, *, every: bool) -> list[Span]:
    steps = steps_of(length, chunk, batch.spans)
    if every or len(steps) <= SAMPLED:
        return steps
    return [steps[0], steps[-2], steps[-1]]


def path_of(
    job: Job,
    batch: Batch,
    layer: AttentionLayer,
    start: int,
    q_len: int,
    room: tuple[AttentionLimits, ...],
    kept: KVAllocation | None,
) -> tuple[AttentionPath, MaskPolicy, list[str]]:
    """The path of one layer in one step, its mask policy, and what hooks fixed in words."""
    shape, left = batch.shape, layer.reach[0]
    kv_len = shape.S + start + q_len
    if kept is not None and kept.storage == "ring" and left is not None:
        kv_len = min(kv_len, left + q_len)
    # What a ring has dropped.
    behind = shape.S + start + q_len - kv_len
    spans = among_keys(batch.spans, shape, batch.cached, start, q_len, behind) if layer.spans else ()
    options, words = _options(job, batch, layer, q_len, kv_len, behind, spanned=bool(spans))
    alone = needs_lengths(layer, ragged=shape.ragged, even_start=batch.even_start)
    lengths, q_lengths = _lengths(batch, start, q_len, kv_len) if alone else ((), ())
    if len(options) > 1 and job.device.kind == "cuda" and len(set(lengths)) > MOST_LENGTHS:
        options = tuple(option for option in options if option != SEGMENTS)
    if batch.visible:
        # Their ends are computed like all others, so nothing but what they see may be less.
        options, lengths, q_lengths = (HIDDEN_ENDS,), batch.visible, ()
    if batch.packed:
        options, lengths, q_lengths = (PACKED,), batch.lengths, ()
    # The fastest that keeps the limits; without one, what needs least.
    found: list[tuple[bool, float, int, AttentionPath, MaskPolicy]] = []
    for order, policy in enumerate(options):
        call = AttentionCall.of(
            layer,
            policy,
            job.device,
            B=shape.B,
            q_len=q_len,
            kv_len=kv_len,
            dtype=job.dtype,
            lengths=lengths,
            q_lengths=q_lengths,
            limits=room[0],
            start=behind,
            spans=spans,
        )
        if batch.dense:
            call = replace(call, mask_shape=(shape.B, 1, q_len, kv_len), additive=True)
        name = job.backend
        if name is None:
            name, who = job.backend_pin(layer, call)
            words += [f"archport_sdpa_backend of {who}: {name}"] if name else []
        try:
            path = _path(job, call, name)
            if path.excess and room[1:]:
                path = _path(job, replace(call, limits=room[-1]), name)
        except InputError:
            # A pinned backend runs rows one by one or hides their padding; it need not know both.
            if not found and order == len(options) - 1:
                raise
            continue
        weight = path.price.transient if path.excess else path.price.seconds
        found.append((bool(path.excess), weight, order, path, policy))
    *_, path, policy = min(found, key=lambda entry: entry[:3])
    return path, policy, words


def _path(job: Job, call: AttentionCall, name: str | None) -> AttentionPath:
    """The path of a call.

    On CUDA, where shapes are few, a path is chosen for a shape and serves all rows in it: fresh texts cost no search.
    Padded rows are priced as if the longest filled the shape and the others were short, and that is the path's price,
    whoever runs by it. Packed ones are chosen for documents about as long as the longest, and priced as they are:
    `reasons` says later what speaks against the other backends then.
    """
    rows = call.lengths
    packed = call.mask == "segments" and call.B == 1 and len(rows) > 1
    if (
        job.device.kind != "cuda"
        or call.spans
        or not (packed or call.mask == "key_padding")
        or call.q_lengths not in ((), rows)
    ):
        return job.path(call, name)
    if packed:
        longest = max(min(1 << (max(rows) - 1).bit_length(), call.kv_len), call.kv_len // MOST_DOCUMENTS)
        alike = tuple(max(1, longest - index % 2) for index in range(call.kv_len // longest))
    else:
        alike = (call.kv_len,) * len(rows) if len(set(rows)) == 1 else (call.kv_len,) + (1,) * (len(rows) - 1)
    found = job.path(replace(call, lengths=alike, q_lengths=alike if call.q_lengths else ()), name)
    if found.price.parts:
        # These are documents of the lengths that were priced.
        return job.path(call, name)
    if not packed:
        return replace(found, call=call)
    price = found.backend.price(call, job.device)
    return AttentionPath(call, found.backend, price, excess=price.excess(call, job.device))


def reasons(job: Job, path: AttentionPath) -> tuple[tuple[str, str], ...]:
    """What speaks against the backends that a path does not take, at the very call that it is for."""
    if path.against:
        return path.against
    best = job.path(path.call, None)
    if best.backend.name == path.backend.name:
        return best.against
    found: list[tuple[str, str]] = []
    own = path.price.seconds * 1e3
    for name, why in (*best.against, (best.backend.name, "")):
        if name == path.backend.name:
            continue
        try:
            price = job.path(path.call, name).price
        except InputError:
            found.append((name, why))
            continue
        words = price.excess(path.call, job.device) or f"about {price.seconds * 1e3:.3g} ms against {own:.3g} ms"
        if not price.excess(path.call, job.device) and price.seconds < path.price.seconds:
            words += " here, but a path serves every row of its width, and in others it is slower"
        found.append((name, words))
    return tuple(found)


def _options(
    job: Job, batch: Batch, layer: AttentionLayer, q_len: int, kv_len: int, behind: int, *, spanned: bool
) -> tuple[tuple[MaskPolicy, ...], list[str]]:
    """The mask policies to price, and what a hook fixed in words."""
    if batch.dense:
        return (DENSE,), []
    right = mask_policies(
        layer,
        q_len=q_len,
        kv_len=kv_len,
        behind=behind,
        ragged=batch.shape.ragged,
        even_start=batch.even_start,
        spans=spanned,
    )
    pin, who = job.mask_pin(layer, batch.shape)
    if pin is None:
        return right, []
    why = f" ({pin.why})" if pin.why else ""
    return (check_pin(pin, layer, right, who),), [f"archport_mask_policy of {who}: {pin.kind}{why}"]


def _lengths(batch: Batch, start: int, q_len: int, kv_len: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(keys per row, queries per row) of one step."""
    if not any(batch.cached) and q_len == kv_len == batch.shape.L:
        return batch.lengths, batch.lengths
    rows = tuple(zip(batch.cached, batch.lengths, strict=True))
    queries = tuple(max(0, min(q_len, new - start)) for _, new in rows)
    keys = tuple(
        min(kv_len, cached + min(start, new) + more) for (cached, new), more in zip(rows, queries, strict=True)
    )
    return keys, queries
