"""Query tiles with keys cut to what they see: scratch of one tile, and half the work of a causal square. Of a sliding
window each tile gets only the band of keys that its reach, left and right, touches.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from archport.attention import run_tiles, tiles
from archport.attention.masks import line_of, score_dtype
from archport.attention.mlx_call import Operands
from archport.attention.prices import Routes, TableRoutes
from archport.attention.visibility import Visibility, visibility
from archport.contract.attention import AttentionCall, DistanceBias, Feature, Price
from archport.contract.device import DeviceFacts

if TYPE_CHECKING:
    import mlx.core as mx

# A causal square cut into this many tiles costs 9/16 of itself; more tiles gain little.
CAUSAL_TILES = 8
ENOUGH_ROWS = {"cpu": 64, "metal": 512, "cuda": 512}
ENOUGH_BAND_ROWS = {"cpu": 64, "metal": 256, "cuda": 256}
# Keys per band are rounded to this: CUDA reads an additive mask in place only when its rows are 16-byte aligned.
KEY_GRID = 8


@dataclass(frozen=True, slots=True)
class Tiled:
    """Rows of queries one after another, each on the keys up to its last row's diagonal."""

    routes: Routes = field(default_factory=TableRoutes)
    features: frozenset[Feature] = frozenset({"softcap", "bias", "content", "chunk", "spans"})
    name: str = "tiled"

    keys = staticmethod(Visibility.key_range)

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
        line = line_of(call, bias, score_dtype(call, q.dtype))
        return run_tiles.run(call, price, Operands(q, k, v, scale, mask, sinks, line), self.keys)


def _on_grid(seen: Visibility, a: int, b: int) -> tuple[int, int]:
    lo, hi = seen.key_range(a, b)
    return lo // KEY_GRID * KEY_GRID, min(seen.kv_len, -(-hi // KEY_GRID) * KEY_GRID)


@dataclass(frozen=True, slots=True)
class Banded(Tiled):
    """Tiles of a windowed call: time and scratch grow with the window, not with the keys."""

    name: str = "banded"

    keys = staticmethod(_on_grid)

    def reasons_against(self, call: AttentionCall, device: DeviceFacts) -> list[str]:
        if call.mask == "documents":
            return ["documents are run one by one"]
        seen = visibility(call)
        if not seen.windowed and seen.right in (None, 0):
            return ["no window limits the reach of this call"]
        return []

    def price(self, call: AttentionCall, device: DeviceFacts) -> Price:
        seen = visibility(call)
        window = 1 + (seen.left or 0) + (seen.right or 0)
        # Half a window per tile: smaller tiles waste time per call, larger ones compute more hidden pairs.
        most = max(ENOUGH_BAND_ROWS[device.kind], 1 << (max(1, window // 2).bit_length() - 1))
        return tiles.cheapest(call, device, self.routes, most_rows=most, key_grid=KEY_GRID)
