"""Experts behind a router against float64: with biases, with a product of their own, computed either way."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from archport.contract import Experts
from archport.layers import SparseMLP, stack_experts
from archport.layers.experts import SparseMLP as Inner

D, W, COUNT, CHOSEN = 24, 40, 5, 2


def clamped(gate, up):
    where = mx if isinstance(gate, mx.array) else np
    gate, up = where.minimum(gate, 0.5), where.clip(up, -0.5, 0.5)
    return gate / (1 + where.exp(-1.7 * gate)) * (up + 1)


@pytest.fixture(params=["expert by expert", "grouped"])
def way(request, monkeypatch):
    monkeypatch.setattr(Inner, "_is_slow", lambda self, x: request.param != "grouped")


def filled(module, seed):
    dice = np.random.default_rng(seed)
    for part in (module.gate, *(module.switch_mlp[f"{name}_proj"] for name in ("gate", "up", "down"))):
        for name, value in part.parameters().items():
            part[name] = mx.array(dice.standard_normal(value.shape).astype(np.float32) / value.shape[-1] ** 0.5)
    return module


def float64(module, x):
    def of(part, leaf):
        return np.array(part[leaf], dtype=np.float64) if leaf in part else 0.0

    experts, found = module.switch_mlp, np.zeros_like(x, dtype=np.float64)
    scores = x @ of(module.gate, "weight").T + of(module.gate, "bias")
    for at, row in enumerate(x):
        best = np.argsort(-scores[at])[:CHOSEN]
        shares = np.exp(scores[at][best]) / np.exp(scores[at][best]).sum()
        for expert, share in zip(best, shares, strict=True):
            gate, up = (
                row @ of(experts[f"{name}_proj"], "weight")[expert].T + of(experts[f"{name}_proj"], "bias")[expert]
                for name in ("gate", "up")
            )
            inner = clamped(gate, up)
            down = inner @ of(experts.down_proj, "weight")[expert].T + of(experts.down_proj, "bias")[expert]
            found[at] += share * down
    return found


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("tokens", [1, 37])
def test_experts_with_biases_and_a_product_of_their_own_are_what_float64_makes(tokens):
    spec = Experts(count=COUNT, per_token=CHOSEN, intermediate_size=W, layers=(0,), biases=True)
    module = filled(SparseMLP(D, spec, renormalise=True, bias=True, combine=clamped), 1)
    x = np.random.default_rng(2).standard_normal((tokens, D)).astype(np.float32)
    got, want = np.array(module(mx.array(x)[None]))[0], float64(module, x)
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


@pytest.mark.parametrize("combine", [clamped, None])
def test_what_the_last_product_multiplies_has_the_strides_of_rows(combine):
    """With a stride of one element for its axis of one row, CUDA's product of sorted rows answers garbage."""
    spec = Experts(count=COUNT, per_token=CHOSEN, intermediate_size=W, layers=(0,), biases=True)
    module = SparseMLP(D, spec, renormalise=True, bias=True, combine=combine)
    given = mx.expand_dims(mx.ones((70, W)), -2) + 0.0
    mx.eval(given)
    assert memoryview(given).strides == (4 * W, 4, 4)
    inner = module.switch_mlp.activation(given, given)
    mx.eval(inner)
    assert memoryview(inner).strides == (4 * W, 4 * W, 4)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tokens", [1, 37])
def test_experts_without_a_gate_and_a_bias_of_their_sum_are_what_float64_makes(tokens, bias):
    spec = Experts(count=COUNT, per_token=CHOSEN, intermediate_size=W, layers=(0,), biases=bias)
    module = SparseMLP(D, spec, act="relu", bias=bias, gated=False, output_bias=True)
    names = {name for name, _ in tree_flatten(module.switch_mlp.parameters())}
    assert names == {
        f"{name}.{leaf}" for name in ("fc1", "fc2") for leaf in (("weight", "bias") if bias else ("weight",))
    }
    dice = np.random.default_rng(3)
    made = {
        name: dice.standard_normal(each.shape) / each.shape[-1] ** 0.5
        for name, each in tree_flatten(module.parameters())
    }
    module.load_weights([(name, mx.array(value.astype(np.float32))) for name, value in made.items()])
    x, want = dice.standard_normal((tokens, D)).astype(np.float32), []
    for row in x:
        scores = made["gate.weight"] @ row + made.get("gate.bias", 0.0)
        shares = np.exp(scores) / np.exp(scores).sum()
        inner = np.maximum(made["switch_mlp.fc1.weight"] @ row + made.get("switch_mlp.fc1.bias", 0.0), 0.0)
        answers = np.einsum("edw,ew->ed", made["switch_mlp.fc2.weight"], inner) + made.get("switch_mlp.fc2.bias", 0.0)
        best = np.argsort(-scores)[:CHOSEN]
        # Shares of all experts, which are not scaled, and one bias of what they make together.
        want.append(shares[best] @ answers[best] + made["bias"])
    got = np.array(module(mx.array(x)[None]))[0]
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


@pytest.mark.skipif(mx.default_device().type != mx.DeviceType.cpu, reason="a GPU runs experts in groups")
def test_an_expert_s_matrix_is_read_where_it_lies():
    spec = Experts(count=COUNT, per_token=CHOSEN, intermediate_size=4 * W, layers=(0,))
    module = SparseMLP(D, spec)
    x = mx.ones((1, 1, D))
    mx.eval(module.parameters(), x)
    matrix = module.switch_mlp.down_proj.weight[0].nbytes
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(module(x))
    assert mx.get_peak_memory() - before < matrix


def test_biases_of_experts_are_stacked_with_their_matrices():
    apart = {
        f"mlp.experts.{expert}.{part}_proj.{leaf}": mx.full((3,), expert)
        for expert in range(COUNT)
        for part in ("gate", "up", "down")
        for leaf in ("weight", "bias")
    }
    found = stack_experts(apart, "mlp", COUNT)
    assert set(found) == {
        f"mlp.switch_mlp.{part}_proj.{leaf}" for part in ("gate", "up", "down") for leaf in ("weight", "bias")
    }
    assert found["mlp.switch_mlp.up_proj.bias"][:, 0].tolist() == list(range(COUNT))


@pytest.mark.parametrize("packed", [("gate_proj", "up_proj"), ("down_proj",)])
def test_experts_of_which_one_product_stays_unpacked_are_what_their_rounded_matrices_make(packed):
    spec = Experts(count=COUNT, per_token=CHOSEN, intermediate_size=W if len(packed) == 2 else 64, layers=(0,))
    width = 64 if len(packed) == 2 else D
    module = filled(SparseMLP(width, spec, renormalise=True), 3)
    x = mx.array(np.random.default_rng(4).standard_normal((1, 7, width)).astype(np.float32))
    experts = module.switch_mlp
    quantised = {name: experts[name].to_quantized(32, 8) for name in packed}
    for name, own in quantised.items():
        experts[name].weight = mx.dequantize(own.weight, own.scales, own.biases, group_size=32, bits=8)
    rounded = module(x)
    experts.update_modules(quantised)
    np.testing.assert_allclose(np.array(module(x)), np.array(rounded), atol=1e-5)
    # MLX's grouped product of what is not packed takes no 16 bits on a CPU. The router is left alone, to choose alike.
    module.set_dtype(mx.bfloat16)
    module.gate.set_dtype(mx.float32)
    found = module(x.astype(mx.bfloat16)).astype(mx.float32)
    np.testing.assert_allclose(np.array(found), np.array(rounded), atol=2**-4 * float(mx.abs(rounded).max()))
