"""Running the tiles that `tiles` planned, one after another; a lazy graph would hold all of them at once.

On a GPU the next tile is started before the last is done, and the tiles are joined at the end; where that holds too
much, each is waited for and written into the output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from archport.attention import masks
from archport.attention.masks import line_of, score_dtype
from archport.attention.mlx_call import attend_block
from archport.attention.tiles import lane_blocks
from archport.attention.visibility import Visibility, visibility
from archport.contract.attention import AttentionCall, DistanceBias, Price
from archport.device.evaluation import Chain, Pipeline, finish, traced

if TYPE_CHECKING:
    import mlx.core as mx

Keys = Callable[[Visibility, int, int], tuple[int, int]]


def run(
    call: AttentionCall,
    price: Price,
    q: mx.array,
    k: mx.array,
    v: mx.array,
    *,
    scale: float,
    mask: mx.array | None,
    sinks: mx.array | None,
    keys: Keys,
    bias: DistanceBias | None = None,
) -> mx.array:
    """Attention tile by tile.

    Args:
        keys: the keys [lo, hi) that a tile of queries [a, b) is given.
    """

    seen = visibility(call)
    rows = price.q_tile
    line = line_of(call, seen, bias, score_dtype(call, q.dtype))
    if price.evaluations <= 1:
        lo, hi = keys(seen, 0, call.q_len)
        return attend_block(
            call, price, seen, q, k, v, 0, call.q_len, lo, hi, scale=scale, mask=mask, sinks=sinks, bias=line
        )
    lazy = traced(q, k, v, mask, sinks)
    out = _Joined(call, price) if price.depth > 1 and not lazy else _Written(call, q.dtype, lazy=lazy)
    for at, kv_heads, heads in lane_blocks(call, price.lanes):
        lane = seen.of_rows(at.start, at.stop)
        prepared: dict[tuple[int, int, int, int], mx.array] = {}
        lane_q, lane_k, lane_v = q[at, heads], k[at, kv_heads], v[at, kv_heads]
        lane_mask = None if mask is None else _mask_lane(mask, at, heads)
        lane_sinks = None if sinks is None else sinks[heads]
        lane_bias = None if line is None else line.of_heads(heads)
        for a in range(0, call.q_len, rows):
            b = min(a + rows, call.q_len)
            lo, hi = keys(lane, a, b)
            tile = attend_block(
                call,
                price,
                lane,
                out.ordered(lane_q[:, :, a:b]),
                lane_k,
                lane_v,
                a,
                b,
                lo,
                hi,
                scale=scale,
                mask=lane_mask,
                sinks=lane_sinks,
                prepared=_shared_mask(call, lane, a, b, lo, hi, q.dtype, prepared),
                bias=lane_bias,
            )
            out.add(tile, (at, heads, slice(a, b)))
            del tile
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


def _mask_lane(mask: mx.array, at: slice, heads: slice) -> mx.array:
    mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
    return mask[at if mask.shape[0] > 1 else slice(None), heads if mask.shape[1] > 1 else slice(None)]


def _shared_mask(
    call: AttentionCall,
    seen: Visibility,
    a: int,
    b: int,
    lo: int,
    hi: int,
    dtype: mx.Dtype,
    prepared: dict[tuple[int, int, int, int], mx.array],
) -> mx.array | None:
    """The mask that equally placed bands share: it depends on where the keys lie relative to the queries only."""
    if (
        call.bias
        or seen.has_array
        or seen.rows > 1
        or seen.spans
        or seen.key_lengths[0] < hi
        or seen.form(a, b, lo, hi) != "array"
    ):
        return None
    # In chunks it also depends on where the tile begins in its own.
    place = (b - a, hi - lo, a - lo, 0 if seen.chunk is None else (seen.start + lo) % seen.chunk)
    if place not in prepared:
        # One mask is held at a time: bands at the edges have masks of their own.
        prepared.clear()
        prepared[place] = masks.build(
            seen, a, b, lo, hi, array=None, additive=call.additive and call.softcap is None, dtype=dtype
        )
    return prepared[place]
