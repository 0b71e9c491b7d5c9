"""Blocks and tiles that attention is cut into: what MLX is called with, their bytes, how large they may be and what
they cost. `run_tiles` runs them.

Shared by the backends; the tiled and the banded one differ only in the keys a tile is given. Pure Python.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from archport.attention import prices
from archport.attention.prices import FastCall, Kernel, Routes
from archport.attention.visibility import Form, Visibility, visibility
from archport.contract.attention import AttentionCall, Price
from archport.contract.device import DeviceFacts

# Numbers of a bias, or of a mask of spans, that one call may hold for all of its queries and keys: as many as a tile of
# a long call holds.
MOST_NUMBERS = 1 << 22


def whole(call: AttentionCall) -> FastCall:
    """What MLX sees when the call runs in one piece, keys cut to the range that some query sees."""
    seen = visibility(call)
    lo, hi = seen.key_range(0, call.q_len)
    form = "array" if call.bias else seen.form(0, call.q_len, lo, hi)
    return block(call, seen, call.q_len, hi - lo, form, lanes=0)


def block(call: AttentionCall, seen: Visibility, rows: int, keys: int, form: Form, *, lanes: int) -> FastCall:
    """What MLX sees of a block of `rows` queries and `keys` keys, over `lanes` (row, kv head) pairs (0: all)."""
    B, kv_heads = lane_shape(call, lanes)
    group = call.n_heads // call.n_kv_heads
    mask_rows, elements = (1, 0) if form != "array" else _mask_size(call, seen, B, rows, keys, kv_heads)
    return FastCall(
        B=B,
        n_heads=kv_heads * group,
        n_kv_heads=kv_heads,
        q_len=rows,
        kv_len=keys,
        head_dim=call.head_dim,
        v_head_dim=call.v_head_dim,
        dtype=call.dtype,
        form=form,
        sinks=call.sinks,
        additive=call.additive,
        mask_elements=elements,
        mask_rows=mask_rows,
        softcap=call.softcap is not None,
    )


def lane_shape(call: AttentionCall, lanes: int) -> tuple[int, int]:
    """(rows of the batch, kv heads) that a tile of `lanes` pairs holds."""
    if lanes == 0 or lanes >= call.B * call.n_kv_heads:
        return call.B, call.n_kv_heads
    if lanes >= call.n_kv_heads:
        return lanes // call.n_kv_heads, call.n_kv_heads
    return 1, lanes


def lane_blocks(call: AttentionCall, lanes: int) -> Iterator[tuple[slice, slice, slice]]:
    """(rows of the batch, kv heads, query heads) of each block of lanes, in order."""
    B, heads = lane_shape(call, lanes)
    group = call.n_heads // call.n_kv_heads
    for row in range(0, call.B, B):
        for head in range(0, call.n_kv_heads, heads):
            last = min(head + heads, call.n_kv_heads)
            yield slice(row, min(row + B, call.B)), slice(head, last), slice(head * group, last * group)


def mask_bytes(call: AttentionCall, fast: FastCall) -> int:
    """Bytes that building the array mask of a block holds at the peak, the caller's own array excluded."""
    if fast.form != "array":
        return line_bytes(call)
    seen = visibility(call)
    # Within a chunk, being in it takes the place of how far a query sees to either side.
    limits = (seen.left is not None) + (seen.right is not None)
    if seen.chunk is not None:
        limits = 1 + (seen.right == 0)
    limits += bool(seen.spans)
    # One bool per limit, joined in place, and the positions they are compared from.
    reach = fast.q_len * fast.kv_len * limits * (fast.B if seen.rows > 1 else 1)
    held = reach + 16 * (fast.q_len + fast.kv_len) * max(1, len(seen.spans))
    if call.softcap is not None:
        # Plain operations take a bool mask, and a bias as a view of its line, unless rows need lines of their own.
        return held + line_bytes(call) + biased_row_bytes(call, seen, fast) + content_bytes(call, fast, 4)
    if call.bias:
        return held + fast.mask_elements * fast.itemsize + line_bytes(call) + content_bytes(call, fast, fast.itemsize)
    if call.additive:
        # Zeros and lowest values in q's dtype, or a copy without -inf of the caller's array.
        return held + fast.mask_elements * fast.itemsize + (0 if call.mask_shape or limits else fast.mask_elements)
    if call.mask_shape:
        # Joined with the reach in place, unless the caller's array differs per head; alone it is handed on as it is.
        return held + (fast.mask_elements if limits and fast.mask_elements * limits > reach else 0)
    return held + (0 if limits else fast.mask_elements)


