"""Query tiles: how large they may be and what they cost. `tile_by_tile` runs them.

Shared by the tiled and the banded backend, which differ only in the keys a tile is given. Pure Python.
"""

from __future__ import annotations

from dataclasses import dataclass

from archport.attention import prices
from archport.attention.blocks import block, content_flops, lane_shape, largest_of_mask, mask_bytes, whole
from archport.attention.routes import FastCall, Kernel, Routes
from archport.attention.visibility import Form, Visibility, visibility
from archport.contract.attention import AttentionCall, Price
from archport.contract.device import DeviceFacts

# Rows below which a matrix product no longer fills the device.
SMALLEST = {"cpu": 16, "metal": 32, "cuda": 32}


@dataclass(frozen=True, slots=True)
class Cut:
    """One way to cut a call: rows per tile, lanes per tile (0 all), tiles in flight."""

    rows: int
    lanes: int = 0
    depth: int = 1


def tile_form(seen: Visibility) -> Form:
    """The mask form that the tiles of a call take; some of them may need less."""
    if seen.has_array or seen.rows > 1 or seen.windowed or seen.spans or seen.right not in (None, 0):
        return "array"
    if seen.key_lengths[0] < seen.kv_len and seen.right is None:
        # Keys are cut at the shared length, so nothing is left to hide.
        return "none"
    return "none" if seen.right is None else "causal"


def cheapest(call: AttentionCall, device: DeviceFacts, routes: Routes, *, most_rows: int, key_grid: int = 1) -> Price:
    """The price of the fastest cut within the call's limits, or of the smallest when none keeps them.

    Args:
        most_rows: rows per tile to start from.
        key_grid: multiple to which a tile's key range is widened.
    """
    # Where MLX fuses the whole call unasked, cutting it is for its limits and not a reason to materialise scores.
    route = routes.route(whole(call), device)
    fused = route.kernel != "composite"
    choices = (False,) if route.forced is None else (False, True)
    best: Price | None = None
    for lanes in _lane_choices(call):
        found = _best_rows(call, device, routes, lanes, most_rows, key_grid, fused, choices)
        if best is not None and not _better(found, best, call, device, fused):
            if not best.excess(call, device):
                break
            continue
        best = found
    assert best is not None
    return best


def _best_rows(
    call: AttentionCall,
    device: DeviceFacts,
    routes: Routes,
    lanes: int,
    most_rows: int,
    key_grid: int,
    fused: bool,
    choices: tuple[bool, ...],
) -> Price:
    """The best price over rows per tile, halved from `most_rows` for as long as that helps."""
    smallest = SMALLEST[device.kind]
    rows = min(most_rows, call.q_len)
    best: Price | None = None
    while True:
        improved = False
        for force in choices:
            for depth in _depths(call, device, Cut(rows, lanes)):
                price = priced(call, device, routes, Cut(rows, lanes, depth), key_grid=key_grid, force=force)
                if price is not None and (best is None or _better(price, best, call, device, fused)):
                    best, improved = price, True
        assert best is not None
        if rows <= smallest or not (improved or best.excess(call, device)):
            return best
        rows = max(smallest, _half(rows))


def _better(one: Price, other: Price, call: AttentionCall, device: DeviceFacts, fused: bool) -> bool:
    return _rank(one, call, device, fused) < _rank(other, call, device, fused)


def _rank(price: Price, call: AttentionCall, device: DeviceFacts, fused: bool) -> tuple[bool, bool, float]:
    over = bool(price.excess(call, device))
    return over, fused and price.route == "composite", float(price.transient) if over else price.seconds


def _depths(call: AttentionCall, device: DeviceFacts, cut: Cut) -> tuple[int, ...]:
    """Tiles in flight to try: two hide the host's work on a GPU, one holds least."""
    several = cut.rows < call.q_len and cut.lanes == 0
    return (2, 1) if device.kind != "cpu" and several else (1,)


def _half(rows: int) -> int:
    """The next smaller power of two, so that tiles of different calls reuse each other's buffers."""
    return 1 << ((rows - 1).bit_length() - 1)


