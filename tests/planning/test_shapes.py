"""Few shapes reach CUDA, no row is lost, and padding stays small."""

from __future__ import annotations

import random

import pytest

from archport.contract import ArchSpec
from archport.device.profiles import profile
from archport.planning import group_rows
from archport.planning.shapes import chunk_widths, padded_length
from archport.testing.plans import plan_of


def test_2000_random_requests_reach_cuda_in_at_most_160_shapes(qwen3_06b: ArchSpec, choose):
    rng = random.Random(7)
    seen: set[tuple[int, int]] = set()
    misses = 0
    for _ in range(2000):
        rows = rng.choice((1, 1, 1, 2, 3, 8, 40))
        lengths = [min(32_768, int(2 ** rng.uniform(0, 15.01))) for _ in range(rows)]
        plan = plan_of(qwen3_06b, lengths, device=profile("h200"), choose=choose)
        misses += len(plan.shapes - seen)
        seen |= plan.shapes
    # MLX keeps 256 attention plans per thread and aborts after 512 misses.
    assert misses == len(seen) <= 160


def test_every_row_is_in_one_group():
    rng = random.Random(3)
    for kind in ("cuda", "metal", "cpu"):
        for _ in range(50):
            lengths = [int(2 ** rng.uniform(0, 12)) for _ in range(rng.randint(1, 300))]
            groups = group_rows(lengths, kind=kind)
            assert sorted(row for group in groups for row in group.rows) == list(range(len(lengths)))
            assert all(lengths[row] <= group.padded for group in groups for row in group.rows)


def test_groups_come_longest_first():
    groups = group_rows([5, 900, 30, 4000, 31], kind="metal", tokens_per_batch=1000)
    assert [group.padded for group in groups] == sorted((group.padded for group in groups), reverse=True)


def test_a_batch_keeps_its_token_budget_unless_one_row_is_longer():
    rng = random.Random(5)
    lengths = [int(2 ** rng.uniform(0, 12)) for _ in range(500)]
    for group in group_rows(lengths, kind="metal", tokens_per_batch=2048):
        assert len(group.rows) * group.padded <= 2048 or len(group.rows) == 1


@pytest.mark.parametrize("kind", ["cuda", "metal", "cpu"])
def test_padding_of_a_mixed_corpus_stays_below_a_fifth(kind):
    rng = random.Random(11)
    lengths = [min(8192, max(4, int(rng.lognormvariate(5, 1)))) for _ in range(4096)]
    groups = group_rows(lengths, kind=kind)
    computed = sum(len(group.rows) * group.padded for group in groups)
    assert computed <= sum(lengths) / 0.8


def test_rows_are_limited_by_what_fits():
    groups = group_rows([100] * 10, kind="metal", max_rows=lambda width, wanted: (3, "no more fit"))
    assert [len(group.rows) for group in groups] == [3, 3, 3, 1]


def test_rows_are_grouped_the_same_where_no_more_are_asked_about_than_are_left():
    rng, spared = random.Random(9), 0
    for _ in range(300):
        kind, tokens = rng.choice(("cuda", "metal", "cpu")), rng.choice((256, 2048, None))
        lengths = [int(2 ** rng.uniform(0, 9)) for _ in range(rng.randint(1, 40))]
        fits, asked = {}, []

        def fit(width, wanted, fits=fits, asked=asked):
            asked.append((width, wanted))
            return min(wanted, fits.setdefault(width, rng.randint(1, 64))), "no more fit"

        def all_that_fit(width, wanted, fits=fits):
            return fits.get(width, 1), "no more fit"

        groups = group_rows(lengths, kind=kind, tokens_per_batch=tokens, max_rows=fit)
        assert groups == group_rows(lengths, kind=kind, tokens_per_batch=tokens, max_rows=all_that_fit)
        assert all(wanted < 2 * len(lengths) for _, wanted in asked)
        spared += any(wanted < fits[width] for width, wanted in asked)
    assert spared > 30


def test_a_row_by_itself_asks_for_no_path_of_a_batch_of_several(bert: ArchSpec, choose):
    asked = []

    def noting(call, device, pin=None):
        asked.append(call.B)
        return choose(call, device, pin)

    for lengths, most in (([24], 1), ([24, 20, 9], 4)):
        asked.clear()
        plan_of(bert, lengths, device=profile("m2-ultra-192gb"), choose=noting)
        assert max(asked, default=0) in range(1, most + 1)


def test_a_row_is_never_padded_beyond_its_context():
    assert padded_length(1000, "cuda", 1005) == 1005
    assert padded_length(1000, "cuda", 4096) == 1024
    assert padded_length(1000, "metal", 4096) == 1008
    assert padded_length(1000, "metal", 1005) == 1005


def test_chunks_are_tried_largest_first_within_the_upper_bound():
    widths = chunk_widths(5000, 1000, 2048, whole=True)
    assert widths[:4] == (768, 512, 384, 256)
    assert chunk_widths(5000, 5000, 2048, whole=True)[0] == 5000
    assert chunk_widths(5000, 5000, 2048, whole=False)[0] == 2048
    assert chunk_widths(5000, 7, 2048, whole=True) == (7,)


def _cheapest(lengths: tuple[int, ...], begin: float) -> float:
    """The least time of all ways to cut rows by descending length into batches."""
    if not lengths:
        return 0.0
    return min(
        begin + count * lengths[0] + _cheapest(lengths[count:], begin)
        for count in range(1, len(lengths) + 1)
        if count == 1 or count * lengths[0] <= 120
    )


def test_rows_on_a_cpu_share_batches_that_take_least_time_together():
    rng = random.Random(2)
    for _ in range(60):
        lengths, begin = [rng.randint(1, 40) for _ in range(rng.randint(1, 8))], rng.uniform(0, 60)

        def seconds(count: int, width: int, begin: float = begin) -> float:
            return begin + count * width

        groups = group_rows(lengths, kind="cpu", tokens_per_batch=120, seconds=seconds)
        assert sorted(row for group in groups for row in group.rows) == list(range(len(lengths)))
        took = sum(seconds(len(group.rows), group.padded) for group in groups)
        assert took == pytest.approx(_cheapest(tuple(sorted(lengths, reverse=True)), begin))


def test_batches_on_a_cpu_keep_to_what_fits():
    groups = group_rows(
        [100] * 10, kind="cpu", max_rows=lambda width, wanted: (3, "no more fit"), seconds=lambda count, width: 500.0
    )
    assert [len(group.rows) for group in groups] == [3, 3, 3, 1]
