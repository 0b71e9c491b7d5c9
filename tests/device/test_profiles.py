"""Profiles stand for machines nobody here owns."""

from __future__ import annotations

import pytest

from archport.contract import InputError
from archport.device.profiles import PROFILES, profile


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_states_what_a_plan_needs(name: str):
    facts = profile(name)
    assert facts.name == name
    assert facts.simulated
    assert set(facts.flops) == {"float32", "float16", "bfloat16"}
    assert facts.bandwidth > 0
    assert 0 < facts.default_budget < facts.total_memory


def test_apple_profiles_have_a_largest_buffer_inside_a_working_set_inside_memory():
    for facts in PROFILES.values():
        if facts.kind == "metal":
            assert facts.max_buffer is not None
            assert facts.working_set is not None
            assert facts.max_buffer < facts.working_set < facts.total_memory
            assert facts.watchdog_seconds is not None


def test_the_published_largest_buffers_are_exact():
    assert profile("m2-ultra-128gb").max_buffer == 86_586_540_032
    assert profile("m3-ultra-256gb").max_buffer == 179_357_827_072


@pytest.mark.parametrize("chip", ["m3-max", "m4-max", "m5-max"])
def test_a_max_of_36_gb_has_the_rates_of_its_fewer_cores(chip: str):
    small, large = profile(f"{chip}-36gb"), profile(f"{chip}-48gb")
    assert small.bandwidth == pytest.approx(0.75 * large.bandwidth, rel=0.01)
    assert 0.7 < small.flops["float16"] / large.flops["float16"] < 0.85


def test_matrix_units_are_only_where_they_exist():
    assert {name for name, facts in PROFILES.items() if facts.nax} == {
        name for name in PROFILES if name.startswith("m5")
    }


def test_a_misspelt_profile_gets_its_near_match():
    with pytest.raises(InputError, match="m2-ultra-128gb"):
        profile("m2-ultra-128")


def test_an_unknown_profile_lists_all():
    with pytest.raises(InputError, match=r"h200.*cpu"):
        profile("zzzzzz")
