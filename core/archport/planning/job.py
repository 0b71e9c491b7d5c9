"""One request, resolved: everything that planning needs and that does not change while it searches.

Knows nothing of chunks, batches or bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from archport.contract import (
    ArchSpec,
    AttentionCall,
    AttentionLayer,
    AttentionLimits,
    AttentionPath,
    BatchShape,
    DeviceFacts,
    DType,
    LayerSpec,
    MaskPolicy,
    PathChooser,
    Span,
)
from archport.planning.batch import Batch, Steps
from archport.planning.costs import TokenBytes, Weights, active_elements, element_bytes, has_experts, token_bytes
from archport.planning.memo import Key, Memo
from archport.planning.pins import Pins
from archport.planning.plan import Mode
from archport.planning.readout import Readout


@dataclass(frozen=True, slots=True)
class LayerClass:
    """Layers that cost the same: equal specs, and both or neither with experts.

    Args:
        kind: index of the spec among the distinct ones.
        token: temporaries of one token.
        flops: arithmetic of one token, attention excluded.
        matrix_bytes: bytes of the matrices that one token meets.
    """

    kind: int
    token: TokenBytes
    flops: float
    matrix_bytes: int


@dataclass(frozen=True, slots=True)
class Job:
    """A request with its defaults filled in; see `plan_request` for the arguments that are not explained here.

    Args:
        resident: bytes held by others of the same process, such as a prefix cache.
        kinds: distinct layer specs, in order of appearance.
        layer_classes: per layer an index into `classes`.
        images: per row the patches of its pictures; empty when no row has any.
        spans: per row the stretches of its tokens that see each other; empty when no row has any.
        visible: per row the leading tokens that any token sees; empty when all are.
        readout: what a head needs behind the last layer; None for nothing to speak of.
        backend: name of the backend that the caller pinned for all attention.
        paths, prefills: paths already chosen, steps already laid out.
        memo: what earlier requests found out.
        pack: whether rows may lie behind one another in one.
        answers: rows that each row becomes when it is decoded.
    """

    spec: ArchSpec
    device: DeviceFacts
    dtype: DType
    choose: PathChooser
    pins: Pins
    plugin: str
    budget: int
    max_context: int
    weights: Weights
    mode: Mode
    new_tokens: int | None
    limits: AttentionLimits
    backend: str | None
    chunk: int | None
    tokens_per_batch: int | None
    images: tuple[tuple[int, ...], ...]
    resident: int = 0
    visible: tuple[int, ...] = ()
    spans: tuple[tuple[Span, ...], ...] = ()
    readout: Readout | None = None
    kinds: tuple[LayerSpec, ...] = ()
    classes: tuple[LayerClass, ...] = ()
    layer_classes: tuple[int, ...] = ()
    paths: dict[tuple[AttentionCall, str | None], AttentionPath] = field(
        default_factory=dict["tuple[AttentionCall, str | None]", AttentionPath]
    )
    prefills: dict[tuple[Batch, int, tuple[AttentionLimits, ...], bool], Steps] = field(
        default_factory=dict["tuple[Batch, int, tuple[AttentionLimits, ...], bool]", "Steps"]
    )
    memo: Memo = field(default_factory=Memo)
    pack: bool = False
    answers: int = 1

    @property
    def new(self) -> int:
        """Tokens to reserve for decoding."""
        return self.new_tokens or 0

    @property
    def asked(self) -> Key:
        """What tells this request from others for the same model, its rows excepted."""
        return (
            self.mode, self.new_tokens, self.budget, self.resident, self.max_context, self.weights.total, self.dtype,
            self.limits, self.backend, self.chunk, self.tokens_per_batch, self.readout, self.pack,
            self.answers,
        )  # fmt: skip

    @property
    def chunkable(self) -> bool:
        """Whether a row may be run in pieces: every layer reads left to right and can remember."""
        return all(
            layer.semantics == "causal" and layer.kv != "none"
            for layer in self.kinds
            if isinstance(layer, AttentionLayer)
        )

    def number(self, key: Key, find: Callable[[], int]) -> int:
        """A number from the memo, found once."""
        # Another thread may tidy the memo at any time.
        found = self.memo.numbers.get(key)
        if found is None:
            found = self.memo.numbers[key] = find()
        return found

    def path(self, call: AttentionCall, pin: str | None) -> AttentionPath:
        """The chosen path of a call; a call is decided once."""
        key = (call, pin)
        found = self.paths.get(key)
        if found is None:
            found = self.paths[key] = self.choose(call, self.device, pin)
        return found

    def who(self, hook: str) -> str:
        """Who has just answered a hook, for messages: the plugin, or an override in front of it."""
        return self.pins.answered_by(hook) or self.plugin

    def chunk_pin(self, shape: BatchShape) -> tuple[int | None, str]:
        """The largest chunk that a hook wishes for and who did, asked once per shape."""
        found = self.memo.chunks.get(shape)
        if found is None:
            pin = self.pins.prefill_chunk(self.spec, shape, self.device)
            found = self.memo.chunks[shape] = (pin, self.who("archport_prefill_chunk"))
        return found

    def mask_pin(self, layer: LayerSpec, shape: BatchShape) -> tuple[MaskPolicy | None, str]:
        """What a hook fixed about visibility and who did, asked once per layer spec and shape."""
        key = (layer, shape)
        found = self.memo.masks.get(key)
        if found is None:
            pin = self.pins.mask_policy(self.spec, layer, shape)
            found = self.memo.masks[key] = (pin, self.who("archport_mask_policy"))
        return found

    def backend_pin(self, layer: AttentionLayer, call: AttentionCall) -> tuple[str | None, str]:
        """What a hook fixed about the backend and who did, asked once per layer spec, rows, queries and spans."""
        key = (layer, call.B, call.q_len, bool(call.spans))
        found = self.memo.backends.get(key)
        if found is None:
            pin = self.pins.sdpa_backend(self.spec, layer, call, self.device)
            found = self.memo.backends[key] = (pin, self.who("archport_sdpa_backend"))
        return found


def kinds_of(spec: ArchSpec) -> tuple[tuple[LayerSpec, ...], tuple[int, ...]]:
    """Distinct layer specs in order of appearance, and the index of each layer's own."""
    kinds: dict[LayerSpec, int] = {}
    indices = tuple(kinds.setdefault(layer, len(kinds)) for layer in spec.layers)
    return tuple(kinds), indices


def classes_of(
    spec: ArchSpec, dtype: DType, device: DeviceFacts, *, packed: bool
) -> tuple[tuple[LayerClass, ...], tuple[int, ...]]:
    """Distinct layer classes, and the index of each layer's own."""
    kinds, layer_kinds = kinds_of(spec)
    per_element = element_bytes(dtype, spec.quantization if packed else None)
    host = device.kind == "cpu" and device.vector_threads > 0 and dtype == "float32"
    seen: dict[tuple[int, bool], int] = {}
    classes: list[LayerClass] = []
    indices: list[int] = []
    for index, kind in enumerate(layer_kinds):
        experts = has_experts(spec, index)
        at = seen.get((kind, experts))
        if at is None:
            at = seen[kind, experts] = len(classes)
            elements = active_elements(spec, kinds[kind], experts)
            classes.append(
                LayerClass(
                    kind=kind,
                    token=token_bytes(spec, kinds[kind], experts, dtype, device.kind, host=host),
                    flops=2.0 * elements,
                    matrix_bytes=int(elements * per_element),
                )
            )
        indices.append(at)
    return tuple(classes), tuple(indices)
