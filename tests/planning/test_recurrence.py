"""The form of a gated delta net: which one a machine gets, and what it costs."""

import pytest

from archport.contract import ArchSpec, DeltaHeads, RecurrentLayer, SpecError
from archport.device.profiles import profile
from archport.planning.activations import token_bytes
from archport.planning.costs import recurrent_widths
from archport.planning.steps import choose_form

SAMPLED = ("m1-16gb", "m2-ultra-128gb", "m3-ultra-256gb", "m4-pro-24gb", "m5-max-128gb", "h200", "cpu")

QWEN = RecurrentLayer.gated_delta(DeltaHeads(16, 32, 128, 128), 4)


def form(layer, name, tokens, B=1, dtype="bfloat16"):
    return choose_form(layer, profile(name), B=B, tokens=tokens, dtype=dtype)


@pytest.mark.parametrize("name", SAMPLED)
@pytest.mark.parametrize("tokens", [1, 2, 31, 2048])
def test_every_machine_gets_one_form_and_a_reason_against_each_other(name, tokens):
    path = form(QWEN, name, tokens)
    assert {path.form} | dict(path.against).keys() == {"cuda", "metal", "chunked", "sequential"}
    assert path.form not in dict(path.against)


@pytest.mark.parametrize(("name", "tokens", "expected"), [
    ("h200", 128, "cuda"), ("h200", 1, "cuda"), ("m2-ultra-128gb", 2048, "metal"), ("cpu", 2048, "chunked"),
    ("cpu", 1, "sequential"),
])  # fmt: skip
def test_kernels_run_on_their_devices_and_plain_operations_elsewhere(name, tokens, expected):
    assert form(QWEN, name, tokens).form == expected


@pytest.mark.parametrize(("heads", "name"), [
    (DeltaHeads(2, 4, 48, 16), "h200"), (DeltaHeads(2, 4, 288, 16), "h200"), (DeltaHeads(2, 4, 32, 24), "h200"),
    (DeltaHeads(2, 4, 48, 16), "m2-ultra-128gb"), (DeltaHeads(2, 4, 32, 12), "m2-ultra-128gb"),
])  # fmt: skip
def test_heads_that_a_kernel_can_t_take_run_in_plain_operations(heads, name):
    path = form(RecurrentLayer.gated_delta(heads, 4), name, 100)
    assert path.form == "chunked"
    assert "heads of" in dict(path.against)[profile(name).kind]


def test_a_recurrence_that_plans_know_nothing_of_is_the_plugin_s_own():
    path = form(RecurrentLayer(state_bytes=1024), "cpu", 100)
    assert (path.form, path.price.transient) == ("own", 0)


def test_scratch_does_not_grow_with_tokens_beyond_the_answer():
    short, long = (form(QWEN, "cpu", tokens).price for tokens in (4096, 8192))
    # A little more than two arrays of the answer's width per token, and nothing else.
    assert 2 <= (long.transient - short.transient) / (4096 * 32 * 128 * 4) <= 2.5
    assert form(QWEN, "h200", 8192).price.transient == form(QWEN, "h200", 64).price.transient


def test_a_recurrence_without_a_state_is_declared_by_its_convolution_alone():
    layer = RecurrentLayer(state_bytes=0, conv_taps=3, conv_bytes=2 * 64 * 4)
    assert layer.state_bytes == 0
    assert recurrent_widths(layer) == (192, 64)


def test_widths_that_a_recurrence_declares_are_the_ones_that_are_priced():
    plain = RecurrentLayer(state_bytes=1 << 16, conv_taps=4, conv_bytes=3 * 4 * 96)
    told = RecurrentLayer(state_bytes=1 << 16, conv_taps=4, conv_bytes=3 * 4 * 96, channels=500, values=70)
    assert recurrent_widths(plain) == (96, 128)
    assert recurrent_widths(told) == (500, 70)
    sizes = dict(vocab_size=16, hidden_size=64, intermediate_size=64, max_positions=8)
    spec = ArchSpec(arch="x", tasks=("embed",), layers=(plain,), **sizes)
    of = [token_bytes(spec, layer, False, "float32", "cuda").lazy for layer in (plain, told)]
    assert of[0] < of[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(state_bytes=-1), "state_bytes=-1"),
        (dict(channels=8), "expected both widths or neither"),
        (dict(channels=8, values=8, heads=DeltaHeads(2, 4, 32, 16)), "neither of a gated delta net"),
    ],
)
def test_impossible_recurrences_are_refused(changes, message):
    with pytest.raises(SpecError, match=message):
        RecurrentLayer(**{"state_bytes": 8, **changes})
