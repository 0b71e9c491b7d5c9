"""What leaves the contract still works and warns where it is used; a plugin of another contract is told so."""

from types import ModuleType

import pytest

from archport.contract import ArchSpec, AttentionLayer, hookimpl
from archport.contract.deprecation import CONTRACT, OLDEST, POSITIONAL_SPEC, contract_fault
from archport.contract.plugins import find_fault

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


def test_two_minor_versions_lie_between_the_first_warning_and_the_end():
    since, until = (int(text.split(".")[1]) for text in (POSITIONAL_SPEC.since, POSITIONAL_SPEC.until))
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
