"""Work as compiled functions: chains of elementwise operations, and a decoder block's work on one token per row.

A step of decoding takes a GPU less time than the host needs to say what is to be done: on an H200, at Qwen3's 0.6B
shape, one row was decoded at 0.98 of mlx-lm's speed, and is at 1.12 so. Attention stays outside, since its keys grow.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

from archport.contract import LayerContext
from archport.kernels.launches import described_once
from archport.layers.attention import Attention
from archport.layers.experts import SparseMLP
from archport.layers.merging import added
from archport.layers.mlp import MLP, GatedMLP
from archport.layers.norm_rotate import NormRotate


def fused(function: Callable[..., mx.array]) -> Callable[..., mx.array]:
    """Compile a function of arrays on a GPU: a dozen passes over memory become one.

    On a CPU compiling needs a compiler on the machine and gains less. Inside a transformation it becomes part of that.
    """
    compiled = mx.compile(function)

    @wraps(function)
    def run(*arrays: mx.array) -> mx.array:
        on_gpu = mx.default_device().type != mx.DeviceType.cpu
        return (compiled if on_gpu else function)(*arrays)

    return run


# What holds a weight or module, its name or place there, and itself.
Entry = tuple[Any, Any, Any]

# Numbers of rows for which a block is traced before it starts over: MLX keeps every trace, and looks through them all.
MOST_SHAPES = 16
# Blocks that evaluate nothing, and draw nothing by chance, when they are traced.
KNOWN = (MLP, GatedMLP, SparseMLP)


class _Angles(threading.local):
    """The angles of the token that a thread is decoding, which its layers share."""

    def __init__(self) -> None:
        self._at: mx.array | None = None
        self._known: dict[object, tuple[mx.array, mx.array]] = {}

    def of(self, turning: NormRotate, at: mx.array) -> tuple[mx.array, mx.array]:
        if self._at is not at:
            self._at, self._known = at, {}
        return turning.angles(at, 1, self._known)


_angles = _Angles()


class CompiledParts:
    """What of a block is compiled, per thread: MLX's traces belong to the thread that made them.

    A copy of a block, and a pickled one, starts with none.
    """

    def __init__(self) -> None:
        self._mine = threading.local()

    def __reduce__(self) -> tuple[type[CompiledParts], tuple[()]]:
        return CompiledParts, ()

    def of(self, *parts: nn.Module, rows: int) -> CompiledBlock:
        """The parts compiled: norm, attention, its MLP's norm, MLP. Anew where a weight or module was replaced."""
        found: CompiledBlock | None = getattr(self._mine, "block", None)
        if found is None or not found.takes(parts, rows):
            found = self._mine.block = CompiledBlock(*parts)
        return found


class CompiledBlock:
    """The parts of one pre-norm block. Traced once per number of rows.

    Args:
        norm, attention, mlp_norm, mlp: its modules.
    """

    def __init__(self, norm: nn.Module, attention: nn.Module, mlp_norm: nn.Module, mlp: nn.Module) -> None:
        assert isinstance(attention, Attention)

        def before(x: mx.array, at: mx.array, *turns: mx.array) -> list[mx.array]:
            def rotate(
                q: mx.array, k: mx.array, rope: Callable[[mx.array, int | mx.array], mx.array]
            ) -> tuple[mx.array, mx.array]:
                if isinstance(rope, NormRotate):
                    # Of one product both come at once.
                    both: Any = rope.turned(q, cast("tuple[mx.array, mx.array]", turns))
                    return both, both
                return rope(q, at), rope(k, at)

            with described_once():
                return [part for part in attention.heads(_of(norm, x), rotate) if part is not None]

        def behind(x: mx.array, out: mx.array, *gate: mx.array) -> mx.array:
            with described_once():
                x = attention.joined(out, *(gate or (None,)), onto=x)
                return added(mlp, x, _of(mlp_norm, x))

        self._attended, self._turning = attention.attended, attention.turning
        # MLX's stubs say that any function comes back as one of anything.
        self._before: Any = mx.compile(before)
        self._behind: Any = mx.compile(behind)
        self._parts = (norm, attention, mlp_norm, mlp)
        # A trace keeps the weights that it saw.
        self._seen = [entry for part in self._parts for entry in weights_and_modules(part)]
        self._rows: set[int] = set()

    def takes(self, parts: tuple[nn.Module, ...], rows: int) -> bool:
        """Whether these are the modules and weights that are compiled, and so many rows are among the few."""
        if len(self._rows) >= MOST_SHAPES and rows not in self._rows:
            return False
        if any(a is not b for a, b in zip(parts, self._parts, strict=True)):
            return False
        return unchanged(self._seen)

    def __call__(self, x: mx.array, ctx: LayerContext) -> mx.array:
        """The block's output (B, 1, D) for x (B, 1, D); the context is `decoding`."""
        self._rows.add(x.shape[0])
        at = ctx.decoding
        turns = () if self._turning is None or at is None else _angles.of(self._turning, at)
        q, k, v, *gate = self._before(x, at, *turns)
        return self._behind(x, self._attended(ctx, q, k, v), *gate)


def compilable(attention: nn.Module, mlp: nn.Module) -> bool:
    """Whether a block of these can be compiled: a subclass may do anything in a call of its own."""
    return isinstance(attention, Attention) and type(attention).__call__ is Attention.__call__ and type(mlp) in KNOWN


def weights_and_modules(module: nn.Module) -> Iterator[Entry]:
    """All weights and modules in a module: what a trace of it holds."""
    for name, value in module.items():
        yield from _in(module, name, value)


def unchanged(entries: Iterable[Entry]) -> bool:
    """Whether all of them are still where they were."""
    try:
        return all(holder[name] is value for holder, name, value in entries)
    except LookupError:
        return False


def _in(holder: Any, name: Any, value: object) -> Iterator[Entry]:
    if isinstance(value, list):
        for index, each in enumerate(cast("list[object]", value)):
            yield from _in(value, index, each)
    elif isinstance(value, mx.array | nn.Module):
        yield holder, name, value
        if isinstance(value, nn.Module):
            yield from weights_and_modules(value)


def _of(module: nn.Module, x: mx.array) -> mx.array:
    return module(x)  # pyright: ignore[reportCallIssue]
