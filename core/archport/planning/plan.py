"""What a plan is: the batches, chunks, paths and bytes that a request will run with. The runtime obeys it.

Pure data. Knows nothing of how it was decided.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from archport.contract import (
    AttentionPath,
    BatchShape,
    DeviceFacts,
    DType,
    KVAllocation,
    LayerSpec,
    MaskPolicy,
    RecurrentPath,
)

Mode = Literal["embed", "generate"]

# The pool's limit in MLX's CPU build.
SMALLEST_POOL = 32 << 20
# Of the bytes that come and go, what the pool may hold beside all of them on CUDA: with none a corpus ran 1 % slower.
POOL_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Buffer:
    """The largest single allocation: what it is, its bytes, and the device's cap (None where it states none)."""

    name: str
    bytes: int
    cap: int | None


@dataclass(frozen=True, slots=True)
class Work:
    """The largest stretch between two evaluations: what it is, its arithmetic, its estimated seconds, their bound."""

    name: str
    flops: float
    seconds: float
    limit: float | None


@dataclass(frozen=True, slots=True)
class KindPlan:
    """What was decided for one kind of layer, that is for all layers with an equal spec.

    Args:
        layer: the spec.
        count: layers of this kind.
        mask: how visibility is handed over; None for a recurrent layer.
        kv: how its cache or state is held; None when nothing is kept.
        pins: what a hook fixed, in words.
    """

    layer: LayerSpec
    count: int
    mask: MaskPolicy | None
    kv: KVAllocation | None
    pins: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One pass through the layers: a prefill chunk, a whole row, or one decoded token.

    Args:
        start: position of its first token behind the cached ones.
        tokens: padded tokens per row.
        paths: per kind of layer the attention path, or the form of a recurrence.
    """

    start: int
    tokens: int
    paths: tuple[AttentionPath | RecurrentPath, ...]


@dataclass(frozen=True, slots=True)
class VisionStep:
    """One pass through the vision tower: some pictures of a batch, each a row.

    Args:
        pictures: their indices among the batch's, which lie in the order of rows and of tokens in them.
        lengths: patches of each.
        padded: patches that every row is padded to.
        paths: per kind of block the attention path.
        piece: patches per row that the linear parts of a block take at once; `padded` or more when they take all.
        room: bytes that may be in use, above what was before the pass, when its next stretch is started.
    """

    pictures: tuple[int, ...]
    lengths: tuple[int, ...]
    padded: int
    paths: tuple[AttentionPath | None, ...]
    piece: int
    room: int = 0


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """Rows that run together.

    Args:
        rows: their indices in the request.
        lengths: their new tokens, in the order of `rows`.
        shape: rows, padded tokens, cached tokens, tokens to decode; whether rows differ in length.
        chunk: tokens per prefill step; `shape.L` when the row is not split.
        kinds: decisions per kind of layer.
        steps: prefill in order. The paths in them are the ones that run.
        decode: one decoded token at the fullest cache; None when nothing is decoded.
        eval_every_layers: evaluate the graph when so many layers were added to it.
        split: evaluate before and after every attention and wherever a block pauses, so that a stretch is a part of a
            layer and all that are in flight make one layer.
        in_flight: stretches that may be unfinished at once, counted over all batches. 1 waits for each; with 2 the next
            one is started while one runs, as soon as there is room for it.
        stretch, longest_stretch: bytes that one stretch may hold, and one in a block that does not pause.
        bytes: components that add up to the peak.
        largest_buffer: the largest single allocation.
        work: the largest stretch between two evaluations.
        evaluations: how often the graph is evaluated for all its prefill steps.
        seconds: estimated time of its prefill.
        overhead: share of `seconds` that evaluations within a pass cost.
        vision: passes through the vision tower, before the prefill.
        visible: leading tokens of each row that any token sees; empty when all are.
        packed: whether the rows lie behind one another in a single one: `shape` is (1, all of their tokens and some).
    """

    rows: tuple[int, ...]
    lengths: tuple[int, ...]
    shape: BatchShape
    chunk: int
    kinds: tuple[KindPlan, ...]
    steps: tuple[StepPlan, ...]
    decode: StepPlan | None
    eval_every_layers: int
    split: bool
    in_flight: int
    stretch: int
    longest_stretch: int
    bytes: Mapping[str, int]
    largest_buffer: Buffer
    work: Work
    evaluations: int
    seconds: float
    overhead: float
    vision: tuple[VisionStep, ...] = ()
    visible: tuple[int, ...] = ()
    packed: bool = False

    @property
    def peak(self) -> int:
        return sum(self.bytes.values())


@dataclass(frozen=True, slots=True)
class Plan:
    """How one request runs on one device.

    Args:
        arch: the architecture's name.
        mode: `embed` (rows may be split into groups) or `generate` (all rows keep their KV).
        device: the machine it is for.
        dtype: element type of the computation.
        budget: bytes the plan may use.
        max_context: tokens a row may reach.
        layer_kinds: kind of each layer, an index into every `BatchPlan.kinds`.
        vision_kinds: kind of each block of the vision tower, an index into the paths of every `VisionStep`.
        batches: in the order in which they run.
        minimum: the smallest peak that any schedule of this request has, in bytes.
        cost: what a budget below twice the minimum costs in time; "" above it.
        notes: assumptions and pins that the reader should know.
        host_bytes: bytes of host memory that pictures and video take at the peak, apart from the device's `peak`.
    """

    arch: str
    mode: Mode
    device: DeviceFacts
    dtype: DType
    budget: int
    max_context: int
    layer_kinds: tuple[int, ...]
    batches: tuple[BatchPlan, ...]
    minimum: int
    cost: str = ""
    vision_kinds: tuple[int, ...] = ()
    notes: tuple[str, ...] = field(default=())
    host_bytes: int = 0

    @property
    def largest(self) -> BatchPlan:
        """The batch with the highest peak."""
        return max(self.batches, key=lambda batch: batch.peak)

    @property
    def peak(self) -> int:
        return self.largest.peak

    @property
    def bytes(self) -> Mapping[str, int]:
        """Components of the peak, in bytes."""
        return self.largest.bytes

    @property
    def moving(self) -> int:
        """Bytes of the peak that are not there before the request runs: all but weights and what others hold.

        Tokens that an earlier call left are copied into the request's own caches, layer by layer as it runs.
        """
        return max(batch.peak - batch.bytes["weights"] - batch.bytes.get("resident", 0) for batch in self.batches)

    @property
    def pool(self) -> int:
        """Bytes of freed buffers that MLX may keep behind the request, for later arrays of their size.

        As many as the request takes and gives back, and never fewer than serve small arrays. A CPU's allocator is fast,
        so MLX's own small limit stays there. On Metal live arrays and pool share the budget; on CUDA the pool shrinks
        while live arrays grow (`together`).
        """
        wanted = SMALLEST_POOL if self.device.kind == "cpu" else max(self.moving, SMALLEST_POOL)
        return max(0, min(wanted, self.room))

    @property
    def room(self) -> int:
        """Bytes that the budget leaves for freed buffers: beside the live arrays, on CUDA in place of those that go."""
        return self.budget - self.peak + (self.moving if self.device.kind == "cuda" else 0)

    @property
    def together(self) -> int:
        """Bytes that live arrays and the pool may come to while the request runs, weights included."""
        if self.device.kind != "cuda":
            return self.peak + self.pool
        return self.peak + max(0, min(SMALLEST_POOL + int(POOL_SHARE * self.moving), self.budget - self.peak))

    @property
    def largest_buffer(self) -> Buffer:
        return max((batch.largest_buffer for batch in self.batches), key=lambda buffer: buffer.bytes)

    @property
    def work(self) -> Work:
        return max((batch.work for batch in self.batches), key=lambda work: work.seconds)

    @property
    def chunk(self) -> int:
        """Tokens per prefill step of the longest batch."""
        return max(self.batches, key=lambda batch: batch.shape.L).chunk

    @property
    def evaluations(self) -> int:
        return sum(batch.evaluations for batch in self.batches)

    @property
    def seconds(self) -> float:
        return sum(batch.seconds for batch in self.batches)

    @property
    def overhead(self) -> float:
        """Share of the time that evaluations within passes cost."""
        return sum(batch.overhead * batch.seconds for batch in self.batches) / self.seconds if self.seconds else 0.0

    @property
    def shapes(self) -> frozenset[tuple[int, int]]:
        """Distinct (B, L) that reach the device."""
        return frozenset((batch.shape.B, step.tokens) for batch in self.batches for step in batch.steps)

    def explain(self) -> str:
        """The plan in plain text: paths, reasons against the others, bytes, chunks, evaluations."""
        from archport.planning.report import explain

        return explain(self)

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON-ready values."""
        from archport.planning.report import as_dict

        return as_dict(self)
