"""The liar matrix: every check is failed by a plugin that breaks its rule, and others only as declared."""

import os
import random
import zlib

import mlx.core as mx
import pytest
from tolerances import DEVICE

from archport.testing import CHECKS, run_checks
from archport.testing.finding import find, release

# Whether this device runs rows and batches at few widths.
PADS = mx.default_device().type != mx.DeviceType.cpu


@pytest.fixture(scope="module")
def golden(load_kit, tmp_path_factory):
    """What the golden tier is given for a liar: its honest twin's first example as real weights, and a reference."""
    honest, folder, made = load_kit("honest_toys"), tmp_path_factory.mktemp("golden"), {}

    def given(liar):
        if liar.tier != "golden":
            return {}
        twin = liar.honest or honest.DECODES
        if twin not in made:
            made[twin] = load_kit("references").write_reference(twin, folder / f"{twin.__name__}.npz")
        return made[twin]

    return given


def outcomes(liar, golden, only=None):
    try:
        return run_checks(liar.module, tier=liar.tier, only=only, **golden(liar))
    finally:
        release(find(liar.module))


def check_liar(liar, golden, only=None):
    """A liar fails its check with the reason, and of the checks that are run no other than those it declares."""
    if liar.only_on and liar.only_on[0] != DEVICE:
        pytest.skip(f"only on {liar.only_on[0]}: {liar.only_on[1]}")
    found = {outcome.check.name: outcome for outcome in outcomes(liar, golden, only)}
    failed = {name for name, outcome in found.items() if outcome.status in ("fail", "warning")}
    expected = {liar.breaks, *liar.also}
    if PADS:
        # Lies about one row or one token more reach fewer checks where none of that shape is run.
        assert liar.breaks in failed, found[liar.breaks].message
        expected = failed & (expected | set(liar.where_padded))
    assert failed == expected, {name: found[name].message for name in failed ^ expected if name in found}
    assert liar.says in found[liar.breaks].message


def test_a_liar_fails_its_checks_with_the_reason_and_no_other_of_a_sample(liar, golden):
    tiers = (liar.tier,) if liar.tier else ("contract", "tiny")
    names = [check.name for check in CHECKS if check.tier in tiers]
    others = random.Random(liar.module.__name__).sample(names, min(2, len(names)))
    check_liar(liar, golden, sorted({liar.breaks, *liar.also, *others}))


# The whole matrix takes 20 minutes; `make truth` takes this share of it, `make liars` all.
SHARE = 8


@pytest.mark.truth
def test_a_liar_fails_exactly_its_checks_of_all(liar, golden):
    if zlib.crc32(liar.module.__name__.encode()) % SHARE and not os.environ.get("ARCHPORT_EVERY_LIAR"):
        pytest.skip("`make liars` runs this liar through every check")
    check_liar(liar, golden)


def test_what_looks_at_free_memory_is_caught_whatever_other_tests_hold(liars, golden):
    (liar,) = [each for each in liars if each.module.__name__ == "liar_memory"]
    held = mx.zeros((32 << 20,))
    left: list[object] = [mx.zeros((32 << 20,))]
    left.append(left)
    mx.eval(held, left[0])
    del left
    check_liar(liar, golden, ["deterministic"])
    del held


def test_every_check_has_a_liar_and_every_liar_a_name(liars):
    assert {liar.breaks for liar in liars} == {check.name for check in CHECKS}
    assert len({liar.module.__name__ for liar in liars}) == len(liars) >= 60


def test_every_extra_failure_has_a_reason_and_names_a_check(liars):
    names = {check.name for check in CHECKS}
    for liar in liars:
        assert set(liar.also) <= names
        assert all(len(reason) > 10 for reason in liar.also.values())


def test_the_honest_plugin_that_liars_are_made_of_passes_every_check(honest):
    assert {o.check.name: o.message for o in honest if o.status not in ("ok", "not applicable")} == {}


def test_the_twins_of_golden_liars_pass_the_checks_of_the_golden_tier_between_them(liars, golden, load_kit):
    twins = {liar.honest: liar for liar in liars if liar.tier == "golden"}
    passed = set()
    for twin, liar in twins.items():
        found = run_checks(twin or load_kit("honest_toys").DECODES, tier="golden", **golden(liar))
        assert {o.check.name: o.message for o in found if o.status not in ("ok", "not applicable")} == {}
        passed |= {o.check.name for o in found if o.status == "ok"}
    assert passed == {check.name for check in CHECKS if check.tier == "golden"}
