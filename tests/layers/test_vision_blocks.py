"""Blocks of vision towers: what attention is handed lies where it was projected."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import pytest

from archport import engine

GOLDENS = Path(__file__).parents[1] / "goldens"


class Watching:
    """A context that measures what is held when attention begins, and attends nothing."""

    def __init__(self) -> None:
        self.before, self.held = mx.get_active_memory(), 0

    def rows(self, function: Any, x: mx.array, *_: mx.array) -> mx.array:
        # The projection first, then what becomes of attention's output.
        return mx.concatenate([x, 2 * x, 3 * x], axis=-1) if not self.held else x

    def attend(self, layer: int, q: mx.array, k: mx.array, v: mx.array, *, scale: float) -> mx.array:
        mx.eval(q, k, v)
        # A GPU gives buffers back a little after the work is done.
        mx.synchronize()
        self.held = mx.get_active_memory() - self.before
        assert [float(each.max()) for each in (q, k, v)] == [1.0, 2.0, 3.0]
        return q


@pytest.mark.parametrize("name", ["qwen3-vl", "siglip", "clip"])
def test_queries_keys_and_values_are_no_copies_of_their_projection(name: str):
    trunk = cast(nn.Module, engine.load(GOLDENS / name)._runtime.encoder.trunk)
    blocks = [module for path, module in trunk.named_modules() if type(module).__name__ == "Block" and "vis" in path]
    # The tower's own width.
    width = next(module.weight.shape[0] for path, module in blocks[0].named_modules() if "norm1" in path)
    x = mx.ones((1, 512, width))
    mx.eval(x)
    context = Watching()
    blocks[0](x, *([(x, x)] if name == "qwen3-vl" else []), context)
    assert 0 < context.held < 4 * x.nbytes
