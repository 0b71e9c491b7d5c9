"""The liar matrix: every check is failed by a plugin that breaks its rule, and others only as declared."""

import os
import random
import zlib

import numpy as np
import pytest

from archport.testing import CHECKS, run_checks
from archport.testing.checks.golden import TEXTS
from archport.testing.finding import find, release, subject_of


@pytest.fixture(scope="module")
def golden(toy, tmp_path_factory):
    """The honest decoder as real weights, with the vectors it gives."""
    tiny = subject_of(find(toy)).tinies[0]
    file = tmp_path_factory.mktemp("golden") / "vectors.npz"
    np.savez(file, texts=np.array(TEXTS), vectors=tiny.model.embed(TEXTS))
    return {"model": str(tiny.folder), "vectors": file}


def outcomes(liar, golden, only=None):
    try:
        return run_checks(liar.module, tier=liar.tier, only=only, **(golden if liar.tier == "golden" else {}))
    finally:
        release(find(liar.module))


def check_liar(liar, golden, only=None):
    """A liar fails its check with the reason, and of the checks that are run no other than those it declares."""
    found = {outcome.check.name: outcome for outcome in outcomes(liar, golden, only)}
    failed = {name for name, outcome in found.items() if outcome.status == "fail"}
    expected = {liar.breaks, *liar.also}
    assert failed == expected, {name: found[name].message for name in failed ^ expected if name in found}
    assert liar.says in found[liar.breaks].message


def test_a_liar_fails_its_checks_with_the_reason_and_no_other_of_a_sample(liar, golden):
    tiers = (liar.tier,) if liar.tier else ("contract", "tiny")
    names = [check.name for check in CHECKS if check.tier in tiers]
    others = random.Random(liar.module.__name__).sample(names, 2)
    check_liar(liar, golden, sorted({liar.breaks, *liar.also, *others}))


# The whole matrix takes 20 minutes; `make truth` takes this share of it, `make liars` all.
SHARE = 8


@pytest.mark.truth
def test_a_liar_fails_exactly_its_checks_of_all(liar, golden):
    if zlib.crc32(liar.module.__name__.encode()) % SHARE and not os.environ.get("ARCHPORT_EVERY_LIAR"):
        pytest.skip("`make liars` runs this liar through every check")
    check_liar(liar, golden)


def test_every_check_has_a_liar_and_every_liar_a_name(liars):
    assert {liar.breaks for liar in liars} == {check.name for check in CHECKS}
    assert len({liar.module.__name__ for liar in liars}) == len(liars) >= 60


def test_every_extra_failure_has_a_reason_and_names_a_check(liars):
    names = {check.name for check in CHECKS}
    for liar in liars:
        assert set(liar.also) <= names
        assert all(len(reason) > 10 for reason in liar.also.values())


def test_the_honest_plugin_that_liars_are_made_of_passes_every_check(toy, honest, golden):
    bad = {o.check.name: o.message for o in honest if o.status not in ("ok", "not applicable")}
    assert bad == {}
    assert {o.status for o in run_checks(toy, tier="golden", **golden)} == {"ok"}
