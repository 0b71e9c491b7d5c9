"""How each kind of layer keeps what it must remember, and what that weighs. Knows nothing of attention paths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from archport.contract import (
    AttentionLayer,
    BatchShape,
    ContextLengthExceeded,
    KVAllocation,
    LayerSpec,
    PluginError,
    RecurrentLayer,
    kv_capacity,
)
from archport.contract.spec import itemsize
from archport.planning.batch import Batch, KindPlan
from archport.planning.facts import ModelFacts

# Tokens a growing cache starts with.
INITIAL = 4096
# A ring keeps room for so many decoded tokens before it moves its window to the front.
RING_STEP = 256


@dataclass(frozen=True, slots=True)
class CacheBytes:
    """Bytes of all caches of a batch.

    Args:
        cached: what the tokens cached before the request already hold.
        new: what the request adds.
        growth: the old buffers of one layer while it moves into larger ones, or one array while rows leave it.
        conversion: full-width keys and values of one layer beside its quantised ones.
        largest: the largest single buffer.
    """

    cached: int
    new: int
    growth: int
    conversion: int
    largest: int

    @property
    def total(self) -> int:
        return self.cached + self.new + self.growth + self.conversion


def needs_cache(batch: Batch, chunk: int) -> bool:
    """Whether the batch keeps anything between steps."""
    return batch.request.generates or batch.shape.S > 0 or chunk < batch.shape.L


def allocation(model: ModelFacts, batch: Batch, layer: LayerSpec, chunk: int) -> tuple[KVAllocation | None, str]:
    """How a layer keeps its cache in this batch, and what a hook fixed about it in words.

    Raises:
        PluginError: when a hook's answer can't hold the layer's state.
        ContextLengthExceeded: when a hook's ceiling is below what the batch needs.
    """
    if not needs_cache(batch, chunk) or (isinstance(layer, AttentionLayer) and not layer.keeps):
        return None, ""
    pinned, who = model.kv_pin(layer, batch.shape)
    if pinned is not None:
        return _checked(pinned, layer, batch.shape, chunk, who), f"archport_kv_allocation of {who}: {_words(pinned)}"
    return _chosen(model, batch, layer, chunk), ""


def pinned_surplus(model: ModelFacts, batch: Batch, kinds: Sequence[KindPlan], chunk: int) -> int:
    """Bytes that caches take as hooks pin them, beyond what the planner's own would; negative where pins save some."""
    size, shape, total = itemsize(model.dtype), batch.shape, 0
    tokens = shape.S + shape.L + shape.new_tokens
    for kind in kinds:
        if kind.kv is not None and model.kv_pin(kind.layer, shape)[0] is not None:
            own = _chosen(model, batch, kind.layer, chunk)
            pinned, usual = (each.bytes(kind.layer, B=shape.B, tokens=tokens, itemsize=size) for each in (kind.kv, own))
            total += kind.count * (pinned - usual)
    return total


def _words(pin: KVAllocation) -> str:
    """A pinned allocation in a few words, with its reason."""
    tokens = "" if pin.storage == "recurrent" else f", {pin.initial:,} tokens"
    grows = f" growing to {pin.ceiling:,}" if pin.ceiling > pin.initial else ""
    bits = "" if pin.bits is None else f", {pin.bits} bits"
    return f"{pin.storage}{tokens}{grows}{bits}{f' ({pin.why})' if pin.why else ''}"


def _chosen(model: ModelFacts, batch: Batch, layer: LayerSpec, chunk: int) -> KVAllocation:
    if isinstance(layer, RecurrentLayer):
        return KVAllocation("recurrent", 0, 0)
    shape, unknown = batch.shape, batch.request.new_tokens is None
    total = shape.S + shape.L + shape.new_tokens
    left = layer.reach[0]
    if left is not None:
        ring = left + max(chunk, RING_STEP)
        if unknown or ring < total:
            return KVAllocation("ring", ring, ring)
    if unknown:
        return KVAllocation("growing", min(INITIAL, model.max_context), model.max_context)
    return KVAllocation("planned", total, total)


