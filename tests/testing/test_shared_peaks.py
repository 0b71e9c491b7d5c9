"""A peak is measured once for examples whose runs are alike, and anew for one whose run is not, whatever its spec."""

import itertools
from types import ModuleType

import mlx.core as mx
import pytest

from archport.contract import Example, hookimpl
from archport.testing import run_checks
from archport.testing.finding import find, release, subject_of
from archport.testing.touched import reading

COUNT = itertools.count()
# Copies of what a trunk returns that no plan has room for; a GPU's plan has room for a workspace.
WASTEFUL = 32 if mx.default_device().type == mx.DeviceType.cpu else 128


@pytest.fixture
def outcomes(load_kit):
    """How `peak_is_predicted` ends for each example of a plugin, given how often their trunks copy what they return."""
    toy, trunk = load_kit("toy"), load_kit("toy_model").Toy

    class Copying(trunk):
        def __init__(self, spec, config):
            super().__init__(spec, config)
            self.copies = config["copies"]

        def __call__(self, ids, ctx):
            out = super().__call__(ids, ctx)
            return out if self.copies == 1 else (out[..., None] * mx.ones(self.copies)).mean(-1)

    class Fixed(trunk):
        def __call__(self, ids, ctx):
            return (super().__call__(ids, ctx)[..., None] * mx.ones(WASTEFUL)).mean(-1)

    made = []

    def run(*copies, by="attribute"):
        def build(spec, config):
            fixed = by == "class" and config["copies"] > 1
            return Fixed(spec, config) if fixed else (trunk if by == "class" else Copying)(spec, config)

        def examples():
            more = [{**toy.ENCODER, "copies": each} for each in copies]
            return [Example(f"example {index}", config, seed=index) for index, config in enumerate(more)]

        module = ModuleType(f"toy_copies_{next(COUNT)}")
        module.archport_claim = toy.archport_claim
        for hook, function in (("archport_build", build), ("archport_examples", examples)):
            function.__name__ = hook
            setattr(module, hook, hookimpl(function))
        made.append(module)
        (outcome,) = run_checks(module, only=["peak_is_predicted"])
        return outcome.parts

    yield run
    for module in made:
        release(find(module))


def test_an_example_that_runs_like_an_earlier_one_has_its_peak(outcomes):
    first, second = outcomes(1, 1)
    assert (first.status, second.status) == ("ok", "ok")
    assert "measured of" not in first.message
    assert "measured of 'example 0'" in second.message


@pytest.mark.parametrize("by", ["attribute", "class"])
def test_an_example_of_the_same_spec_whose_trunk_wastes_memory_fails(outcomes, by):
    first, second = outcomes(1, WASTEFUL, by=by)
    assert (first.status, second.status) == ("ok", "fail"), second.message


def test_two_plugins_of_the_same_spec_share_no_verdict(outcomes):
    (honest,), (wasteful,) = outcomes(1, by="class"), outcomes(WASTEFUL, by="class")
    assert (honest.status, wasteful.status) == ("ok", "fail"), wasteful.message


def test_a_pass_reads_no_head_and_leaves_every_class_as_it_was(toy):
    tiny = next(each for each in subject_of(find(toy)).tinies if "generate" in each.spec.tasks)
    trunk, row = tiny.bare(), tiny.tokens(8)
    kinds = [type(part) for part in trunk.modules()]
    with reading(trunk) as reads:
        tiny.hidden(row, trunk=trunk)
    assert [type(part) for part in trunk.modules()] == kinds
    assert "lm_head" in reads.parts
    assert {"", "embed", "layers.0", "layers.1", "norm"} <= reads.names.keys()
    assert "lm_head" not in reads.names