def largest_of_mask(call: AttentionCall, fast: FastCall) -> int:
    """Bytes of the largest array among those that `mask_bytes` counts, where it is known; else of all of them."""
    if call.bias != "content":
        return mask_bytes(call, fast)
    # Queries with the vectors of every distance of the block, or those vectors.
    met = fast.B * fast.n_heads * fast.q_len * (fast.q_len + fast.kv_len) * (4 if call.softcap else fast.itemsize)
    return max(met, 4 * call.n_heads * call.head_dim * (call.q_len + call.kv_len))


def lies_at_once(call: AttentionCall) -> str:
    """Why one call may not take all queries: the numbers that say what they see or are biased by; "" where it may."""
    numbers = whole(call).mask_elements
    if not (call.bias or call.spans) or numbers <= MOST_NUMBERS:
        return ""
    what = "a bias" if call.bias else "what spans let queries see,"
    return f"{what} of {numbers:,} numbers would lie there at once; tiles make it as they go"


def line_bytes(call: AttentionCall) -> int:
    """Bytes of a bias at every distance of the call: the numbers or vectors, and what a rule makes them from."""
    width = 16 * call.n_heads + 32
    if call.bias == "content":
        # Rows of a table, normalised, projected for either side, and both once more by heads.
        width += 32 * call.n_heads * call.head_dim
    return width * (call.q_len + call.kv_len) if call.bias else 0


def key_step(rows: int) -> int:
    """Keys that meet the vectors of their distances at once, in a tile of so many queries: their products grow with
    the sum of both."""
    return max(rows, 64)


def content_numbers(call: AttentionCall, rows: int, keys: int) -> int:
    """Products of a query or a key with a vector of a distance, per head of a block; 0 where none are made."""
    if call.bias != "content":
        return 0
    return rows * (rows + keys) + keys * (rows + min(keys, key_step(rows)))


def content_bytes(call: AttentionCall, fast: FastCall, itemsize: int) -> int:
    """Bytes that a block's products with vectors hold, their sums by query and key, and queries and keys in rows."""
    if call.bias != "content":
        return 0
    rows, keys = fast.q_len, fast.kv_len
    numbers = content_numbers(call, rows, keys) + 2 * rows * keys + (rows + keys) * call.head_dim
    return fast.B * fast.n_heads * numbers * itemsize


def content_flops(call: AttentionCall, rows: int, keys: int) -> float:
    """Arithmetic of the same for all rows and heads of a call whose blocks are that large."""
    return 2.0 * call.B * call.n_heads * call.head_dim * content_numbers(call, rows, keys)


def biased_row_bytes(call: AttentionCall, seen: Visibility, fast: FastCall) -> int:
    """Bytes of a block's bias in float32 where rows of the batch do not lie alike, so that no one view serves all."""
    return 4 * fast.scores if call.bias and len(seen.offsets) > 1 else 0


def _mask_size(call: AttentionCall, seen: Visibility, B: int, rows: int, keys: int, kv_heads: int) -> tuple[int, int]:
    """(size of the first axis, elements) of the mask that a block hands to MLX."""
    first, heads, down, across = 1, 1, 1, keys
    if seen.rows > 1:
        first = B
    if seen.windowed or seen.right is not None:
        down = rows
    if call.mask_shape:
        shape = (1,) * (4 - len(call.mask_shape)) + call.mask_shape
        first = max(first, B if shape[0] > 1 else 1)
        heads = kv_heads * (call.n_heads // call.n_kv_heads) if shape[1] > 1 else 1
        down = max(down, rows if shape[2] > 1 else 1)
        if down == 1 and shape[3] == 1:
            across = 1
    if call.bias and call.softcap is None:
        # Each head has its own; scores in plain operations take it as a view.
        heads, down = kv_heads * (call.n_heads // call.n_kv_heads), rows
        if len(seen.offsets) > 1:
            first = B
    return first, first * heads * down * across


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
