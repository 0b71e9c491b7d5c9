"""The words in which attention is planned: a call, its limits, a price, a chosen path, and what a backend is.

Pure data and protocols. Knows nothing of arrays beyond their names, of devices beyond their facts, or of any backend.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast, get_args

from archport.contract.deprecation import spelt
from archport.contract.device import DeviceFacts
from archport.contract.errors import SpecError, shown
from archport.contract.spec import AttentionLayer, DType, Semantics, itemsize

if TYPE_CHECKING:
    import mlx.core as mx

# What a call may ask for beyond visibility, and a backend has to name in its `features` before it is asked.
Feature = Literal["softcap", "bias", "content", "chunk", "spans"]
MaskKind = Literal["none", "causal", "window", "documents", "key_padding", "dense"]
Reach = tuple[int | None, int | None]
# Tokens [start, stop) that see each other whichever comes first.
Span = tuple[int, int]


def row_spans(spans: Sequence[Sequence[int]], length: int) -> tuple[Span, ...] | None:
    """The spans of a row of `length` tokens, but those of one token, which sees itself anyway.

    None where they are no (start, stop) within the row, ascending and apart from each other.
    """
    edges = [int(edge) for span in spans for edge in span]
    if any(len(span) != 2 for span in spans) or any(b < a for a, b in pairwise((0, *edges, length))):
        return None
    pairs = zip(edges[::2], edges[1::2], strict=True)
    return tuple((start, stop) for start, stop in pairs if stop - start > 1)


@dataclass(frozen=True, slots=True)
class MaskPolicy:
    """How a layer's visibility is handed to attention.

    Args:
        kind: `none` (every key visible), `causal` (lower-right aligned), `window` (the layer's reach, and spans),
            `documents` (one call per document), `key_padding` (an array of (B,1,1,S)) or `dense` (one of (B,1,L,S)).
        why: the reason, for `explain()`.
    """

    kind: MaskKind
    why: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", spelt(self.kind))
        if self.kind not in get_args(MaskKind):
            raise SpecError(f"mask policy: kind={self.kind!r}; expected one of {', '.join(get_args(MaskKind))}")

    def contradicts(self, semantics: Semantics) -> bool:
        """Whether no layer with these semantics can be right under this policy, whatever the lengths."""
        return self.kind == "causal" and semantics == "bidirectional"


@dataclass(frozen=True, slots=True)
class AttentionLimits:
    """What one attention call may use. Fixed numbers of a request, never what happens to be free.

    Args:
        transient_bytes: bytes above live inputs and output at the peak; None takes `transient_on(device)`.
        dispatch_seconds: longest stretch between two evaluations where the device has a watchdog.
        chunk_threshold: keys from which the chunked backend is eligible.
        chunk_size: keys per chunk.
        force_chunk: take the chunked backend from `chunk_threshold` keys on, whatever is faster.
    """

    transient_bytes: int | None = None
    dispatch_seconds: float = 0.5
    chunk_threshold: int = 65_536
    chunk_size: int = 32_768
    force_chunk: bool = False

    def __post_init__(self) -> None:
        for name in ("chunk_threshold", "chunk_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise SpecError(f"attention limits: {name}={shown(value)}; expected a number of keys >= 1")
        # Whoever makes limits may have no type checker.
        held, seconds, force = cast("tuple[Any, ...]", (self.transient_bytes, self.dispatch_seconds, self.force_chunk))
        if held is not None and (not isinstance(held, int) or isinstance(held, bool) or held < 0):
            raise SpecError(f"attention limits: transient_bytes={shown(held)}; expected bytes >= 0, or None")
        if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not seconds > 0:
            raise SpecError(f"attention limits: dispatch_seconds={shown(seconds)}; expected seconds > 0")
        if not isinstance(force, bool):
            raise SpecError(f"attention limits: force_chunk={shown(force)}; expected True or False")

    def transient_on(self, device: DeviceFacts) -> int:
        """Bytes a call may hold above its inputs and output on this device."""
        if self.transient_bytes is not None:
            return self.transient_bytes
        # On a CPU small tiles cost nothing and stay in the cache; a GPU wants tiles that fill it.
        return 64 * 2**20 if device.kind == "cpu" else device.default_budget // 32

    def seconds_on(self, device: DeviceFacts) -> float | None:
        """Longest stretch between two evaluations on this device; None where nothing watches."""
        if device.watchdog_seconds is None:
            return None
        return min(self.dispatch_seconds, device.watchdog_seconds)


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """The numbers of one scaled-dot-product attention, before any array exists.

    Query row i of a row with q queries and s keys stands at position s - q + i (lower-right alignment). It sees key j
    when j lies within `visible_reach` of it, when j is a real key of its row (or of its document), and when the array
    mask, if there is one, admits it. Under `none` and `causal` q and s are q_len and kv_len, and lengths only say which
    query rows are padding; under the other kinds they are those of the row or document.

    Args:
        B, n_heads, n_kv_heads, q_len, kv_len, head_dim, v_head_dim: shape; q is (B, n_heads, q_len, head_dim).
        dtype: the promoted element type of q, k and v.
        mask: what the call must make visible.
        reach: (left, right) of the layer, None unlimited; read when `mask` is `window`, `documents`, `key_padding` or
            `dense`. A causal layer reaches 0 to the right.
        lengths: real keys per row, or per document when `mask` is `documents`; empty when all are `kv_len`.
            Documents in one row (B == 1) lie one after another; with B > 1 each row is one document.
        q_lengths: real queries per row or document; empty when they are `lengths` (q_len == kv_len) or `q_len` (else).
            The rows after them are padding and come out as zeros.
        additive: whether an array mask is added to the scores (in q's dtype) instead of a bool.
        mask_shape: broadcast shape of an array mask that the caller hands over; empty when there is none.
        sinks: whether the softmax holds a sink logit per head.
        limits: what the call may use.
        softcap: c of scores that become c * tanh(score / c) before anything is hidden; None for none.
        bias: whether `run` is handed a rule that says what is added to the scores, by distance and head; "content":
            by vectors of each distance, which queries and keys meet.
        chunk: positions per chunk where a query sees only keys of its own, read like `reach`; None: it sees across.
        start: position of key 0 in its chunk; 0 in a document that begins in this call.
        spans: per row the keys [start, stop) whose tokens see each other to the right too, read like `reach`; ascending
            and apart from each other, each with all of its queries in this call. One entry where all rows have the
            same; empty where none has any.
    """

    B: int
    n_heads: int
    n_kv_heads: int
    q_len: int
    kv_len: int
    head_dim: int
    v_head_dim: int
    dtype: DType
    mask: MaskKind = "none"
    reach: Reach = (None, None)
    lengths: tuple[int, ...] = ()
    q_lengths: tuple[int, ...] = ()
    additive: bool = False
    mask_shape: tuple[int, ...] = ()
    sinks: bool = False
    limits: AttentionLimits = field(default_factory=AttentionLimits)
    softcap: float | None = None
    bias: bool | Literal["content"] = False
    chunk: int | None = None
    start: int = 0
    spans: tuple[tuple[Span, ...], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "mask", spelt(self.mask))

    @classmethod
    def of(
        cls,
        layer: AttentionLayer,
        policy: MaskPolicy,
        device: DeviceFacts,
        *,
        B: int,
        q_len: int,
        kv_len: int,
        dtype: DType,
        lengths: tuple[int, ...] = (),
        q_lengths: tuple[int, ...] = (),
        limits: AttentionLimits | None = None,
        start: int = 0,
        spans: tuple[tuple[Span, ...], ...] = (),
    ) -> AttentionCall:
        """The call of one layer under a mask policy.

        Args:
            q_len, kv_len: padded tokens of this step, and padded keys including cached ones.
            lengths, q_lengths: as in the class; handed on as they are.
            start: position of key 0 in its row.
            spans: as in the class; left out where the layer knows none.
        """
        kind = policy.kind
        reaching = kind in ("window", "documents", "key_padding", "dense")
        chunk = layer.chunk if reaching else None
        return cls(
            B=B,
            n_heads=layer.n_heads,
            n_kv_heads=layer.n_kv_heads,
            q_len=q_len,
            kv_len=kv_len,
            head_dim=layer.head_dim,
            v_head_dim=layer.v_head_dim,
            dtype=dtype,
            mask=kind,
            reach=layer.reach if reaching else (None, None),
            lengths=lengths,
            q_lengths=q_lengths,
            # A bool mask on CUDA becomes a full additive array; a broadcast additive one stays a view.
            additive=device.kind == "cuda" or bool(layer.bias),
            sinks=layer.sinks,
            limits=limits or AttentionLimits(),
            softcap=layer.softcap,
            bias=layer.bias,
            chunk=chunk,
            start=0 if chunk is None else start % chunk,
            spans=spans if reaching and layer.spans and any(spans) else (),
        )

    @property
    def features(self) -> tuple[Feature, ...]:
        """What a backend has to know for this call beyond visibility."""
        asked: dict[Feature, bool] = {
            "softcap": self.softcap is not None,
            "bias": self.bias is True,
            "content": self.bias == "content",
            "chunk": self.chunk is not None,
            "spans": bool(self.spans),
        }
        return tuple(name for name, needed in asked.items() if needed)

    @property
    def itemsize(self) -> int:
        return itemsize(self.dtype)

    @property
    def score_bytes(self) -> int:
        """Bytes of the score matrix that an unfused call materialises."""
        return self.B * self.n_heads * self.q_len * self.kv_len * self.itemsize

    @property
    def output_bytes(self) -> int:
        return self.B * self.n_heads * self.q_len * self.v_head_dim * self.itemsize

    @property
    def real_queries(self) -> tuple[int, ...]:
        """Real queries per row (per document under `documents`); empty when every query is real."""
        return self.q_lengths or (self.lengths if self.q_len == self.kv_len else ())

    @property
    def visible_reach(self) -> Reach:
        """Keys seen to the (left, right) of a query, excluding its own position; None unlimited."""
        if self.mask == "causal":
            return (None, 0)
        return (None, None) if self.mask == "none" else self.reach


@dataclass(frozen=True, slots=True)
class Price:
    """What running one AttentionCall costs, and the decisions that the price rests on.

    Args:
        transient: bytes above live inputs at the peak, the output excluded.
        output: bytes of the output.
        largest_buffer: bytes of the largest single allocation.
        flops: arithmetic of the whole call.
        dispatch_flops: arithmetic of the largest stretch between two evaluations.
        q_tile: query rows per tile; 0 when the call is not tiled.
        k_chunk: keys per chunk; 0 when keys are not chunked.
        evaluations: how often the graph is evaluated; 0 when the call stays lazy.
        depth: tiles in flight at once.
        lanes: (row, kv head) pairs per tile; 0 when a tile holds them all.
        seconds: estimated time of the whole call on the device; a ranking, not a promise.
        dispatch_seconds: estimated time of the largest stretch between two evaluations.
        route: which kernel runs: MLX's `fused`, `forced` (fused only under force_fused) or `composite`; archport's own
            on CUDA by what multiplies, `wgmma` or `mma`, or `split` where the keys are divided; "" for mixed.
        padded: (head_dim, v_head_dim) after zero-padding; (0, 0) when not padded.
        parts: the path of each group of documents, in order, when the call runs per document.
        rounds: how many parts run between two evaluations, in order.
    """

    transient: int
    output: int
    largest_buffer: int
    flops: float
    dispatch_flops: float
    q_tile: int = 0
    k_chunk: int = 0
    evaluations: int = 0
    depth: int = 1
    lanes: int = 0
    seconds: float = 0.0
    dispatch_seconds: float = 0.0
    route: str = ""
    padded: tuple[int, int] = (0, 0)
    parts: tuple[AttentionPath, ...] = ()
    rounds: tuple[int, ...] = ()

    def excess(self, call: AttentionCall, device: DeviceFacts) -> str:
        """Why this price breaks the call's limits on this device, with both numbers; "" when it keeps them."""
        limit = call.limits.transient_on(device)
        if self.transient > limit:
            return f"needs {self.transient:,} bytes of scratch, {limit:,} allowed"
        if device.max_buffer is not None and self.largest_buffer > device.max_buffer:
            return f"needs one buffer of {self.largest_buffer:,} bytes, the device's largest is {device.max_buffer:,}"
        seconds = call.limits.seconds_on(device)
        if seconds is not None and self.dispatch_seconds > seconds:
            return f"one dispatch takes about {self.dispatch_seconds:.2f} s, the watchdog bound is {seconds:.2f} s"
        return ""


@dataclass(frozen=True, slots=True)
class DistanceVectors:
    """What a rule answers whose numbers depend on content: each score has two products of its distance's vectors added.

    Args:
        queries: vectors (H, n, Dh) that queries are multiplied by; None where they meet none.
        keys: the same for keys.
    """

    queries: mx.array | None
    keys: mx.array | None


class DistanceBias(Protocol):
    """What attention adds to its scores, as a rule: a number per head for each distance between a query and a key.

    A tile asks for the distances that occur in it, so nobody ever holds a number per query and key of a whole call.
    One object that several layers hand to `attend` is asked once for all of them; where its numbers depend on content,
    once per layer.
    """

    def __call__(self, distances: mx.array) -> mx.array | DistanceVectors:
        """Numbers (H, n) for distances (n,) int32: position of the key less that of the query, below 0 for the past.

        Where the spec says `bias="content"`, vectors of each distance instead. They are multiplied by queries and keys
        as these are handed over: what scales scores has to scale the vectors.
        """
        ...


class Backend(Protocol):
    """One way to run scaled-dot-product attention. The object that prices a call is the object that runs it.

    A backend that also runs calls with a soft cap or a bias says so by an attribute `features`, a set of `Feature`;
    one without is never asked about such calls. One that is written for some kinds of device names them by an attribute
    `devices`, a set of `DeviceKind`, and is not asked on others. `run` is handed `bias=` (a `DistanceBias`) where
    `call.bias` is set.
    """

    @property
    def name(self) -> str:
        """How plans, hooks and arguments name it."""
        ...

    def reasons_against(self, call: AttentionCall, device: DeviceFacts) -> list[str]:
        """Why this backend can't run the call on this device, one sentence each; empty means usable."""
        ...

    def price(self, call: AttentionCall, device: DeviceFacts) -> Price:
        """What the call costs here. Touches no array. Only asked when `reasons_against` is empty.

        A backend that can trade size for time keeps `call.limits` where it can; `Price.excess` says whether it did.
        """
        ...

    def run(
        self,
        call: AttentionCall,
        price: Price,
        q: mx.array,
        k: mx.array,
        v: mx.array,
        *,
        scale: float,
        mask: mx.array | None = None,
        sinks: mx.array | None = None,
    ) -> mx.array:
        """Attention of q (B, H, L, Dh), k (B, K, S, Dh), v (B, K, S, Dv) -> (B, H, L, Dv), as priced.

        Rows that see no key come out finite, whatever they hold. Padded rows are left to the caller.
        """
        ...


@dataclass(frozen=True, slots=True)
class AttentionPath:
    """A call, the backend chosen for it, what it costs, and why not the others. Planned once, then enforced.

    Args:
        against: backend name -> why it was not taken, for `explain()`.
        excess: why even the chosen path breaks the call's limits; "" when it keeps them. A plan refuses such a path.
        chosen_at: the path of the rows that stood for these when the backend was chosen, with the reasons of that
            choice; None where it was chosen at this very call.
    """

    call: AttentionCall
    backend: Backend
    price: Price
    against: tuple[tuple[str, str], ...] = ()
    excess: str = ""
    chosen_at: AttentionPath | None = field(default=None, repr=False, compare=False)


_KIND_WORDS = {"cpu": "a CPU", "cuda": "a CUDA GPU", "metal": "a Metal GPU"}
_FEATURE_WORDS: dict[Feature, str] = {
    "softcap": "a soft cap",
    "bias": "a bias by distance",
    "content": "a bias by distance and content",
    "chunk": "attention within chunks",
    "spans": "spans whose tokens see each other",
}


def unsuited(backend: Backend, device: DeviceFacts) -> list[str]:
    """Why a backend may not be asked about calls on a device: it is written for other kinds."""
    kinds: Collection[str] = getattr(backend, "devices", (device.kind,))
    if device.kind in kinds:
        return []
    written = " and ".join(_KIND_WORDS[kind] for kind in sorted(kinds))
    return [f"it is written for {written}, and MLX computes on {_KIND_WORDS[device.kind]}"]


def missing_features(backend: Backend, call: AttentionCall) -> list[str]:
    """Why a backend may not be asked about a call: what the call needs and the backend does not name."""
    # Backends written before features existed have no such attribute, and would leave out what they do not know.
    known: Collection[str] = getattr(backend, "features", ())
    return [f"it does not run {_FEATURE_WORDS[name]}" for name in call.features if name not in known]


class PathChooser(Protocol):
    """Chooses the path of a call. The engine hands one to the planner, so planning never imports attention."""

    def __call__(self, call: AttentionCall, device: DeviceFacts, pin: str | None = None) -> AttentionPath:
        """The fastest path within the call's limits, or the pinned one.

        When nothing fits, the path that needs least, with `excess` set.

        Raises:
            InputError: when no backend accepts the call, or the pinned one refuses it; the message has the reasons.
        """
        ...
