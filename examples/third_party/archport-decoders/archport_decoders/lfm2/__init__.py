"""LFM2: short gated convolutions in most layers, attention in the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from archport.contract import ROPE_KEYS, ArchSpec, ConfigKeys, Example, Footprint, LayerSpec, RecurrentLayer, Trunk

from archport_decoders.declaring import TINY, attention, declared, filled

ARCHITECTURES = ("Lfm2Model", "Lfm2ForCausalLM")
# Of transformers' Lfm2Config.
DEFAULTS = {
    "vocab_size": 65536,
    "hidden_size": 2560,
    "intermediate_size": 12288,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 128000,
    "norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "conv_bias": False,
    "conv_L_cache": 3,
    "block_multiple_of": 256,
    "block_auto_adjust_ff_dim": True,
}
KEYS = ConfigKeys(
    "lfm2",
    obeyed={
        *(*DEFAULTS, *ROPE_KEYS, "head_dim", "full_attn_idxs", "layer_types", "tie_embedding", "block_ff_dim"),
        "block_ffn_dim_multiplier",
    },
    # Other names of what is stated beside them, and of how it was trained.
    inert={
        *("block_dim", "block_mlp_init_scale", "block_norm_eps", "block_out_init_scale", "block_use_swiglu"),
        *("block_use_xavier_init", "conv_dim", "conv_dim_out", "conv_use_xavier_init", "num_heads", "theta"),
        "use_pos_enc",
    },
)


def read(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with what its class takes for keys that a file leaves out, and its other names for two of them."""
    found = filled(config, DEFAULTS)
    found["tie_word_embeddings"] = found.get("tie_embedding", found["tie_word_embeddings"])
    found["intermediate_size"] = inner_width(
        {**found, "intermediate_size": found.get("block_ff_dim", found["intermediate_size"])}
    )
    if not found.get("layer_types"):
        layers = found["num_hidden_layers"]
        stated = found.get("full_attn_idxs")
        full = range(layers) if stated is None else stated
        found["layer_types"] = ["full_attention" if index in full else "conv" for index in range(layers)]
    return found


def inner_width(config: Mapping[str, Any]) -> int:
    """Width inside the MLP: two thirds of what is stated, scaled, and rounded up."""
    width = config["intermediate_size"]
    if not config["block_auto_adjust_ff_dim"]:
        return width
    width = int(2 * width / 3)
    factor = config.get("block_ffn_dim_multiplier", 1.0)
    if factor is None:
        return width
    step = config["block_multiple_of"]
    return -(-int(factor * width) // step) * step


def claim(config: Mapping[str, Any]) -> ArchSpec:
    KEYS.check(config)
    config = read(config)
    D, taps = config["hidden_size"], config["conv_L_cache"]
    # Of a row it keeps what the taps reach back to, in float32. A product of three and a convolution make its channels.
    conv = RecurrentLayer(
        state_bytes=0,
        conv_taps=taps,
        conv_bytes=4 * (taps - 1) * D,
        channels=4 * D,
        values=D,
        # A norm, the product of three, what is convolved, the sum, its gate's product, the output, and the block's own.
        footprint=Footprint(mixer=(10 if config["conv_bias"] else 9) * D, matrices=4 * D * D),
    )
    layers: list[LayerSpec] = [
        attention(config) if kind == "full_attention" else conv for kind in config["layer_types"]
    ]
    return declared(config, "lfm2", layers)


def build(spec: ArchSpec, config: Mapping[str, Any]) -> Trunk:
    from archport_decoders.lfm2.model import Lfm2

    return Lfm2(spec, read(config))


def examples() -> Sequence[Example]:
    def publish(weights: Mapping[str, Any]) -> Mapping[str, Any]:
        from archport_decoders.lfm2.model import published

        return published(weights)

    config = {
        "architectures": ["Lfm2ForCausalLM"],
        "model_type": "lfm2",
        **{key: value for key, value in TINY.items() if key != "head_dim"},
        "num_hidden_layers": 4,
        "intermediate_size": 200,
        "block_multiple_of": 16,
        "norm_eps": 1e-5,
        "rope_theta": 1000000.0,
        "layer_types": ["conv", "full_attention", "conv", "conv"],
        "conv_L_cache": 3,
        "conv_bias": False,
        "tie_embedding": True,
    }
    biased = {"conv_bias": True, "conv_L_cache": 4, "tie_embedding": False, "block_auto_adjust_ff_dim": False}
    return [
        Example("lfm2, three convolutions and one attention", config, publish=publish),
        Example("lfm2, biases, four taps, a head of its own", {**config, **biased}, seed=1, publish=publish),
    ]
