"""Every outside plugin of this folder passes the conformance kit, and only its spec makes a check not applicable."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from archport.testing import run_checks
from archport.testing.finding import find, release

PLUGINS = ("decoders", "deepseek", "encoders", "gemma2", "nomic", "spans")
# What a spec says for a check not to apply.
BY_SPEC = ("declared bidirectional", "declared causal for embed", "no layer is declared to know spans")
BY_SPEC += ("no matrix of the example has rows in multiples of 32",)


def outcomes(name, monkeypatch, **options):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    module = __import__(name)
    try:
        return run_checks(module, **options)
    finally:
        release(find(module))
        sys.modules.pop(name, None)


def check_all(found):
    wrong = {each.check.name: each.message for each in found if each.status not in ("ok", "not applicable")}
    assert wrong == {}
    left_out = [part for each in found for part in each.parts if part.status == "not applicable"]
    assert [part.message for part in left_out if not part.message.startswith(BY_SPEC)] == []


@pytest.mark.parametrize("name", ["deepseek", "nomic"])
def test_an_outside_plugin_is_what_it_declares(name, monkeypatch):
    only = ["spec_matches_config", "damaged_checkpoint_is_refused", "quantised_round_trip", "declared_mask_is_observed"]
    check_all(outcomes(name, monkeypatch, only=[*only, "every_weight_is_used", "published_checkpoint_loads"]))


@pytest.mark.truth
@pytest.mark.parametrize("name", PLUGINS)
def test_an_outside_plugin_passes_every_check(name, monkeypatch):
    check_all(outcomes(name, monkeypatch))
