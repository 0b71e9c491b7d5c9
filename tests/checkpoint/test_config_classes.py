"""What a config's class fills in, against the classes of transformers themselves (config_classes.json)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from archport.checkpoint import normalise_config
from archport.checkpoint.config import CLASSES
from archport.contract.errors import CheckpointError

# Made by make_config_classes.py.
RECORDED: dict[str, Any] = json.loads(Path(__file__).with_name("config_classes.json").read_text())["classes"]
SHARED = [name for name in CLASSES if name in RECORDED]
WINDOWED = {"use_sliding_window": True, "sliding_window": 24, "num_hidden_layers": 4}


@pytest.mark.parametrize("name", SHARED)
def test_defaults_are_those_of_the_class(name: str):
    stated = {**CLASSES[name].defaults, **CLASSES[name].absent}
    about = RECORDED[name]
    # Keys under their usual names, where the class has some of its own.
    fields = about["fields"] | {
        usual: about["fields"][own] for usual, own in about["names"].items() if own in about["fields"]
    }
    # A class that computes this one states None.
    assert {key: fields[key] for key in stated if key != "mlp_only_layers"} == {
        key: value for key, value in stated.items() if key != "mlp_only_layers"
    }


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("value", ["absent", None])
def test_a_key_that_is_absent_or_null_is_what_the_class_takes(name: str, value: object):
    known = CLASSES[name]
    raw = {"model_type": name, **({} if value == "absent" else dict.fromkeys(known.defaults))}
    config = normalise_config(raw)
    wrong = {key: config[key] for key in known.defaults if config[key] != known.defaults[key]}
    assert wrong == {}


def test_null_for_key_value_heads_means_as_many_as_heads_where_the_class_says_so():
    raw = {"model_type": "qwen3", "num_attention_heads": 6}
    assert normalise_config(raw)["num_key_value_heads"] == 32
    assert normalise_config({**raw, "num_key_value_heads": None})["num_key_value_heads"] == 6


@pytest.mark.parametrize(
    ("name", "width"), [("qwen3", 128), ("qwen3_moe", 64 // 4), ("llama", 64 // 4), ("qwen3_5_text", 256)]
)
def test_the_width_of_a_head_is_the_class_s_own(name: str, width: int):
    assert normalise_config({"model_type": name, "hidden_size": 64, "num_attention_heads": 4})["head_dim"] == width


def test_null_for_the_element_type_is_no_statement():
    assert "dtype" not in normalise_config({"dtype": None})
    assert normalise_config({"dtype": None, "torch_dtype": "float16"})["dtype"] == "float16"


def test_the_parts_of_a_multimodal_config_take_their_own_classes():
    config = normalise_config(
        {"model_type": "qwen3_5_moe", "text_config": {}, "vision_config": {"num_hidden_layers": 3}}
    )
    assert config["text_config"]["num_experts"] == 256
    assert config["vision_config"]["depth"] == 3
    assert "vision_config" not in normalise_config({"model_type": "qwen3_5", "text_config": {}})


LINEAR = {"rope_type": "linear", "factor": 2.0}
PLAIN = {"rope_type": "default", "rope_theta": 777.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


def rope(model_type: str, **keys: Any) -> tuple[Any, Any]:
    config = normalise_config({"model_type": model_type, **keys})
    scaling = config["rope_scaling"]
    return config["rope_theta"], scaling and (scaling["rope_type"], scaling["factor"])


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, (1e4, None)),
        ({"rope_theta": None}, (1e4, None)),
        ({"rope_parameters": PLAIN}, (777.0, None)),
        # transformers 5 takes rope_scaling instead of rope_parameters, whose theta goes with it.
        ({"rope_parameters": PLAIN, "rope_scaling": LINEAR}, (1e4, ("linear", 2.0))),
        ({"rope_parameters": PLAIN, "rope_scaling": {"type": "linear", "factor": 2.0}}, (1e4, ("linear", 2.0))),
        ({"rope_parameters": PLAIN, "rope_scaling": LINEAR, "rope_theta": 5.0}, (5.0, ("linear", 2.0))),
        ({"rope_parameters": PLAIN, "rope_scaling": {**LINEAR, "rope_theta": 9.0}}, (9.0, ("linear", 2.0))),
        ({"rope_parameters": PLAIN, "rope_scaling": {}}, (777.0, None)),
        ({"rope_parameters": PLAIN, "rope_scaling": None}, (777.0, None)),
        ({"rope_scaling": {"rope_type": "linear", "type": "yarn", "factor": 2.0}}, (1e4, ("linear", 2.0))),
    ],
)
@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "qwen3_moe", "llama"])
def test_one_rope_beside_another_is_merged_as_transformers_does(model_type: str, keys: dict, expected: tuple):
    assert rope(model_type, **keys) == expected


def test_the_text_half_of_a_multimodal_config_merges_its_ropes_too():
    text = {"rope_parameters": PLAIN, "rope_scaling": LINEAR}
    for root, theta in (("qwen3_5", 1e4), ("qwen3_vl", 5e5)):
        config = normalise_config({"model_type": root, "text_config": text})["text_config"]
        assert (config["rope_theta"], config["rope_scaling"]["factor"]) == (theta, 2.0)


def ropes(model_type: str, **keys: Any) -> list[Any]:
    config = normalise_config({"model_type": model_type, **keys})
    factors = [config[key] and config[key]["factor"] for key in ("rope_scaling", "rope_local_scaling")]
    return [config["rope_theta"], factors[0], config["rope_local_base_freq"], factors[1]]


OWN = {"full_attention": {**LINEAR, "rope_theta": 5.0}, "sliding_attention": {**LINEAR, "factor": 3.0}}


@pytest.mark.parametrize(
    ("model_type", "keys", "expected"),
    [
        ("gemma3_text", {}, [1e6, None, 1e4, None]),
        ("gemma3_text", {"rope_scaling": LINEAR, "rope_theta": 5.0}, [5.0, 2.0, 1e4, None]),
        ("gemma3_text", {"rope_parameters": OWN}, [5.0, 2.0, 1e4, 3.0]),
        ("gemma3_text", {"rope_parameters": OWN, "rope_scaling": {"factor": 7.0}}, [5.0, 7.0, 1e4, 3.0]),
        ("gemma3_text", {"rope_theta": 5.0, "rope_local_base_freq": 7.0}, [5.0, None, 7.0, None]),
        ("gemma3_text", {"global_rope_theta": 5.0, "local_rope_theta": 7.0}, [1e6, None, 1e4, None]),
        ("modernbert", {}, [160000.0, None, 1e4, None]),
        ("modernbert", {"rope_theta": 5.0}, [160000.0, None, 1e4, None]),
        ("modernbert", {"rope_scaling": LINEAR, "local_rope_theta": 7.0}, [160000.0, 2.0, 7.0, 2.0]),
        ("modernbert", {"rope_parameters": OWN}, [5.0, 2.0, 1e4, 3.0]),
        ("modernbert", {"rope_parameters": {"sliding_attention": LINEAR}}, [160000.0, None, 1e4, 2.0]),
    ],
)
def test_each_layer_type_has_its_own_rope(model_type: str, keys: dict, expected: list):
    assert ropes(model_type, **keys) == expected
    once = normalise_config({"model_type": model_type, **keys})
    assert normalise_config(once) == once


def test_yarn_alone_makes_the_positions_it_adds_usable():
    stated = {"model_type": "qwen3", "max_position_embeddings": 100}
    assert normalise_config({**stated, "rope_scaling": YARN})["max_position_embeddings"] == 256
    assert (
        normalise_config({**stated, "rope_parameters": {**YARN, "rope_theta": 1e6}})["max_position_embeddings"] == 256
    )
    # A file that already counts them is believed, and so is every other type.
    assert normalise_config({**stated, "rope_scaling": {**YARN, "factor": 1.5}})["max_position_embeddings"] == 100
    assert normalise_config({**stated, "rope_scaling": LINEAR})["max_position_embeddings"] == 100
    # Sliding layers with a plain rope can't follow.
    one_of_two = {"rope_parameters": {"full_attention": YARN, "sliding_attention": PLAIN}}
    config = normalise_config({"model_type": "modernbert", "max_position_embeddings": 100, **one_of_two})
    assert config["max_position_embeddings"] == 100


def test_a_trained_length_that_no_rope_states_is_the_class_s_or_the_file_s():
    yarn = {"rope_scaling": {"type": "yarn", "factor": 2.0}, "max_position_embeddings": 512}
    assert normalise_config({"model_type": "qwen3", **yarn})["rope_scaling"]["original_max_position_embeddings"] == 512
    beside = {**yarn, "original_max_position_embeddings": 64}
    assert normalise_config({"model_type": "qwen3", **beside})["rope_scaling"]["original_max_position_embeddings"] == 64


def test_a_share_of_a_head_is_refused_where_the_class_can_t_turn_it():
    assert normalise_config({"model_type": "qwen3", "partial_rotary_factor": 0.5})["rope_scaling"] is None
    with pytest.raises(CheckpointError, match="this model turns whole heads"):
        normalise_config({"model_type": "qwen3", "partial_rotary_factor": 0.5, "rope_scaling": LINEAR})
    assert normalise_config({"model_type": "qwen3_5_text"})["partial_rotary_factor"] == 0.25
    stated = {"rope_parameters": {**PLAIN, "partial_rotary_factor": 0.5}}
    assert normalise_config({"model_type": "qwen3_5_text", **stated})["partial_rotary_factor"] == 0.5


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("value", ["yarn", [1], 2.0])
def test_a_rope_that_is_no_object_is_refused(key: str, value: object):
    with pytest.raises(CheckpointError, match=key):
        normalise_config({"model_type": "qwen3", key: value})


def test_every_layer_of_qwen3_moe_is_windowed():
    stated = {"max_window_layers": 2, "layer_types": ["full_attention"] * 4}
    config = normalise_config({"model_type": "qwen3_moe", **WINDOWED, **stated})
    assert config["layer_types"] == ["sliding_attention"] * 4
    off = normalise_config({"model_type": "qwen3_moe", **WINDOWED, "use_sliding_window": False})
    assert off["layer_types"] == ["full_attention"] * 4


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
def test_windows_begin_where_the_class_says(model_type: str):
    config = normalise_config({"model_type": model_type, **WINDOWED, "max_window_layers": 3})
    assert config["layer_types"] == ["full_attention"] * 3 + ["sliding_attention"]
    # 28 layers before the first window, by default.
    assert set(normalise_config({"model_type": model_type, **WINDOWED})["layer_types"]) == {"full_attention"}
    none = normalise_config({"model_type": model_type, **WINDOWED, "sliding_window": None, "max_window_layers": 0})
    assert set(none["layer_types"]) == {"full_attention"}


@pytest.mark.parametrize(
    "off", [{"use_sliding_window": False}, {}, {"use_sliding_window": True, "sliding_window": None}]
)
def test_layer_types_with_a_window_that_is_switched_off_are_refused(off: dict):
    raw = {"model_type": "qwen3", "num_hidden_layers": 2, "layer_types": ["full_attention", "sliding_attention"]}
    with pytest.raises(CheckpointError, match="leaves no window"):
        normalise_config({**raw, **off})


@pytest.mark.parametrize(
    ("model_type", "keys", "expected"),
    [
        ("qwen3_5_text", {}, "lllf"),
        ("qwen3_next", {"full_attention_interval": 2}, "lflf"),
        ("qwen3_5_text", {"layer_types": ["attention", "mamba", "mamba", "mamba"]}, "flll"),
        ("gemma3_text", {"sliding_window_pattern": 2}, "sfsf"),
        # A key that this class does not read.
        ("gemma3_text", {"_sliding_window_pattern": 2}, "ssss"),
        ("modernbert", {}, "fssf"),
        ("modernbert", {"global_attn_every_n_layers": 2}, "fsfs"),
    ],
)
def test_layer_types_follow_the_class(model_type: str, keys: dict, expected: str):
    config = normalise_config({"model_type": model_type, "num_hidden_layers": 4, **keys})
    assert "".join(name[0] for name in config["layer_types"]) == expected


def test_a_first_windowed_layer_that_is_no_number_is_refused():
    with pytest.raises(CheckpointError, match="max_window_layers"):
        normalise_config({"model_type": "qwen3", **WINDOWED, "max_window_layers": "2"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("architectures", 3),
        ("architectures", [None]),
        ("architectures", {"a": 1}),
        ("layer_types", "full_attention"),
        ("num_hidden_layers", 10**9),
    ],
)
def test_a_value_of_another_kind_is_refused_by_its_key(key: str, value: object):
    with pytest.raises(CheckpointError, match=key):
        normalise_config({"model_type": "qwen3", key: value})
    with pytest.raises(CheckpointError, match=key):
        normalise_config({"model_type": "acme", key: value})
