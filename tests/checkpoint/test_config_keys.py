"""Every key of every class's config is obeyed, refused, or known to change nothing; only other keys are named aloud."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from archport.checkpoint import normalise_config
from archport.checkpoint.config import CLASSES
from archport.contract import keys
from archport.contract.errors import ClaimError
from archport.contract.plugins import claim, discover

# Made by make_config_classes.py.
RECORDED: dict[str, Any] = json.loads(Path(__file__).with_name("config_classes.json").read_text())
EVERYWHERE = RECORDED["every class"]
# What older files of a class hold beside its fields.
OLD = ("rope_theta", "rope_scaling", "torch_dtype", "_name_or_path", "num_labels")
# An architecture per class that archport claims.
CLAIMED = {name: known.trunk or known.head for name, known in CLASSES.items() if name in RECORDED["classes"]}
CLAIMED = {name: architecture for name, architecture in CLAIMED.items() if architecture}


def everything(name: str) -> dict[str, Any]:
    """A config of a class with every key that it has, at the class's own value."""
    about = RECORDED["classes"][name]
    return {**dict.fromkeys(EVERYWHERE), **dict.fromkeys(about["names"]), **about["fields"], **dict.fromkeys(OLD)}


def whole(name: str) -> dict[str, Any]:
    config = {**everything(name), "model_type": name, "architectures": [CLAIMED[name]]}
    for part, own in zip(("text_config", "vision_config"), CLASSES[name].parts or (), strict=False):
        config[part] = everything(own)
    if name == "gemma3_text":
        config["use_bidirectional_attention"] = True
    return {**config, "is_causal": False} if name == "llama" else config


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    keys._warn.cache_clear()
    caplog.set_level(logging.WARNING, "archport")
    return caplog


@pytest.mark.parametrize("name", CLAIMED)
def test_no_key_of_a_class_is_in_no_list(name: str, warnings: pytest.LogCaptureFixture):
    claim(normalise_config(whole(name)), discover())
    assert warnings.messages == []


@pytest.mark.parametrize("name", CLAIMED)
def test_a_key_that_no_list_names_is_named_once_per_part(name: str, warnings: pytest.LogCaptureFixture):
    config = whole(name)
    parts = [config[part] for part in ("text_config", "vision_config") if isinstance(config.get(part), dict)]
    for at, part in enumerate([config, *parts]):
        part[f"acme_{at}"] = 1
    for _ in range(2):
        claim(normalise_config(config), discover())
    assert [f"acme_{at}" in message for at, message in enumerate(warnings.messages)] == [True] * (1 + len(parts))


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("bert", "position_embedding_type", "relative_key"),
        ("roberta", "add_cross_attention", True),
        ("xlm-roberta", "pruned_heads", {"0": [1]}),
        ("bert", "is_encoder_decoder", True),
        ("gemma3_text", "attn_logit_softcapping", 50.0),
        ("modernbert", "head_dim", 8),
        ("siglip_vision_model", "num_channels", 1),
        ("qwen3_5_text", "output_gate_type", "tanh"),
    ],
)
def test_a_key_that_changes_numbers_and_is_not_followed_is_refused_by_name(name: str, key: str, value: object):
    with pytest.raises(ClaimError, match=f"{key}="):
        claim(normalise_config({**whole(name), key: value}), discover())


@pytest.mark.parametrize(
    ("name", "part", "key", "value"),
    [
        ("qwen3_5", "vision_config", "deepstack_visual_indexes", [1]),
        ("qwen3_5_moe", "text_config", "output_gate_type", "tanh"),
        ("qwen3_vl", "vision_config", "in_channels", 4),
        ("siglip", "vision_config", "vision_use_head", False),
        ("siglip", "vision_config", "image_size", 23),
    ],
)
def test_a_key_of_a_part_is_refused_too(name: str, part: str, key: str, value: object):
    config = whole(name)
    config[part][key] = value
    with pytest.raises(ClaimError, match=key):
        claim(normalise_config(config), discover())
