"""Token-budget batches: every row once, little padding, no batch above its budget."""

import random

import pytest

from archport.planning.batching import group_rows


@pytest.mark.parametrize("seed", range(5))
def test_every_row_is_in_exactly_one_batch(seed):
    lengths = [random.Random(seed).randint(1, 600) for _ in range(300)]
    batches = group_rows(lengths, token_budget=2048, max_rows=64)
    assert sorted(row for batch in batches for row in batch.rows) == list(range(300))
    assert all(batch.lengths == tuple(lengths[row] for row in batch.rows) for batch in batches)


def test_no_batch_exceeds_the_token_budget_unless_one_row_does():
    lengths = [random.Random(1).randint(1, 3000) for _ in range(200)]
    for batch in group_rows(lengths, token_budget=2048, max_rows=64):
        assert batch.padded_tokens <= 2048 or len(batch.rows) == 1


def test_sorting_keeps_padding_low():
    lengths = [random.Random(2).randint(1, 512) for _ in range(2000)]
    batches = group_rows(lengths, token_budget=4096, max_rows=512)
    assert sum(batch.padded_tokens for batch in batches) <= 1.05 * sum(lengths)


def test_the_longest_rows_run_first():
    batches = group_rows([3, 900, 5, 40], token_budget=64, max_rows=8)
    assert [batch.L for batch in batches] == sorted((batch.L for batch in batches), reverse=True)


def test_no_rows_make_no_batches():
    assert group_rows([], token_budget=64, max_rows=8) == ()
