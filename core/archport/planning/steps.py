"""The path of each layer in each step: which mask policies are right, which paths they lead to, which form a recurrence
takes.

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
    DeltaHeads,
    DeviceFacts,
    DeviceKind,
    DType,
    InputError,
    KVAllocation,
    MaskPolicy,
    Price,
    RecurrentLayer,
    RecurrentPath,
    Span,
)
from archport.contract.device import rate
from archport.contract.masks import (
    DENSE,
    DOCUMENTS,
    HIDDEN_ENDS,
    HIDDEN_FRONTS,
    ONE_QUERY,
    PACKED,
    check_pin,
    mask_policies,
    needs_lengths,
)
from archport.contract.recurrence import RecurrentForm
from archport.planning.batch import Batch, Prefill, StepPlan
from archport.planning.costs import HOST_ELEMENTS
from archport.planning.facts import ModelFacts
from archport.planning.shapes import among_keys, steps_of

# Steps that stand for all of a prefill in an estimate: the first, the last full one and the last.
SAMPLED = 3
# Rows of so many lengths at most are worth a look at running them one by one. On CUDA each length is a shape of its
# own, which takes tens of milliseconds to prepare; with more, hiding the padding is cheaper whatever the lengths are.
# On a CPU batches are cut so that there is little padding.
MOST_LENGTHS: dict[DeviceKind, int] = {"cuda": 8, "cpu": 1, "metal": 2**62}
# Documents that a packed row is chosen a path for; some backends price one by one.
MOST_DOCUMENTS = 128
# Tokens per chunk of the chunked form: small products stay in a CPU's cache, a GPU wants them larger.
CHUNK = {"cpu": 32, "cuda": 64, "metal": 64}
# Tokens whose inner products exist at once in the chunked form.
SPAN = 512
# Time of one token in a kernel that walks the tokens one by one, each waiting for the one before. CUDA: by latency of
# its reductions; Metal: not measured.
TOKEN_SECONDS = {"cuda": 0.2e-6, "metal": 1e-6}


def prefill_steps(
    model: ModelFacts,
    batch: Batch,
    chunk: int,
    room: tuple[AttentionLimits, ...],
    kv: Sequence[KVAllocation | None],
    *,
    every: bool,
) -> Prefill:
    """The steps of a prefill in chunks.

    Args:
        room: what one attention call may use; later entries are tried where no path keeps the ones before.
        every: all steps; otherwise the first, the last full one and the last, which is enough for an estimate alone.
    """
    L = batch.shape.L
    steps: list[StepPlan] = []
    masks: list[MaskPolicy | None] = [None] * len(model.kinds)
    words: list[list[str]] = [[] for _ in model.kinds]
    # Backwards: hooks are asked once, with the call that sees most.
    for start, stop in reversed(_steps(L, chunk, batch, every=every)):
        paths: list[AttentionPath | RecurrentPath] = []
        for index, layer in enumerate(model.kinds):
            if not isinstance(layer, AttentionLayer):
                paths.append(_form(model, layer, batch.shape.B, stop - start))
                continue
            kept = kv[model.keepers[index]]
            path, mask, pinned = path_of(model, batch, layer, start, stop - start, room, kept)
            paths.append(path)
            masks[index] = masks[index] or mask
            words[index] += [word for word in pinned if word not in words[index]]
        steps.append(StepPlan(start=start, tokens=stop - start, paths=tuple(paths)))
    return Prefill(steps=tuple(steps[::-1]), masks=tuple(masks), pins=tuple(map(tuple, words)))


def decode_step(model: ModelFacts, batch: Batch) -> StepPlan | None:
    """One decoded token at the fullest cache; None when nothing is decoded."""
    if not batch.request.generates:
        return None
    # Padding is never cached, so the fullest row counts, not the padded one.
    held = max(cached + new for cached, new in zip(batch.cached, batch.lengths, strict=True))
    start = held - batch.shape.S + max(batch.shape.new_tokens, 1) - 1
    paths = tuple(
        _decode_path(model, batch, layer, batch.shape.S + start + 1)
        if isinstance(layer, AttentionLayer)
        else _form(model, layer, batch.shape.B * batch.request.answers, 1)
        for layer in model.kinds
    )
    return StepPlan(start=start, tokens=1, paths=paths)


def _decode_path(model: ModelFacts, batch: Batch, layer: AttentionLayer, kv_len: int) -> AttentionPath:
    """The path of one query per row, in the form in which it runs: rows end at one column, and what stands in front of
    short ones is hidden by a mask of one line per row."""
    if layer.reach[0] is not None:
        kv_len = min(kv_len, layer.reach[0] + 1)
    padded, rows = not batch.even_end, batch.shape.B * batch.request.answers
    call = AttentionCall.of(
        layer,
        HIDDEN_FRONTS if padded else ONE_QUERY,
        model.device,
        B=rows,
        q_len=1,
        kv_len=kv_len,
        dtype=model.dtype,
        limits=model.limits,
    )
    # One query's chunk is where its keys are cut, or a row's columns hidden.
    call = replace(call, chunk=None, start=0)
    if padded:
        call = replace(call, mask_shape=(rows, 1, 1, kv_len))
    name = batch.request.backend or model.backend_pin(layer, call)[0]
    return model.path(call, name)


def _form(model: ModelFacts, layer: RecurrentLayer, B: int, tokens: int) -> RecurrentPath:
    return choose_form(layer, model.device, B=B, tokens=tokens, dtype=model.dtype)


def _steps(length: int, chunk: int, batch: Batch, *, every: bool) -> list[Span]:
    steps = steps_of(length, chunk, batch.spans)
    if every or len(steps) <= SAMPLED:
        return steps
    return [steps[0], steps[-2], steps[-1]]


def path_of(
    model: ModelFacts,
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
    options, words = _options(model, batch, layer, q_len, kv_len, behind, spanned=bool(spans))
    alone = needs_lengths(layer, ragged=shape.ragged, even_start=batch.even_start)
    lengths, q_lengths = _lengths(batch, start, q_len, kv_len) if alone else ((), ())
    if len(options) > 1 and len(set(lengths)) > MOST_LENGTHS[model.device.kind]:
        options = tuple(option for option in options if option != DOCUMENTS)
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
            model.device,
            B=shape.B,
            q_len=q_len,
            kv_len=kv_len,
            dtype=model.dtype,
            lengths=lengths,
            q_lengths=q_lengths,
            limits=room[0],
            start=behind,
            spans=spans,
        )
        if batch.dense:
            call = replace(call, mask_shape=(shape.B, 1, q_len, kv_len), additive=True)
        name = batch.request.backend
        if name is None:
            name, who = model.backend_pin(layer, call)
            words += [f"archport_sdpa_backend of {who}: {name}"] if name else []
        try:
            path = _path(model, call, name)
            if path.excess and room[1:]:
                path = _path(model, replace(call, limits=room[-1]), name)
        except InputError:
            # A pinned backend runs rows one by one or hides their padding; it need not know both.
            if not found and order == len(options) - 1:
                raise
            continue
        weight = path.price.transient if path.excess else path.price.seconds
        found.append((bool(path.excess), weight, order, path, policy))
    *_, path, policy = min(found, key=lambda entry: entry[:3])
    return path, policy, words


def _path(model: ModelFacts, call: AttentionCall, name: str | None) -> AttentionPath:
    """The path of a call.

    On CUDA and on a CPU a path is chosen for a shape and serves all rows in it: fresh texts cost no search. Padded rows
    are chosen for as if the longest filled the shape and the others were short; on CUDA, which keeps its shapes, that
    is the path's price, and on a CPU a path has the price of its own rows. Packed ones are chosen for documents about
    as long as the longest, and priced as they are. Such a path keeps what it was chosen by; `reasons` says later what
    speaks against the other backends at its own rows.
    """
    rows = call.lengths
    packed = call.mask == "documents" and call.B == 1 and len(rows) > 1
    if (
        model.device.kind == "metal"
        or call.spans
        or not (packed or call.mask == "key_padding")
        or call.q_lengths not in ((), rows)
    ):
        return model.path(call, name)
    if packed:
        longest = max(min(1 << (max(rows) - 1).bit_length(), call.kv_len), call.kv_len // MOST_DOCUMENTS)
        alike = tuple(max(1, longest - index % 2) for index in range(call.kv_len // longest))
    else:
        alike = (call.kv_len,) * len(rows) if len(set(rows)) == 1 else (call.kv_len,) + (1,) * (len(rows) - 1)
    found = model.path(replace(call, lengths=alike, q_lengths=alike if call.q_lengths else ()), name)
    if found.price.parts:
        # These are documents of the lengths that were priced.
        return model.path(call, name)
    if not packed and model.device.kind == "cuda":
        return replace(found, call=call)
    price = found.backend.price(call, model.device)
    return AttentionPath(call, found.backend, price, excess=price.excess(call, model.device), chosen_at=found)


def reasons(model: ModelFacts, path: AttentionPath) -> tuple[tuple[str, str], ...]:
    """What speaks against the backends that a path does not take, at the very call that it is for."""
    if path.against:
        return path.against
    best = model.path(path.call, None)
    if best.backend.name == path.backend.name:
        return best.against
    found: list[tuple[str, str]] = []
    own = path.price.seconds * 1e3
    for name, why in (*best.against, (best.backend.name, "")):
        if name == path.backend.name:
            continue
        try:
            price = model.path(path.call, name).price
        except InputError:
            found.append((name, why))
            continue
        words = price.excess(path.call, model.device) or f"about {price.seconds * 1e3:.3g} ms against {own:.3g} ms"
        if not price.excess(path.call, model.device) and price.seconds < path.price.seconds:
            words += " here, but a path serves every row of its width, and in others it is slower"
        found.append((name, words))
    return tuple(found)


def _options(
    model: ModelFacts, batch: Batch, layer: AttentionLayer, q_len: int, kv_len: int, behind: int, *, spanned: bool
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
    pin, who = model.mask_pin(layer, batch.shape)
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


def choose_form(layer: RecurrentLayer, device: DeviceFacts, *, B: int, tokens: int, dtype: DType) -> RecurrentPath:
    """The form of a recurrent layer for B rows of `tokens` of a model in `dtype`."""
    heads = layer.heads
    if heads is None:
        return RecurrentPath("own", 0, Price(0, 0, 0, 0.0, 0.0))
    against: dict[RecurrentForm, str] = {}
    kernels: tuple[RecurrentForm, ...] = ("cuda", "metal")
    for form in kernels:
        reason = _against_kernel(form, heads, device)
        if reason:
            against[form] = reason
    if tokens == 1:
        against["chunked"] = "one token has no chunks"
    else:
        against["sequential"] = "one step per token"
    order: tuple[RecurrentForm, ...] = ("cuda", "metal", "chunked", "sequential")
    form: RecurrentForm = next(each for each in order if each not in against)
    against |= {each: f"{form} is faster" for each in order if each != form and each not in against}
    chunk = min(CHUNK[device.kind], tokens) if form == "chunked" else 0
    price = _price(form, heads, device, B, tokens, chunk)
    if form == "chunked" and dtype != "float32" and tokens <= SPAN:
        # q, k and v in float32: of longer rows they are released while the spans run.
        price = replace(price, transient=price.transient + 4 * B * tokens * heads.channels)
    small = device.vector_threads > 0 and B * tokens * heads.channels < HOST_ELEMENTS
    if device.kind == "cpu" and dtype == "float32" and not small:
        # What is before the rule was evaluated by the convolution, which runs on the host.
        price = replace(price, evaluations=1)
    return RecurrentPath(form, chunk, price, tuple(against.items()))


def _against_kernel(form: str, heads: DeltaHeads, device: DeviceFacts) -> str:
    """Why a kernel can't run these heads here; "" when it can."""
    if device.kind != form:
        return f"{device.name} is not a {form} device"
    if form == "cuda" and (heads.key_dim % 32 or heads.key_dim > 256 or heads.value_dim % 16):
        return f"heads of {heads.key_dim} x {heads.value_dim}; it takes multiples of 32 up to 256, and of 16"
    if form == "metal" and (heads.key_dim % 32 or heads.value_dim % 8):
        return f"heads of {heads.key_dim} x {heads.value_dim}; it takes multiples of 32 and of 8"
    return ""


