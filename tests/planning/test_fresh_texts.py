"""Texts that no request had before: on a GPU that waits, planning them must cost next to nothing."""

from __future__ import annotations

import random

import pytest

from archport.contract import ArchSpec, AttentionCall, AttentionPath, PathChooser
from archport.device.profiles import profile
from archport.planning import Planner, Request
from archport.planning.steps import MOST_LENGTHS

H200 = profile("h200")


def texts(seed: int, count: int = 1000) -> list[int]:
    generator = random.Random(seed)
    return [min(512, max(8, int(generator.lognormvariate(5.0, 0.9)))) for _ in range(count)]


def planner(spec: ArchSpec, choose: PathChooser) -> Planner:
    return Planner.of(spec, H200, choose, weight_bytes=0)


def test_shapes_that_were_planned_need_no_new_path_for_other_lengths(bert: ArchSpec, real_choose):
    asked: set[AttentionCall] = set()

    def choose(call, device, pin=None):
        asked.add(call)
        return real_choose(call, device, pin)

    remembering = planner(bert, choose)
    for seed in range(6):
        remembering(Request(lengths=texts(seed)))
    before = len(asked)
    again = remembering(Request(lengths=texts(100)))
    shapes = {(batch.shape.B, batch.shape.L) for batch in again.batches}
    assert len(again.batches) > 4
    assert len(asked) - before <= len(shapes) // 4


def test_the_path_of_a_batch_carries_its_own_lengths(bert: ArchSpec, real_choose):
    plan = planner(bert, real_choose)(Request(lengths=texts(1)))
    ragged = [batch for batch in plan.batches if batch.shape.ragged]
    assert ragged
    for batch in ragged:
        (path,) = batch.steps[0].paths
        assert isinstance(path, AttentionPath)
        assert path.call.lengths == batch.lengths


@pytest.mark.parametrize("lengths", [[40, 500], [100, 101, 102, 103, 104, 105, 106, 107, 108, 109, 110]])
def test_a_batch_priced_by_its_shape_is_priced_no_lower_than_by_its_lengths(lengths, bert: ArchSpec, real_choose):
    for batch in planner(bert, real_choose)(Request(lengths=lengths)).batches:
        (path,) = batch.steps[0].paths
        assert isinstance(path, AttentionPath)
        exact = real_choose(path.call, H200, path.backend.name)
        assert exact.price.transient <= path.price.transient
        assert exact.price.largest_buffer <= path.price.largest_buffer


def test_many_different_lengths_do_not_run_row_by_row_on_cuda(bert: ArchSpec, real_choose):
    plan = planner(bert, real_choose)(Request(lengths=texts(2)))
    apart = [
        batch for batch in plan.batches if any(kind.mask and kind.mask.kind == "documents" for kind in batch.kinds)
    ]
    assert all(len(set(batch.lengths)) <= MOST_LENGTHS for batch in apart)
    assert len(apart) < len(plan.batches)
