"""Rotary embedding against what transformers computes for the same `rope_scaling`."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from archport.contract import SpecError
from archport.layers import Rotary
from archport.layers.rotary import too_narrow

ROWS = json.loads(Path(__file__).with_name("rope_tables.json").read_text(encoding="utf-8"))["rows"]
LLAMA3 = next(row["scaling"] for row in ROWS if row["scaling"]["rope_type"] == "llama3")
YARN = next(row["scaling"] for row in ROWS if row["scaling"]["rope_type"] == "yarn")


def turned(rotary, dims, position):
    """Cosine and sine, times the gain, of each pair's angle at a position: what (1, 0) becomes."""
    x = mx.concatenate([mx.ones((1, 1, 1, dims // 2)), mx.zeros((1, 1, 1, dims // 2))], axis=-1)
    both = np.array(rotary(x, position))[0, 0, 0]
    return both[: dims // 2], both[dims // 2 :]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['scaling']['rope_type']}-{row['dims']}")
@pytest.mark.parametrize("position", [0, 1, 63, 400])
def test_angles_and_gain_equal_transformers(row, position):
    rotary = Rotary(row["dims"], row["theta"], row["scaling"])
    angle = position * np.array(row["frequencies"], np.float64)
    cosine, sine = turned(rotary, row["dims"], position)
    # A float32 angle of 400 radians is itself off by 2e-5.
    assert np.abs(cosine - row["gain"] * np.cos(angle)).max() <= 1e-4
    assert np.abs(sine - row["gain"] * np.sin(angle)).max() <= 1e-4


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['scaling']['rope_type']}-{row['dims']}")
def test_the_recorded_tables_would_show_a_scaling_that_is_ignored(row):
    plain = np.array([row["theta"] ** (-index / row["dims"]) for index in range(0, row["dims"], 2)])
    moved = np.abs(plain / np.array(row["frequencies"]) - 1).max()
    assert moved > 0.5 or row["scaling"]["factor"] == 1.0


def test_the_part_of_a_head_that_is_not_rotated_keeps_its_scale():
    x = mx.random.normal((1, 2, 3, 80))
    out = Rotary(64, 10000.0, next(row["scaling"] for row in ROWS if row["gain"] > 1.2))(x, 5)
    assert mx.array_equal(out[..., 64:], x[..., 64:])


def test_rows_of_a_batch_stand_at_their_own_positions():
    rotary, x = Rotary(16, 10000.0, {**LLAMA3, "original_max_position_embeddings": 64}), mx.random.normal((2, 1, 4, 16))
    both = rotary(x, mx.array([3, 40]))
    for row, offset in enumerate((3, 40)):
        assert mx.allclose(both[row : row + 1], rotary(x[row : row + 1], offset), atol=1e-6)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, "known: default, linear, llama3, yarn"),
        ({"rope_type": "linear"}, "factor=None; expected a number > 0"),
        ({**YARN, "original_max_position_embeddings": None}, "original_max_position_embeddings=None"),
        ({**LLAMA3, "low_freq_factor": 4.0}, "expected the first below the second"),
        ({**LLAMA3, "factor": True}, "factor=True"),
    ],
)
def test_a_scaling_that_can_not_be_followed_is_refused_with_its_numbers(scaling, message):
    with pytest.raises(SpecError, match=message):
        Rotary(64, 10000.0, scaling)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dims", [4, 8, 16])
@pytest.mark.parametrize("tokens", [1, 3])
def test_many_rows_of_narrow_heads_turn_as_each_row_does(dims, tokens, interleaved):
    rotary = Rotary(dims, 1e4, YARN if dims == 16 else None, interleaved=interleaved)
    x, at = mx.random.normal((130, 3, tokens, dims + 4)), mx.arange(130) * 7
    together = rotary(x, at)
    alone = mx.concatenate([rotary(x[row : row + 1], at[row : row + 1]) for row in range(0, 130, 43)])
    np.testing.assert_allclose(np.array(together)[::43], np.array(alone), atol=1e-5)


@pytest.mark.parametrize("interleaved", [False, True])
def test_turning_by_angles_is_what_the_kernel_does(interleaved):
    rotary = Rotary(16, 1e4, LLAMA3, interleaved=interleaved)
    x, at = mx.random.normal((5, 3, 2, 20)), mx.array([0, 1, 40, 399, 8000])
    for offset in (at, 17):
        # Angles of thousands of radians in float32.
        np.testing.assert_allclose(np.array(rotary._by_angles(x, offset)), np.array(rotary(x, offset)), atol=1e-3)


def test_heads_as_wide_as_published_ones_are_left_to_the_kernel():
    assert not any(too_narrow(dims, tokens) for dims in (32, 64, 128, 256) for tokens in (1, 2, 7, 4096))
    assert too_narrow(16, 1)
    assert not too_narrow(16, 2)
