"""Refusals with numbers: what was asked, what binds, which knob moves it, and the largest request that would fit.

Knows nothing of how schedules are searched; it is handed the test of whether one exists.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NoReturn

from archport.contract import (
    AdmissionRefused,
    BufferTooLarge,
    MemoryBudgetExceeded,
    WorkBoundExceeded,
)
from archport.planning.batch import Batch, Quote
from archport.planning.caches import pinned_surplus
from archport.planning.facts import ModelFacts
from archport.planning.shapes import most_that_fits, prompt_width
from archport.planning.vision import within

Fits = Callable[[ModelFacts, Batch], bool]


def refuse_dense(model: ModelFacts, batch: Batch) -> None:
    """Refuse a mask that is larger than any buffer the device can make.

    Raises:
        BufferTooLarge: before any other price is asked.
    """
    shape, cap = batch.shape, model.device.max_buffer
    S = shape.S + shape.L
    size = 4 * shape.B * shape.L * S
    if cap is None or size <= cap:
        return
    widest = int((cap / (4 * shape.B)) ** 0.5)
    raise BufferTooLarge(
        f"a dense mask of ({shape.B}, 1, {shape.L:,}, {S:,}) in float32 takes {size:,} bytes in one buffer; the "
        f"largest buffer of {model.device.name} is {cap:,} bytes. At {shape.B} rows it fits up to {widest:,} tokens. "
        "Leave the mask policy to the planner: it needs no such array",
        required_bytes=size,
        limit_bytes=cap,
        binding="the device's largest buffer; moved by another mask policy, fewer rows or shorter ones",
        breakdown={"mask": size},
        largest_buffer=("the mask", size, cap),
        max_tokens_that_fit=widest,
        max_rows_that_fit=cap // (4 * shape.L * S),
        requested=shape.L,
    )


def refuse(model: ModelFacts, batch: Batch, leanest: Quote, fits: Fits | None, *, row: int | None = None) -> NoReturn:
    """Refuse a batch whose leanest schedule breaks a limit.

    Args:
        row: the one that the batch holds alone.

    Raises:
        MemoryBudgetExceeded, BufferTooLarge, WorkBoundExceeded: by what binds.
    """
    shape, request, longest = batch.shape, batch.request, max(batch.lengths)

    def works(*, B: int | None = None, L: int | None = None) -> bool:
        return fits is not None and fits(model, _resized(model, batch, B=B, L=L))

    tokens = most_that_fits(lambda L: works(L=L), 0, longest - 1)
    rows = most_that_fits(lambda B: works(B=B), 0, shape.B - 1) if shape.B > 1 else None
    kind, binding = _binding(model, leanest)
    required = leanest.buffer.bytes if kind is BufferTooLarge else leanest.peak
    limit = leanest.buffer.cap if kind is BufferTooLarge else model.budget
    pinned = [word for kind in leanest.kinds for word in kind.pins if "sdpa_backend" in word or "mask_policy" in word]
    surplus = pinned_surplus(model, batch, leanest.kinds, leanest.schedule.chunk)
    if leanest.binds == "memory" and leanest.peak - surplus <= model.budget:
        pinned += dict.fromkeys(word for kind in leanest.kinds for word in kind.pins if "kv_allocation" in word)
    pinned += [f"backend={request.backend!r}"] if request.backend else []
    if pinned:
        binding += f"; the pin is what binds ({', '.join(pinned)})"
    parts = ", ".join(f"{name} {size:,}" for name, size in leanest.bytes.items() if size)
    what = f"{shape.B} x {longest:,} tokens" + (f" behind {shape.S:,} cached" if shape.S else "")
    what += f" and {shape.new_tokens:,} to generate" if shape.new_tokens else ""
    what += f" in each of {request.answers} answers" if request.answers > 1 else ""
    fitting = f"up to {tokens:,} tokens per row would fit" if tokens else "not one token would fit"
    if rows:
        fitting += f", or {rows} rows of this length"
    raise kind(
        f"{model.spec.arch} with {what} does not fit {model.device.name}: the leanest schedule {leanest.problem}. "
        f"Bytes: {parts}. {fitting[0].upper()}{fitting[1:]}. What binds: {binding}",
        required_bytes=required,
        limit_bytes=limit,
        binding=binding,
        breakdown=leanest.bytes,
        largest_buffer=(leanest.buffer.name, leanest.buffer.bytes, leanest.buffer.cap),
        max_tokens_that_fit=tokens,
        max_rows_that_fit=rows,
        requested=longest,
        row=row,
    )


def _binding(model: ModelFacts, leanest: Quote) -> tuple[type[AdmissionRefused], str]:
    if leanest.binds == "buffer":
        return BufferTooLarge, "the device's largest buffer; moved by shorter rows or fewer of them"
    if leanest.binds == "work":
        return WorkBoundExceeded, (
            "the work bound per dispatch; moved by shorter rows, a smaller chunk, or limits.dispatch_seconds where the "
            "system's watchdog is known to be patient"
        )
    if model.weights.total > model.budget:
        return MemoryBudgetExceeded, "the weights alone exceed the budget; moved by memory_budget or a smaller model"
    return MemoryBudgetExceeded, "the memory budget; moved by memory_budget, shorter rows or fewer of them"


def _resized(model: ModelFacts, batch: Batch, *, B: int | None = None, L: int | None = None) -> Batch:
    """The batch that its first B rows would make, or all of them cut to L tokens."""
    rows = batch.shape.B if B is None else B
    lengths = tuple(min(length, L or length) for length in batch.lengths[:rows])
    cached, longest = batch.cached[:rows], max(lengths)
    most = max(model.max_context - max(cached) - batch.request.new, longest)
    padded = longest if batch.dense else prompt_width(longest, model.device.kind, most)
    ragged = len(set(lengths)) > 1 or padded != lengths[0] or len(set(cached)) > 1
    shape = replace(batch.shape, B=rows, L=padded, S=max(cached), ragged=ragged)
    merged = model.spec.vision.rows_per_token if model.spec.vision else 1
    visible = tuple(min(seen, length) for seen, length in zip(batch.visible, lengths, strict=False))
    return replace(
        batch,
        lengths=lengths,
        cached=cached,
        shape=shape,
        pictures=within(batch.pictures, rows * longest, merged),
        visible=() if visible == lengths else visible,
    )
