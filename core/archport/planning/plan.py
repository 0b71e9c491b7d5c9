"""What a plan is: the batches, chunks, paths and bytes that a request will run with. The runtime obeys it.

Data that checks itself: a batch whose steps leave out a token, or run one twice, can't be made. Decides nothing; what
only a reader asks for is worked out by the plan's origin when it is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from archport.contract import ArchportError, AttentionPath, BatchShape, DeviceFacts, DType
from archport.contract.split import TensorSplit
from archport.planning.batch import Batch, Buffer, Decoding, KindPlan, Mode, Quote, Request, Schedule, StepPlan, Work

# The pool's limit in MLX's CPU build.
SMALLEST_POOL = 32 << 20
# Of the bytes that come and go, what the pool may hold beside all of them on CUDA: with none a corpus ran 1 % slower.
POOL_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """Rows that run together, and the quote they run by: steps that run each of their tokens once.

    Args:
        rows: their indices in the request, in the order of the batch.
        batch: their lengths and padded shape.
        quote: schedule, steps, bytes, seconds.
        decode: one decoded token at the fullest cache; None when nothing is decoded.
        decoding: estimated time of what follows the prefill; None when nothing is decoded.
        why: what keeps more rows out, in words.

    Raises:
        ArchportError: when the steps do not run every token exactly once, in order, in steps of at most `chunk`.
    """

    rows: tuple[int, ...]
    batch: Batch
    quote: Quote
    decode: StepPlan | None = None
    decoding: Decoding | None = None
    why: str = ""

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
        if self.batch.visible and len(self.batch.visible) != len(self.rows):
            return f"{len(self.batch.visible)} numbers of visible tokens for {len(self.rows)} rows"
        pictures = sorted(picture for step in self.quote.vision for picture in step.pictures)
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
    def lengths(self) -> tuple[int, ...]:
        """New tokens of each row, in the order of `rows`."""
        return self.batch.lengths

    @property
    def shape(self) -> BatchShape:
        """Rows, padded tokens, cached tokens, tokens to decode; whether rows differ in length.

        Of packed rows (1, all of their tokens and some).
        """
        return self.batch.shape

    @property
    def packed(self) -> bool:
        """Whether the rows are documents of a single packed row."""
        return self.batch.packed

    @property
    def answers(self) -> int:
        """Rows that each row becomes when it is decoded."""
        return self.batch.request.answers

    @property
    def schedule(self) -> Schedule:
        """Tokens per step, and how often the graph is evaluated."""
        return self.quote.schedule

    @property
    def kinds(self) -> tuple[KindPlan, ...]:
        """Decisions per kind of layer."""
        return self.quote.kinds

    @property
    def steps(self) -> tuple[StepPlan, ...]:
        """Prefill in order. The paths in them are the ones that run."""
        return self.quote.steps

    @property
    def chunk(self) -> int:
        """Tokens per prefill step; `shape.L` when the row is not split."""
        return self.quote.schedule.chunk

    @property
    def bytes(self) -> Mapping[str, int]:
        """Components that add up to the peak."""
        return self.quote.bytes

    @property
    def peak(self) -> int:
        return self.quote.peak

    @property
    def decode_seconds(self) -> float:
        return 0.0 if self.decoding is None else self.decoding.seconds

    @property
    def seconds(self) -> float:
        """Estimated time of the batch, decoding included."""
        return self.quote.seconds + self.decode_seconds


class Origin(Protocol):
    """What made a plan, asked for what only a reader wants to know and what would take time to work out for all."""

    def minimum(self, request: Request) -> int:
        """The smallest peak that any schedule of the request has, in bytes."""
        ...

    def cost(self, plan: Plan) -> str:
        """What a budget below twice the minimum costs in time, in words; "" above it."""
        ...

    def against(self, path: AttentionPath) -> tuple[tuple[str, str], ...]:
        """What speaks against the backends that a path does not take: names and reasons."""
        ...

    def explain(self, plan: Plan, *, verbose: bool) -> str:
        """Why every batch of a plan is as it is, in plain text."""
        ...

    def to_dict(self, plan: Plan) -> dict[str, Any]:
        """A plan as JSON-ready values."""
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
        planner: what made it, for `minimum`, `cost` and reasons.
        request: what it is the plan of.
        split: the group of processes that runs it, each by a plan of its own; None for one alone.
        notes: assumptions and pins that the reader should know.
        host_bytes: bytes of host memory that pictures and video take at the peak, apart from the device's `peak`.
        moving: bytes of the peak that are not there before the request runs: all but weights and what others hold.
            Tokens that an earlier call left are copied into the request's own caches, layer by layer as it runs. Each
            stretch of layers asks for it.

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
    planner: Origin = field(repr=False, compare=False)
    request: Request = field(repr=False, compare=False)
    vision_kinds: tuple[int, ...] = ()
    split: TensorSplit | None = None
    notes: tuple[str, ...] = field(default=())
    host_bytes: int = 0
    moving: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        rows = sorted(row for batch in self.batches for row in batch.rows)
        if rows != list(range(len(rows))):
            raise ArchportError(f"a plan whose batches hold rows {rows}; expected each row of the request once")
        moving = (batch.peak - batch.bytes["weights"] - batch.bytes.get("resident", 0) for batch in self.batches)
        object.__setattr__(self, "moving", max(moving, default=0))

    def __repr__(self) -> str:
        rows = sum(len(batch.rows) for batch in self.batches)
        return f"<plan of {rows:,} rows in {len(self.batches):,} batches for {self.arch} on {self.device.name}>"

    def __str__(self) -> str:
        return self.explain()

    def _repr_html_(self) -> str:
        from html import escape

        return f"<pre>{escape(self.explain())}</pre>"

    @property
    def minimum(self) -> int:
        """The smallest peak that any schedule of this request has, in bytes: a budget of so many is enough."""
        return self.planner.minimum(self.request)

    @property
    def cost(self) -> str:
        """What a budget below twice the minimum costs in time; "" above it."""
        return self.planner.cost(self)

    def against(self, path: AttentionPath) -> tuple[tuple[str, str], ...]:
        """What speaks against the backends that a path of this plan does not take: names and reasons."""
        return path.against or self.planner.against(path)

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
        return max((batch.quote.buffer for batch in self.batches), key=lambda buffer: buffer.bytes)

    @property
    def work(self) -> Work:
        return max((batch.quote.work for batch in self.batches), key=lambda work: work.seconds)

    @property
    def chunk(self) -> int:
        """Tokens per prefill step of the longest batch."""
        return max(self.batches, key=lambda batch: batch.shape.L).chunk

    @property
    def evaluations(self) -> int:
        return sum(batch.quote.evaluations for batch in self.batches)

    @property
    def seconds(self) -> float:
        """Estimated time of the request, decoding included."""
        return self.prefill_seconds + self.decode_seconds

    @property
    def prefill_seconds(self) -> float:
        return sum(batch.quote.seconds for batch in self.batches)

    @property
    def decode_seconds(self) -> float:
        return sum(batch.decode_seconds for batch in self.batches)

    @property
    def overhead(self) -> float:
        """Share of the prefill's time that evaluations within passes cost."""
        total = self.prefill_seconds
        return sum(batch.quote.overhead * batch.quote.seconds for batch in self.batches) / total if total else 0.0

    @property
    def shapes(self) -> frozenset[tuple[int, int]]:
        """Distinct (B, L) that reach the device."""
        return frozenset((batch.shape.B, step.tokens) for batch in self.batches for step in batch.steps)

    def ahead(self, batch: BatchPlan, *, paused: bool = True) -> int | None:
        """Bytes that may be in use when a batch's next stretch of layers is started; None where each is waited for.

        Args:
            paused: whether the stretch is one of those that the plan counted on.
        """
        if batch.schedule.in_flight < 2:
            return None
        return self.moving - batch.quote.stretch[0 if paused else 1]

    def explain(self, *, verbose: bool = False) -> str:
        """Why every batch is as it is, in plain text: rows, chunk, schedule, paths, each with what was rejected first.

        Args:
            verbose: of the largest batch every number, and every reason against every backend.
        """
        return self.planner.explain(self, verbose=verbose)

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON-ready values."""
        return self.planner.to_dict(self)
