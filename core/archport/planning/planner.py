"""From a request to a Plan: rows into batches, the largest chunk that fits, and how often the graph is evaluated.

Pure Python on numbers: no arrays, no device calls, nothing that is free right now. Knows nothing of any backend; it is
handed a chooser.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from archport.contract import (
    AdmissionRefused,
    ArchSpec,
    AttentionLimits,
    AttentionPath,
    BatchShape,
    DeviceFacts,
    DType,
    InputError,
    PathChooser,
    Span,
)
from archport.planning.arguments import pictures_of, visible_of, whole
from archport.planning.batch import Batch
from archport.planning.costs import Weights, estimate_weights, rate
from archport.planning.grouping import batch_of, divided, groups_of
from archport.planning.job import Job, classes_of, kinds_of
from archport.planning.memo import Memo
from archport.planning.packing import packed_alone, packed_tightly
from archport.planning.pins import NoPins, Pins
from archport.planning.plan import BatchPlan, KindPlan, Mode, Plan
from archport.planning.quote import Quote, Schedule, quote
from archport.planning.readout import Readout
from archport.planning.refusals import refuse, refuse_context, refuse_dense
from archport.planning.search import admitted, leanest, schedule_of
from archport.planning.shapes import Group, padded_length, prompt_width
from archport.planning.spans import smallest_chunk, spans_of
from archport.planning.steps import decode_step, reasons
from archport.planning.timing import decoding_seconds
from archport.planning.vision import vision_kinds

# Below this share of the time the evaluations are not worth a word.
CHEAP = 0.03


def plan_request(
    spec: ArchSpec,
    lengths: Sequence[int],
    *,
    device: DeviceFacts,
    choose: PathChooser,
    cached: int | Sequence[int] = 0,
    new_tokens: int | None = 0,
    budget: int | None = None,
    max_context: int | None = None,
    pins: Pins | None = None,
    plugin: str = "a plugin",
    weight_bytes: int | None = None,
    dtype: DType | None = None,
    mode: Mode | None = None,
    dense: bool = False,
    backend: str | None = None,
    limits: AttentionLimits | None = None,
    chunk: int | None = None,
    tokens_per_batch: int | None = None,
    resident: int = 0,
    images: Sequence[Sequence[int]] = (),
    visible: Sequence[int] = (),
    spans: Sequence[Sequence[Span]] = (),
    readout: Readout | None = None,
    memo: Memo | None = None,
    pack: bool = False,
    answers: int = 1,
) -> Plan:
    """Decide how a request runs on a device within a budget.

    Args:
        lengths: new tokens per row.
        choose: chooses attention paths; the engine hands in the one that also runs them.
        cached: tokens already cached, for all rows or one number per row. They widen what queries see and are
            resident; they do not grow the cache.
        new_tokens: tokens per row to reserve for decoding; None when unknown, then caches grow on demand.
        budget: bytes; the device's default when left out.
        max_context: tokens a row may reach; the model's positions when left out.
        pins: answers of the policy hooks.
        plugin: who gives them, for messages ("qwen3 (archport 0.1.0)").
        weight_bytes: bytes of the weights on the device; estimated from the spec when left out.
        dtype: element type of the computation: float32 on a CPU, otherwise the checkpoint's.
        mode: `embed` or `generate`; left out: `generate` when tokens are to be decoded.
        dense: price one unsplit mask of (B,1,S,S) in float32 instead of planning around it.
        backend: attention backend to use for every layer.
        limits: what one attention call may use.
        chunk: the largest prefill chunk the caller admits.
        resident: bytes that something else of this process holds, such as a prefix cache; the budget is less by them.
        tokens_per_batch: padded tokens per batch; the device kind's default when left out.
        images: per row the patches of its pictures, in order; empty when no row has any.
        visible: per row the leading tokens that any token may see, those behind them being computed all the same; empty
            when all are seen.
        spans: per row the stretches (start, stop) of its new tokens that see each other whichever comes first, in order
            and apart; empty when no row has any.
        readout: what a head needs behind the last layer; left out for one that needs nothing to speak of.
        memo: of earlier requests with the same spec, device, chooser and pins.
        pack: whether the caller takes rows that lie behind one another in one, where that is cheaper.
        answers: rows that each row becomes when it is decoded: its caches are copied so often once it is read.

    Raises:
        InputError: an argument that is no number of tokens or bytes.
        AdmissionRefused: the request does not fit; the subclass says which limit binds.
        PluginError: a pin contradicts what the plugin declared.
    """
    rows = whole("lengths", lengths, 1)
    start = whole("cached", [cached] * len(rows) if isinstance(cached, int) else cached, 0)
    if not rows or len(start) != len(rows):
        raise InputError(
            f"{len(rows)} lengths and {len(start)} cached counts; expected at least one length, and as many of both"
        )
    counts = (("new_tokens", new_tokens, 0), ("chunk", chunk, 1), ("budget", budget, 1), ("answers", answers, 1))
    for name, value, least in counts:
        if value is not None:
            whole(name, [value], least)
    used: DType = dtype or ("float32" if device.kind == "cpu" else spec.dtype)
    limit = device.default_budget if budget is None else budget
    # A CPU computes faster on unpacked matrices, where they fit.
    packed = device.kind != "cpu" or estimate_weights(spec, used, packed=False).total > limit
    weights = estimate_weights(spec, used, packed=packed)
    if weight_bytes is not None:
        weights = Weights(weight_bytes, min(weights.largest, weight_bytes), weights.largest_name, estimated=False)
    kinds, layer_kinds = kinds_of(spec)
    classes, layer_classes = classes_of(spec, used, device, packed=packed)
    ceiling = spec.max_positions if max_context is None else max_context
    job = Job(
        spec=spec,
        device=device,
        dtype=used,
        choose=choose,
        pins=pins or NoPins(),
        plugin=plugin,
        budget=limit,
        max_context=ceiling,
        weights=weights,
        mode=mode or ("embed" if new_tokens == 0 else "generate"),
        new_tokens=new_tokens,
        limits=limits or AttentionLimits(),
        backend=backend,
        chunk=chunk,
        tokens_per_batch=tokens_per_batch,
        resident=resident,
        images=pictures_of(spec, rows, images),
        visible=visible_of(rows, visible),
        spans=spans_of(spec, rows, spans),
        readout=readout,
        kinds=kinds,
        classes=classes,
        layer_classes=layer_classes,
        memo=memo or Memo(),
        pack=pack,
        answers=answers,
    )
    job.memo.tidy()
    refuse_context(job, rows, start)
    batches = _dense_batch(job, rows, start) if dense else _batches(job, rows, start)
    return Plan(
        arch=spec.arch,
        mode=job.mode,
        device=device,
        dtype=used,
        budget=job.budget,
        max_context=ceiling,
        layer_kinds=layer_kinds,
        vision_kinds=vision_kinds(spec.vision)[1] if spec.vision else (),
        batches=batches,
        origin=Request(replace(job, paths={}, prefills={}), rows, start, dense=dense),
        notes=_notes(job, batches),
    )


def _batches(job: Job, rows: tuple[int, ...], cached: tuple[int, ...]) -> tuple[BatchPlan, ...]:
    """All batches of a request, in order."""
    try:
        return _divided(job, groups_of(job, rows, cached), rows, cached)
    except AdmissionRefused:
        # Packed rows need the least padding, if not always the least time.
        packed = packed_tightly(job, rows, cached)
        if not packed:
            raise
    return _divided(job, packed, rows, cached)


def _divided(
    job: Job, groups: tuple[Group, ...], rows: tuple[int, ...], cached: tuple[int, ...]
) -> tuple[BatchPlan, ...]:
    """Batches of these groups, or of less where they do not fit; refuses what can't be divided."""
    waiting, others = deque(groups), len(groups) > 1
    found: list[BatchPlan] = []
    while waiting:
        group = waiting.popleft()
        batch = batch_of(job, group, rows, cached, others=others)
        best = _quote(job, batch)
        if best is not None:
            found.append(_plan_batch(job, group, batch, best))
            continue
        parts = divided(job, group, rows, cached)
        if not parts:
            row = group.rows[0] if job.mode == "embed" and len(group.rows) == 1 else None
            refuse(job, batch, _leanest(job, batch), _fits, row=row)
        others = others or len(parts) > 1
        waiting.extendleft(reversed(parts))
    return tuple(found)


