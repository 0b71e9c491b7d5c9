"""The sigmoid router against a plain reading of its published formula in float64, token by token."""

import mlx.core as mx
import numpy as np
import pytest

from archport.contract import Experts, SpecError
from archport.contract.split import Rank
from archport.layers import SigmoidRouter, SparseMLP

D, COUNT, CHOSEN = 24, 12, 3


def made(seed, **options):
    router = SigmoidRouter(D, Experts(count=COUNT, per_token=CHOSEN, intermediate_size=8, layers=(0,)), **options)
    dice = np.random.default_rng(seed)
    router.weight = mx.array(dice.standard_normal((COUNT, D)).astype(np.float32) / D**0.5)
    router.e_score_correction_bias = mx.array(0.5 * dice.standard_normal(COUNT).astype(np.float32))
    return router


def float64(router, x, groups, kept, renormalise, factor):
    """Expert -> weight of every token."""
    weight, bias = (np.array(array, dtype=np.float64) for array in (router.weight, router.e_score_correction_bias))
    size, told = COUNT // groups, []
    for row in x.astype(np.float64):
        scores = 1 / (1 + np.exp(-(weight @ row)))
        likes = scores + bias
        best = [np.sort(likes[group * size : (group + 1) * size])[-2:].sum() for group in range(groups)]
        allowed = set(np.argsort(best)[-kept:])
        order = [expert for expert in np.argsort(-likes) if expert // size in allowed][:CHOSEN]
        total = scores[order].sum() if renormalise else 1.0
        told.append({expert: factor * scores[expert] / total for expert in order})
    return told


@pytest.mark.parametrize(("groups", "kept"), [(1, 1), (4, 1), (4, 2), (4, 4), (6, 2), (3, 2)])
@pytest.mark.parametrize(("renormalise", "factor"), [(True, 1.0), (True, 2.5), (False, 1.5)])
def test_tokens_choose_and_weigh_as_the_formula_says(groups, kept, renormalise, factor):
    options = {"groups": groups, "renormalise": renormalise, "factor": factor}
    router = made(groups + kept, kept_groups=kept, **options)
    x = np.random.default_rng(7).standard_normal((2, 40, D)).astype(np.float32)
    chosen, weights = router(mx.array(x))
    got = [
        dict(zip(experts, values, strict=True))
        for experts, values in zip(
            np.array(chosen).reshape(-1, CHOSEN).tolist(), np.array(weights).reshape(-1, CHOSEN).tolist(), strict=True
        )
    ]
    want = float64(router, x.reshape(-1, D), groups, kept, renormalise, factor)
    assert [set(token) for token in got] == [set(token) for token in want]
    errors = [abs(token[e] - other[e]) for token, other in zip(got, want, strict=True) for e in token]
    assert max(errors) <= 1e-6 * factor


def test_the_bias_moves_the_choice_and_no_weight():
    router = made(1, renormalise=False)
    x = mx.array(np.random.default_rng(2).standard_normal((1, 9, D)).astype(np.float32))
    router.e_score_correction_bias = mx.where(mx.arange(COUNT) < CHOSEN, 9.0, 0.0)
    chosen, weights = router(x)
    scores = mx.sigmoid(x @ router.weight.T)
    assert (mx.sort(chosen, axis=-1) == mx.arange(CHOSEN)).all().item()
    assert mx.abs(weights - mx.take_along_axis(scores, chosen, axis=-1)).max().item() <= 1e-6


def test_of_groups_that_tie_no_more_are_kept_than_asked_for():
    router = made(3, groups=4, kept_groups=2)
    router.weight, router.e_score_correction_bias = mx.zeros((COUNT, D)), mx.zeros((COUNT,))
    chosen, _ = router(mx.ones((1, 5, D)))
    assert set(np.array(chosen).reshape(-1).tolist()) <= set(range(6))


def test_sixteen_bit_tokens_are_scored_in_float32():
    router = made(4)
    x = mx.random.normal((1, 50, D), key=mx.random.key(5)).astype(mx.bfloat16)
    (chosen, weights), (exact, wanted) = router(x), router(x.astype(mx.float32))
    assert weights.dtype == mx.float32
    assert mx.array_equal(chosen, exact).item()
    assert mx.array_equal(weights, wanted).item()


@pytest.mark.parametrize(
    ("groups", "kept", "key"),
    [(5, 1, "n_group=5"), (12, 6, "n_group=12"), (0, 1, "n_group=0"), (4, 5, "topk_group=5"), (4, 0, "topk_group=0"),
     (6, 1, "topk_group=1")],
)  # fmt: skip
def test_groups_that_can_t_be_chosen_from_are_refused_by_name(groups, kept, key):
    with pytest.raises(SpecError, match=key):
        made(1, groups=groups, kept_groups=kept)


def test_a_shared_expert_without_a_gate_is_added_as_it_is():
    experts = Experts(count=COUNT, per_token=CHOSEN, intermediate_size=8, shared_intermediate_size=16, layers=(0,))
    x = mx.random.normal((1, 6, D), key=mx.random.key(1))
    mlp = SparseMLP(D, experts, router=made(2), shared_gate=False)
    alone = SparseMLP(D, experts, router=mlp.gate, shared_gate=False)
    alone.switch_mlp = mlp.switch_mlp
    del alone.shared_experts
    assert mx.abs(mlp(x) - (alone(x) + mlp.shared_experts(x))).max().item() <= 1e-6


def test_a_rank_keeps_a_share_of_the_shared_expert_and_the_whole_router():
    experts = Experts(count=COUNT, per_token=CHOSEN, intermediate_size=8, shared_intermediate_size=16, layers=(0,))
    mlp = SparseMLP(D, experts, router=made(2), shared_gate=False)
    kept = mlp.cuts(Rank(1, 2))
    names = ("gate_proj", "up_proj", "down_proj")
    assert set(kept) == {f"{block}.{name}" for block in ("switch_mlp", "shared_experts") for name in names}
