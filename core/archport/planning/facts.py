"""What a loaded model fixes about every plan, and what planning found out about it.

Asks hooks and the chooser, and remembers their answers. Knows nothing of requests, batches or bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from archport.contract import (
    ArchSpec,
    AttentionCall,
    AttentionLayer,
    AttentionLimits,
    AttentionPath,
    BatchShape,
    DeviceFacts,
    DType,
    KVAllocation,
    LayerSpec,
    Limits,
    MaskPolicy,
    PathChooser,
)
from archport.contract.spec import kv_sources
from archport.contract.split import TensorSplit
from archport.planning.activations import LayerClass, classes_of
from archport.planning.costs import Weights, kinds_of

Key = tuple[object, ...]
T = TypeVar("T")
# Entries of all kinds. A quote takes some kilobytes, and devices that pad little see many shapes.
MOST = 2048


class Pins(Protocol):
    """Answers to the policy hooks; None leaves the choice to the planner. The typed face of the hooks has this form."""

    def mask_policy(self, spec: ArchSpec, layer: LayerSpec, shape: BatchShape) -> MaskPolicy | None: ...

    def kv_allocation(
        self, spec: ArchSpec, layer: LayerSpec, shape: BatchShape, limits: Limits
    ) -> KVAllocation | None: ...

    def prefill_chunk(self, spec: ArchSpec, shape: BatchShape, device: DeviceFacts) -> int | None: ...

    def sdpa_backend(
        self, spec: ArchSpec, layer: LayerSpec, call: AttentionCall, device: DeviceFacts
    ) -> str | None: ...

    def answered_by(self, hook: str) -> str:
        """Who gave the latest answer of a hook ("qwen3 (archport 0.1.0)"); "" when nobody has yet."""
        ...


class NoPins:
    """Fixes nothing."""

    def mask_policy(self, spec: ArchSpec, layer: LayerSpec, shape: BatchShape) -> MaskPolicy | None:
        return None

    def kv_allocation(self, spec: ArchSpec, layer: LayerSpec, shape: BatchShape, limits: Limits) -> KVAllocation | None:
        return None

    def prefill_chunk(self, spec: ArchSpec, shape: BatchShape, device: DeviceFacts) -> int | None:
        return None

    def sdpa_backend(self, spec: ArchSpec, layer: LayerSpec, call: AttentionCall, device: DeviceFacts) -> str | None:
        return None

    def answered_by(self, hook: str) -> str:
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What every plan of one model on one device has in common.

    Args:
        dtype: element type of the computation.
        weights: their bytes on the device.
        budget: bytes the plan may use.
        max_context: tokens a row may reach.
        choose: chooses attention paths; the engine hands in the one that also runs them.
        pins: answers of the policy hooks.
        plugin: who gives them, for messages ("qwen3 (archport 0.1.0)").
        limits: what one attention call may use.
        split: the group of processes that runs the model, of which the spec is this one's share; None for one alone.
        kinds: distinct layer specs, in order of appearance.
        layer_kinds: per layer an index into `kinds`.
        keepers: per kind the one whose cache it reads, itself unless it shares another's.
        classes: layers that cost the same.
        layer_classes: per layer an index into `classes`.
        memo: answers by what they are of, for later requests: without them each request of some short texts pays one to
            four milliseconds for what the last one knew.
        laid_out: the same of steps, for one request.
    """

    spec: ArchSpec
    device: DeviceFacts
    dtype: DType
    weights: Weights
    budget: int
    max_context: int
    choose: PathChooser
    pins: Pins = field(default_factory=NoPins)
    plugin: str = "a plugin"
    limits: AttentionLimits = field(default_factory=AttentionLimits)
    split: TensorSplit | None = None
    kinds: tuple[LayerSpec, ...] = field(init=False, repr=False)
    layer_kinds: tuple[int, ...] = field(init=False, repr=False)
    keepers: tuple[int, ...] = field(init=False, repr=False)
    classes: tuple[LayerClass, ...] = field(init=False, repr=False)
    layer_classes: tuple[int, ...] = field(init=False, repr=False)
    memo: dict[Key, Any] = field(default_factory=dict[Key, Any], init=False, repr=False, compare=False)
    laid_out: dict[Key, Any] = field(default_factory=dict[Key, Any], init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        kinds, layer_kinds = kinds_of(self.spec.layers)
        classes, layer_classes = classes_of(
            self.spec, self.dtype, self.device, self.weights, summed=self.split is not None
        )
        keepers = list(range(len(kinds)))
        for kind, source in zip(layer_kinds, kv_sources(self.spec.layers), strict=True):
            if source is not None:
                keepers[kind] = layer_kinds[source]
        found = {
            "kinds": kinds,
            "layer_kinds": layer_kinds,
            "keepers": tuple(keepers),
            "classes": classes,
            "layer_classes": layer_classes,
        }
        for name, value in found.items():
            object.__setattr__(self, name, value)

    @property
    def chunkable(self) -> bool:
        """Whether a row may be run in pieces: every layer reads left to right and can remember."""
        return all(
            layer.semantics == "causal" and layer.kv != "none"
            for layer in self.kinds
            if isinstance(layer, AttentionLayer)
        )

    def known(self, key: Key, find: Callable[[], T]) -> T:
        """What depends on the key alone, found once."""
        # Another thread may tidy the memo at any time.
        answer = self.memo.get(key)
        if answer is None:
            answer = self.memo[key] = find()
        return answer

    def path(self, call: AttentionCall, pin: str | None) -> AttentionPath:
        """The chosen path of a call."""
        return self.choose(call, self.device, pin)

    def pinned(self, hook: str, key: Key, ask: Callable[[], T]) -> tuple[T, str]:
        """A hook's answer and who gave it, the plugin or an override in front of it; asked once per key."""
        return self.known((hook, *key), lambda: (ask(), self.who(hook)))

    def who(self, hook: str) -> str:
        """Who has just answered a hook, for messages."""
        return self.pins.answered_by(hook) or self.plugin

    def chunk_pin(self, shape: BatchShape) -> tuple[int | None, str]:
        """The largest chunk that a hook wishes for and who did."""
        hook = "archport_prefill_chunk"
        return self.pinned(hook, (shape,), lambda: self.pins.prefill_chunk(self.spec, shape, self.device))

    def mask_pin(self, layer: LayerSpec, shape: BatchShape) -> tuple[MaskPolicy | None, str]:
        """What a hook fixed about visibility and who did."""
        hook = "archport_mask_policy"
        return self.pinned(hook, (layer, shape), lambda: self.pins.mask_policy(self.spec, layer, shape))

    def kv_pin(self, layer: LayerSpec, shape: BatchShape) -> tuple[KVAllocation | None, str]:
        """What a hook fixed about a layer's cache and who did."""
        hook, limits = "archport_kv_allocation", Limits(max_context=self.max_context, budget=self.budget)
        return self.pinned(hook, (layer, shape), lambda: self.pins.kv_allocation(self.spec, layer, shape, limits))

    def backend_pin(self, layer: AttentionLayer, call: AttentionCall) -> tuple[str | None, str]:
        """What a hook fixed about the backend and who did, asked once per layer spec, rows, queries and spans."""
        hook, key = "archport_sdpa_backend", (layer, call.B, call.q_len, bool(call.spans))
        return self.pinned(hook, key, lambda: self.pins.sdpa_backend(self.spec, layer, call, self.device))

    def tidy(self) -> None:
        """Forget the last request's steps, and everything once it is much."""
        self.laid_out.clear()
        if len(self.memo) > MOST:
            self.memo.clear()
