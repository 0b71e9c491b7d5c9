"""Running the tiles that `tiles` planned, one after another; a lazy graph would hold all of them at once.

On a GPU the next tile is started before the last is done, and the tiles are joined at the end; where that holds too
much, each is waited for and written into the output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from archport.attention import masks
from archport.attention.mlx_call import Operands, attend_block
from archport.attention.tiles import lane_blocks
from archport.attention.visibility import Tile, Visibility, visibility
from archport.contract.attention import AttentionCall, Price
from archport.device.evaluation import Chain, Pipeline, finish, traced

if TYPE_CHECKING:
    import mlx.core as mx

Keys = Callable[[Visibility, int, int], tuple[int, int]]


def run(call: AttentionCall, price: Price, on: Operands, keys: Keys) -> mx.array:
    """Attention tile by tile.

    Args:
        keys: the keys [lo, hi) that a tile of queries [a, b) is given.
    """
    seen, rows, dtype = visibility(call), price.q_tile, on.q.dtype
    if price.evaluations <= 1:
        return attend_block(call, price, Tile(seen, 0, call.q_len, *keys(seen, 0, call.q_len)), on)
    lazy = traced(on.q, on.k, on.v, on.mask, on.sinks)
    out = _Joined(call, price) if price.depth > 1 and not lazy else _Written(call, dtype, lazy=lazy)
    for at, kv_heads, heads in lane_blocks(call, price.lanes):
        lane, visible = on.of_lanes(at, kv_heads, heads), seen.of_rows(at.start, at.stop)
        prepared: dict[tuple[int, int, int, int], mx.array] = {}
        for a in range(0, call.q_len, rows):
            b = min(a + rows, call.q_len)
            tile = Tile(visible, a, b, *keys(visible, a, b))
            mask = _shared_mask(call, tile, dtype, prepared)
            made = attend_block(call, price, tile, lane.of_queries(out.ordered(lane.q[:, :, a:b])), mask)
            out.add(made, (at, heads, slice(a, b)))
            del made, mask
        prepared.clear()
    return out.whole()


class _Written:
    """Tiles written into one preallocated output, each finished before the next starts."""

    def __init__(self, call: AttentionCall, dtype: mx.Dtype, *, lazy: bool) -> None:
        import mlx.core as mx

        self._out = mx.zeros((call.B, call.n_heads, call.q_len, call.v_head_dim), dtype=dtype)
        self._chain = Chain() if lazy else None

    def ordered(self, tile_input: mx.array) -> mx.array:
        return tile_input if self._chain is None else self._chain.link(tile_input)

    def add(self, tile: mx.array, where: tuple[slice, slice, slice]) -> None:
        self._out[where] = tile
        if self._chain is None:
            finish(self._out)
        else:
            self._chain.add(tile)

    def whole(self) -> mx.array:
        return self._out


class _Joined:
    """Tiles of all lanes, kept apart until the last one: writing into an output in use would copy it each time."""

    def __init__(self, call: AttentionCall, price: Price) -> None:
        self._pipeline = Pipeline(price.depth)
        self._scratch = price.transient // price.depth
        self._tiles: list[mx.array] = []

    def ordered(self, tile_input: mx.array) -> mx.array:
        return tile_input

    def add(self, tile: mx.array, where: tuple[slice, slice, slice]) -> None:
        self._pipeline.start(tile, room=self._bytes() + self._scratch)
        self._tiles.append(tile)

    def whole(self) -> mx.array:
        import mlx.core as mx

        joined = mx.concatenate(self._tiles, axis=2)
        # Not before the last tile's scratch is gone.
        self._pipeline.start(joined, room=self._bytes())
        return joined

    def _bytes(self) -> int:
        return sum(tile.nbytes for tile in self._tiles)


def _shared_mask(
    call: AttentionCall, tile: Tile, dtype: mx.Dtype, prepared: dict[tuple[int, int, int, int], mx.array]
) -> mx.array | None:
    """The mask that equally placed bands share: it depends on where the keys lie relative to the queries only."""
    seen, a, lo = tile.seen, tile.a, tile.lo
    own = call.bias or seen.has_array or seen.rows > 1 or seen.spans or seen.key_lengths[0] < tile.hi
    if own or tile.form != "array":
        return None
    # In chunks it also depends on where the tile begins in its own.
    place = (tile.b - a, tile.hi - lo, a - lo, 0 if seen.chunk is None else (seen.start + lo) % seen.chunk)
    if place not in prepared:
        # One mask is held at a time: bands at the edges have masks of their own.
        prepared.clear()
        additive = call.additive and call.softcap is None
        prepared[place] = masks.build(tile, array=None, additive=additive, dtype=dtype)
    return prepared[place]
