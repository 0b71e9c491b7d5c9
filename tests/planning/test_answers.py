"""Several answers of a prompt: one prefill, and as many rows of caches and logits when it is decoded."""

from __future__ import annotations

import pytest

from archport.contract import AttentionPath, InputError, MemoryBudgetExceeded
from archport.device.profiles import profile
from archport.testing.plans import plan_of

NAMES = ["m4-pro-24gb", "h200"]


def planned(spec, choose, name, *, rows=2, answers=1, **options):
    return plan_of(
        spec, [3000, 2000][:rows], device=profile(name), choose=choose, new_tokens=200, answers=answers, **options
    )


@pytest.mark.parametrize("name", NAMES)
def test_prompts_are_read_as_for_one_answer_and_decoded_as_for_so_many_rows(qwen3_06b, choose, name):
    one, many = (planned(qwen3_06b, choose, name, answers=answers) for answers in (1, 5))
    assert one.batches[0].steps == many.batches[0].steps
    decode = many.batches[0].decode
    assert decode is not None
    assert {path.call.B for path in decode.paths if isinstance(path, AttentionPath)} == {10}
    assert many.decode_seconds >= one.decode_seconds
    assert "200 to generate in each of 5 answers" in many.explain()


@pytest.mark.parametrize("name", NAMES)
def test_copies_of_caches_are_counted_and_no_prompt_is_counted_twice(qwen3_06b, choose, name):
    one, many = (planned(qwen3_06b, choose, name, rows=1, answers=answers) for answers in (1, 20))
    kv = one.bytes["kv"]
    assert many.peak >= one.bytes["weights"] + 20 * kv
    apart = plan_of(qwen3_06b, [3000] * 20, device=profile(name), choose=choose, new_tokens=200)
    assert many.peak <= apart.peak


def test_answers_that_do_not_fit_are_refused_with_their_number(qwen3_06b, choose):
    plan = planned(qwen3_06b, choose, "m4-pro-24gb", answers=8)
    assert planned(qwen3_06b, choose, "m4-pro-24gb", answers=8, budget=plan.minimum).peak <= plan.minimum
    with pytest.raises(MemoryBudgetExceeded, match="200 to generate in each of 8 answers does not fit"):
        planned(qwen3_06b, choose, "m4-pro-24gb", answers=8, budget=plan.minimum - 2**22)


def test_a_number_of_answers_is_a_whole_number_from_one(qwen3_06b, choose):
    with pytest.raises(InputError, match="answers=0; expected an integer >= 1"):
        planned(qwen3_06b, choose, "h200", answers=0)
