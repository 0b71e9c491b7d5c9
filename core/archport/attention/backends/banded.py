"""Sliding windows: each tile of queries gets only the band of keys that its reach, left and right, touches."""

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

# Keys per band are rounded to this: CUDA reads an additive mask in place only when its rows are 16-byte aligned.
KEY_GRID = 8
ENOUGH_ROWS = {"cpu": 64, "metal": 256, "cuda": 256}


@dataclass(frozen=True, slots=True)
class Banded:
    """Tiles of a windowed call: time and scratch grow with the window, not with the keys."""

    routes: Routes = field(default_factory=TableRoutes)
    features: frozenset[Feature] = frozenset({"softcap", "bias", "content", "chunk", "spans"})
    name: str = "banded"

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
        most = max(ENOUGH_ROWS[device.kind], 1 << (max(1, window // 2).bit_length() - 1))
        return tiles.cheapest(call, device, self.routes, most_rows=most, key_grid=KEY_GRID)

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
        return run_tiles.run(call, price, q, k, v, scale=scale, mask=mask, sinks=sinks, bias=bias, keys=_on_grid)


def _on_grid(seen: Visibility, a: int, b: int) -> tuple[int, int]:
    lo, hi = seen.key_range(a, b)
    return lo // KEY_GRID * KEY_GRID, min(seen.kv_len, -(-hi // KEY_GRID) * KEY_GRID)
