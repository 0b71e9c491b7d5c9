"""Whether MLX is transforming the function that an array belongs to. Knows nothing of what the array is for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import mlx.core as mx


def traced(*arrays: mx.array | None) -> bool:
    """Whether any of the arrays belongs to a function that MLX is transforming (compile, grad, vmap, export).

    `mx.async_eval` refuses arrays of a transformation, grad included, before it runs anything; `mx.eval` would run
    under grad. Asked on a new one-element slice, because an array that already has its value is never refused.
    Outside a transformation this starts computing the arrays.
    """
    import mlx.core as mx

    held = [array for array in arrays if array is not None and array.size]
    try:
        mx.async_eval([array[(slice(0, 1),) * array.ndim] if array.ndim else array + 0 for array in held])
    except ValueError:
        return True
    return False
