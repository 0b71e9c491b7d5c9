"""A plugin that claims nothing is checked in the models of plugins that do."""

import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest

from archport.contract import hookimpl
from archport.testing import run_checks

EXAMPLE = Path(__file__).parents[2] / "examples" / "third_party" / "archport-sdpa-demo"


@pytest.fixture
def stream32(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE))
    from archport_sdpa_demo.backend import Stream32

    yield Stream32
    for name in [name for name in sys.modules if name.startswith("archport_sdpa_demo")]:
        del sys.modules[name]


def guest(backend):
    """A module that brings one backend and nothing else."""
    module = types.ModuleType("a_guest")

    @hookimpl
    def archport_sdpa_backends():
        return [backend]

    module.archport_sdpa_backends = archport_sdpa_backends
    return module


def outcomes(module, *names):
    return {outcome.check.name: outcome for outcome in run_checks(module, only=names)}


def test_a_sound_backend_agrees_in_a_causal_and_a_bidirectional_host(stream32):
    found = outcomes(guest(stream32()), "hooks_match_the_contract", "backends_agree", "published_checkpoint_loads")
    assert {outcome.status for outcome in found.values()} == {"ok"}
    parts = found["backends_agree"].parts
    assert [part.example.partition(":")[0] for part in parts] == ["qwen3", "bidirectional"]
    assert all("stream32" in part.message for part in parts)


def test_a_backend_that_ignores_the_mask_is_caught_where_it_matters(stream32):
    class Blind(stream32):
        def run(self, call, price, q, k, v, **options):
            return super().run(replace(call, mask="none", lengths=(), q_lengths=()), price, q, k, v, **options)

    failed = outcomes(guest(Blind(name="blind")), "backends_agree")["backends_agree"]
    assert {part.example.partition(":")[0]: part.status for part in failed.parts} == {
        "qwen3": "fail",
        "bidirectional": "ok",
    }
    assert "'blind' differs by" in failed.parts[0].message


def test_what_only_an_author_of_an_architecture_can_break_does_not_apply(stream32):
    found = outcomes(guest(stream32()), "claims_its_own_and_no_other", "flags_change_the_semantics")
    assert {outcome.status for outcome in found.values()} == {"not applicable"}


def test_a_plugin_that_builds_but_forgot_to_claim_is_no_guest():
    module = types.ModuleType("forgetful")

    @hookimpl
    def archport_build(spec, config):
        raise NotImplementedError

    module.archport_build = archport_build
    found = outcomes(module, "hooks_match_the_contract")["hooks_match_the_contract"]
    assert found.status == "fail"
    assert "archport_claim" in found.parts[0].message
