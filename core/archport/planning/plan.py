"""What a plan is: the batches, chunks, paths and bytes that a request will run with. The runtime obeys it.

Data that checks itself: a batch whose steps leave out a token, or run one twice, can't be made. Decides nothing; what
only a reader asks for is worked out by the plan's origin when it is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from archport.contract import (
    ArchportError,
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
# What keeps a prefill chunk from being larger: the row ends, memory, the largest buffer, the work between two
# evaluations, a hook, the caller, or that more gains nothing on this kind of device.
ChunkBound = Literal["row", "memory", "buffer", "work", "hook", "caller", "device"]

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
class Decoding:
    """Estimated time of decoding: passes of one token per row, behind a cache that grows.

    Args:
        steps: passes; the first new token costs none, for it is read from the prefill.
        seconds: of all of them.
        first, last: seconds of a pass behind the prompt alone, and at the fullest cache.
    """

    steps: int
    seconds: float
    first: float
    last: float


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """Rows that run together, and the steps that run each of their tokens once.

    Args:
        rows: their indices in the request.
        lengths: their new tokens, in the order of `rows`.
        shape: rows, padded tokens, cached tokens, tokens to decode; whether rows differ in length.
        chunk: tokens per prefill step; `shape.L` when the row is not split.
        chunk_bound, chunk_why: what keeps it from being larger, and the numbers of that in words.
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
        prefill_seconds: estimated time of its prefill.
        overhead: share of it that evaluations within a pass cost.
        decoding: estimated time of what follows; None when nothing is decoded.
        vision: passes through the vision tower, before the prefill.
        visible: leading tokens of each row that any token sees; empty when all are.
        packed: whether the rows lie behind one another in a single one: `shape` is (1, all of their tokens and some).
        answers: rows that each row becomes when it is decoded.

    Raises:
        ArchportError: when the steps do not run every token exactly once, in order, in steps of at most `chunk`.
    """

    rows: tuple[int, ...]
    lengths: tuple[int, ...]
    shape: BatchShape
    chunk: int
    chunk_bound: ChunkBound
    chunk_why: str
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
    prefill_seconds: float
    overhead: float
    decoding: Decoding | None = None
    vision: tuple[VisionStep, ...] = ()
    visible: tuple[int, ...] = ()
    packed: bool = False
    answers: int = 1

    def __post_init__(self) -> None:
        problem = self._gap() or self._wrong_rows() or self._wrong_paths()
        if problem:
            raise ArchportError(f"a batch of {self.shape.B} x {self.shape.L:,} tokens can't be planned so: {problem}")

    def _gap(self) -> str:
        """Where the steps leave the order of the tokens; "" when they run each once."""
        at = 0
        for step in self.steps:
            if step.start != at or not 0 < step.tokens <= self.chunk:
                return (
                    f"a step of {step.tokens:,} tokens from {step.start:,} on; expected one of 1 to {self.chunk:,} "
                    f"from {at:,} on"
                )
            at += step.tokens
        return "" if at == self.shape.L else f"its steps end at token {at:,}; expected {self.shape.L:,}"

    def _wrong_rows(self) -> str:
        """What of the rows has no place in the padded shape; "" when all have."""
        B, held = (1, sum(self.lengths)) if self.packed else (len(self.lengths), max(self.lengths, default=0))
        if len(self.rows) != len(self.lengths) or len(set(self.rows)) != len(self.rows):
            return f"rows {self.rows} of lengths {self.lengths}; expected each once, with its length"
        if B != self.shape.B or min(self.lengths, default=0) < 1 or held > self.shape.L:
            return f"{B} rows of {held:,} tokens; expected {self.shape.B} of 1 to {self.shape.L:,}"
        if self.visible and len(self.visible) != len(self.rows):
            return f"{len(self.visible)} numbers of visible tokens for {len(self.rows)} rows"
        pictures = sorted(picture for step in self.vision for picture in step.pictures)
        if pictures != list(range(len(pictures))):
            return f"passes through the vision tower with pictures {pictures}; expected each once"
        return ""

    def _wrong_paths(self) -> str:
        """What step has a path for something else; "" when none has."""
        decode = () if self.decode is None else (self.decode,)
        for step in (*self.steps, *decode):
            rows = self.shape.B * (self.answers if step is self.decode else 1)
            if len(step.paths) != len(self.kinds):
                return f"{len(step.paths)} paths for {len(self.kinds)} kinds of layer"
            for path in step.paths:
                if isinstance(path, AttentionPath) and (path.call.B, path.call.q_len) != (rows, step.tokens):
                    call = path.call
                    return f"a path for {call.B} x {call.q_len:,} queries in a step of {step.tokens:,} tokens"
        if self.decode is not None:
            # Behind the fullest row, which some of these lengths make; its last token but one is written.
            ahead = max(self.shape.new_tokens, 1) - 1
            if self.decode.tokens != 1 or not min(self.lengths) <= self.decode.start - ahead <= max(self.lengths):
                return (
                    f"it decodes {self.decode.tokens} tokens from {self.decode.start:,} on; expected one, "
                    f"{ahead:,} behind rows of {min(self.lengths):,} to {max(self.lengths):,}"
                )
        return ""

    @property
    def peak(self) -> int:
        return sum(self.bytes.values())

    @property
    def decode_seconds(self) -> float:
        return 0.0 if self.decoding is None else self.decoding.seconds

    @property
    def seconds(self) -> float:
        """Estimated time of the batch, decoding included."""
        return self.prefill_seconds + self.decode_seconds


class Origin(Protocol):
    """What made a plan, asked for what only a reader wants to know and what would take time to work out for all."""

    def minimum(self) -> int:
        """The smallest peak that any schedule of the request has, in bytes."""
        ...

    def cost(self, plan: Plan) -> str:
        """What a budget below twice the minimum costs in time, in words; "" above it."""
        ...

    def against(self, path: AttentionPath) -> tuple[tuple[str, str], ...]:
        """What speaks against the backends that a path does not take: names and reasons."""
        ...


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
        origin: what made it, for `minimum`, `cost` and reasons.
        notes: assumptions and pins that the reader should know.
        host_bytes: bytes of host memory that pictures and video take at the peak, apart from the device's `peak`.

    Raises:
        ArchportError: when its batches do not hold every row exactly once.
    """

    arch: str
    mode: Mode
    device: DeviceFacts
    dtype: DType
    budget: int
    max_context: int
    layer_kinds: tuple[int, ...]
    batches: tuple[BatchPlan, ...]
    origin: Origin = field(repr=False, compare=False)
    vision_kinds: tuple[int, ...] = ()
    notes: tuple[str, ...] = field(default=())
    host_bytes: int = 0

    def __post_init__(self) -> None:
        rows = sorted(row for batch in self.batches for row in batch.rows)
        if rows != list(range(len(rows))):
            raise ArchportError(f"a plan whose batches hold rows {rows}; expected each row of the request once")

    @property
    def minimum(self) -> int:
        """The smallest peak that any schedule of this request has, in bytes: a budget of so many is enough."""
        return self.origin.minimum()

    @property
    def cost(self) -> str:
        """What a budget below twice the minimum costs in time; "" above it."""
        return self.origin.cost(self)

    def against(self, path: AttentionPath) -> tuple[tuple[str, str], ...]:
        """What speaks against the backends that a path of this plan does not take: names and reasons."""
        return path.against or self.origin.against(path)

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
        """Estimated time of the request, decoding included."""
        return self.prefill_seconds + self.decode_seconds

    @property
    def prefill_seconds(self) -> float:
        return sum(batch.prefill_seconds for batch in self.batches)

    @property
    def decode_seconds(self) -> float:
        return sum(batch.decode_seconds for batch in self.batches)

    @property
    def overhead(self) -> float:
        """Share of the prefill's time that evaluations within passes cost."""
        total = self.prefill_seconds
        return sum(batch.overhead * batch.prefill_seconds for batch in self.batches) / total if total else 0.0

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
