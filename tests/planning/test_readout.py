"""What a head reads behind the last layer is part of a plan, and so are ends of rows that nothing sees."""

import pytest

from archport.contract import BufferTooLarge, InputError, MemoryBudgetExceeded
from archport.device.profiles import profile
from archport.planning import Readout
from archport.testing.plans import plan_of

H200 = profile("h200")
LENGTHS = [300, 280, 120, 64]


@pytest.fixture
def planned(models, real_choose):
    def plan(lengths=LENGTHS, device=H200, **options):
        return plan_of(models["bert"], lengths, device=device, choose=real_choose, **options)

    return plan


def test_arrays_larger_than_a_layer_s_own_are_added_to_the_peak(planned):
    plain = planned()
    wide = planned(readout=Readout("the vectors", "outputs", 3, token=1 << 20))
    tokens = wide.largest.shape.B * wide.largest.shape.L
    assert wide.peak >= plain.bytes["weights"] + 3 * tokens * (1 << 20)
    assert wide.largest_buffer.name == "the vectors"


def test_arrays_that_fit_where_layers_were_cost_nothing(planned):
    assert planned(readout=Readout("the vectors", "outputs", 3, token=8)).peak == planned().peak


def test_rows_are_split_into_batches_until_their_vectors_fit(planned):
    readout = Readout("the vectors", "outputs", 3, token=1 << 20)
    (one,) = planned([300], readout=readout).batches
    apart = planned([300] * 4, readout=readout, budget=int(2.2 * one.peak))
    assert len(apart.batches) > len(planned([300] * 4).batches)
    assert apart.peak <= apart.budget


def test_what_no_batch_can_make_smaller_is_refused_with_its_bytes(planned):
    plain = planned([8])
    with pytest.raises(MemoryBudgetExceeded) as caught:
        planned([8], readout=Readout("the logits", "logits", 5, fixed=1 << 30), budget=plain.peak + (1 << 30))
    assert caught.value.breakdown["logits"] >= 4 << 30
    metal = profile("m4-pro-24gb")
    with pytest.raises(BufferTooLarge, match="the logits"):
        planned([8], device=metal, readout=Readout("the logits", "logits", 1, fixed=metal.max_buffer + 1))


def test_ends_that_nothing_sees_are_hidden_by_lengths_of_keys_alone(planned):
    plan = planned([32, 32], visible=[10, 32])
    (batch,) = plan.batches
    assert batch.batch.visible == (10, 32)
    assert {kind.mask.kind for kind in batch.kinds} == {"key_padding"}
    assert all(path.call.lengths == (10, 32) for step in batch.steps for path in step.paths)
    # Where everything is seen, there is nothing to hide.
    assert planned([32, 32], visible=[32, 32]).batches == planned([32, 32]).batches


@pytest.mark.parametrize("visible", [[10], [33, 10], [0, 10]])
def test_ends_that_can_not_be_are_refused(planned, visible):
    with pytest.raises(InputError, match="visible"):
        planned([32, 32], visible=visible)