def _forms(job: Job, batch: Batch) -> tuple[Batch, ...]:
    """The ways in which what can't be divided may run: one embedded row may be padded more, or packed by itself."""
    if job.mode == "generate" or batch.dense:
        return (batch,)
    shape, (length,) = batch.shape, batch.lengths
    found = [batch, packed_alone(job, batch)]
    padded = padded_length(length, job.device.kind, max(job.max_context - shape.S - job.new, length))
    if job.spec.semantics == "causal" and padded > shape.L:
        found.append(replace(batch, shape=replace(shape, L=padded, ragged=True)))
    return tuple(form for form in found if form is not None)


def _fits(job: Job, batch: Batch) -> bool:
    return any(admitted(job, each) is not None for each in _forms(job, batch))


def _leanest(job: Job, batch: Batch) -> Quote:
    """The quote with the smallest peak of all ways to run an undivided batch."""
    quotes = [leanest(job, each) for each in _forms(job, batch)]
    return min(quotes, key=lambda found: (found.binds not in (None, "memory"), found.peak))


def _quote(job: Job, batch: Batch) -> Quote | None:
    """What a batch runs by, remembered where its rows' lengths do not matter; None when it does not fit."""
    memo = job.memo
    key = (job.asked, batch.shape, batch.others, batch.pictures, batch.visible, batch.packed, batch.spans)
    uneven = batch.shape.ragged and (
        batch.packed or job.spec.semantics != "causal" or not batch.even_start or job.mode == "generate"
    )
    best = None if uneven else memo.quotes.get(key)
    known = memo.schedules.get(key) if best is None else None
    if known is not None:
        # Rows of other lengths in the same shape: what ran those runs these, unless it does not fit.
        again = quote(job, batch, known)
        best = None if again.binds else again
    if best is None:
        best = schedule_of(job, batch)
    if best is not None and uneven:
        memo.schedules[key] = best.schedule
    elif best is not None:
        memo.quotes[key] = best
    return best


