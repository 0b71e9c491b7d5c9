"""When an attention path may evaluate its tiles, and how. Knows nothing of attention."""

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


class Pipeline:
    """Evaluates tiles as they are written, so that at most `depth` of them hold their scratch at once.

    Args:
        depth: tiles in flight; 1 waits for each.
        lazy: evaluate nothing, because a transformation is tracing the call.
    """

    def __init__(self, depth: int, *, lazy: bool) -> None:
        self.depth = depth
        self.lazy = lazy
        self._running: list[mx.array] = []

    def ordered(self, tile_input: mx.array) -> mx.array:
        """`tile_input`, made to depend on the previous tile when nothing is evaluated here.

        Without that the evaluator walks a traced graph breadth-first and holds every tile's scores at once.
        """
        import mlx.core as mx

        if not (self.lazy and self._running):
            return tile_input
        # `mx.depends` says the same but can't be vmapped; a choice never taken reads no value that could spread.
        earlier = self._running[-1]
        return mx.where(mx.array(False), earlier[(slice(0, 1),) * earlier.ndim], tile_input)

    def wrote(self, out: mx.array, tile: mx.array) -> None:
        """Note that `out` now contains `tile`, and evaluate as the depth demands."""
        import mlx.core as mx

        if self.lazy:
            self._running = [tile]
        elif self.depth <= 1:
            mx.eval(out)
        else:
            mx.async_eval(out)
            # Waiting for an earlier tile, not for an earlier `out`: holding that would forbid writing in place.
            self._running.append(tile)
            if len(self._running) >= self.depth:
                mx.eval(self._running.pop(0))
