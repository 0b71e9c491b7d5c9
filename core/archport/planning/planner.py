"""From a request to a Plan: rows into batches, the largest chunk that fits, and how often the graph is evaluated.

Pure Python on numbers: no arrays, no device calls, nothing that is free right now. Knows nothing of any backend; it is
handed a chooser.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from archport.contract import (
    AdmissionRefused,
    ArchSpec,
    AttentionPath,
    BatchShape,
    ContextLengthExceeded,
    DeviceFacts,
    DType,
    InputError,
    PathChooser,
)
from archport.contract.device import rate
from archport.planning import report
from archport.planning.batch import Batch, Quote, Request, Schedule, whole
from archport.planning.batches import batch_of, divided, groups_of, packed_alone, packed_tightly
from archport.planning.costs import kinds_of, weights_on
from archport.planning.facts import ModelFacts, NoPins, Pins
from archport.planning.in_flight import decoding_seconds
from archport.planning.plan import BatchPlan, Plan
from archport.planning.quote import quote
from archport.planning.refusals import refuse, refuse_dense
from archport.planning.search import admitted, leanest, most_tokens, schedule_of
from archport.planning.shapes import Group, padded_length, prompt_width, smallest_chunk, spans_of
from archport.planning.steps import decode_step, reasons

# Below this share of the time the evaluations are not worth a word.
CHEAP = 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class Planner(ModelFacts):
    """Makes the plans of one model on one device, and remembers what it found out.

    Args:
        latest: the plan that was made last; empty before the first.
    """

    latest: deque[Plan] = field(default_factory=lambda: deque(maxlen=1), init=False, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        spec: ArchSpec,
        device: DeviceFacts,
        choose: PathChooser,
        *,
        budget: int | None = None,
        dtype: DType | None = None,
        weight_bytes: int | None = None,
        pins: Pins | None = None,
        plugin: str = "a plugin",
    ) -> Planner:
        """The planner of a model that is not loaded.

        Args:
            budget: bytes a plan may use; the device's default when left out.
            dtype: element type of the computation; left out: float32 on a CPU, otherwise the checkpoint's.
            weight_bytes: bytes of the weights on the device; estimated from the spec when left out.
            pins, plugin: the policy hooks, and who answers them.
        """
        used: DType = dtype or ("float32" if device.kind == "cpu" else spec.dtype)
        limit = device.default_budget if budget is None else whole("budget", [budget], 1)[0]
        return cls(
            spec=spec,
            device=device,
            dtype=used,
            weights=weights_on(spec, device, used, limit, weight_bytes),
            budget=limit,
            max_context=spec.max_positions,
            choose=choose,
            pins=pins or NoPins(),
            plugin=plugin,
        )

    def __call__(self, request: Request) -> Plan:
        """How a request runs on the device within the budget.

        Raises:
            InputError: pictures that the model can't see, or that have no tokens.
            AdmissionRefused: the request does not fit; the subclass says which limit binds.
            PluginError: a pin contradicts what the plugin declared.
        """
        self.tidy()
        _check_pictures(self.spec, request)
        request = replace(request, spans=spans_of(self.spec, request.lengths, request.spans))
        _check_context(self, request)
        batches = _dense_batch(self, request) if request.dense else _batches(self, request)
        plan = Plan(
            arch=self.spec.arch,
            mode="generate" if request.generates else "embed",
            device=self.device,
            dtype=self.dtype,
            budget=self.budget,
            max_context=self.max_context,
            layer_kinds=self.layer_kinds,
            vision_kinds=kinds_of(self.spec.vision.layers)[1] if self.spec.vision else (),
            batches=batches,
            planner=self,
            request=request,
            split=self.split,
            notes=_notes(self, request, batches),
        )
        self.latest.append(plan)
        return plan

    def minimum(self, request: Request) -> int:
        """The smallest peak of any schedule, in bytes: of the row that needs most, or of all that decode together."""
        if request.dense:
            return max(batch.peak for batch in _dense_batch(self, request))
        key = ("least", request.wishes, request.images, request.visible, request.spans, request.lengths, request.cached)
        return self.known(key, lambda: self._least(request))

    def _least(self, request: Request) -> int:
        most, within = 0, self
        for batch in _smallest(self, request):
            # Longer rows do not always need more: a last step of few tokens may take a path of its own.
            if not most or not _fits(within, batch):
                most = max(most, _leanest(self, batch).peak)
                within = replace(self, budget=most)
        return most

    def cost(self, plan: Plan) -> str:
        """What a tight budget costs in time, in words."""
        if self.budget >= 2 * plan.minimum:
            return ""
        best = sum(batch.seconds for batch in _batches(replace(self, budget=2**60), plan.request))
        extra = plan.seconds / best - 1 if best else 0.0
        word = f"about {extra:.0%} more time" if extra >= CHEAP else "no noticeable time"
        return (
            f"the budget of {plan.budget:,} bytes is below twice the smallest peak ({plan.minimum:,}); smaller chunks "
            f"and more evaluations cost {word}"
        )

    def against(self, path: AttentionPath) -> tuple[tuple[str, str], ...]:
        """What speaks against the backends that a path does not take."""
        return reasons(self, path)

    def explain(self, plan: Plan, *, verbose: bool) -> str:
        """Why every batch of a plan is as it is, in plain text."""
        return report.explain_in_full(plan) if verbose else report.explain(plan)

    def to_dict(self, plan: Plan) -> dict[str, Any]:
        """A plan as JSON-ready values."""
        return report.as_dict(plan)


def _check_pictures(spec: ArchSpec, request: Request) -> None:
    """Refuse pictures that stand for no tokens of their rows."""
    if not request.images:
        return
    if spec.vision is None:
        raise InputError(f"images: {spec.arch} has no vision tower")
    rows, merged = request.lengths, spec.vision.rows_per_token
    if len(request.images) != len(rows):
        raise InputError(f"images: {len(request.images)} rows of pictures for {len(rows)} rows of tokens")
    for row, (length, pictures) in enumerate(zip(rows, request.images, strict=True)):
        whole("images", pictures, merged)
        if sum(pictures) // merged > length or any(patches % merged for patches in pictures):
            raise InputError(
                f"images: row {row} has {length} tokens for pictures of {pictures} patches; {merged} patches make one "
                "token"
            )


def _check_context(model: ModelFacts, request: Request) -> None:
    """Refuse rows beyond the context, and a context beyond the model's positions.

    Raises:
        ContextLengthExceeded: with both numbers.
    """
    positions = model.spec.max_positions
    if model.max_context < 1 or model.max_context > positions:
        raise ContextLengthExceeded(
            f"max_context={model.max_context:,} tokens, but {model.spec.arch} has positions for {positions:,}; "
            f"choose a max_context between 1 and {positions:,}",
            binding="the model's positions",
            requested=model.max_context,
            ceiling=positions,
            max_tokens_that_fit=positions,
        )
    for row, (length, before) in enumerate(zip(request.lengths, request.cached, strict=True)):
        total = length + before + request.new
        if total > model.max_context:
            parts = [f"{length:,} tokens"]
            parts += [f"{before:,} cached"] if before else []
            parts += [f"{request.new:,} to generate"] if request.new else []
            raised = (
                "or raise max_context" if model.max_context < positions else "because the model has no more positions"
            )
            made = f" ({' + '.join(parts)})" if len(parts) > 1 else ""
            raise ContextLengthExceeded(
                f"row {row} needs a context of {total:,} tokens{made}, but the limit is "
                f"{model.max_context:,}; shorten the input, {raised}",
                binding="max_context" if model.max_context < positions else "the model's positions",
                requested=total,
                ceiling=model.max_context,
                max_tokens_that_fit=max(0, model.max_context - before - request.new),
            )


def _batches(model: ModelFacts, request: Request) -> tuple[BatchPlan, ...]:
    """All batches of a request, in order."""
    try:
        return _divided(model, request, groups_of(model, request))
    except AdmissionRefused:
        # Packed rows need the least padding, if not always the least time.
        packed = packed_tightly(model, request)
        if not packed:
            raise
    return _divided(model, request, packed)


def _divided(model: ModelFacts, request: Request, groups: tuple[Group, ...]) -> tuple[BatchPlan, ...]:
    """Batches of these groups, or of less where they do not fit; refuses what can't be divided."""
    waiting, others = deque(groups), len(groups) > 1
    planned: list[BatchPlan] = []
    while waiting:
        group = waiting.popleft()
        batch = batch_of(request, group, others=others)
        best = _quote(model, batch)
        if best is not None:
            planned.append(_plan_batch(model, group, batch, best))
            continue
        smaller = divided(model, request, group)
        if not smaller:
            row = group.rows[0] if not request.generates and len(group.rows) == 1 else None
            refuse(model, batch, _leanest(model, batch), _fits, row=row)
        others = others or len(smaller) > 1
        waiting.extendleft(reversed(smaller))
    return tuple(planned)


