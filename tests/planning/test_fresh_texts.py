"""Texts that no request had before: planning them must cost next to nothing, since a GPU waits for it, and a server's
texts are always such."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from archport.contract import ArchSpec, AttentionCall, AttentionPath, DeviceFacts, PathChooser
from archport.device.profiles import profile
from archport.planning import Planner, Request
from archport.planning.steps import MOST_LENGTHS

H200 = profile("h200")
CPU = replace(profile("cpu"), vector_threads=2)


def texts(seed: int, count: int = 1000) -> list[int]:
    generator = random.Random(seed)
    return [min(512, max(8, int(generator.lognormvariate(5.0, 0.9)))) for _ in range(count)]


def planner(spec: ArchSpec, choose: PathChooser, device: DeviceFacts = H200) -> Planner:
    return Planner.of(spec, device, choose, weight_bytes=0)


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


def test_a_shape_that_was_planned_on_a_cpu_needs_no_new_path_for_other_lengths(bert: ArchSpec, real_choose):
    asked: set[AttentionCall] = set()

    def choose(call, device, pin=None):
        asked.add(call)
        return real_choose(call, device, pin)

    remembering = planner(bert, choose, CPU)
    first = remembering(Request(lengths=[40, 39, 38]))
    before = len(asked)
    again = remembering(Request(lengths=[40, 38, 37]))
    assert [batch.shape for batch in again.batches] == [batch.shape for batch in first.batches]
    assert len(asked) == before
    (path,) = again.batches[0].steps[0].paths
    assert isinstance(path, AttentionPath)
    # What runs is what these rows are.
    assert path.call.lengths == (40, 38, 37)


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
    assert all(len(set(batch.lengths)) <= MOST_LENGTHS["cuda"] for batch in apart)
    assert len(apart) < len(plan.batches)