def _plan_batch(job: Job, group: Group, batch: Batch, best: Quote) -> BatchPlan:
    counts = [0] * len(job.kinds)
    for index in job.layer_classes:
        counts[job.classes[index].kind] += 1
    kinds = tuple(
        KindPlan(layer=layer, count=count, mask=mask, kv=kv, pins=pins)
        for layer, count, mask, kv, pins in zip(job.kinds, counts, best.prefill.masks, best.kv, best.pins, strict=True)
    )
    return BatchPlan(
        rows=group.rows,
        lengths=batch.lengths,
        shape=batch.shape,
        chunk=best.schedule.chunk,
        chunk_bound=best.schedule.bound,
        chunk_why=best.schedule.why,
        kinds=kinds,
        steps=best.prefill.steps,
        decode=decode_step(job, batch),
        eval_every_layers=best.schedule.eval_every_layers,
        split=best.schedule.split,
        in_flight=best.schedule.in_flight,
        stretch=best.stretch[0],
        longest_stretch=best.stretch[1],
        bytes=best.bytes,
        largest_buffer=best.buffer,
        work=best.work,
        evaluations=best.evaluations,
        prefill_seconds=best.seconds,
        overhead=best.overhead,
        decoding=decoding_seconds(job, batch, best.kv),
        vision=best.vision,
        visible=batch.visible,
        packed=batch.packed,
        answers=job.answers,
    )


def _dense_batch(job: Job, rows: tuple[int, ...], cached: tuple[int, ...]) -> tuple[BatchPlan, ...]:
    """The one batch of a dense implementation: nothing split, one mask for all."""
    group = Group(rows=tuple(range(len(rows))), padded=max(rows))
    batch = replace(batch_of(job, group, rows, cached, others=False), dense=True)
    refuse_dense(job, batch)
    found = quote(job, batch, Schedule(batch.shape.L, len(job.layer_classes), 1))
    if found.binds:
        refuse(job, batch, found, None)
    return (_plan_batch(job, group, batch, found),)


