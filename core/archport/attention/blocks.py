"""Numbers of the blocks that attention is cut into: what MLX is called with, and the masks built for it.

Pure Python: shared by the backends that price and by those that enumerate tiles. Holds no array.
"""

from __future__ import annotations

from collections.abc import Iterator

from archport.attention.routes import FastCall
from archport.attention.visibility import Form, Visibility, visibility
from archport.contract.attention import AttentionCall

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
