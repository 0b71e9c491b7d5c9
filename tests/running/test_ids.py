"""Token ids that a caller gives are checked as they are, before anything casts them."""

from __future__ import annotations

import archport  # noqa: F401

# isort: split
import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from typer.testing import CliRunner

from archport import engine
from archport.contract import InputError
from archport.reading.ids import token_ids

GOLDENS = Path(__file__).parents[1] / "goldens"
V = 503
WRONG = [2**32 + 5, 2**31, 2**63, 2**64 + 5, 10**30, -1, -(2**32) + 5, V]


@pytest.fixture(scope="module")
def model():
    loaded = engine.load(GOLDENS / "qwen3-windowed")
    assert loaded.spec.vocab_size == V
    return loaded


def arrays(number):
    """[1, number] in every type of numpy that holds it."""
    found = [np.array([1, number], dtype=object)]
    for kind in (np.int8, np.int16, np.int32, np.int64, np.uint16, np.uint32, np.uint64):
        if np.iinfo(kind).min <= number <= np.iinfo(kind).max:
            found.append(np.array([1, number], kind))
    return found


@pytest.mark.parametrize("number", WRONG)
def test_generate_names_the_prompt_and_the_id(model, number):
    for prompt in ([1, number], (1, number), *arrays(number)):
        with pytest.raises(InputError, match=rf"prompt 0 holds token id {number} at index 1; expected .* 0 to {V - 1}"):
            model.generate(prompt)
        with pytest.raises(InputError, match=rf"prompt 1 holds token id {number} at index 1"):
            model.generate([[1, 2], prompt], stream=True)


@pytest.mark.parametrize("number", WRONG)
def test_forward_names_the_row_and_the_id(model, number):
    for ids in ([[1, 2], [1, number]], *(each[None] for each in arrays(number))):
        with pytest.raises(InputError, match=rf"row \d of input_ids holds token id {number};"):
            model.forward(ids)


@pytest.mark.parametrize("number", [True, 1.0, 1.5, float("nan"), float("inf"), 1j, np.float32(2), np.True_])
def test_what_is_no_integer_is_no_id(model, number):
    prompts = [[number, 1], [1, number], np.array([number])]
    for prompt in prompts:
        with pytest.raises(InputError, match=r"prompt 0 holds .* at index [01]; expected integers from 0"):
            model.generate(prompt)
    for ids in ([[number, 1]], np.array([[number]])):
        with pytest.raises(InputError, match=r"(row 0 of )?input_ids holds .*; expected integers"):
            model.forward(ids)


def test_a_number_of_thousands_of_digits_is_named_by_its_size(model):
    for call in (lambda ids: model.generate(ids), lambda ids: model.forward([ids])):
        with pytest.raises(InputError, match=r"token id <?an integer of 16,610 bits>?"):
            call([1, 10**5000])


@pytest.mark.parametrize("ids", [[[1, 2], [3]], [1, 2], [], [[]], None, "ab", [["a"]], [[[1]]], [None], {1: 2}])
def test_what_is_no_matrix_of_ids_is_refused(model, ids):
    with pytest.raises(InputError, match="input_ids"):
        model.forward(ids)


def test_an_array_of_mlx_is_read_by_its_own_type(model):
    assert model.forward(mx.array([[1, 2]])).shape == (1, 2, model.spec.hidden_size)
    for ids in (mx.array([[1.0, 2.0]]), mx.array([[1, 2]], dtype=mx.bfloat16), mx.array([[True]])):
        with pytest.raises(InputError, match="input_ids"):
            model.forward(ids)


@pytest.mark.parametrize("padding", [-100, 2**40, 10**30])
def test_padding_may_hold_anything(model, padding):
    found, usual = (model.forward([[1, 2, at], [1, 2, 3]], [[1, 1, 0], [1, 1, 1]]) for at in (padding, 0))
    assert mx.array_equal(found, usual).item()
    # A row's place in a product may change its last digits.
    assert mx.allclose(found[0, :2], found[1, :2], rtol=1e-5, atol=1e-5).item()
    assert not found[0, 2].any().item()


def test_every_integer_type_gives_the_same_ids():
    want = np.array([0, 5, 120], np.int32)
    for kind in (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64, object):
        found = token_ids(want.astype(kind), V, "prompt 0")
        assert found.dtype == np.int32
        assert np.array_equal(found, want)
    assert np.array_equal(token_ids([0, np.uint64(5), np.int8(120)], V, "prompt 0"), want)


def test_the_command_line_says_the_same(tmp_path):
    from archport.cli import app

    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": ids}) for ids in ([1, 2], [1, 2**32 + 5])))
    done = CliRunner().invoke(app, ["generate", "-m", str(GOLDENS / "qwen3-windowed"), "-i", str(file)])
    told = done.output + str(done.exception or "")
    assert done.exit_code
    assert "holds token id 4294967301 at index 1" in told