def _checked(pin: KVAllocation, layer: LayerSpec, shape: BatchShape, chunk: int, who: str) -> KVAllocation:
    problems = pin.problems_with(layer)
    if problems:
        raise PluginError(f"{who}: archport_kv_allocation pins {pin}, but {'; '.join(problems)}")
    needed = shape.S + shape.L + shape.new_tokens
    if isinstance(layer, AttentionLayer) and pin.storage == "ring":
        needed = min(needed, (layer.reach[0] or 0) + chunk)
    if isinstance(layer, AttentionLayer) and pin.ceiling < needed:
        raise ContextLengthExceeded(
            f"this request needs a cache of {needed:,} tokens per row, but archport_kv_allocation of {who} pins "
            f"a ceiling of {pin.ceiling:,}; shorten the input, or raise the pinned ceiling",
            binding=f"the ceiling pinned by archport_kv_allocation of {who}",
            requested=needed,
            ceiling=pin.ceiling,
            max_tokens_that_fit=max(0, pin.ceiling - shape.S - shape.new_tokens),
        )
    return pin


def cache_bytes(model: ModelFacts, batch: Batch, allocations: tuple[KVAllocation | None, ...]) -> CacheBytes:
    """Bytes of all layers' caches, per the contract's formula."""
    size, counts = itemsize(model.dtype), Counter(model.layer_kinds)
    shape, generates = batch.shape, batch.request.generates
    tokens = shape.S + shape.L + shape.new_tokens
    cached = new = growth = conversion = largest = 0
    for kind, (layer, kept) in enumerate(zip(model.kinds, allocations, strict=True)):
        if kept is None:
            continue
        total = kept.bytes(layer, B=shape.B, tokens=tokens, itemsize=size)
        before = 0
        if shape.S > 0:
            held = min(kv_capacity(shape.S), kept.capacity(tokens))
            before = total if isinstance(layer, RecurrentLayer) else shape.B * kept.row_bytes(layer, held, size)
        cached += counts[kind] * before
        new += counts[kind] * (total - before)
        buffer = kept.largest_buffer(layer, B=shape.B, tokens=tokens, itemsize=size)
        largest = max(largest, buffer)
        if generates and shape.B > 1 and batch.request.new_tokens not in (0, 1):
            # Rows that finish leave the others, which are copied one array after the other.
            growth = max(growth, buffer)
        if generates and shape.B > 1 and shape.ragged and isinstance(layer, AttentionLayer):
            # Rows are moved to end at one column, one array after the other.
            growth = max(growth, total // len(layer.kv_widths))
        if kept.storage == "growing":
            growth = max(growth, shape.B * kept.row_bytes(layer, kept.capacity(tokens) // 2, size))
        if kept.bits is not None:
            wide = KVAllocation("planned", tokens, tokens)
            conversion = max(conversion, wide.bytes(layer, B=shape.B, tokens=tokens, itemsize=size))
    return CacheBytes(cached=cached, new=new, growth=growth, conversion=conversion, largest=largest)


def shared_bytes(model: ModelFacts, tokens: int) -> int:
    """Bytes of keys and values that a step keeps until the last layer that reads them again."""
    layers = model.spec.layers
    read = {layer.kv_group for layer in model.kinds if isinstance(layer, AttentionLayer) and layer.kv == "shared"}
    numbers = 0
    for group in read:
        owners = [each for each in layers if isinstance(each, AttentionLayer) and each.keeps and each.kv_group == group]
        # Where another layer takes over, its keys are made while those before are still read.
        numbers += min(2, len(owners)) * owners[0].n_kv_heads * sum(owners[0].kv_widths)
    return tokens * numbers * itemsize(model.dtype)
