"""Flash attention on tensor cores for any heads that MLX's own kernels do not take: launches and their tables.

The CUDA text is in flash_source. Knows nothing of calls, prices or plans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from archport.kernels import flash_source
from archport.kernels.launches import numbers

if TYPE_CHECKING:
    import mlx.core as mx
    import numpy as np

Units = Literal["wgmma", "mma"]
# More keys than any row has, and added to a position still an int32.
UNLIMITED = 1 << 30


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a block of threads divides its work.

    Args:
        units: what multiplies: wgmma on compute capability 9.0, mma.sync elsewhere.
        queries: rows of queries; each warp of the block takes sixteen.
        keys: keys that are multiplied at once; the tile after them is on its way meanwhile.
    """

    units: Units
    queries: int
    keys: int

    @property
    def threads(self) -> int:
        return self.queries * 2

    def shared(self, head_dim: int) -> int:
        """Bytes of shared memory: queries, two tiles of keys and two of values, and what aligns them."""
        return 2 * head_dim * (self.queries + 4 * self.keys) + 1024


@dataclass(frozen=True, slots=True)
class Document:
    """Queries that see one stretch of keys.

    Args:
        batch: row of the batch in which both lie.
        query, queries: first query in that row, and how many.
        key, keys: first key in that row, and how many; with none, the queries come out as zeros.
        position: where the first query stands from the first key on.
    """

    batch: int
    query: int
    queries: int
    key: int
    keys: int
    position: int


def tiles(
    documents: Sequence[Document], tiling: Tiling, reach: tuple[int | None, int | None] = (None, None)
) -> np.ndarray:
    """(n, 10) int32, one line per tile of queries, those that see most keys first so that no block starts late.

    A line: row of the batch, first query, queries, first key, keys, position of the first query, the keys [from, to)
    that any of the queries sees, `from` a multiple of a tile's keys, and how far left and right a query sees.

    Args:
        reach: keys seen to the left and right, None without a limit.
    """
    import numpy as np

    lines = np.array(
        [(d.batch, d.query, d.queries, d.key, d.keys, d.position) for d in documents], dtype=np.int64
    ).reshape(-1, 6)
    counts = -(-lines[:, 2] // tiling.queries)
    of = np.repeat(np.arange(len(lines)), counts)
    start = (np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts)) * tiling.queries
    batch, query, queries, key, keys, position = lines[of].T
    left, right = (UNLIMITED if limit is None else min(limit, UNLIMITED) for limit in reach)
    count, position = np.minimum(queries - start, tiling.queries), position + start
    first = np.maximum(0, position - left) // tiling.keys * tiling.keys
    last = np.minimum(keys, position + count + right)
    sides = [np.full_like(keys, left), np.full_like(keys, right)]
    table = np.stack([batch, query + start, count, key, keys, position, first, last, *sides], axis=1)
    order = np.argsort(first - last, kind="stable")
    return np.ascontiguousarray(table[order]).astype(np.int32)


@cache
def _kernel(head_dim: int, tiling: Tiling) -> Any:
    import mlx.core as mx

    return mx.fast.cuda_kernel(
        name=f"archport_flash_attention_{tiling.units}_{head_dim}_{tiling.queries}_{tiling.keys}",
        input_names=["q", "k", "v", "tiles", "numbers"],
        output_names=["out"],
        source=flash_source.SOURCE,
        header=flash_source.header(tiling.units, head_dim, tiling.keys),
        ensure_row_contiguous=False,
        shared_memory=tiling.shared(head_dim),
    )


def attend(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    table: mx.array,
    tiling: Tiling,
    *,
    scale: float,
    softcap: float | None = None,
) -> mx.array:
    """Attention of queries on keys, as the table says.

    Args:
        q, k, v: (B, H, L, Dh), (B, K, S, Dh), (B, K, S, Dh) in 16 bits, in any memory order; Dh a multiple of 64.
        table: what `tiles` says of every query, in sum; queries in no tile are left as they are in memory.

    Returns:
        (B, H, L, Dh), the heads of a token next to each other in memory.
    """
    import mlx.core as mx

    B, heads, length, width = q.shape
    out = _kernel(width, tiling)(
        inputs=[q, k, v, table, numbers(scale, softcap or 1.0)],
        template=[
            ("Out", q.dtype),
            ("Dh", width),
            ("Brain", int(q.dtype == mx.bfloat16)),
            ("kQueries", tiling.queries),
            ("kKeys", tiling.keys),
            ("Cap", int(softcap is not None)),
        ],
        grid=(table.shape[0] * heads * tiling.threads, 1, 1),
        threadgroup=(tiling.threads, 1, 1),
        output_shapes=[(B, length, heads, width)],
        output_dtypes=[q.dtype],
    )[0]
    return out.transpose(0, 2, 1, 3)
