"""Rotary positions on several axes: text is plain rotary, and every frequency turns by its own axis."""

import mlx.core as mx
import numpy as np
import pytest

import archport  # noqa: F401  (before mlx)
from archport.contract import SpecError
from archport.layers import Rotary
from archport.layers.rotary import SectionedRotary, dealt


def test_text_is_rotated_exactly_as_by_a_plain_rotary():
    x = mx.random.normal((2, 3, 40, 128))
    sectioned = SectionedRotary(128, 5e6, {"rope_type": "default", "mrope_section": [24, 20, 20]}, (24, 20, 20))
    np.testing.assert_array_equal(np.array(sectioned(x, 7)), np.array(Rotary(128, 5e6)(x, 7)))


@pytest.mark.parametrize(("dims", "width"), [(128, 128), (64, 256)])
def test_equal_positions_on_all_axes_are_plain_rotary(dims: int, width: int):
    x = mx.random.normal((1, 2, 300, width))
    sections = (24, 20, 20) if dims == 128 else (11, 11, 10)
    sectioned = SectionedRotary(dims, 1e7, None, sections)
    positions = mx.broadcast_to(mx.arange(300), (3, 1, 300))
    difference = np.abs(np.array(sectioned.at(positions)(x)) - np.array(Rotary(dims, 1e7)(x, 0)))
    assert difference.max() < 2e-4
    np.testing.assert_array_equal(np.array(sectioned.at(positions)(x))[..., dims:], np.array(x)[..., dims:])


@pytest.mark.parametrize("axis", range(3))
def test_moving_along_an_axis_turns_its_own_frequencies_only(axis: int):
    sectioned = SectionedRotary(32, 100.0, None, (6, 5, 5))
    positions = np.zeros((3, 1, 1), np.int32)
    positions[axis] = 3
    turned = np.array(sectioned.at(mx.array(positions))(mx.ones((1, 1, 1, 32))))[0, 0, 0]
    moved = np.abs(turned - 1) > 1e-6
    own = np.array(sectioned.axis_of) == axis
    np.testing.assert_array_equal(moved, np.concatenate([own, own]))


def test_axes_get_their_shares_in_turn():
    assert dealt(8, (4, 2, 2)) == [0, 1, 2, 0, 1, 2, 0, 0]


@pytest.mark.parametrize(
    ("frequencies", "sections", "expected"),
    [(4, (24, 20, 20), [0, 1, 2, 0]), (8, (4, 2, 1), [0, 1, 2, 0, 1, 0, 0, 0]), (2, (11, 11, 10), [0, 1])],
)
def test_shares_of_other_heads_are_cut_and_filled_as_transformers_does(frequencies, sections, expected):
    assert dealt(frequencies, sections) == expected


@pytest.mark.parametrize("sections", [(), (4, -2, 1), (2.0, 3, 3), ("4", 2, 2)])
def test_shares_that_are_no_numbers_are_refused(sections: tuple):
    with pytest.raises(SpecError, match="expected a number of frequencies"):
        dealt(8, sections)
