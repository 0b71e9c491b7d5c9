"""What a config says about packed weights, and what archport refuses to guess."""

from __future__ import annotations

import pytest

from archport.checkpoint import read_quantization
from archport.contract.errors import CheckpointError
from archport.contract.spec import Quantization


@pytest.mark.parametrize("config", [{}, {"quantization": None}, {"quantization_config": {}}, {"text_config": {}}])
def test_nothing_stated_is_none(config):
    assert read_quantization(config) is None


@pytest.mark.parametrize("key", ["quantization", "quantization_config"])
def test_mlx_settings_are_read_under_both_keys(key: str):
    assert read_quantization({key: {"bits": 4, "group_size": 64}}) == Quantization(4, 64)
    assert read_quantization({key: {"bits": 4, "group_size": 32, "mode": "mxfp4"}}) == Quantization(4, 32, "mxfp4")


def test_paths_with_their_own_settings_and_without_any_are_overrides():
    stated = {
        "bits": 4,
        "group_size": 32,
        "mode": "mxfp4",
        "model.mlp.gate": {"bits": 8, "group_size": 64},
        "model.embed_tokens": {"bits": 8, "group_size": 32, "mode": "mxfp8"},
        "model.norm_like": {"mode": "nvfp4"},
        "lm_head": False,
    }
    found = read_quantization({"quantization": stated})
    assert found is not None
    assert found.overrides == {
        "model.mlp.gate": Quantization(8, 64),
        "model.embed_tokens": Quantization(8, 32, "mxfp8"),
        "model.norm_like": Quantization(4, 16, "nvfp4"),
        "lm_head": None,
    }


def test_settings_of_a_text_half_count():
    assert read_quantization({"text_config": {"quantization": {"bits": 8, "group_size": 32}}}) == Quantization(8, 32)


@pytest.mark.parametrize(("method", "bits"), [("mxfp4", 4), ("mxfp8", 8)])
def test_the_legacy_names_of_the_mx_modes_are_read(method: str, bits: int):
    assert read_quantization({"quantization_config": {"quant_method": method}}) == Quantization(bits, 32, method)


@pytest.mark.parametrize("method", ["bitnet", "awq", "gptq", "compressed-tensors", "fp8", "bitsandbytes", "modelopt"])
def test_other_packings_are_named_with_the_way_out(method: str):
    with pytest.raises(CheckpointError, match=f"quant_method='{method}'(.|\n)*unquantised(.|\n)*mlx_lm.convert"):
        read_quantization({"quantization_config": {"quant_method": method, "bits": 4, "group_size": 128}})


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"bits": 4}, "lacks 'group_size'"),
        ({"bits": 0, "group_size": 64}, "bits=0"),
        ({"bits": "4", "group_size": 64}, "bits='4'"),
        ({"bits": 7, "group_size": 64}, "does not exist in MLX"),
        ({"bits": 4, "group_size": 48}, "does not exist in MLX"),
        ({"bits": 4, "group_size": 64, "mode": "mxfp4"}, "does not exist in MLX"),
        ({"bits": 4, "group_size": 64, "mode": "int4"}, "mode='int4'"),
        ({"bits": 4, "group_size": 64, "a.b": {"bits": 99}}, r"\['a.b'\].*99 bits"),
        ([4, 64], "expected an object"),
    ],
)
def test_settings_that_make_no_sense_are_named(stated, message: str):
    with pytest.raises(CheckpointError, match=message):
        read_quantization({"quantization": stated})
