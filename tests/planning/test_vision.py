"""The vision tower in a plan: pictures by themselves, in pieces that keep the watchdog's bound, within the budget."""

from dataclasses import replace

import pytest

from archport.contract import ArchSpec, AttentionLayer, InputError, MemoryBudgetExceeded, VisionTower
from archport.device.profiles import profile
from archport.testing.plans import plan_of

EYE = AttentionLayer("bidirectional", 16, 16, 64)
TOWER = VisionTower((EYE,) * 24, 1024, 4096, 16, merge_size=2, taps=3)
TEXT = AttentionLayer("causal", 16, 8, 128)
SPEC = ArchSpec(
    arch="vl",
    tasks=("embed",),
    layers=(TEXT,) * 28,
    vocab_size=151_936,
    hidden_size=2048,
    intermediate_size=6144,
    max_positions=262_144,
    dtype="bfloat16",
    vision=TOWER,
)
SIXTEEN = 256 * 256


@pytest.mark.parametrize("mac", ["m1-16gb", "m2-ultra-128gb"])
@pytest.mark.parametrize("patches", [1024, 4096, 16_384, SIXTEEN])
def test_no_stretch_of_a_tower_outlasts_the_watchdog(mac: str, patches: int, choose):
    plan = plan_of(SPEC, [patches // 4 + 30], device=profile(mac), choose=choose, images=[[patches]])
    assert plan.work.limit is not None
    assert plan.work.seconds <= plan.work.limit


def test_a_large_image_is_worked_on_in_pieces_where_the_device_is_slow(choose):
    small, large = (
        plan_of(SPEC, [n // 4], device=profile("m1-16gb"), choose=choose, images=[[n]]).batches[0].quote.vision[0]
        for n in (1024, SIXTEEN)
    )
    assert small.piece >= small.padded
    assert large.piece < large.padded
    assert large.piece % TOWER.merge_size**2 == 0


def test_every_picture_is_a_row_of_its_own_and_runs_once(choose):
    images = [[1024, 256], [], [1024, 1024, 64]]
    plan = plan_of(SPEC, [400, 50, 600], device=profile("m4-pro-24gb"), choose=choose, images=images)
    for batch in plan.batches:
        own = [patches for row in batch.rows for patches in images[row]]
        seen = [pair for step in batch.quote.vision for pair in zip(step.pictures, step.lengths, strict=True)]
        assert sorted(index for index, _ in seen) == list(range(len(own)))
        assert all(own[index] == length for index, length in seen)
        for step in batch.quote.vision:
            for path in step.paths:
                assert path is not None
                assert (path.call.B, path.call.q_len, path.call.mask) == (len(step.lengths), step.padded, "none")


def test_pictures_on_cuda_take_few_widths(choose):
    images = [[4 * n] for n in range(100, 1000, 7)]
    plan = plan_of(SPEC, [1000] * len(images), device=profile("h200"), choose=choose, images=images)
    assert len({step.padded for batch in plan.batches for step in batch.quote.vision}) <= 16


def test_memory_grows_no_faster_than_the_patches(choose):
    peaks = []
    for patches in (4096, 16_384, SIXTEEN):
        plan = plan_of(SPEC, [patches // 4], device=profile("h200"), choose=choose, images=[[patches]])
        peaks.append(plan.peak - plan.bytes["weights"])
    assert peaks[1] <= 4.1 * peaks[0]
    assert peaks[2] <= 4.1 * peaks[1]


def test_a_picture_without_room_is_refused_with_what_it_takes(choose):
    with pytest.raises(MemoryBudgetExceeded, match="vision") as caught:
        plan_of(SPEC, [SIXTEEN // 4], device=profile("h200"), choose=choose, images=[[SIXTEEN]], budget=5 * 10**9)
    assert caught.value.breakdown["vision"] > 10**8


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([[1024], [1024]], "2 rows of pictures for 1 rows"),
        ([[4096]], "has 300 tokens for pictures"),
        ([[6]], "make one"),
    ],
)
def test_pictures_that_do_not_fit_their_rows_are_refused(images, words: str, choose):
    with pytest.raises(InputError, match=words):
        plan_of(SPEC, [300], device=profile("h200"), choose=choose, images=images)


def test_pictures_for_a_model_without_a_tower_are_refused(choose):
    with pytest.raises(InputError, match="no vision tower"):
        plan_of(replace(SPEC, vision=None), [300], device=profile("h200"), choose=choose, images=[[1024]])