@dataclass(frozen=True, slots=True)
class Request:
    """A request that was planned, for what readers of its plan ask."""

    job: Job
    rows: tuple[int, ...]
    cached: tuple[int, ...]
    dense: bool

    def minimum(self) -> int:
        """The smallest peak of any schedule, in bytes: of the row that needs most, or of all that decode together."""
        job = self.job
        if self.dense:
            return max(batch.peak for batch in _dense_batch(job, self.rows, self.cached))
        return job.number((job.asked, job.images, job.visible, job.spans, "least", self.rows, self.cached), self._least)

    def _least(self) -> int:
        most = 0
        for batch in self._alone():
            # Longer rows do not always need more: a last step of few tokens may take a path of its own.
            if not most or not _fits(replace(self.job, budget=most, paths={}, prefills={}), batch):
                most = max(most, _leanest(self.job, batch).peak)
        return most

    def _alone(self) -> list[Batch]:
        """The smallest batches that the rows can run in, longest first: all that decode together, or each by itself."""
        job, rows, cached = self.job, self.rows, self.cached
        if job.mode == "generate":
            (group,) = groups_of(job, rows, cached)
            return [batch_of(job, group, rows, cached, others=False)]
        most = max(job.max_context - max(cached) - job.new, max(rows))
        unlike: dict[tuple[object, ...], Batch] = {}
        for row in sorted(range(len(rows)), key=lambda row: -rows[row]):
            group = Group((row,), prompt_width(rows[row], job.device.kind, most))
            batch = batch_of(job, group, rows, cached, others=len(rows) > 1)
            pictures = tuple(sorted(batch.pictures))
            unlike.setdefault((batch.shape, batch.cached, batch.visible, batch.spans, pictures), batch)
        return list(unlike.values())

    def cost(self, plan: Plan) -> str:
        """What a tight budget costs in time, in words."""
        if plan.budget >= 2 * plan.minimum:
            return ""
        free = replace(self.job, budget=2**60, paths={}, prefills={})
        best = sum(batch.seconds for batch in _batches(free, self.rows, self.cached))
        extra = plan.seconds / best - 1 if best else 0.0
        word = f"about {extra:.0%} more time" if extra >= CHEAP else "no noticeable time"
        return (
            f"the budget of {plan.budget:,} bytes is below twice the smallest peak ({plan.minimum:,}); smaller chunks "
            f"and more evaluations cost {word}"
        )

    def against(self, path: AttentionPath) -> tuple[tuple[str, str], ...]:
        """What speaks against the backends that a path does not take."""
        return reasons(self.job, path)


def _notes(job: Job, batches: tuple[BatchPlan, ...]) -> tuple[str, ...]:
    notes: list[str] = []
    if job.weights.estimated:
        notes.append("bytes of the weights are estimated from the config")
    if not job.device.flops.get(job.dtype):
        notes.append(
            f"{job.device.name} states no rate for {job.dtype}; assumed {rate(job.device, job.dtype):.3g} FLOP/s"
        )
    if job.device.kind == "metal" and job.device.max_buffer is None:
        notes.append(f"{job.device.name} states no largest buffer; single allocations are not checked")
    least = 1
    for batch in batches:
        if job.spans and len(batch.steps) > 1:
            least = max(least, smallest_chunk(tuple(job.spans[row] for row in batch.rows)))
    if least > 1:
        notes.append(f"steps of a prefill end where spans do: the longest that none may cut has {least:,} tokens")
    wished, who = job.chunk_pin(max((batch.shape for batch in batches), key=_tokens))
    if not job.chunkable and (job.chunk or wished):
        notes.append("the prefill chunk is ignored: a layer that sees later tokens runs whole rows")
    elif wished:
        notes.append(f"prefill chunks of at most {wished:,} tokens: archport_prefill_chunk of {who}")
    return tuple(notes)


def _tokens(shape: BatchShape) -> int:
    return shape.B * shape.L
