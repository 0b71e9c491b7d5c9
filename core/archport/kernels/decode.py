"""Attention of few queries on long caches by CUDA kernels that divide the keys: launches.

The CUDA text is in decode_source. Knows nothing of calls, prices or plans.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from archport.kernels import decode_source
from archport.kernels.launches import integers, numbers

if TYPE_CHECKING:
    import mlx.core as mx

WARPS = 8
# More keys than any row has, and added to a position still an int32.
UNLIMITED = 1 << 30
# Rows of queries that one matrix unit takes at once.
ROWS = 8
# Blocks of threads with which a GPU reads fastest: an H200 with half as many as it has multiprocessors, by 13 % against
# as many. No block has fewer keys than its warps take in two turns.
BLOCKS = 66


def groups(head_dim: int) -> int:
    """Sixteens of keys that a warp holds at once, with their values."""
    return max(1, 256 // head_dim)


def row_tiles(n_heads: int, n_kv_heads: int, queries: int) -> int:
    """Eights of rows of queries that read the same keys."""
    return -(-n_heads // n_kv_heads * queries // ROWS)


def most_shares(B: int, n_heads: int, n_kv_heads: int, queries: int, keys: int, head_dim: int) -> int:
    """Into how many shares the keys of a row are divided."""
    wanted = BLOCKS / (B * n_kv_heads * row_tiles(n_heads, n_kv_heads, queries))
    most = max(1, keys // (2 * WARPS * 16 * groups(head_dim)))
    return max(1, min(128, int(wanted + 0.5), most))


def scratch_bytes(B: int, n_heads: int, n_kv_heads: int, queries: int, shares: int, head_dim: int) -> int:
    """Bytes of the sums and statistics of all shares."""
    return B * n_kv_heads * row_tiles(n_heads, n_kv_heads, queries) * shares * ROWS * (head_dim + 2) * 4


@cache
def _kernels(head_dim: int) -> tuple[Any, Any]:
    import mlx.core as mx

    first = mx.fast.cuda_kernel(
        name="archport_decode_attention",
        input_names=["q", "k", "v", "lengths", "divided", "numbers"],
        output_names=["sums", "stats"],
        source=decode_source.SHARES,
        header=decode_source.INSTRUCTIONS + decode_source.HEADER,
        ensure_row_contiguous=False,
        shared_memory=WARPS * ROWS * (head_dim + 2) * 4,
    )
    second = mx.fast.cuda_kernel(
        name="archport_decode_merge",
        input_names=["sums", "stats"],
        output_names=["out"],
        source=decode_source.MERGE,
        header=decode_source.INSTRUCTIONS,
    )
    return first, second


def attend(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    lengths: mx.array,
    shares: int,
    *,
    scale: float,
    reach: tuple[int | None, int | None] = (None, 0),
    softcap: float | None = None,
) -> mx.array:
    """Attention of the last queries of every row on its keys.

    Args:
        q, k, v: (B, H, L, Dh), (B, K, S, Dh), (B, K, S, Dh) in 16 bits, in any memory order; Dh 64, 128, 192 or 256.
        lengths: (B,) int32, keys of every row, at least L of them, or -1 for S; its queries stand at the last of them.
        shares: into how many the keys of a row are divided.
        reach: keys seen to the left and right, None without a limit.

    Returns:
        (B, H, L, Dh).
    """
    import mlx.core as mx

    B, heads, L, width = q.shape
    kv_heads = k.shape[1]
    first, second = _kernels(width)
    brain = int(q.dtype == mx.bfloat16)
    tiles = row_tiles(heads, kv_heads, L)
    told = integers(shares, *(UNLIMITED if limit is None else min(limit, UNLIMITED) for limit in reach))
    sums, stats = first(
        inputs=[q, k, v, lengths, told, numbers(scale, softcap or 1.0)],
        template=[
            ("Out", q.dtype),
            ("Dh", width),
            ("Brain", brain),
            ("Cap", int(softcap is not None)),
            ("kWarps", WARPS),
            ("kGroups", groups(width)),
        ],
        grid=(B * kv_heads * tiles * shares * WARPS * 32, 1, 1),
        threadgroup=(WARPS * 32, 1, 1),
        output_shapes=[(B, kv_heads, tiles, shares, ROWS, width), (B, kv_heads, tiles, shares, ROWS, 2)],
        output_dtypes=[mx.float32, mx.float32],
    )
    out = second(
        inputs=[sums, stats],
        template=[("Out", q.dtype), ("Dh", width), ("Brain", brain), ("Heads", heads), ("Queries", L)],
        grid=(B * L * heads * width, 1, 1),
        threadgroup=(width, 1, 1),
        output_shapes=[(B, L, heads, width)],
        output_dtypes=[q.dtype],
    )[0]
    return out.transpose(0, 2, 1, 3)
