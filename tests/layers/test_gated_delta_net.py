"""The gated delta net over steps, documents and padding, against itself in one pass."""

from dataclasses import dataclass, field
from itertools import pairwise

import mlx.core as mx
import numpy as np
import pytest

from archport.contract import DeltaHeads, Documents, Price, RecurrentPath
from archport.layers import GatedDeltaNet

D, HEADS, K = 48, DeltaHeads(2, 4, 32, 16), 4
LENGTHS = {"two": (41, 23), "five": (1, 2, 31, 33, 7)}


@dataclass
class Step:
    """One recurrent layer in one step, kept or not."""

    path: RecurrentPath
    arrays: tuple = ()
    keeps: bool = True

    def store(self, arrays):
        self.arrays = tuple(arrays)


@dataclass
class Context:
    """What the layer needs of a context: a planned form, its state, documents and padding."""

    documents: Documents = field(default_factory=Documents)
    chunk: int = 16
    arrays: tuple = ()
    step: Step | None = None

    def state(self, layer, *inputs):
        form = "chunked" if self.chunk else "sequential"
        self.step = Step(RecurrentPath(form, self.chunk, Price(0, 0, 0, 0.0, 0.0)), self.arrays)
        return self.step


@pytest.fixture(scope="module")
def net():
    rng = np.random.default_rng(0)
    module = GatedDeltaNet(0, HEADS, D, conv_taps=K, eps=1e-6)
    for name, value in dict(mlx_flat(module)).items():
        setattr_path(module, name, mx.array(rng.normal(size=value.shape).astype(np.float32) * 0.3))
    module.A_log = mx.array(np.log(rng.uniform(0.01, 4, HEADS.n_value_heads)).astype(np.float32))
    return module


def mlx_flat(module):
    from mlx.utils import tree_flatten

    return tree_flatten(module.parameters())


def setattr_path(module, path, value):
    *parents, leaf = path.split(".")
    for each in parents:
        module = module[each]
    module[leaf] = value


def rows(*shape, seed=1):
    return mx.array(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def off(got, want):
    got, want = np.array(got), np.array(want)
    return float(np.abs(got - want).max() / np.abs(want).max())


@pytest.mark.parametrize("name", LENGTHS)
@pytest.mark.parametrize("cuts", [(), (16,), (5, 40), (1, 2, 3, 63)])
def test_packed_documents_equal_single_runs_whatever_the_steps(net, name, cuts):
    lengths = LENGTHS[name]
    x = rows(1, sum(lengths), D)
    cuts = [cut for cut in cuts if cut < x.shape[1]]
    age = mx.concatenate([mx.arange(length) for length in lengths])[None]
    arrays, pieces = (), []
    for start, stop in pairwise([0, *cuts, x.shape[1]]):
        context = Context(Documents(age=age[:, start:stop]), arrays=arrays)
        pieces.append(net(x[:, start:stop], context))
        arrays = context.step.arrays
    packed = mx.concatenate(pieces, axis=1)
    for start, stop in pairwise(np.cumsum((0, *lengths)).tolist()):
        assert off(packed[:, start:stop], net(x[:, start:stop], Context())) <= 1e-5


def test_without_resets_documents_leak_into_each_other(net):
    x = rows(1, 64, D)
    assert off(net(x, Context())[:, 41:], net(x[:, 41:], Context())) > 0.01


@pytest.mark.parametrize("lengths", [(30, 17, 3), (30, 1, 29), (30, 0, 8)])
def test_a_padded_prefill_leaves_each_row_the_state_of_its_own_tokens(net, lengths):
    x, following = rows(3, 30, D), rows(3, 2, D, seed=2)
    real = mx.arange(30)[None] < mx.array(lengths)[:, None]
    together = Context(Documents(real=real))
    out = net(x, together)
    after = Context(chunk=0, arrays=together.step.arrays)
    decoded = net(following[:, :1], after)
    for row, length in enumerate(lengths):
        alone = Context()
        if length:
            want = net(x[row : row + 1, :length], alone)
            assert off(out[row : row + 1, :length], want) <= 1e-5
        held = alone.step.arrays if length else ()
        assert off(decoded[row : row + 1], net(following[row : row + 1, :1], Context(chunk=0, arrays=held))) <= 1e-5


@pytest.mark.parametrize("cuts", [(1,), (3,), (4,), (15,), (16,), (17,), (1, 3, 4, 15, 16, 17), tuple(range(1, 50))])
def test_a_prompt_cut_anywhere_equals_one_pass(net, cuts):
    x = rows(2, 50, D)
    arrays, pieces = (), []
    for start, stop in pairwise([0, *cuts, 50]):
        context = Context(arrays=arrays, chunk=0 if stop - start == 1 else 16)
        pieces.append(net(x[:, start:stop], context))
        arrays = context.step.arrays
    assert off(mx.concatenate(pieces, axis=1), net(x, Context())) <= 1e-5


def test_what_is_kept_weighs_what_the_spec_declares(net):
    from archport.contract import RecurrentLayer

    context = Context()
    mx.eval(net(rows(3, 2, D), context))
    layer = RecurrentLayer.gated_delta(HEADS, K)
    assert sum(array.nbytes for array in context.step.arrays) == 3 * (layer.state_bytes + layer.conv_bytes)


def test_nothing_is_stored_where_nothing_is_kept(net):
    class Forgetful(Context):
        def state(self, layer, *inputs):
            step = super().state(layer, *inputs)
            step.keeps = False
            return step

    context = Forgetful()
    net(rows(1, 5, D), context)
    assert context.step.arrays == ()