def _forms(model: ModelFacts, batch: Batch) -> tuple[Batch, ...]:
    """The ways in which what can't be divided may run: one embedded row may be padded more, or packed by itself."""
    if batch.request.generates or batch.dense:
        return (batch,)
    shape, (length,) = batch.shape, batch.lengths
    forms = [batch, packed_alone(model, batch)]
    padded = padded_length(length, model.device.kind, max(model.max_context - shape.S - batch.request.new, length))
    if model.spec.semantics == "causal" and padded > shape.L:
        forms.append(replace(batch, shape=replace(shape, L=padded, ragged=True)))
    return tuple(form for form in forms if form is not None)


def _fits(model: ModelFacts, batch: Batch) -> bool:
    return any(admitted(model, form) is not None for form in _forms(model, batch))


def _leanest(model: ModelFacts, batch: Batch) -> Quote:
    """The quote with the smallest peak of all ways to run an undivided batch."""
    quotes = [leanest(model, form) for form in _forms(model, batch)]
    return min(quotes, key=lambda quote: (quote.binds not in (None, "memory"), quote.peak))


def _quote(model: ModelFacts, batch: Batch) -> Quote | None:
    """What a batch runs by, remembered where its rows' lengths do not matter; None when it does not fit."""
    key = (batch.request.wishes, batch.shape, batch.others, batch.pictures, batch.visible, batch.packed, batch.spans)
    uneven = batch.shape.ragged and (
        batch.packed or model.spec.semantics != "causal" or not batch.even_start or batch.request.generates
    )
    if not uneven:
        return model.known(("quote", *key), lambda: schedule_of(model, batch))
    known: Schedule | None = model.memo.get(("schedule", *key))
    # Rows of other lengths in the same shape: what ran those runs these, unless it does not fit.
    best = None if known is None else quote(model, batch, known)
    if best is None or best.binds:
        best = schedule_of(model, batch)
    if best is not None:
        model.memo["schedule", *key] = best.schedule
    return best


