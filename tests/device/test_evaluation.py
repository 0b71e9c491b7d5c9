"""Work evaluated piece by piece: bounded, in order, and left alone inside a transformation."""

from __future__ import annotations

import archport  # noqa: F401

# isort: split
import mlx.core as mx
import pytest

from archport.device.evaluation import Chain, Pipeline, finish

SIZE = 1 << 20


@pytest.fixture
def base() -> int:
    mx.synchronize()
    mx.clear_cache()
    return mx.get_active_memory()


def test_a_pipeline_keeps_none_of_the_arrays_it_started(base: int):
    pipeline = Pipeline(depth=8)
    for value in range(4):
        pipeline.start(mx.full((SIZE,), value) + 1, room=64 * SIZE)
    pipeline.drain()
    assert mx.get_active_memory() - base < SIZE


def test_a_piece_waits_until_there_is_room_for_it(base: int):
    pipeline = Pipeline(depth=100)
    mx.reset_peak_memory()
    rows = []
    for value in range(16):
        # Two buffers of 4 MB each, of which a few bytes are kept.
        wide = mx.exp(mx.full((SIZE,), float(value))) + mx.arange(SIZE, dtype=mx.float32)
        kept = wide[:4] + 0
        del wide
        pipeline.start(kept, room=SIZE)
        rows.append(kept)
        del kept
    mx.eval(rows)
    assert mx.get_peak_memory() - base <= 4 * 4 * SIZE
    assert rows[3][2].item() == pytest.approx(mx.exp(mx.array(3.0)).item() + 2)


def test_memory_that_somebody_else_takes_does_not_stop_the_pipeline(base: int):
    pipeline = Pipeline(depth=2)
    other = mx.zeros((8 * SIZE,))
    mx.eval(other)
    for value in range(3):
        out = mx.full((16,), value) * 2
        pipeline.start(out, room=SIZE)
        assert out[0].item() == 2 * value
    assert other.nbytes == 32 * SIZE


@pytest.mark.parametrize("transform", ["compile", "grad", "vmap"])
def test_inside_a_transformation_nothing_is_evaluated(transform: str):
    def double(x: mx.array) -> mx.array:
        pipeline = Pipeline(depth=2)
        y = x * 2
        pipeline.start(y, room=SIZE)
        return y if transform != "grad" else y.sum()

    x = mx.arange(4, dtype=mx.float32)
    changed = {"compile": mx.compile, "grad": mx.grad, "vmap": mx.vmap}[transform](double)
    expected = [2, 2, 2, 2] if transform == "grad" else [0, 2, 4, 6]
    assert changed(x).tolist() == expected


def test_finish_evaluates():
    out = mx.arange(3) + 1
    finish(out)
    assert out.tolist() == [1, 2, 3]


def test_a_chain_changes_no_value():
    chain = Chain()
    parts = []
    for start in range(0, 6, 2):
        part = chain.link(mx.arange(start, start + 2)) * 3
        chain.add(part)
        parts.append(part)
    assert mx.concatenate(parts).tolist() == [0, 3, 6, 9, 12, 15]
