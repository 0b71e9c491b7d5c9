"""Tiny tier: rows in steps, with caches that the engine plans and owns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from archport.contract import (
    ArchSpec,
    AttentionLayer,
    BatchShape,
    ContextLengthExceeded,
    KVAllocation,
    KvCeilingExceeded,
    LayerSpec,
    Limits,
)
from archport.planning import NoPins, Pins
from archport.testing.check import check, fail, skip
from archport.testing.measure import as_array, gap
from archport.testing.subject import Tiny

if TYPE_CHECKING:
    from archport.generating.decode import Decoding
    from archport.generating.prefill import Prefilled


def needs_steps(t: Tiny) -> None:
    """Skip models whose rows can't be run in steps."""
    if not t.keeps:
        skip(f"declared {t.spec.semantics}: later tokens change earlier ones, so rows run whole and nothing is cached")


@check("tiny")
def chunked_prefill_equals_whole(t: Tiny) -> str:
    """A prompt run in chunks with caches gives the hidden states of one pass.

    Take positions from the context, and let nothing but `ctx.attend` reach across tokens.
    """
    needs_steps(t)
    row = t.tokens(t.length(61))
    whole, worst, chunks = t.hidden(row), 0.0, (7, 16, 32)
    for chunk in chunks:
        difference = gap(t.run(t.plan([len(row)], chunk=chunk, spans=[t.spans(row)]), [row])[0], whole)
        worst = max(worst, difference)
        if difference > t.limit:
            fail(
                f"{len(row)} tokens in chunks of {chunk} differ by {difference:.2g} (limit {t.limit:.0e}) from one pass"
            )
    return f"L={len(row)} in chunks of {', '.join(map(str, chunks))}: {worst:.1e}"


@check("tiny")
def decode_equals_full_forward(t: Tiny) -> str:
    """Tokens fed one by one behind a cached prompt give the hidden states of one pass over all of them.

    A module must not tell a step of one token from a row of one token: its position and keys come from the context.
    """
    needs_steps(t)
    prompt, new = t.length(40), 12
    row = t.tokens(prompt + new) if prompt + new <= t.spec.max_positions else t.tokens(prompt)
    prompt = len(row) - new
    whole = t.hidden(row, prompt=prompt)
    read, decoding = decoder(t, [row[:prompt]], new)
    pieces = [as_array(read.hidden), *(as_array(decoding.step(mx.array([int(token)])))[0] for token in row[prompt:])]
    difference = gap(np.concatenate(pieces), whole[prompt - 1 :])
    if difference > t.limit:
        at = int(np.abs(np.concatenate(pieces) - whole[prompt - 1 :]).max(axis=-1).argmax())
        fail(
            f"{new} tokens decoded behind {prompt} differ by {difference:.2g} (limit {t.limit:.0e}) from one pass, "
            f"most at token {prompt - 1 + at}"
        )
    return f"{prompt} + {new} tokens, {difference:.1e}"


def decoder(t: Tiny, prompts: list[np.ndarray], new: int) -> tuple[Prefilled, Decoding]:
    """Prompts that the engine has read, and what decodes one token per row and step behind them, as `generate` does."""
    from archport.generating.decode import Decoding
    from archport.generating.prefill import prefill

    encoder = t.model._runtime.encoder
    read = prefill(encoder, prompts, new, None)
    lengths = [len(prompt) for prompt in prompts]
    return read, Decoding(encoder.trunk, encoder.spec, encoder.plan, read.plan, read.caches, lengths)


@check("tiny", hook="archport_kv_allocation")
def kv_allocated_equals_kv_planned(t: Tiny) -> str:
    """The caches of a run hold exactly the bytes that its plan says, layer by layer.

    Each layer with kv='own' attends in every step, however short; declare kv='shared' or 'none' where it does not.
    """
    needs_steps(t)
    told: list[str] = []
    for length, chunk, new in ((t.length(50), 16, 0), (t.length(2), None, 4), (t.length(40), None, None)):
        plan = t.plan([length], chunk=chunk, new_tokens=new)
        (batch,) = plan.batches
        caches = t.caches(plan)
        assert caches is not None
        t.run(plan, [t.tokens(length)], caches=caches)
        planned = batch.bytes["kv"] + batch.bytes["kv_cached"]
        if caches.bytes != planned:
            each = [0 if state is None else state.bytes for state in caches.layers]
            fail(f"{length} tokens hold {caches.bytes:,} bytes of KV, planned were {planned:,}; per layer {each}")
        told.append(f"{planned:,}")
    return f"{', '.join(told)} bytes"


@dataclass(frozen=True, slots=True)
class Growing(NoPins):
    """Pins that hold every cache as small as can be at first, unless the plugin pins something itself."""

    inner: Pins

    def kv_allocation(self, spec: ArchSpec, layer: LayerSpec, shape: BatchShape, limits: Limits) -> KVAllocation | None:
        pinned = self.inner.kv_allocation(spec, layer, shape, limits)
        if pinned is not None or not isinstance(layer, AttentionLayer):
            return pinned
        return KVAllocation("growing", min(256, limits.max_context), limits.max_context)