def _plan_batch(model: ModelFacts, group: Group, batch: Batch, best: Quote) -> BatchPlan:
    kv = [kind.kv for kind in best.kinds]
    return BatchPlan(group.rows, batch, best, decode_step(model, batch), decoding_seconds(model, batch, kv), group.why)


def _dense_batch(model: ModelFacts, request: Request) -> tuple[BatchPlan, ...]:
    """The one batch of a dense implementation: nothing split, one mask for all."""
    group = Group(rows=tuple(range(len(request.lengths))), padded=max(request.lengths))
    batch = batch_of(request, group, others=False, dense=True)
    refuse_dense(model, batch)
    whole_pass = quote(model, batch, Schedule(batch.shape.L, len(model.layer_classes), 1))
    if whole_pass.binds:
        refuse(model, batch, whole_pass, None)
    return (_plan_batch(model, group, batch, whole_pass),)


def _smallest(model: ModelFacts, request: Request) -> list[Batch]:
    """The smallest batches that the rows can run in, longest first: all that decode together, or each by itself."""
    if request.generates:
        (group,) = groups_of(model, request)
        return [batch_of(request, group, others=False)]
    rows, most = request.lengths, most_tokens(model, request)
    unlike: dict[tuple[object, ...], Batch] = {}
    for row in sorted(range(len(rows)), key=lambda row: -rows[row]):
        group = Group((row,), prompt_width(rows[row], model.device.kind, most))
        batch = batch_of(request, group, others=len(rows) > 1)
        pictures = tuple(sorted(batch.pictures))
        unlike.setdefault((batch.shape, batch.cached, batch.visible, batch.spans, pictures), batch)
    return list(unlike.values())


def _notes(model: ModelFacts, request: Request, batches: Sequence[BatchPlan]) -> tuple[str, ...]:
    notes = [] if model.split is None else list(report.split_notes(model.split))
    if model.weights.estimated:
        notes.append("bytes of the weights are estimated from the config")
    if not model.device.flops.get(model.dtype):
        notes.append(
            f"{model.device.name} states no rate for {model.dtype}; "
            f"assumed {rate(model.device, model.dtype):.3g} FLOP/s"
        )
    if model.device.kind == "metal" and model.device.max_buffer is None:
        notes.append(f"{model.device.name} states no largest buffer; single allocations are not checked")
    split = [row for batch in batches if len(batch.steps) > 1 for row in batch.batch.spans]
    least = smallest_chunk(tuple(split))
    if least > 1:
        notes.append(f"steps of a prefill end where spans do: the longest that none may cut has {least:,} tokens")
    wished, who = model.chunk_pin(max((batch.shape for batch in batches), key=_tokens))
    if not model.chunkable and (request.chunk or wished):
        notes.append("the prefill chunk is ignored: a layer that sees later tokens runs whole rows")
    elif wished:
        notes.append(f"prefill chunks of at most {wished:,} tokens: archport_prefill_chunk of {who}")
    return tuple(notes)


def _tokens(shape: BatchShape) -> int:
    return shape.B * shape.L
