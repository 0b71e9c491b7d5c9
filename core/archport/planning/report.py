"""A plan in words and as JSON. Decides nothing and touches no terminal."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

from archport.contract import AttentionLayer, AttentionPath, KVAllocation, LayerSpec, RecurrentPath
from archport.contract.sizes import format_bytes
from archport.contract.split import TensorSplit
from archport.planning.batch import KindPlan, StepPlan
from archport.planning.plan import BatchPlan, Plan

BAR = 32


def duration(seconds: float) -> str:
    return f"{seconds:,.2f} s" if seconds >= 0.1 else f"{seconds * 1e3:.2g} ms"


def path_time(seconds: float) -> str:
    """The time of a path, in the digits in which reasons against the others tell it."""
    return f"{seconds * 1e3:.3g} ms"


def bars(components: Mapping[str, int]) -> list[str]:
    """One line per component with a bar; the largest has the full width."""
    shown = {name: value for name, value in components.items() if value}
    names, most = max(map(len, shown)), max(shown.values())
    return [
        f"{name:<{names}}  {format_bytes(value):>9}  {'█' * round(BAR * value / most)}".rstrip()
        for name, value in shown.items()
    ]


def describe(layer: LayerSpec) -> str:
    """A kind of layer in a few words."""
    if not isinstance(layer, AttentionLayer):
        if layer.heads is None:
            own = ", its modules' bytes as declared" if layer.footprint is not None else ""
            return f"recurrent, {format_bytes(layer.state_bytes)} of state per row{own}"
        heads = layer.heads
        words = (
            f"{heads.n_value_heads}/{heads.n_key_heads} heads of {heads.key_dim} x {heads.value_dim}, " if heads else ""
        )
        return f"recurrent, {words}{format_bytes(layer.state_bytes)} of state per row"
    width = f"{layer.head_dim}" if layer.head_dim == layer.v_head_dim else f"{layer.head_dim}/{layer.v_head_dim}"
    words = [layer.semantics, f"{layer.n_heads}/{layer.n_kv_heads} heads of {width}"]
    if layer.gated:
        words.append("gated")
    if layer.is_windowed and layer.chunk is None:
        left, right = layer.reach
        words.append(f"sees {left if left is not None else 'all'} back, {right if right is not None else 'all'} ahead")
    if layer.sinks:
        words.append("sinks")
    if layer.footprint is not None:
        words.append("its modules' bytes as declared")
    if layer.chunk is not None:
        words.append(f"within chunks of {layer.chunk:,}")
    if layer.softcap is not None:
        words.append(f"scores capped at {layer.softcap:g}")
    if layer.bias:
        words.append("biased by distance and content" if layer.bias == "content" else "biased by distance")
    if layer.spans:
        words.append("tokens of a span see each other")
    if layer.kv == "shared":
        words.append(f"KV of an earlier layer ({layer.kv_group})")
    if layer.kv == "latent":
        words.append("latent KV")
    return ", ".join(words)


def describe_form(path: RecurrentPath) -> str:
    """A chosen form of a recurrence in a few words."""
    if path.form == "own":
        return "the plugin's own"
    chunks = [f"{path.chunk:,} tokens per chunk"] if path.chunk else []
    price = path.price
    return ", ".join([path.form, *chunks, f"{format_bytes(price.transient)} of scratch", path_time(price.seconds)])


def describe_path(path: AttentionPath) -> str:
    """A chosen path in a few words."""
    price, words = path.price, [path.backend.name]
    if price.route:
        words.append(price.route)
    if price.q_tile:
        words.append(f"{price.q_tile} queries per tile")
    if price.k_chunk:
        words.append(f"{price.k_chunk:,} keys per chunk")
    if price.padded != (0, 0):
        words.append(f"padded to {price.padded[0]}/{price.padded[1]}")
    words.append(f"{format_bytes(price.transient)} of scratch")
    words.append(path_time(price.seconds))
    return ", ".join(words)


def split_notes(split: TensorSplit) -> tuple[str, ...]:
    """What the processes of a group have a share of, and what each has whole."""
    rank = split.rank
    return (
        f"tensor parallel, the plan of rank {rank.number} of {rank.count}, whose bytes are those of its device; the "
        "time of collectives is not estimated",
        f"split: {'; '.join(split.split)}",
        f"replicated: {'; '.join(split.replicated)}",
    )


def explain(plan: Plan) -> str:
    """Why each batch is as it is, with what was rejected first; batches with the same reasons together."""
    device, count = plan.device, len(plan.batches)
    where = f"{device.name} ({'profile' if device.simulated else 'this machine'})"
    lines = [
        f"{plan.arch}, {plan.mode}, {plan.dtype}, on {where}: {count} batch{'es' if count > 1 else ''}, "
        f"peak {format_bytes(plan.peak)} of {format_bytes(plan.budget)}, pool {format_bytes(plan.pool)}, "
        f"{duration(plan.seconds)}"
    ]
    paths: object = None
    for _, alike in groupby(enumerate(plan.batches, 1), key=lambda pair: _reasons(pair[1], len(plan.layer_kinds))):
        (first, batch), *others = alike
        last = others[-1][0] if others else first
        what = f"batch {first} of {count}: " if first == last else f"batches {first} to {last} of {count}, the first "
        lines += [what + _shape(batch), *_reasons(batch, len(plan.layer_kinds))]
        if paths != _names(batch.steps[-1]):
            paths = _names(batch.steps[-1])
            lines += [line for index, kind in enumerate(batch.kinds) for line in _in_short(plan, kind, index, batch)]
    parts = ", ".join(f"{name} {format_bytes(value)}" for name, value in plan.bytes.items() if value)
    lines.append(f"memory of the largest: {parts}")
    if plan.host_bytes:
        lines.append(f"host memory for pictures and video, apart from the peak: {format_bytes(plan.host_bytes)}")
    return "\n".join([*lines, *(f"note: {note}" for note in plan.notes)])


def _reasons(batch: BatchPlan, layers: int) -> tuple[str, ...]:
    """Why these rows, this chunk and this schedule."""
    schedule = batch.schedule
    pace = schedule.pace or ("a CPU gains nothing by waiting less often" if schedule.in_flight == 1 else "")
    rows = batch.why or "all rows of the request"
    evaluated = _evaluation(batch, layers).rpartition(":")[0]
    return f"  rows: {rows}", f"  {_chunk(batch)}", f"  {evaluated}" + (f": {pace}" if pace else "")


def _in_short(plan: Plan, kind: KindPlan, index: int, batch: BatchPlan) -> list[str]:
    """What was decided for one kind of layer, with the first alternative of each path."""
    words = [f"  {kind.count} x {describe(kind.layer)}"]
    words += [f"mask {kind.mask.kind}"] if kind.mask is not None else []
    words += [f"cache {_cache(kind.kv)}"] if kind.kv is not None else []
    lines = ["; ".join(words)]
    for label, step in _shown(batch):
        path = step.paths[index]
        told = describe_form(path) if isinstance(path, RecurrentPath) else describe_path(path)
        lines.append(f"    {label}: {told}{_first_against(path)}")
    return [*lines, *(f"    pinned   {pin}" for pin in kind.pins)]


def _first_against(path: AttentionPath | RecurrentPath) -> str:
    """The first alternative to a path and its problem, as they were when the path was chosen."""
    if isinstance(path, RecurrentPath) or path.chosen_at is None:
        return next((f"; not {name}: {reason}" for name, reason in path.against), "")
    rows = path.chosen_at.call.lengths
    what = ("document" if path.call.mask == "documents" else "row") + ("s" if len(rows) > 1 else "")
    chosen = f" (chosen for {len(rows):,} {what} of up to {max(rows):,} tokens)"
    return next((f"; not {name}: {reason}{chosen}" for name, reason in path.chosen_at.against), "")


def _cache(kv: KVAllocation) -> str:
    kept = kv.storage if kv.bits is None else f"{kv.storage}, {kv.bits} bits"
    tokens = f", {kv.initial:,} tokens" if kv.ceiling else ""
    return kept + tokens + (f" growing to {kv.ceiling:,}" if kv.ceiling > kv.initial else "")


def explain_in_full(plan: Plan) -> str:
    """The plan with every number of its largest batch, and every reason against every backend."""
    device, largest = plan.device, plan.largest
    where = f"{device.name} ({'profile' if device.simulated else 'this machine'})"
    count = len(plan.batches)
    batches = f"{count} batch{'es' if count > 1 else ''}, the largest {_shape(largest)}"
    lines = [
        f"{plan.arch}, {plan.mode}, {plan.dtype}, on {where}",
        batches,
        f"peak {format_bytes(plan.peak)} of {format_bytes(plan.budget)} budget; the smallest possible is "
        f"{format_bytes(plan.minimum)}",
        "",
        *bars(plan.bytes),
        "",
        f"pool: up to {format_bytes(plan.pool)} of freed buffers kept for later arrays; with live ones "
        f"{format_bytes(plan.together)}",
        f"largest buffer: {plan.largest_buffer.name}, {format_bytes(plan.largest_buffer.bytes)}"
        + (f" of {format_bytes(plan.largest_buffer.cap)} allowed" if plan.largest_buffer.cap is not None else ""),
        f"largest work between evaluations: {plan.work.name}, {duration(plan.work.seconds)}"
        + (f" of {duration(plan.work.limit)} allowed" if plan.work.limit is not None else ", no watchdog"),
        _chunk(largest),
        _evaluation(largest, len(plan.layer_kinds)),
        *_time(plan),
    ]
    if plan.host_bytes:
        lines.append(f"host memory for pictures and video, apart from the peak: {format_bytes(plan.host_bytes)}")
    if plan.cost:
        lines.append(plan.cost)
    for index, kind in enumerate(largest.kinds):
        lines += ["", *_kind(plan, kind, index, largest)]
    lines += ["", *(f"note: {note}" for note in plan.notes)] if plan.notes else []
    return "\n".join(lines)


def _shape(batch: BatchPlan) -> str:
    shape = batch.shape
    words = f"{shape.B} x {shape.L:,} tokens"
    words = f"{len(batch.lengths)} rows in one of {shape.L:,} tokens" if batch.packed else words
    words += f" behind {shape.S:,} cached" if shape.S else ""
    words += f", {shape.new_tokens:,} to generate" if shape.new_tokens else ""
    words += f" in each of {batch.answers} answers" if batch.answers > 1 else ""
    steps = len(batch.steps)
    return words + (f", prefilled in {steps} chunks of {batch.chunk:,}" if steps > 1 else ", prefilled whole")


def _evaluation(batch: BatchPlan, layers: int) -> str:
    every = batch.schedule.eval_every_layers
    often = "once per pass" if every >= layers else "after every layer" if every == 1 else f"every {every} layers"
    often = "before and after every attention" if batch.schedule.split else often
    ahead = ", the next stretch started ahead" if batch.schedule.in_flight > 1 else ""
    return f"evaluated {often}{ahead}: {batch.quote.evaluations:,} times"


def _chunk(batch: BatchPlan) -> str:
    """The prefill chunk, and what keeps it from being larger."""
    if batch.schedule.bound == "row":
        whole = "the whole packed row" if batch.packed else "the whole row"
        ahead = any(isinstance(kind.layer, AttentionLayer) and kind.layer.semantics != "causal" for kind in batch.kinds)
        return f"prefill chunk: {whole}" + (": a layer sees later tokens" if ahead else "")
    words = {
        "memory": "bound by memory",
        "buffer": "bound by the device's largest buffer",
        "work": "bound by the work between two evaluations",
        "hook": "bound by a hook",
        "caller": "bound by the caller",
        "device": "the largest on this kind of device, where more gains nothing",
    }[batch.schedule.bound]
    return f"prefill chunk: {batch.chunk:,} tokens, {words}" + (
        f" ({batch.schedule.why})" if batch.schedule.why else ""
    )


def _time(plan: Plan) -> list[str]:
    """The estimate of time, of prefill and decoding apart."""
    prefill = f"of which {plan.overhead:.1%} for evaluations"
    (decoding, *_) = [batch.decoding for batch in plan.batches]
    if decoding is None:
        return [f"estimated time: {duration(plan.seconds)}, {prefill}"]
    lines = [
        f"estimated time: {duration(plan.seconds)}",
        f"  prefill  {duration(plan.prefill_seconds)}, {prefill}",
    ]
    if not decoding.steps:
        return [*lines, f"  decoding {duration(0)}; each further token takes about {duration(decoding.last)}"]
    return [
        *lines,
        f"  decoding {duration(decoding.seconds)}: {decoding.steps:,} passes behind the first new token, "
        f"{duration(decoding.first)} each at first and {duration(decoding.last)} at the end",
    ]


def _kind(plan: Plan, kind: KindPlan, index: int, batch: BatchPlan) -> list[str]:
    lines = [f"{kind.count} x {describe(kind.layer)}"]
    if kind.mask is not None:
        lines.append(f"  mask     {kind.mask.kind}" + (f" ({kind.mask.why})" if kind.mask.why else ""))
    for label, step in _shown(batch):
        path = step.paths[index]
        if isinstance(path, RecurrentPath):
            lines.append(f"  {label:<8} {step.tokens:,} tokens: {describe_form(path)}")
        else:
            lines.append(f"  {label:<8} {path.call.q_len:,} x {path.call.kv_len:,}: {describe_path(path)}")
        lines += [f"           not {name}: {reason}" for name, reason in _against(plan, path)]
    if kind.kv is not None:
        lines.append(f"  cache    {_cache(kind.kv)}")
    lines += [f"  pinned   {pin}" for pin in kind.pins]
    return lines


def _against(plan: Plan, path: AttentionPath | RecurrentPath) -> tuple[tuple[str, str], ...]:
    return path.against if isinstance(path, RecurrentPath) else plan.against(path)


def _shown(batch: BatchPlan) -> list[tuple[str, StepPlan]]:
    """The steps worth a line: the last, and the first where its paths differ."""
    last = batch.steps[-1]
    shown = [("path", last)]
    if _names(batch.steps[0]) != _names(last):
        shown.append(("first", batch.steps[0]))
    return [*shown, ("decode", batch.decode)] if batch.decode is not None else shown


def _names(step: StepPlan) -> list[tuple[str, int, int]]:
    return [
        (path.form, path.chunk, 0)
        if isinstance(path, RecurrentPath)
        else (path.backend.name, path.price.q_tile, path.price.k_chunk)
        for path in step.paths
    ]


def as_dict(plan: Plan) -> dict[str, Any]:
    """The plan as JSON-ready values; every number that `explain` prints, unrounded where it is bytes."""
    return {
        "arch": plan.arch,
        "mode": plan.mode,
        "device": {"name": plan.device.name, "kind": plan.device.kind, "simulated": plan.device.simulated},
        "dtype": plan.dtype,
        "budget": plan.budget,
        "max_context": plan.max_context,
        "peak": plan.peak,
        "pool": plan.pool,
        "together": plan.together,
        "minimum": plan.minimum,
        "bytes": dict(plan.bytes),
        # Where there are pictures; texts take none worth a word.
        **({"host_bytes": plan.host_bytes} if plan.host_bytes else {}),
        "largest_buffer": _buffer(plan.largest_buffer),
        "work": _work(plan.work),
        "evaluations": plan.evaluations,
        "seconds": rounded(plan.seconds),
        "prefill_seconds": rounded(plan.prefill_seconds),
        "decode_seconds": rounded(plan.decode_seconds),
        "cost": plan.cost,
        "notes": list(plan.notes),
        "batches": [_batch_dict(plan, batch) for batch in plan.batches],
    }


def rounded(value: float) -> float:
    """A number to four digits, as JSON tells times and work."""
    return float(f"{value:.4g}")


def _buffer(buffer: Any) -> dict[str, Any]:
    return {"name": buffer.name, "bytes": buffer.bytes, "cap": buffer.cap}


def _work(work: Any) -> dict[str, Any]:
    return {"name": work.name, "flops": rounded(work.flops), "seconds": rounded(work.seconds), "limit": work.limit}


def _batch_dict(plan: Plan, batch: BatchPlan) -> dict[str, Any]:
    shape = batch.shape
    return {
        "rows": len(batch.lengths),
        "packed": batch.packed,
        "tokens": shape.L,
        "cached": shape.S,
        "new_tokens": shape.new_tokens,
        "answers": batch.answers,
        "real_tokens": sum(batch.lengths),
        "chunk": batch.chunk,
        "chunk_bound": batch.schedule.bound,
        "chunk_why": batch.schedule.why,
        "steps": len(batch.steps),
        "eval_every_layers": batch.schedule.eval_every_layers,
        "split": batch.schedule.split,
        "in_flight": batch.schedule.in_flight,
        "evaluations": batch.quote.evaluations,
        "peak": batch.peak,
        "bytes": dict(batch.bytes),
        "largest_buffer": _buffer(batch.quote.buffer),
        "work": _work(batch.quote.work),
        "prefill_seconds": rounded(batch.quote.seconds),
        "decoding": _decoding(batch),
        "kinds": [_kind_dict(plan, kind, index, batch) for index, kind in enumerate(batch.kinds)],
    }


def _decoding(batch: BatchPlan) -> dict[str, Any] | None:
    found = batch.decoding
    if found is None:
        return None
    return {
        "steps": found.steps,
        "seconds": rounded(found.seconds),
        "first": rounded(found.first),
        "last": rounded(found.last),
    }


def _kind_dict(plan: Plan, kind: KindPlan, index: int, batch: BatchPlan) -> dict[str, Any]:
    return {
        "layers": kind.count,
        "layer": describe(kind.layer),
        "mask": None if kind.mask is None else kind.mask.kind,
        "kv": None
        if kind.kv is None
        else {
            "storage": kind.kv.storage,
            "initial": kind.kv.initial,
            "ceiling": kind.kv.ceiling,
            "bits": kind.kv.bits,
        },
        "pins": list(kind.pins),
        "paths": {label: _path_dict(plan, step.paths[index]) for label, step in _shown(batch)},
    }


def _path_dict(plan: Plan, path: AttentionPath | RecurrentPath) -> dict[str, Any]:
    price = path.price
    if isinstance(path, RecurrentPath):
        return {
            "form": path.form,
            "chunk": path.chunk,
            "transient": price.transient,
            "seconds": rounded(price.seconds),
            "against": dict(_against(plan, path)),
        }
    return {
        "backend": path.backend.name,
        "q_len": path.call.q_len,
        "kv_len": path.call.kv_len,
        "route": price.route,
        "q_tile": price.q_tile,
        "k_chunk": price.k_chunk,
        "evaluations": price.evaluations,
        "transient": price.transient,
        "seconds": rounded(price.seconds),
        "against": dict(_against(plan, path)),
    }
