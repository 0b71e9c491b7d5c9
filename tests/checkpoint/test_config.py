"""One spelling for three dialects: classic hub files, converted quantised ones, and what transformers 5 saves."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest

from archport.checkpoint import normalise_config
from archport.contract.errors import CheckpointError


def test_the_argument_is_left_alone():
    raw = {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}, "text_config": {"torch_dtype": "float16"}}
    before = copy.deepcopy(raw)
    normalise_config(raw)
    assert raw == before


def test_rope_parameters_and_the_classic_keys_come_out_equal():
    classic = normalise_config({"rope_theta": 1e6, "rope_scaling": {"type": "yarn", "factor": 4.0}})
    saved = normalise_config({"rope_parameters": {"rope_theta": 1e6, "rope_type": "yarn", "factor": 4.0}})
    assert classic == saved
    assert saved["rope_scaling"] == {"type": "yarn", "rope_type": "yarn", "factor": 4.0}


def test_plain_rope_parameters_mean_no_scaling():
    saved = normalise_config({"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}})
    assert (saved["rope_theta"], saved["rope_scaling"]) == (1e6, None)


def test_rope_parameters_win_over_a_left_over_theta():
    assert normalise_config({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e6}})["rope_theta"] == 5e6


def test_sections_and_partial_factors_of_rope_parameters_are_kept():
    rope = {"rope_theta": 1e7, "rope_type": "default", "partial_rotary_factor": 0.25, "mrope_section": [11, 11, 10]}
    config = normalise_config({"rope_parameters": rope})
    assert config["partial_rotary_factor"] == 0.25
    assert config["rope_scaling"]["mrope_section"] == [11, 11, 10]


def test_axial_rope_parameters_of_a_tower_lift_the_theta_only():
    config = normalise_config({"vision_config": {"rope_parameters": {"rope_theta": 1e4, "rope_type": "axial"}}})
    assert config["vision_config"]["rope_theta"] == 1e4
    assert "rope_scaling" not in config["vision_config"]


LAYERED = {"full_attention": {"rope_theta": 1e6, "rope_type": "default"}, "sliding_attention": {"rope_theta": 1e4}}


@pytest.mark.parametrize(
    "raw",
    [
        {"rope_parameters": LAYERED},
        {"rope_theta": 1e6, "rope_local_base_freq": 1e4},
        {"global_rope_theta": 1e6, "local_rope_theta": 1e4},
        {"rope_theta": 5.0, "global_rope_theta": 7.0, "local_rope_theta": 9.0, "rope_parameters": LAYERED},
    ],
    ids=["saved", "gemma", "modernbert", "saved with left-overs"],
)
def test_thetas_per_layer_type_have_both_names_in_every_dialect(raw):
    config = normalise_config(raw)
    assert config["rope_theta"] == config["global_rope_theta"] == 1e6
    assert config["rope_local_base_freq"] == config["local_rope_theta"] == 1e4
    assert "rope_parameters" not in config


def test_the_scaling_of_full_attention_layers_is_exposed():
    full = {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0}
    config = normalise_config({"rope_parameters": {"full_attention": full, "sliding_attention": {"rope_theta": 1e4}}})
    assert config["rope_scaling"] == {"rope_type": "linear", "type": "linear", "factor": 8.0}


def test_a_single_theta_gets_no_local_names():
    config = normalise_config({"rope_theta": 1e6})
    assert "global_rope_theta" not in config
    assert "rope_local_base_freq" not in config


def test_both_names_of_the_expert_count_are_one():
    assert normalise_config({"num_local_experts": 8})["num_experts"] == 8
    assert normalise_config({"num_local_experts": 8, "num_experts": 16})["num_experts"] == 16


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"full_attention_interval": 4}, ["linear_attention"] * 3 + ["full_attention"] + ["linear_attention"] * 2),
        ({"sliding_window_pattern": 3}, (["sliding_attention"] * 2 + ["full_attention"]) * 2),
        ({"_sliding_window_pattern": 6}, ["sliding_attention"] * 5 + ["full_attention"]),
        ({"global_attn_every_n_layers": 3}, (["full_attention"] + ["sliding_attention"] * 2) * 2),
        ({"use_sliding_window": False, "sliding_window": 9, "max_window_layers": 2}, ["full_attention"] * 6),
        (
            {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 4},
            ["full_attention"] * 4 + ["sliding_attention"] * 2,
        ),
    ],
)
def test_layer_types_follow_from_intervals_and_patterns(raw, expected):
    assert normalise_config({"num_hidden_layers": 6, **raw})["layer_types"] == expected


def test_stated_layer_types_win_over_the_interval():
    stated = ["full_attention", "linear_attention"]
    raw = {"num_hidden_layers": 2, "layer_types": stated, "full_attention_interval": 4}
    assert normalise_config(raw)["layer_types"] == stated


def test_no_layer_types_are_made_up():
    assert "layer_types" not in normalise_config({"num_hidden_layers": 6})


def test_layer_types_of_another_length_are_an_error():
    with pytest.raises(CheckpointError, match="names 1 layers and num_hidden_layers is 2"):
        normalise_config({"num_hidden_layers": 2, "layer_types": ["full_attention"]})


@pytest.mark.parametrize("value", [0, -1, "4", True, 2.0])
def test_an_interval_that_is_none_is_an_error(value):
    with pytest.raises(CheckpointError, match="full_attention_interval"):
        normalise_config({"num_hidden_layers": 2, "full_attention_interval": value})


def test_the_top_level_wins_for_tied_embeddings():
    raw = {"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}}
    config = normalise_config(raw)
    assert config["tie_word_embeddings"] is False
    assert config["text_config"]["tie_word_embeddings"] is False


def test_tied_embeddings_of_the_text_half_count_when_the_top_level_is_silent():
    assert normalise_config({"text_config": {"tie_word_embeddings": True}})["tie_word_embeddings"] is True


@pytest.mark.parametrize("stated", [{}, {"norm_topk_prob": False}, {"norm_topk_prob": None}])
@pytest.mark.parametrize("root", ["qwen3_vl_moe", "qwen3_5_moe"])
def test_routers_that_always_renormalise_do_so_whatever_a_file_says(root: str, stated: dict):
    wrapper = normalise_config({"model_type": root, "text_config": {"num_experts": 4, **stated}})
    assert wrapper["text_config"]["norm_topk_prob"] is True
    assert normalise_config({"model_type": f"{root}_text", **stated})["norm_topk_prob"] is True


@pytest.mark.parametrize(("model_type", "default"), [("qwen3_moe", False), ("qwen3_next", True)])
def test_routers_that_read_the_flag_are_left_as_read(model_type: str, default: bool):
    assert normalise_config({"model_type": model_type})["norm_topk_prob"] is default
    for stated in (True, False):
        assert normalise_config({"model_type": model_type, "norm_topk_prob": stated})["norm_topk_prob"] is stated


@pytest.mark.parametrize("model_type", ["qwen3_5_text", "qwen3_5_moe_text", "qwen3_vl_text"])
def test_the_text_half_of_a_family_is_marked(model_type: str):
    assert normalise_config({"model_type": model_type})["text_only"] is True
    assert "text_only" not in normalise_config({"model_type": "qwen3_vl"})


def test_nobody_can_dispatch_on_the_type_of_a_tower():
    raw = {"model_type": "qwen3_vl", "vision_config": {"model_type": "qwen3_vl_vision", "depth": 4}}
    tower = normalise_config(raw)["vision_config"]
    assert tower["depth"] == 4
    assert "model_type" not in tower


def test_tagged_floats_are_decoded_at_any_depth():
    raw = {"a": {"__float__": "Infinity"}, "b": [{"c": {"__float__": "-Infinity"}}], "d": {"__float__": "NaN"}}
    config = normalise_config(raw)
    assert config["a"] == math.inf
    assert config["b"][0]["c"] == -math.inf
    assert math.isnan(config["d"])


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"torch_dtype": "bfloat16"}, "bfloat16"),
        ({"dtype": "float16"}, "float16"),
        ({"torch_dtype": "torch.float32"}, "float32"),
        ({"torch_dtype": None, "text_config": {"dtype": "bfloat16"}}, "bfloat16"),
    ],
)
def test_the_element_type_has_one_key(raw, expected: str):
    config = normalise_config(raw)
    assert config["dtype"] == expected
    assert "torch_dtype" not in config


@pytest.mark.parametrize(
    "raw",
    [
        {"model_type": "qwen3", "is_causal": False},
        {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "use_bidirectional_attention": True},
        {"model_type": "gemma3_text", "use_bidirectional_attention": True},
        {"model_type": "llama", "architectures": ["LlamaBidirectionalModel"]},
        {"model_type": "llama_bidirec"},
        {"model_type": "llama_nemotron_vl", "bidirectional_attention": False},
        {"model_type": "wrapper", "text_config": {"is_causal": False}},
        {"model_type": "wrapper", "llm_config": {"architectures": ["LlamaBidirectionalForX"]}},
        {"model_type": "bidirectional_pplx_qwen3"},
        {"model_type": "bert"},
        {"model_type": "roberta"},
        {"model_type": "xlm-roberta"},
        {"model_type": "modernbert"},
    ],
)
def test_every_way_to_say_bidirectional_is_one_flag(raw):
    assert normalise_config(raw)["causal"] is False


@pytest.mark.parametrize(
    "raw",
    [
        {"model_type": "qwen3"},
        {"model_type": "llama", "is_causal": True},
        {"model_type": "gemma3_text", "use_bidirectional_attention": False},
        {"model_type": "bert", "is_decoder": True},
        {"model_type": "modernbert-decoder"},
        {},
    ],
)
def test_decoders_are_causal(raw):
    assert normalise_config(raw)["causal"] is True


@pytest.mark.parametrize(
    ("raw", "stated"),
    [
        # An architecture that core has never heard of: its claim knows.
        ({"model_type": "acme-bert", "architectures": ["AcmeBertModel"]}, False),
        ({"model_type": "acme-bert", "is_decoder": False}, False),
        ({"model_type": "acme-bert", "is_decoder": True}, True),
        ({"model_type": "acme", "is_causal": False}, True),
        ({"model_type": "acme", "is_causal": True}, True),
        ({"model_type": "acme", "architectures": ["AcmeForCausalLM"]}, True),
        ({"model_type": "qwen3"}, True),
        ({"model_type": "bert"}, True),
    ],
)
def test_whether_a_file_says_which_way_tokens_look_is_told_apart_from_the_usual_answer(raw, stated):
    assert normalise_config(raw)["causal_stated"] is stated


def test_a_text_half_carries_the_flag_too():
    assert normalise_config({"model_type": "x", "text_config": {"is_causal": False}})["text_config"]["causal"] is False


def test_the_text_half_has_one_name():
    config = normalise_config({"llm_config": {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}})
    assert config["text_config"]["rope_theta"] == 5e5
    assert "llm_config" not in config


def test_quantisation_settings_are_left_as_written():
    raw = {"quantization": {"bits": 4, "group_size": 64}, "quantization_config": {"bits": 4, "group_size": 64}}
    config = normalise_config(raw)
    assert config["quantization"] == raw["quantization"]
    assert config["quantization_config"] == raw["quantization_config"]


def test_normalising_twice_changes_nothing():
    raw = {
        "model_type": "qwen3_vl_moe",
        "rope_parameters": LAYERED,
        "num_local_experts": 4,
        "num_hidden_layers": 4,
        "text_config": {
            "num_experts": 4,
            "torch_dtype": "bfloat16",
            "full_attention_interval": 2,
            "num_hidden_layers": 4,
        },
    }
    once = normalise_config(raw)
    assert normalise_config(once) == once


# Made by make_saved_configs.py.
RECORDED = json.loads(Path(__file__).with_name("saved_configs.json").read_text())["pairs"]
# The classic files state these and the saves do not: they say the same as `layer_types`.
IMPLIED = {"full_attention_interval", "sliding_window_pattern", "global_attn_every_n_layers"}


def differences(classic: dict, saved: dict, path: str = "") -> list[str]:
    found = []
    for key, value in classic.items():
        if isinstance(value, dict) and key.endswith("_config"):
            found += differences(value, saved.get(key, {}), f"{path}{key}.")
        elif key not in IMPLIED and saved.get(key, "absent") != value:
            found.append(f"{path}{key}: {value!r} became {saved.get(key, 'absent')!r}")
    return found


@pytest.mark.parametrize("name", RECORDED)
def test_a_config_and_what_transformers_saves_of_it_normalise_to_the_same(name: str):
    pair = RECORDED[name]
    assert differences(normalise_config(pair["classic"]), normalise_config(pair["saved"])) == []


@pytest.mark.parametrize("name", ["qwen3", "qwen3_moe", "gemma3_text", "modernbert", "llama3", "qwen3_vl"])
def test_the_recorded_saves_really_differ_from_the_classic_files(name: str):
    assert differences(RECORDED[name]["classic"], RECORDED[name]["saved"])
