"""Query tiles with keys cut to the causal bound: scratch of one tile, and half the work of a causal square."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from archport.attention import run_tiles, tiles
from archport.attention.routes import Routes, TableRoutes
from archport.attention.visibility import Visibility, visibility
from archport.contract.attention import AttentionCall, DistanceBias, Feature, Price
from archport.contract.device import DeviceFacts

if TYPE_CHECKING:
    import mlx.core as mx

# A causal square cut into this many tiles costs 9/16 of itself; more tiles gain little.
CAUSAL_TILES = 8
ENOUGH_ROWS = {"cpu": 64, "metal": 512, "cuda": 512}


@dataclass(frozen=True, slots=True)
class Tiled:
    """Rows of queries one after another, each on the keys up to its last row's diagonal."""

    routes: Routes = field(default_factory=TableRoutes)
    features: frozenset[Feature] = frozenset({"softcap", "bias", "content", "chunk", "spans"})
    name: str = "tiled"

    def reasons_against(self, call: AttentionCall, device: DeviceFacts) -> list[str]:
        if call.mask == "documents":
            return ["documents are run one by one"]
        if visibility(call).windowed:
            return ["the window hides most keys from a tile; `banded` leaves them out"]
        return []

    def price(self, call: AttentionCall, device: DeviceFacts) -> Price:
        most = call.q_len
        if visibility(call).right is not None:
            most = max(ENOUGH_ROWS[device.kind], 1 << (max(1, call.q_len // CAUSAL_TILES).bit_length() - 1))
        return tiles.cheapest(call, device, self.routes, most_rows=most)

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
        return run_tiles.run(
            call, price, q, k, v, scale=scale, mask=mask, sinks=sinks, bias=bias, keys=Visibility.key_range
        )
