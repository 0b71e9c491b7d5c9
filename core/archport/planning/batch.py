"""What a call asks, the rows of it that run together, and what a schedule costs them. Pure data that checks itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from archport.contract import (
    ArchportError,
    AttentionPath,
    BatchShape,
    InputError,
    KVAllocation,
    LayerSpec,
    MaskPolicy,
    RecurrentPath,
    Span,
)
from archport.contract.errors import shown

# What keeps a prefill chunk from being larger: the row ends, memory, the largest buffer, the work between two
# evaluations, a hook, the caller, or that more gains nothing on this kind of device.
ChunkBound = Literal["row", "memory", "buffer", "work", "hook", "caller", "device"]
Mode = Literal["embed", "generate"]
# Arrays of a vocabulary's logits while the likeliest token is taken: those of this step and of the next, which is
# started before this one is looked at, each with what it is cut out of, and whether they are finite.
GREEDY_LOGITS = 6


@dataclass(frozen=True, slots=True)
class Readout:
    """Some equal arrays that exist at once while a head reads a batch's hidden states.

    Args:
        name: of the array, for refusals.
        component: the part of a plan's bytes that they belong to.
        arrays: how many exist at once.
        token: bytes of one array per token of the batch, padding included.
        fixed: bytes of one array whatever the batch holds.
        most: tokens that are read at a time; None reads those of the batch together.
        then: what is read of the same hidden states when these arrays are gone.
    """

    name: str
    component: Literal["outputs", "logits"]
    arrays: int
    token: int = 0
    fixed: int = 0
    most: int | None = None
    then: Readout | None = None

    def each(self, tokens: int) -> int:
        """Bytes of the largest array, for a step of so many tokens."""
        return max(self._one(tokens), 0 if self.then is None else self.then.each(tokens))

    def total(self, tokens: int) -> int:
        """Bytes of all that exist at once."""
        return max(self.arrays * self._one(tokens), 0 if self.then is None else self.then.total(tokens))

    def _one(self, tokens: int) -> int:
        return self.fixed + self.token * (tokens if self.most is None else min(tokens, self.most))


def whole(name: str, values: Sequence[int], least: int) -> tuple[int, ...]:
    """The values, each an integer of at least `least`; raises InputError otherwise."""
    for value in values:
        # bool is an int, and a plan for True tokens would be nonsense.
        if not isinstance(value, int) or isinstance(value, bool) or value < least:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(f"{name}={shown(value)}; expected an integer >= {least}")
    return tuple(values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a call asks, checked; sequences become tuples.

    Args:
        lengths: new tokens per row.
        cached: tokens already cached per row; empty for none. They widen what queries see and are resident; they do
            not grow the cache.
        new_tokens: tokens per row to reserve for decoding; None when unknown, then caches grow on demand.
        mode: `embed` (rows may be split into groups) or `generate` (all rows keep their KV); None: `generate` when
            tokens are to be decoded.
        images: per row the patches of its pictures, in order; empty when no row has any.
        visible: per row the leading tokens that any token may see, those after them being computed all the same; empty
            when all are seen.
        spans: per row the stretches (start, stop) of its new tokens that see each other whichever comes first, in order
            and apart; empty when no row has any.
        readout: what a head needs after the last layer; None for nothing to speak of.
        resident: bytes that something else of this process holds, such as a prefix cache; the budget is less by them.
        pack: whether the caller takes packed batches, where they are cheaper.
        answers: rows that each row becomes when it is decoded: its caches are copied so often once it is read.
        chunk: the largest prefill chunk the caller admits.
        backend: attention backend to use for every layer.
        tokens_per_batch: padded tokens per batch; the device kind's default when left out.
        dense: price one unsplit mask of (B,1,S,S) in float32 instead of planning around it.

    Raises:
        InputError: an argument that is no number of tokens or bytes.
    """

    lengths: Sequence[int]
    cached: Sequence[int] = ()
    new_tokens: int | None = 0
    mode: Mode | None = None
    images: Sequence[Sequence[int]] = ()
    visible: Sequence[int] = ()
    spans: Sequence[Sequence[Span]] = ()
    readout: Readout | None = None
    resident: int = 0
    pack: bool = False
    answers: int = 1
    chunk: int | None = None
    backend: str | None = None
    tokens_per_batch: int | None = None
    dense: bool = False

    def __post_init__(self) -> None:
        rows = whole("lengths", self.lengths, 1)
        cached = whole("cached", self.cached, 0) or (0,) * len(rows)
        if not rows or len(cached) != len(rows):
            raise InputError(
                f"{len(rows)} lengths and {len(cached)} cached counts; expected at least one length, and as many of "
                "both"
            )
        for name, value, least in (
            ("new_tokens", self.new_tokens, 0), ("chunk", self.chunk, 1), ("answers", self.answers, 1),
        ):  # fmt: skip
            if value is not None:
                whole(name, [value], least)
        visible = whole("visible", self.visible, 1)
        if visible and (len(visible) != len(rows) or any(map(int.__gt__, visible, rows))):
            raise InputError(f"visible: {visible} of rows of {rows} tokens; expected as many, none longer")
        checked = {
            "lengths": rows,
            "cached": cached,
            "visible": () if visible == rows else visible,
            "images": tuple(map(tuple, self.images)) if any(self.images) else (),
            "mode": self.mode or ("embed" if self.new_tokens == 0 else "generate"),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @property
    def generates(self) -> bool:
        """Whether all rows keep what they leave behind, to be decoded together."""
        return self.mode == "generate"

    @property
    def new(self) -> int:
        """Tokens to reserve for decoding."""
        return self.new_tokens or 0

    @property
    def wishes(self) -> tuple[object, ...]:
        """What tells this request from others for the same model, its rows excepted."""
        return (
            self.mode, self.new_tokens, self.resident, self.backend, self.chunk, self.tokens_per_batch, self.readout,
            self.pack, self.answers,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows that run together, before a schedule is found.

    Args:
        lengths: new tokens per row.
        cached: cached tokens per row.
        shape: their padded shape.
        request: what they are of.
        others: whether other batches run before or after this one.
        dense: whether one mask of (B,1,S,S) in float32 is to be built, as a naive implementation does.
        pictures: patches of each picture, in the order of rows and of tokens in them.
        visible: leading tokens of each row that any token sees; empty when all are.
        packed: whether the rows are documents of a single packed row, which `shape` is of.
        spans: per row the stretches of new tokens that see each other; empty when no row has any.
    """

    lengths: tuple[int, ...]
    cached: tuple[int, ...]
    shape: BatchShape
    request: Request = field(repr=False, compare=False)
    others: bool = False
    dense: bool = False
    pictures: tuple[int, ...] = ()
    visible: tuple[int, ...] = ()
    packed: bool = False
    spans: tuple[tuple[Span, ...], ...] = ()

    @property
    def even_start(self) -> bool:
        """Whether new tokens stand at one position in all rows."""
        return min(self.cached) == max(self.cached)

    @property
    def even_end(self) -> bool:
        """Whether all rows hold equally many tokens once they are prefilled."""
        return len({cached + new for cached, new in zip(self.cached, self.lengths, strict=True)}) == 1


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
        start: position of its first token after the cached ones.
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
    """Estimated time of decoding: passes of one token per row, after a cache that grows.

    Args:
        steps: passes; the first new token costs none, for it is read from the prefill.
        seconds: of all of them.
        first, last: seconds of a pass after the prompt alone, and at the fullest cache.
    """

    steps: int
    seconds: float
    first: float
    last: float


@dataclass(frozen=True, slots=True)
class Prefill:
    """The steps of a batch, and per kind of layer the mask policy and what hooks fixed, in words."""

    steps: tuple[StepPlan, ...]
    masks: tuple[MaskPolicy | None, ...]
    pins: tuple[tuple[str, ...], ...]

    @property
    def exceeds(self) -> bool:
        """Whether some path breaks the limits it was chosen within."""
        return any(path.excess for step in self.steps for path in step.paths if isinstance(path, AttentionPath))


@dataclass(frozen=True, slots=True)
class Schedule:
    """How a batch is run: tokens per step, layers between evaluations, stretches unfinished at once.

    With `split` a stretch ends before and after every attention: two stretches are then one layer.

    Args:
        scratch: bytes above its inputs that one attention call may use; where no path does with so little, the one that
            needs least is taken. None: what the budget leaves, rounded down to one of `scratch_levels`.
        lean_tower: whether pictures pass the tower in the fewest bytes, whatever the budget leaves.
        bound, why: what keeps the chunk from being larger, and that in words; "" where `bound` says it all.
        pace: why the graph is not evaluated less often; "" where the device says it all.
    """

    chunk: int
    eval_every_layers: int
    in_flight: int
    split: bool = False
    scratch: int | None = None
    lean_tower: bool = False
    bound: ChunkBound = "row"
    why: str = ""
    pace: str = ""

    def stretches(self, layers: int) -> int:
        """Evaluations of one pass through so many layers."""
        return max(1, 2 * layers if self.split else -(-layers // self.eval_every_layers))


@dataclass(frozen=True, slots=True)
class Estimate:
    """The cost of a batch under a schedule by the first of its steps, the last full one and the last.

    No byte, buffer or stretch of it is above what all steps together need, so its problem is theirs.

    Args:
        schedule: with its scratch settled.
        kinds: decisions per kind of layer.
        steps: prefill in order. The paths in them are the ones that run.
        bytes: components that add up to the peak.
        buffer: the largest single allocation.
        work: the largest stretch between two evaluations.
        seconds: estimated time of the prefill.
        overhead: share of it that evaluations within a pass cost.
        evaluations: how often the graph is evaluated for all steps.
        stretch: bytes that one stretch may hold, in a block that pauses and in one that does not.
        vision: passes through the vision tower.
        problem: what breaks a limit, in words; "" when nothing does.
        binds: `memory`, `buffer` or `work`; None without a problem.
    """

    schedule: Schedule
    kinds: tuple[KindPlan, ...]
    steps: tuple[StepPlan, ...]
    bytes: dict[str, int]
    buffer: Buffer
    work: Work
    seconds: float
    overhead: float
    evaluations: int
    stretch: tuple[int, int]
    vision: tuple[VisionStep, ...] = ()
    problem: str = ""
    binds: ChunkBound | None = None

    @property
    def peak(self) -> int:
        return sum(self.bytes.values())


@dataclass(frozen=True, slots=True)
class Quote(Estimate):
    """The cost of a batch under a schedule by all of its steps: what a batch can run by.

    Raises:
        ArchportError: when its steps leave a gap.
    """

    def __post_init__(self) -> None:
        for step, following in pairwise(self.steps):
            if step.start + step.tokens != following.start:
                raise ArchportError(
                    f"a quote of steps {step.start:,} + {step.tokens:,} and {following.start:,} leaves tokens out; "
                    "only an estimate may price some of the steps"
                )
