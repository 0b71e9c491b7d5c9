"""One MLX call for all queries. A fused kernel: by default, under force_fused, or after padding head dims with zeros.
Or scores that lie there whole: right when they are few, or when a fused kernel would be slower.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from archport.attention import prices
from archport.attention.masks import line_of, score_dtype
from archport.attention.mlx_call import Operands, attend_block
from archport.attention.prices import NO_SOFTCAP, FastCall, Routes, TableRoutes, padded_dims
from archport.attention.tiles import content_flops, largest_of_mask, lies_at_once, mask_bytes, whole
from archport.attention.visibility import Tile, visibility
from archport.contract.attention import AttentionCall, DistanceBias, Feature, Price
from archport.contract.device import DeviceFacts

if TYPE_CHECKING:
    import mlx.core as mx


Plain = Callable[["mx.array", "mx.array", "mx.array", float, "mx.array | None"], "mx.array"]


@dataclass(frozen=True, slots=True)
class OneCall:
    """What both ways share: the routes that tell them apart, and how they run."""

    routes: Routes = field(default_factory=TableRoutes)

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
        line = line_of(call, bias, score_dtype(call, q.dtype))
        tile = Tile(seen, 0, call.q_len, *seen.key_range(0, call.q_len))
        return attend_block(call, price, tile, Operands(q, k, v, scale, mask, sinks, line))

    def plain(self, call: AttentionCall, price: Price) -> Plain | None:
        """MLX's own call, where `run` comes down to that: no array mask, no keys cut off, no padded heads."""
        seen = visibility(call)
        lo, hi = seen.key_range(0, call.q_len)
        form = seen.form(0, call.q_len, lo, hi)
        if (
            form == "array"
            or call.bias
            or (lo, hi) != (0, call.kv_len)
            or call.softcap is not None
            or price.route == "forced"
            or price.padded != (0, 0)
        ):
            return None
        import mlx.core as mx

        told, fast = "causal" if form == "causal" else None, mx.fast.scaled_dot_product_attention
        return lambda q, k, v, scale, sinks: fast(q, k, v, scale=scale, mask=told, sinks=sinks)


@dataclass(frozen=True, slots=True)
class Fused(OneCall):
    """MLX's fused kernels: memory that does not grow with the scores."""

    features: frozenset[Feature] = frozenset({"bias", "content", "chunk", "spans"})
    name: str = "fused"

    def reasons_against(self, call: AttentionCall, device: DeviceFacts) -> list[str]:
        if call.mask == "documents":
            return ["documents are run one by one"]
        if call.softcap is not None:
            return [NO_SOFTCAP]
        if why := lies_at_once(call):
            return [why]
        if self._variants(call, device):
            return []
        return [self.routes.route(whole(call), device).why or "MLX has no fused kernel for this call"]

    def price(self, call: AttentionCall, device: DeviceFacts) -> Price:
        prices = [self._priced(call, device, *variant) for variant in self._variants(call, device)]
        # The first within the limits and fastest; padding that breaks them loses to a slower kernel that does not.
        return min(prices, key=lambda price: (bool(price.excess(call, device)), price.seconds))

    def _variants(self, call: AttentionCall, device: DeviceFacts) -> list[tuple[FastCall, str, tuple[int, int]]]:
        """Ways to reach a fused kernel: (the call MLX sees, route, padded dims)."""
        plain = whole(call)
        found: list[tuple[FastCall, str, tuple[int, int]]] = []
        for dims in ((0, 0), padded_dims(plain, device)):
            if dims == (0, 0) and found:
                break
            seen = plain if dims == (0, 0) else replace(plain, head_dim=dims[0], v_head_dim=dims[1])
            route = self.routes.route(seen, device)
            if route.kernel != "composite":
                # What MLX fuses unasked needs no second opinion.
                return [(seen, "fused", dims)]
            if route.forced is not None:
                found.append((seen, "forced", dims))
        return found

    def _priced(
        self, call: AttentionCall, device: DeviceFacts, seen: FastCall, route: str, padded: tuple[int, int]
    ) -> Price:
        answer = self.routes.route(seen, device)
        kernel = answer.kernel if route == "fused" else answer.forced
        assert kernel is not None
        held = prices.transient(seen, kernel, device.kind) + mask_bytes(call, seen) + prices.SLACK[device.kind]
        time = prices.seconds(seen, kernel, device)
        if padded != (0, 0):
            copied = seen.itemsize * (
                seen.B * seen.n_kv_heads * seen.kv_len * sum(padded) + seen.B * seen.n_heads * seen.q_len * sum(padded)
            )
            held += copied
            time += 2 * copied / prices.bandwidth(device)
        return Price(
            transient=held,
            output=call.output_bytes,
            largest_buffer=max(prices.largest_buffer(seen, kernel, device.kind), largest_of_mask(call, seen)),
            flops=seen.flops,
            dispatch_flops=seen.flops,
            seconds=time,
            dispatch_seconds=time,
            route=route,
            padded=padded,
        )


@dataclass(frozen=True, slots=True)
class Composite(OneCall):
    """MLX's unfused attention in one call: scratch of the whole score matrix."""

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
