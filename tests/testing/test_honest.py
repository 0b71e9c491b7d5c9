"""Honest plugins pass, whatever their kind and seed, however often they are run, and where a device pads rows."""

import os
from dataclasses import replace

import pytest

from archport.planning import batches, planner, shapes
from archport.testing import CHECKS, run_checks
from archport.testing.finding import find, release, subject_of
from archport.testing.subject import Tiny

# Like those of outside plugins: LFM2's width, MLA, yarn, gpt-oss, a recurrence of its own, GPT-NeoX's and GPT-2's MLP
# and positions; and the toy itself.
KINDS = (
    *("ADJUSTED", "LATENT", "SPANNED", "STRETCHED", "SINKING", "CONVOLVED", "PLAIN", "CLAMPED"),
    *("WIDE", "UNGATED", "LEARNED"),
)


def check_named(name):
    return next(check for check in CHECKS if check.name == name)


def kind(load_kit, name):
    return getattr(load_kit("honest_kinds"), name)


def failures(module, **options):
    try:
        found = run_checks(module, **options)
    finally:
        release(find(module))
    return {outcome.check.name: outcome.message for outcome in found if outcome.status not in ("ok", "not applicable")}


@pytest.mark.parametrize("name", KINDS)
def test_an_honest_plugin_of_another_kind_passes_what_blamed_it(load_kit, name):
    only = ["spec_matches_config", "spec_matches_weights", "half_precision_is_finite", "peak_is_predicted"]
    assert failures(kind(load_kit, name), only=only) == {}


@pytest.mark.truth
@pytest.mark.parametrize("name", KINDS)
def test_an_honest_plugin_of_another_kind_passes_every_check(load_kit, name):
    assert failures(kind(load_kit, name)) == {}


def test_an_honest_plugin_with_spans_passes_what_looks_at_them(load_kit):
    only = ["spans_see_both_ways", "spans_are_never_cut", "spans_are_named_by_ids", "mask_policies_agree"]
    found = run_checks(kind(load_kit, "SPANNED"), only=only)
    release(find(kind(load_kit, "SPANNED")))
    assert {outcome.status for outcome in found} == {"ok"}


def rerun(module, times):
    subject, check = subject_of(find(module)), check_named("peak_is_predicted")
    tiny = subject.tinies[0]
    for _ in range(times):
        check.run(tiny)


# `make test` runs the check once above, `make truth` 20 times, and `make liars` as often as docs/conformance.md says.
AGAIN = 60 if os.environ.get("ARCHPORT_EVERY_LIAR") else 20


@pytest.mark.truth
@pytest.mark.parametrize("name", KINDS)
def test_peaks_of_an_honest_plugin_are_predicted_in_every_run(load_kit, name):
    rerun(kind(load_kit, name), AGAIN)


def experts(seed):
    subject = subject_of(find("qwen3"))
    example = next(each for each in subject.examples if "experts" in each.name)
    return check_named("half_precision_is_finite").run(Tiny(subject, replace(example, seed=seed)))


def test_experts_whose_routes_turn_in_16_bits_are_not_blamed():
    assert "that visit the same experts" in experts(6)


@pytest.mark.truth
@pytest.mark.parametrize("seed", range(8))
def test_experts_of_any_seed_are_not_blamed(seed):
    assert "that visit the same experts" in experts(seed)


@pytest.fixture
def padding_device(monkeypatch):
    """This device, with rows padded and batches of powers of two as on CUDA."""
    for module in (batches, planner, shapes):
        real = {name: getattr(module, name, None) for name in ("padded_length", "prompt_width")}
        for name, function in real.items():
            if function is not None:
                monkeypatch.setattr(module, name, lambda tokens, _, most, f=function: f(tokens, "cuda", most))
    monkeypatch.setitem(shapes.FREE_ROWS_TOKENS, "cpu", 0)


# Those that compare what a module does with what was planned, by shape.
SHAPED = [
    *("spec_matches_weights", "each_layer_sees_its_reach", "backends_agree", "mask_policies_agree"),
    *("row_alone_equals_row_in_large_batch", "row_alone_equals_row_in_ragged_batch", "no_length_is_special"),
    *("chunk_wish_is_an_upper_bound", "batches_decode_as_one_pass", "logits_are_those_of_the_head"),
    *("chunked_prefill_equals_whole", "decode_equals_full_forward", "kv_allocated_equals_kv_planned"),
]


def test_the_honest_toy_passes_where_rows_are_padded(toy, padding_device):
    release(find(toy))
    assert failures(toy, only=SHAPED) == {}
