"""GLM-4 MoE's files: layouts of experts, layers that draft tokens, keys that change numbers."""

import json
import shutil
from pathlib import Path

import archport  # noqa: F401  before mlx: it loads the BLAS that MLX uses on a CPU
import mlx.core as mx
import numpy as np
import pytest
from archport import engine
from archport.contract import SpecError

import archport_decoders
from archport_decoders.glm4_moe.published import stacked

GOLDEN = Path(__file__).with_name("golden") / "glm4_moe"
AIR = archport_decoders.glm4_moe.examples()[0].config


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(GOLDEN, tmp_path / "model")
    return tmp_path / "model"


def claimed(**changes):
    return archport_decoders.archport_claim({**AIR, **changes})


def edited(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def hidden(folder, dtype="float32"):
    return np.array(engine.load(folder, dtype=dtype).forward(np.load(GOLDEN / "golden.npz")["ids_3"][None])[0])


def far(got, want):
    return np.abs(got - want).max() / np.abs(want).max()


def rewritten(folder, change):
    path = str(folder / "model.safetensors")
    mx.save_safetensors(path, change(mx.load(path)), {"format": "pt"})


def as_transformers_holds_them(weights):
    """Experts in two tensors per layer, of a file that has each one's matrices apart."""
    block, together = "model.layers.1.mlp.", {}
    for name in ("gate_proj", "up_proj", "down_proj"):
        matrices = [weights.pop(f"{block}experts.{expert}.{name}.weight") for expert in range(8)]
        together[f"{block}switch_mlp.{name}.weight"] = mx.stack(matrices)
    return {**weights, **stacked(together)}


def test_stacked_experts_answer_as_transformers(folder):
    rewritten(folder, as_transformers_holds_them)
    assert far(hidden(folder), np.load(GOLDEN / "golden.npz")["hidden_3"]) <= 1e-5


def test_layers_that_draft_tokens_are_left_out(folder):
    drafts = {
        "model.layers.2.eh_proj.weight": mx.ones((48, 96)),
        "model.layers.2.mlp.experts.0.up_proj.weight": mx.ones((12, 48)),
    }
    rewritten(folder, lambda weights: {**weights, **drafts})
    assert far(hidden(folder), np.load(GOLDEN / "golden.npz")["hidden_3"]) <= 1e-5


def test_the_router_stays_in_float32_in_a_model_of_16_bits(folder):
    stored = mx.load(str(folder / "model.safetensors"))["model.layers.1.mlp.gate.e_score_correction_bias"]
    model = engine.load(folder, dtype="bfloat16")
    router = model._runtime.encoder.trunk.model.layers[1].mlp.gate
    assert mx.array_equal(router.e_score_correction_bias, stored).item()
    assert router.weight.dtype == mx.float32


@pytest.mark.parametrize(
    "change",
    [{"n_group": 1, "topk_group": 1}, {"topk_group": 3}, {"routed_scaling_factor": 1.0}, {"norm_topk_prob": False},
     {"num_experts_per_tok": 2}, {"rope_theta": 100.0, "rope_parameters": None}, {"rms_norm_eps": 0.1},
     {"hidden_act": "gelu"}, {"rope_parameters": {"rope_theta": 1e6, "partial_rotary_factor": 1.0}}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_a_key_that_changes_numbers_is_obeyed(folder, change):
    assert far(hidden(edited(folder, **change)), np.load(GOLDEN / "golden.npz")["hidden_3"]) > 1e-3


def test_the_first_layers_are_dense():
    spec = claimed(first_k_dense_replace=2)
    assert spec.experts.layers == (2,)
    assert claimed(first_k_dense_replace=3).experts is None


def test_half_of_each_head_is_rotated_where_no_file_says_how_much():
    config = {key: value for key, value in AIR.items() if key != "partial_rotary_factor"}
    assert archport_decoders.glm4_moe.read(config)["partial_rotary_factor"] == 0.5
    assert archport_decoders.glm4_moe.read({**config, "partial_rotary_factor": None})["partial_rotary_factor"] == 1.0


@pytest.mark.parametrize("change", [{"scoring_func": "softmax"}, {"topk_method": "greedy"}])
def test_another_way_of_choosing_experts_is_refused_by_name(change):
    with pytest.raises(SpecError, match=next(iter(change))):
        claimed(**change)