def _lane_choices(call: AttentionCall) -> list[int]:
    """All lanes at once, then fewer rows of the batch, then fewer kv heads of one row."""
    choices = [0]
    rows = call.B
    while rows > 1:
        rows = -(-rows // 4)
        choices.append(rows * call.n_kv_heads)
    heads = call.n_kv_heads
    while heads > 1:
        heads //= 2
        choices.append(heads)
    return choices


def priced(
    call: AttentionCall, device: DeviceFacts, routes: Routes, cut: Cut, *, key_grid: int = 1, force: bool = False
) -> Price | None:
    """What a cut costs; None when `force` is asked for and MLX has nothing to force, or needs no force."""
    seen = visibility(call)
    rows = min(cut.rows, call.q_len)
    B, kv_heads = lane_shape(call, cut.lanes)
    lanes = -(-call.B // B) * -(-call.n_kv_heads // kv_heads)
    downs = -(-call.q_len // rows)
    count = downs * lanes
    width = min(call.kv_len, seen.widest(rows) + 2 * (key_grid - 1))
    form: Form = "array" if call.bias else tile_form(seen)
    tile = block(call, seen, rows, width, form, lanes=cut.lanes)
    kernel = _kernel(tile, device, routes, force)
    last_rows = call.q_len - (downs - 1) * rows
    if kernel is not None and last_rows != rows:
        last = _kernel(block(call, seen, last_rows, width, form, lanes=cut.lanes), device, routes, force)
        kernel = None if last is None else ("composite" if last == "composite" else kernel)
    if kernel is None:
        return None
    if cut.depth > 1 and kernel == "composite" and call.itemsize == 4:
        # Float32 tiles end about when the next one starts: whether two were there at once would be chance.
        return None
    mask = mask_bytes(call, tile)
    scratch = prices.transient(tile, kernel, device.kind)
    if device.kind == "cuda" and kernel == "composite" and kv_heads < call.n_kv_heads:
        # Heads cut out of keys and values are copied into rows of their own.
        scratch += B * kv_heads * width * (call.head_dim + call.v_head_dim) * call.itemsize
    held = cut.depth * (scratch + mask)
    if cut.depth > 1:
        # The tiles are the output until they are joined, and then there are both.
        held = max(held, call.output_bytes)
    elif count > 1:
        held += tile.B * tile.n_heads * rows * call.v_head_dim * call.itemsize
    pairs = visited(seen, call.q_len, rows, width)
    work = pairs / (rows * width)
    # Of a tile; the whole call has as many of them for each of its lanes.
    met = content_flops(call, rows, width) / lanes
    one = prices.seconds(tile, kernel, device)
    one += prices.content_seconds(met, call.head_dim, device, call.dtype)
    narrow = 1.0 + (4.0 if device.kind == "cpu" else 32.0) / rows
    return Price(
        transient=held + prices.SLACK[device.kind],
        output=call.output_bytes,
        largest_buffer=max(
            prices.largest_buffer(tile, kernel, device.kind), largest_of_mask(call, tile), call.output_bytes
        ),
        flops=2.0 * call.B * call.n_heads * pairs * (call.head_dim + call.v_head_dim) + met * count,
        dispatch_flops=tile.flops + met,
        q_tile=rows,
        evaluations=count,
        depth=cut.depth,
        lanes=cut.lanes,
        seconds=one * work * lanes * narrow + count * prices.sync_seconds(device) / cut.depth,
        dispatch_seconds=one * narrow,
        route="forced" if force else ("composite" if kernel == "composite" else "fused"),
    )


def _kernel(tile: FastCall, device: DeviceFacts, routes: Routes, force: bool) -> Kernel | None:
    route = routes.route(tile, device)
    if not force:
        return route.kernel
    return route.forced if route.kernel == "composite" else None


def visited(seen: Visibility, q_len: int, rows: int, width: int) -> int:
    """(query, key) pairs per head that the tiles compute, exact for causal and an upper bound for bands."""
    if seen.windowed or seen.right is None:
        return q_len * width
    offset = max(seen.offsets) + seen.right + seen.longest_span
    full, rest = divmod(q_len, rows)
    whole = rows * (full * offset + rows * full * (full + 1) // 2)
    return min(q_len * width, max(q_len, whole + rest * (offset + q_len)))
