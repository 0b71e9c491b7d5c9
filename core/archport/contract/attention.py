"""The words in which attention is planned: a call, a mask policy, a price, and what a backend is.

Pure data and protocols. Knows nothing of arrays beyond their names, of devices beyond their facts, or of any backend.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, get_args

from archport.contract.device import DeviceFacts
from archport.contract.errors import SpecError
from archport.contract.spec import DType, Semantics

if TYPE_CHECKING:
    import mlx.core as mx

MaskKind = Literal["none", "causal", "window", "segments", "key_padding", "dense"]


@dataclass(frozen=True, slots=True)
class MaskPolicy:
    """How a layer's visibility is handed to attention.

    Args:
        kind: `none` (every key visible), `causal` (lower-right aligned), `window` (the layer's reach), `segments` (one
            call per document), `key_padding` (an array of (B,1,1,S)) or `dense` (an array of (B,1,L,S)).
        why: the reason, for `explain()`.
    """

    kind: MaskKind
    why: str = ""

    def __post_init__(self) -> None:
        if self.kind not in get_args(MaskKind):
            raise SpecError(f"mask policy: kind={self.kind!r}; expected one of {', '.join(get_args(MaskKind))}")

    def contradicts(self, semantics: Semantics) -> bool:
        """Whether no layer with these semantics can be right under this policy, whatever the lengths."""
        return self.kind == "causal" and semantics == "bidirectional"


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """The numbers of one scaled-dot-product attention, before any array exists.

    Args:
        B, n_heads, n_kv_heads, q_len, kv_len, head_dim, v_head_dim: shape; q is (B, n_heads, q_len, head_dim).
        dtype: the promoted element type of q, k and v.
        mask: what the call must make visible.
        reach: (left, right) of the layer, None unlimited; read when `mask` is `window`.
        lengths: real keys per row (`key_padding`) or per document (`segments`); empty when all are `kv_len`.
        additive: whether an array mask is added to the scores (in q's dtype) instead of a bool.
        sinks: whether the softmax holds a sink logit per head.
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
    reach: tuple[int | None, int | None] = (None, None)
    lengths: tuple[int, ...] = ()
    additive: bool = False
    sinks: bool = False

    @property
    def itemsize(self) -> int:
        return 4 if self.dtype == "float32" else 2

    @property
    def score_bytes(self) -> int:
        """Bytes of the score matrix that an unfused call materialises."""
        return self.B * self.n_heads * self.q_len * self.kv_len * self.itemsize

    @property
    def output_bytes(self) -> int:
        return self.B * self.n_heads * self.q_len * self.v_head_dim * self.itemsize


@dataclass(frozen=True, slots=True)
class Price:
    """What running one AttentionCall costs.

    Args:
        transient: bytes above live inputs at the peak, the output excluded.
        output: bytes of the output.
        largest_buffer: bytes of the largest single allocation.
        flops: arithmetic of the whole call.
        dispatch_flops: arithmetic of the largest stretch between two evaluations.
        q_tile: query rows per tile; 0 when the call is not tiled.
        k_chunk: keys per chunk; 0 when keys are not chunked.
        evaluations: how often the graph is evaluated.
    """

    transient: int
    output: int
    largest_buffer: int
    flops: float
    dispatch_flops: float
    q_tile: int = 0
    k_chunk: int = 0
    evaluations: int = 0


class Backend(Protocol):
    """One way to run scaled-dot-product attention. The object that prices a call is the object that runs it."""

    @property
    def name(self) -> str:
        """How plans, hooks and arguments name it."""
        ...

    def reasons_against(self, call: AttentionCall, device: DeviceFacts) -> list[str]:
        """Why this backend can't run the call on this device, one sentence each; empty means usable."""
        ...

    def price(self, call: AttentionCall, device: DeviceFacts) -> Price:
        """What the call costs here. Touches no array. Only asked when `reasons_against` is empty."""
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
        """Attention of q (B, H, L, Dh), k (B, K, S, Dh), v (B, K, S, Dv) -> (B, H, L, Dv), as priced."""
        ...
