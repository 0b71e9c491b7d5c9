"""A recorded sample of `make parity`: checkpoints whose keys are not the published ones, against transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from parity.answers import Answer, answer
from parity.families import FAMILIES
from parity.judge import judge
from parity.sample import rebuild, sampled
from parity.space import draws

NAMES = [f"{index}-{draw.architecture}" for index, draw in enumerate(sampled())]


@pytest.mark.parametrize("index", range(len(NAMES)), ids=NAMES)
def test_a_checkpoint_with_rare_keys_answers_as_transformers_does(index: int, tmp_path: Path):
    expected = rebuild(index, tmp_path)
    found = judge(expected, answer(sampled()[index], tmp_path, expected))
    assert found.verdict == "equal", found.why


def test_every_family_is_sampled():
    assert {draw.family for draw in sampled()} == set(FAMILIES)


def test_draws_are_the_same_for_the_same_seed_and_others_for_another():
    assert draws("qwen3", 3, 5) == draws("qwen3", 3, 5)
    assert draws("qwen3", 3, 5)[1:] != draws("qwen3", 4, 5)[1:]
    assert not draws("qwen3", 3, 1)[0].options


def answered(**arrays: object) -> Answer:
    return Answer({("single", name): np.asarray(value) for name, value in arrays.items()})


EXPECTED = {"hidden_0": np.ones((3, 4), np.float32), "noise_hidden_0": np.float64(1e-6)}


def test_the_judge_tells_rounding_from_another_answer():
    assert judge(EXPECTED, answered(hidden_0=EXPECTED["hidden_0"] + 5e-6)).verdict == "equal"
    assert judge(EXPECTED, answered(hidden_0=EXPECTED["hidden_0"] + 5e-5)).verdict == "wrong"
    assert judge(EXPECTED, answered(hidden_0=np.full((3, 4), np.nan))).verdict == "wrong"
    assert judge(EXPECTED, answered(hidden_0=np.ones((2, 4)))).verdict == "wrong"
    chaos = EXPECTED | {"noise_hidden_0": np.float64(0.1)}
    assert judge(chaos, answered(hidden_0=np.ones((3, 4)))).verdict == "undecided"


def test_the_judge_counts_a_bare_exception_as_wrong():
    assert judge(EXPECTED, Answer(refusal="SpecError: no")).verdict == "refused"
    assert judge(EXPECTED, Answer(refusal="KeyError: 'x'", bare=True)).verdict == "wrong"


def test_the_judge_asks_for_tokens_only_where_the_reference_is_sure():
    logits = {"logits_0": np.ones((3, 4), np.float32), "noise_logits_0": np.float64(1e-6)}
    expected = logits | {"tokens": np.array([5, 6, 7]), "gaps": np.array([1.0, 1e-7, 1.0])}
    assert judge(expected, answered(tokens=[5, 9, 9])).verdict == "equal"
    assert judge(expected, answered(tokens=[4, 6, 7])).verdict == "wrong"
    assert judge(expected, answered(tokens=[])).verdict == "wrong"
