"""Options of generation: one for all prompts or one per prompt, checked by name, value and prompt."""

from __future__ import annotations

import archport  # noqa: F401

# isort: split
import numpy as np
import pytest

from archport.contract import InputError
from archport.generating.pieces import generate_request

DEFAULTS = {
    "max_tokens": 256, "temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": None,
    "presence_penalty": 0.0, "frequency_penalty": 0.0, "logit_bias": None, "seed": None, "stop": None,
    "stop_token_ids": None, "min_tokens": 0, "n": None, "logprobs": None, "progress": False,
}  # fmt: skip


def request(rows=2, **options):
    return generate_request({**DEFAULTS, **options}, rows, 100, frozenset({99}))


@pytest.mark.parametrize(
    ("name", "value", "rows"),
    [
        ("max_tokens", [3, None], [3, None]),
        ("min_tokens", (0, 2), [0, 2]),
        ("stop", "ab", [("ab",), ("ab",)]),
        ("stop", ["a", "b"], [("a", "b"), ("a", "b")]),
        ("stop", [["a", "b"], None], [("a", "b"), ()]),
        ("stop", [["a"], "b"], [("a",), ("b",)]),
        ("stop_token_ids", [5, 6], [{5, 6}, {5, 6}]),
        ("stop_token_ids", {5}, [{5}, {5}]),
        ("stop_token_ids", np.array([5, 6]), [{5, 6}, {5, 6}]),
        ("stop_token_ids", [[5, 6], None], [{5, 6}, set()]),
    ],
)
def test_a_list_is_one_value_per_prompt_and_a_list_of_stops_is_for_all(name, value, rows):
    assert [getattr(row, name) for row in request(**{name: value}).rows] == rows


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("temperature", [0, 0.5]), ("top_p", [1, 0.5]), ("top_k", [0, 3]), ("min_p", [0, 0.1]), ("seed", [None, 3])),
        *(("repetition_penalty", [None, 1.2]), ("presence_penalty", [-1, 2]), ("frequency_penalty", [0.1, 0])),
        ("logit_bias", [{1: 3.0}, None]),
        ("logit_bias", [{np.int64(1): np.float32(3.0)}, {2: 3}]),
    ],
)
def test_how_tokens_are_drawn_may_differ_per_prompt(name, value):
    assert [getattr(row.sampling, name) for row in request(**{name: value}).rows] == value


def test_an_iterator_is_read_once_for_all_prompts():
    rows = request(stop_token_ids=iter([5, 6]), temperature=[0, 1]).rows
    assert [row.stop_token_ids for row in rows] == [{5, 6}, {5, 6}]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"presence_penalty": 2.5}, "presence_penalty=2.5; expected a number from -2 to 2"),
        ({"frequency_penalty": "a"}, "frequency_penalty='a'; expected a number"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty=nan; expected a number from -2 to 2"),
        ({"presence_penalty": [0, True]}, "prompt 1: presence_penalty=True; expected a number"),
        ({"presence_penalty": [0, 0, 1]}, "presence_penalty=.* has 3 entries for 2 prompts; expected one value for"),
        ({"logit_bias": 3}, "logit_bias=3; expected a dict"),
        ({"logit_bias": {"5": 1}}, "logit_bias holds '5'; expected token ids"),
        ({"logit_bias": {-1: 1}}, "logit_bias holds -1; expected token ids"),
        ({"logit_bias": {True: 1}}, "logit_bias holds True; expected token ids"),
        ({"logit_bias": {100: 1}}, "logit_bias holds token id 100; the vocabulary has 100 entries"),
        ({"logit_bias": {10**5000: 1}}, "logit_bias holds token id .*an integer of 16,610 bits"),
        ({"logit_bias": {5: 101}}, r"logit_bias\[5\]=101; expected a number from -100 to 100"),
        ({"logit_bias": [None, {5: float("inf")}]}, r"prompt 1: logit_bias\[5\]=inf; expected"),
        ({"stop_token_ids": 5}, "stop_token_ids=5; expected token ids from 0 to 99, or None"),
        ({"stop_token_ids": "5"}, "stop_token_ids='5'; expected token ids"),
        ({"stop_token_ids": [100]}, "stop_token_ids=100; expected token ids from 0 to 99"),
        ({"stop_token_ids": [1.0]}, "stop_token_ids=1.0; expected token ids"),
        ({"stop_token_ids": [[1], [True]]}, "prompt 1: stop_token_ids=True; expected token ids"),
        ({"stop_token_ids": [-(10**5000)]}, "stop_token_ids=.*an integer of 16,610 bits"),
        ({"min_tokens": -1}, "min_tokens=-1; expected an integer from 0"),
        ({"min_tokens": 1.0}, "min_tokens=1.0; expected an integer from 0"),
        ({"min_tokens": 300}, "min_tokens=300 is above max_tokens=256; expected at most as many"),
        ({"min_tokens": 1, "stop_token_ids": range(99)}, "min_tokens=1, but every token of the vocabulary ends the"),
        ({"max_tokens": -1}, "max_tokens=-1; expected an integer from 0"),
        ({"max_tokens": 3.0}, "max_tokens=3.0; expected an integer from 0"),
        ({"max_tokens": [3, "a"]}, "prompt 1: max_tokens='a'; expected an integer from 0"),
        ({"stop": [["a"], [""]]}, r"prompt 1: stop=\('',\); expected one or more strings that are not empty"),
        ({"stop": [["a"], None, None]}, "stop=.* has 3 entries for 2 prompts; expected strings for all prompts"),
        ({"n": 0}, "n=0; expected 1 to 1024 answers of each prompt, or None"),
        ({"n": True}, "n=True; expected 1 to 1024"),
        ({"n": 1025}, "n=1025; expected 1 to 1024"),
        ({"n": [1, 2]}, r"n=\[1, 2\]; expected 1 to 1024"),
    ],
)
def test_a_bad_value_is_named_with_what_was_expected(options, said):
    with pytest.raises(InputError, match=said):
        request(**options)
