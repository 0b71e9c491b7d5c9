"""How an attention path evaluates its tiles. Knows nothing of attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import mlx.core as mx


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
