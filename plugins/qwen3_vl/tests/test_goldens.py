"""Against what transformers computed from the same weights and pixels (tests/goldens/golden_qwen3_vl.py)."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

import archport  # noqa: F401  (before mlx)
from archport import engine
from archport.contract import CheckpointError

CASES = ["text", "first", "last", "two", "five", "video", "both"]
LIMIT = 3e-5


def off(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found.astype(np.float64) - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("case", CASES)
def test_ids_and_positions_are_the_reference_s(case: str, golden: Any, model: engine.Model):
    tokens = model._runtime.tokeniser([golden.messages(case)])
    np.testing.assert_array_equal(tokens.ids[0], golden[f"ids_{case}"])
    measured, length = tokens.measured[0], len(tokens.ids[0])
    plain = np.broadcast_to(np.arange(length), (3, length))
    np.testing.assert_array_equal(
        plain if measured.positions is None else measured.positions, golden[f"positions_{case}"]
    )
    behind = length if measured.next_position is None else measured.next_position
    assert behind - length == golden[f"delta_{case}"]


@pytest.mark.parametrize("case", CASES)
def test_hidden_states_and_logits_are_the_reference_s(case: str, golden: Any, model: engine.Model, run: Callable):
    hidden, _ = run(model, golden.messages(case))
    assert off(hidden, golden[f"hidden_{case}"]) < LIMIT
    logits = np.array(model._runtime.encoder.trunk.logits(mx.array(hidden[None, -1:])))[0, 0]
    assert off(logits, golden[f"logits_{case}"]) < LIMIT


@pytest.mark.parametrize("case", ["first", "last", "two", "five", "both"])
def test_features_and_taps_are_the_reference_s(case: str, golden: Any, model: engine.Model, run: Callable):
    _, visual = run(model, golden.messages(case))
    expected = golden[f"features_{case}"]
    # The tower takes pictures in its own order; where they stand in the row is the reference's.
    index = visual.index[0][visual.index[0] >= 0][: expected.shape[1]]
    assert len(visual.features) == len(expected) == 3
    for found, each in zip(visual.features, expected, strict=True):
        assert off(np.array(found)[index], each) < LIMIT


def test_the_other_kind_of_head_gives_the_reference_s_logits(golden: Any, tmp_path: Path):
    tied = "other_head" not in golden.arrays
    folder = copied(golden, tmp_path, tie_word_embeddings=tied)
    weights = read(folder)
    if tied:
        weights.pop("lm_head.weight")
    else:
        weights["lm_head.weight"] = mx.array(golden["other_head"])
    write(folder, weights)
    trunk: Any = engine.load(folder, dtype="float32")._runtime.encoder.trunk
    for case in CASES:
        logits = np.array(trunk.logits(mx.array(golden[f"hidden_{case}"][None, -1:])))[0, 0]
        assert off(logits, golden[f"other_logits_{case}"]) < LIMIT


def copied(golden: Any, tmp_path: Path, **changes: Any) -> Path:
    folder = tmp_path / golden.folder.name
    shutil.copytree(golden.folder, folder, ignore=shutil.ignore_patterns("golden*"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


def read(folder: Path) -> dict[str, mx.array]:
    weights = mx.load(str(folder / "model.safetensors"))
    assert isinstance(weights, dict)
    return {name: value + 0 for name, value in weights.items()}


def write(folder: Path, weights: dict[str, mx.array]) -> None:
    mx.eval(weights)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})


def saved_by_transformers(folder: Path) -> None:
    """What its own save differs in: rope_parameters, counts of local experts, experts the other way round."""
    config = json.loads((folder / "config.json").read_text())
    text, weights = config["text_config"], read(folder)
    scaling = text.pop("rope_scaling")
    text["rope_parameters"] = {**scaling, "rope_theta": text.pop("rope_theta")}
    # The class default, which is wrong for the root: the root wins.
    text["tie_word_embeddings"] = True
    if "num_experts" in text:
        text["num_local_experts"] = text.pop("num_experts")
        text.pop("norm_topk_prob")
    vision = config["vision_config"]
    vision["model_type"] = "qwen3_vl_vision"
    vision["rope_parameters"] = {"rope_type": "axial", "rope_theta": 10000.0}
    (folder / "config.json").write_text(json.dumps(config))
    for name in [name for name in weights if ".experts." in name]:
        weights[name] = mx.contiguous(weights[name].swapaxes(1, 2))
    write(folder, weights)


def converted(folder: Path) -> None:
    """What a conversion differs in: its prefixes, experts split and stacked, a patch kernel with channels last."""
    found: dict[str, mx.array] = {}
    for name, value in read(folder).items():
        if name.endswith("patch_embed.proj.weight"):
            value = value.transpose(0, 2, 3, 4, 1)
        name = name.replace("model.language_model.", "language_model.model.").replace("model.visual.", "vision_tower.")
        name = "language_model.lm_head.weight" if name == "lm_head.weight" else name
        if name.endswith("experts.gate_up_proj"):
            layer = name.removesuffix("experts.gate_up_proj")
            for part, each in zip(("gate", "up"), mx.split(value.swapaxes(1, 2), 2, axis=1), strict=True):
                found[f"{layer}switch_mlp.{part}_proj.weight"] = mx.contiguous(each)
        elif name.endswith("experts.down_proj"):
            layer = name.removesuffix("experts.down_proj")
            found[f"{layer}switch_mlp.down_proj.weight"] = mx.contiguous(value.swapaxes(1, 2))
        else:
            found[name] = mx.contiguous(value)
    write(folder, found)


@pytest.mark.parametrize("dialect", [saved_by_transformers, converted])
def test_every_dialect_is_the_same_model(dialect: Callable[[Path], None], golden: Any, tmp_path: Path, run: Callable):
    folder = copied(golden, tmp_path)
    dialect(folder)
    hidden, _ = run(engine.load(folder, dtype="float32"), golden.messages("both"))
    assert off(hidden, golden["hidden_both"]) < LIMIT


def test_a_quantised_conversion_computes_what_its_unpacked_weights_do(golden: Any, tmp_path: Path, run: Callable):
    folder = copied(golden, tmp_path, quantization={"group_size": 32, "bits": 8})
    converted(folder)
    # In float32, scales too: the same numbers are computed packed and unpacked.
    weights = {name: value.astype(mx.float32) for name, value in read(folder).items()}
    for name in [name for name in weights if "self_attn" in name and name.endswith("proj.weight")]:
        if weights[name].shape[-1] % 32 == 0:
            packed, scales, biases = mx.quantize(weights[name], group_size=32, bits=8)
            path = name.removesuffix("weight")
            weights[name], weights[f"{path}scales"], weights[f"{path}biases"] = packed, scales, biases
    write(folder, weights)
    packed, _ = run(engine.load(folder, dtype="checkpoint"), golden.messages("two"))
    unpacked, _ = run(engine.load(folder, dtype="float32"), golden.messages("two"))
    assert off(packed, unpacked) < 1e-4
    assert off(unpacked, golden["hidden_two"]) < 0.5


def test_experts_of_shapes_no_dialect_has_are_refused(sparse: Any, tmp_path: Path):
    folder = copied(sparse, tmp_path)
    weights = read(folder)
    name = next(name for name in weights if name.endswith("experts.down_proj"))
    weights[name] = weights[name][:, :, :16]
    write(folder, weights)
    with pytest.raises(CheckpointError, match="hold matrices of"):
        engine.load(folder)


def test_experts_that_are_stored_transposed_and_together_lie_in_memory_as_mlx_multiplies_them():
    trunk = engine.load(
        Path(__file__).parents[3] / "tests" / "goldens" / "qwen3-vl-moe", dtype="float32"
    )._runtime.encoder.trunk
    experts = {name: each for name, each in tree_flatten(trunk.parameters()) if ".switch_mlp." in name}
    assert experts
    # A view of what was stored has strides of its own; on CUDA sorted rows times such a view are garbage.
    assert [name for name, each in experts.items() if not np.asarray(each).flags.c_contiguous] == []
