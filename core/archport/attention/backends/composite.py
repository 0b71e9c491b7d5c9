"""One MLX call that materialises the scores: right when they are few, or when a fused kernel would be slower."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from archport.attention import prices
from archport.attention.bias import line_of, score_dtype
from archport.attention.blocks import content_flops, largest_of_mask, lies_at_once, mask_bytes, whole
from archport.attention.mlx_call import attend_block
from archport.attention.routes import Routes, TableRoutes
from archport.attention.visibility import visibility
from archport.contract.attention import AttentionCall, DistanceBias, Feature, Price
from archport.contract.device import DeviceFacts

if TYPE_CHECKING:
    import mlx.core as mx


@dataclass(frozen=True, slots=True)
class Composite:
    """MLX's unfused attention in one call: scratch of the whole score matrix."""

    routes: Routes = field(default_factory=TableRoutes)
    features: frozenset[Feature] = frozenset({"softcap", "bias", "content", "chunk", "spans"})
    name: str = "composite"

    def reasons_against(self, call: AttentionCall, device: DeviceFacts) -> list[str]:
        if call.mask == "documents":
            return ["documents are run one by one"]
        if self.routes.route(whole(call), device).kernel != "composite":
            return ["MLX runs a fused kernel for this call"]
        if call.spans and (why := lies_at_once(call)):
            return [why]
        return []

    def price(self, call: AttentionCall, device: DeviceFacts) -> Price:
        seen = whole(call)
        built = mask_bytes(call, seen)
        met = content_flops(call, seen.q_len, seen.kv_len)
        time = prices.seconds(seen, "composite", device) + prices.content_seconds(
            met, call.head_dim, device, call.dtype
        )
        return Price(
            transient=prices.transient(seen, "composite", device.kind) + built + prices.SLACK[device.kind],
            output=call.output_bytes,
            largest_buffer=max(prices.largest_buffer(seen, "composite", device.kind), largest_of_mask(call, seen)),
            flops=seen.flops + met,
            dispatch_flops=seen.flops + met,
            seconds=time,
            dispatch_seconds=time,
            route="composite",
        )

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
        bias: DistanceBias | None = None,
    ) -> mx.array:
        seen = visibility(call)
        lo, hi = seen.key_range(0, call.q_len)
        line = line_of(call, seen, bias, score_dtype(call, q.dtype))
        return attend_block(
            call, price, seen, q, k, v, 0, call.q_len, lo, hi, scale=scale, mask=mask, sinks=sinks, bias=line
        )