@check("tiny", hook="archport_kv_allocation")
def growing_kv_keeps_its_contents(t: Tiny) -> str:
    """A cache that grows past its first allocation gives the hidden states of one pass.

    A pinned allocation must keep what was written; quantised ones round and need a reason.
    """
    needs_steps(t)
    length = t.length(300)
    if length <= 256:
        skip(f"the example has {t.spec.max_positions} positions, caches start with 256")
    row = t.tokens(length)
    plan = t.plan([length], chunk=96, new_tokens=None, pins=Growing(t.planner.pins), spans=[t.spans(row)])
    caches = t.caches(plan)
    assert caches is not None
    difference = gap(t.run(plan, [row], caches=caches)[0], t.hidden(row))
    if difference > t.limit:
        fail(
            f"{length} tokens in a cache grown from 256 differ by {difference:.2g} (limit {t.limit:.0e}) from one pass"
        )
    return f"256 to {caches[t.attention[0][0]].capacity} tokens, {difference:.1e}"  # pyright: ignore


@check("tiny", hook="archport_kv_allocation")
def ceiling_refuses_before_allocation(t: Tiny) -> str:
    """A request beyond the context is refused with both numbers, by plan and by cache, before a byte is allocated.

    Pin no ceiling above the context in `archport_kv_allocation`.
    """
    ceiling = t.model.max_tokens
    mx.synchronize()
    before = mx.get_active_memory()
    try:
        t.model.plan([ceiling + 1])
        fail(f"a plan of {ceiling + 1} tokens is made, the context is {ceiling}")
    except ContextLengthExceeded as refused:
        if (refused.requested, refused.ceiling) != (ceiling + 1, ceiling):
            fail(
                f"the refusal names {refused.requested} and {refused.ceiling} tokens; expected {ceiling + 1}, {ceiling}"
            )
    if t.keeps:
        caches = t.caches(t.plan([t.length(8)], new_tokens=None))
        assert caches is not None
        rings = [state.allocation.storage == "ring" for state in caches.layers if hasattr(state, "allocation")]  # pyright: ignore
        try:
            caches.check([ceiling + 1])
            if not all(rings):
                fail(f"caches admit {ceiling + 1} tokens, the context is {ceiling}: a pinned ceiling is above it")
        except KvCeilingExceeded:
            pass
    allocated = mx.get_active_memory() - before
    # What earlier calls left may go meanwhile.
    if allocated > 0:
        fail(f"refusing allocated {allocated:,} bytes (limit 0)")
    return f"{ceiling + 1} over {ceiling}: refused, 0 bytes"


@check("tiny", hook="archport_prefill_chunk")
def chunk_wish_is_an_upper_bound(t: Tiny) -> str:
    """No prefill step is longer than what `archport_prefill_chunk` answers, and rows that can't be split run whole.

    Answer from the shape and device alone: a wish that changes between two questions bounds nothing.
    """
    length = t.length(200)
    lengths, longest = (length, t.length(33)), 0
    for tokens in lengths:
        plan = t.plan([tokens])
        found: list[object] = []
        t.run(plan, [t.tokens(tokens)], wrap=lambda ctx, found=found: found.append(ctx.positions.shape[1]) or ctx)  # pyright: ignore
        steps = [int(str(step)) for step in found]
        longest = max(longest, *steps)
        (batch,) = plan.batches
        if sum(steps) != batch.shape.L:
            fail(f"{tokens} tokens, {batch.shape.L} as this device pads them, ran in steps of {steps}")
        if not t.keeps and len(steps) > 1:
            fail(f"a row of {tokens} tokens that can't be split ran in {len(steps)} steps")
        wish = t.hooks.prefill_chunk(t.spec, batch.shape, t.planner.device)
        if t.keeps and wish is not None and max(steps) > wish:
            fail(f"{tokens} tokens ran in steps of up to {max(steps)}, the hook answers {wish}")
    bound = _bounded(t, length)
    return f"longest step {longest} of {lengths}{bound}"


def _bounded(t: Tiny, length: int) -> str:
    """Run with a wish of 16 tokens in place of the plugin's own, which the planner must keep as well."""
    if not t.keeps:
        return ""
    sizes = [step.tokens for step in t.plan([length], pins=Wish(16)).batches[0].steps]
    if max(sizes) > 16:
        fail(f"with a wish of 16 tokens a step of {max(sizes)} is planned")
    return f"; {max(sizes)} with a wish of 16"


@dataclass(frozen=True, slots=True)
class Wish(NoPins):
    """Pins that ask for a chunk and nothing else."""

    chunk: int

    def prefill_chunk(self, spec: ArchSpec, shape: BatchShape, device: object) -> int | None:
        return self.chunk
