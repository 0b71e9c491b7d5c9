"""What leaves the contract still works and warns where it is used; a plugin of another contract is told so."""

import pickle
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import mlx.core as mx
import mlx.nn as nn
import pytest

import archport.contract
from archport import engine
from archport.attention import Chooser, TableRoutes, builtin_backends
from archport.contract import ArchSpec, AttentionCall, AttentionLayer, Documents, MaskPolicy, hookimpl
from archport.contract.deprecation import CONTRACT, OLDEST, POSITIONAL_SPEC, SEGMENTS, contract_fault
from archport.contract.plugins import find_fault
from archport.device.profiles import profile
from archport.layers import ShortConv

LAYER = AttentionLayer("bidirectional", 4, 2, 32)
NAMED = {
    "arch": "toy", "tasks": ("embed",), "layers": (LAYER,), "vocab_size": 100, "hidden_size": 64,
    "intermediate_size": 96, "max_positions": 512,
}  # fmt: skip


def plugin():
    def archport_models():
        return {}

    module = ModuleType("acme")
    module.archport_models = hookimpl(archport_models)
    return module


def test_a_spec_by_position_works_as_before_and_warns_at_the_line_that_made_it():
    with pytest.warns(DeprecationWarning, match="positional arguments") as told:
        spec = ArchSpec(*NAMED.values(), dtype="float16")
    assert spec == ArchSpec(**NAMED, dtype="float16")
    assert told[0].filename == __file__


def test_the_warning_says_what_to_write_and_how_long_the_old_way_works():
    with pytest.warns(DeprecationWarning, match="ArchSpec") as told:
        ArchSpec(*NAMED.values())
    text = str(told[0].message)
    assert "ArchSpec(arch=..., tasks=..., layers=...)" in text
    assert f"until contract {POSITIONAL_SPEC.until}" in text


def test_a_spec_by_name_warns_of_nothing(recwarn):
    ArchSpec(**NAMED)
    assert not recwarn


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_field_twice_or_too_many_are_refused_as_python_does():
    with pytest.raises(TypeError, match="'arch' by position and by name"):
        ArchSpec("toy", arch="toy")
    with pytest.raises(TypeError, match="arguments were given"):
        ArchSpec(*range(40))


OF_DOCUMENTS = {
    "B": 1, "n_heads": 2, "n_kv_heads": 2, "q_len": 8, "kv_len": 8, "head_dim": 16, "v_head_dim": 16,
    "dtype": "float32", "lengths": (5, 3),
}  # fmt: skip


@pytest.mark.parametrize("make", [MaskPolicy, lambda kind: AttentionCall(**OF_DOCUMENTS, mask=kind)])
def test_the_old_name_of_a_mask_makes_the_same_thing_and_warns_at_its_line(make):
    with pytest.warns(DeprecationWarning, match="'segments'") as told:
        old = make("segments")
    assert told[0].filename == __file__
    assert (old, hash(old)) == (make("documents"), hash(make("documents")))


@pytest.mark.parametrize(
    "asks",
    [lambda mask: mask == "segments", lambda mask: "segments" == mask, lambda mask: mask in ("causal", "segments")],
)
def test_a_backend_that_asks_for_the_old_name_is_told_yes_and_warned(asks):
    call = AttentionCall(**OF_DOCUMENTS, mask="documents")
    with pytest.warns(DeprecationWarning, match="write 'documents'") as told:
        assert asks(call.mask) and not call.mask != "segments"  # noqa: PT018, SIM202
    assert told[0].filename == __file__
    assert not asks(AttentionCall(**OF_DOCUMENTS, mask="key_padding").mask)


def test_a_mask_by_its_new_name_is_a_text_and_warns_of_nothing(recwarn):
    call = AttentionCall(**OF_DOCUMENTS, mask="documents")
    assert call.mask == "documents"
    assert f"{call.mask}" == str(call.mask) == "documents"
    assert pickle.loads(pickle.dumps(call)) == call
    assert not recwarn


def test_the_old_name_of_the_backend_pins_it_and_warns():
    call, device = AttentionCall(**OF_DOCUMENTS, mask="documents"), profile("m4-pro-24gb")
    choose = Chooser(builtin_backends(TableRoutes()))
    with pytest.warns(DeprecationWarning, match="'segments'"):
        path = choose(call, device, "segments")
    assert path == choose(call, device, "documents")


def test_the_old_name_of_the_type_is_the_type_and_warns():
    with pytest.warns(DeprecationWarning, match="import Documents"):
        assert archport.contract.Segments is Documents


def test_the_old_argument_of_a_short_convolution_is_taken_and_warns():
    conv, x = ShortConv(4, 3), mx.ones((1, 5, 4))
    with pytest.warns(DeprecationWarning, match="documents="):
        old, _ = conv(x, None, segments=Documents())
    assert mx.array_equal(old, conv(x, None, Documents())[0])


class Sums(nn.Module):
    """A trunk that reads `ctx.segments`."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def __call__(self, ids, ctx):
        assert ctx.segments is ctx.documents
        return self.inner(ids, ctx)


def test_a_layer_that_reads_the_old_name_of_its_context_runs_and_is_warned():
    model = engine.load(Path(__file__).parents[1] / "goldens" / "qwen3-embed")
    encoder = model._runtime.encoder
    with pytest.warns(DeprecationWarning, match=r"read ctx\.documents") as told:
        replace(encoder, trunk=Sums(encoder.trunk)).forward([[1, 2, 3]])
    assert told[0].filename == __file__


@pytest.mark.parametrize("notice", [POSITIONAL_SPEC, SEGMENTS])
def test_two_minor_versions_lie_between_the_first_warning_and_the_end(notice):
    since, until = (int(text.split(".")[1]) for text in (notice.since, notice.until))
    assert until - since >= 2


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        (f"{CONTRACT[0]}.{CONTRACT[1] + 1}", "upgrade archport"),
        ("9.0", "upgrade archport"),
        ("0.0", "install a newer release of the plugin"),
        ("2", 'expected two numbers, such as "0.2"'),
        (0.2, "expected two numbers"),
        ("0.2.1", "expected two numbers"),
        ("0.x", "expected two numbers"),
        (None, "expected two numbers"),
    ],
)
def test_a_plugin_of_a_contract_that_is_not_spoken_here_is_a_row_that_says_so(stated, message):
    module = plugin()
    module.ARCHPORT_CONTRACT = stated
    assert message in (find_fault(module) or "")


@pytest.mark.parametrize("version", [OLDEST, CONTRACT])
def test_every_contract_from_the_oldest_on_is_understood(version):
    assert contract_fault(".".join(map(str, version))) is None


def test_a_plugin_that_states_no_contract_is_taken_as_the_oldest():
    module = plugin()
    assert find_fault(module) is None
