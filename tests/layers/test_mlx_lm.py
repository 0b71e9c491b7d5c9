"""Every symbol reused from mlx-lm: it answers as archport needs it, and importing it changes no process limit."""

import subprocess
import sys

import mlx.core as mx
import pytest

from archport.layers.mlx_lm import reused


def test_importing_it_keeps_the_limit_of_open_files():
    script = (
        "import resource, archport\n"
        "from archport.layers.mlx_lm import reused\n"
        "before = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "reused('models.switch_layers.SwitchGLU')\n"
        "print(before == resource.getrlimit(resource.RLIMIT_NOFILE))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr[-500:]


def test_switch_glu_has_the_parameter_names_of_converted_checkpoints():
    from mlx.utils import tree_flatten

    names = {name for name, _ in tree_flatten(reused("models.switch_layers.SwitchGLU")(8, 4, 3).parameters())}
    assert names == {f"{part}_proj.weight" for part in ("gate", "up", "down")}


@pytest.mark.parametrize(
    ("name", "argument", "kept"),
    [
        ("sample_utils.apply_top_k", 2, [True, True, False, False]),
        ("sample_utils.apply_top_p", 0.7, [True, True, False, False]),
        ("sample_utils.apply_min_p", 0.5, [True, True, False, False]),
    ],
)
def test_filters_leave_log_probabilities_or_minus_infinity(name, argument, kept):
    logprobs = mx.log(mx.array([[0.5, 0.3, 0.15, 0.05]]))
    assert mx.isfinite(reused(name)(logprobs, argument)).tolist() == [kept]


def test_the_repetition_penalty_takes_tokens_and_a_row_of_logits():
    penalty = reused("sample_utils.make_repetition_penalty")(2.0, 2**31 - 1)
    assert penalty(mx.array([0, 2]), mx.array([[4.0, 4.0, -4.0]])).tolist() == [[2.0, 4.0, -8.0]]


def test_the_detokenizer_keeps_half_characters_back():
    class Bytes:
        def decode(self, ids):
            return bytes(ids).decode("utf-8", "replace")

        def encode(self, text, add_special_tokens=True):
            return list(text.encode())

    made = reused("tokenizer_utils.NaiveStreamingDetokenizer")(Bytes())
    texts = []
    for token in "aß".encode():
        made.add_token(token)
        texts.append(made.text)
    assert texts == ["a", "a", "aß"]


def test_experts_one_by_one_equal_the_grouped_product():
    from archport.contract import Experts
    from archport.layers import SparseMLP

    for shared in (0, 24):
        mlp = SparseMLP(16, Experts(5, 2, 12, (0,), shared_intermediate_size=shared), renormalise=True)
        x = mx.random.normal((2, 9, 16))
        chosen, weights = mlp.route(x)
        assert mx.allclose(weights.sum(-1), mx.ones((2, 9))).item()
        assert mx.abs(mlp._expert_by_expert(x, chosen) - mlp.switch_mlp(x, chosen)).max().item() <= 1e-6
        assert mlp(x).shape == x.shape