def _price(form: str, heads: DeltaHeads, device: DeviceFacts, B: int, tokens: int, chunk: int) -> Price:
    state = 4 * B * heads.values * heads.key_dim
    output = 4 * B * tokens * heads.values
    # Decay, read, update and answer of a key_dim x value_dim matrix.
    flops = 7.0 * B * tokens * heads.values * heads.key_dim
    seconds = flops / rate(device, "float32")
    if form in TOKEN_SECONDS:
        # All heads walk at once, unless there are more than the device holds.
        seconds = max(seconds, tokens * TOKEN_SECONDS[form])
    transient = state
    if form == "chunked":
        # States of a few chunks, and the sums that they are made of, are there at once.
        transient = _chunked_bytes(heads, B, tokens, chunk) + (3 * state if tokens <= chunk else 15 * state // 2)
        flops += 2.0 * B * tokens * chunk * (2 * heads.keys + 2 * heads.values)
        seconds = flops / rate(device, "float32")
    if form == "sequential":
        transient = 3 * state
    return Price(
        transient=transient,
        output=output,
        largest_buffer=max(state, output),
        flops=flops,
        dispatch_flops=flops,
        seconds=seconds,
        dispatch_seconds=seconds,
        route=form,
    )


def _chunked_bytes(heads: DeltaHeads, B: int, tokens: int, chunk: int) -> int:
    """Scratch of the chunked form: while a span's inner products are made, or while its chunks run one by one.

    Fitted to MLX's peak counter over heads and widths varied one by one, on a CPU.
    """
    # What does not fill a chunk is a span of its own.
    span = min(max(tokens - tokens % chunk, tokens % chunk), max(1, SPAN // chunk) * chunk)
    made = span * (chunk * (2 * heads.n_key_heads + 13 * heads.n_value_heads) + 3 * heads.keys)
    # Of the next span, the inputs are copied already.
    copies = 3 * heads.keys + 3 * heads.values if tokens > span else 2 * heads.keys + heads.values // 2
    kept = span * (chunk * (2 * heads.n_key_heads + 5 * heads.n_value_heads) + copies)
    # Answers of all spans, what they are put together in, and some that are released late.
    return 4 * B * max(made, kept + 19 * tokens * heads.values // 8)
