"""An honest plugin of made-up architectures: a causal decoder with a window, one that generates, and an encoder.

Liars are this plugin with one thing changed. Not installed: the kit is handed its module.
"""

from archport.contract import ArchSpec, AttentionLayer, Example, VisionTower, hookimpl

DECODER = {
    "architectures": ["ToyDecoder"],
    "model_type": "toy",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "layer_types": ["full_attention", "sliding_attention"],
    "sliding_window": 6,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 199,
    "max_position_embeddings": 512,
}
ENCODER = {
    **DECODER,
    "architectures": ["ToyEncoder"],
    "is_causal": False,
    "max_position_embeddings": 320,
    "sliding_window": 8,
}
GENERATOR = {**DECODER, "architectures": ["ToyGenerator"], "tie_word_embeddings": False}
# One block of two heads, four patches to a token.
TOWER = VisionTower((AttentionLayer("bidirectional", 2, 2, 32),), 64, 96, patch_size=4, merge_size=2)


@hookimpl
def archport_claim(config):
    names = config.get("architectures") or []
    generates = "ToyGenerator" in names
    causal = "ToyDecoder" in names or generates
    if not (causal or "ToyEncoder" in names) or config["causal"] != causal:
        return None
    window = config["sliding_window"]
    windowed = (window - 1, 0) if causal else (window // 2, window // 2)
    return ArchSpec(
        arch="toy",
        tasks=("embed", "generate") if generates else ("embed",),
        layers=tuple(
            AttentionLayer(
                "causal" if causal else "bidirectional",
                config["num_attention_heads"],
                config["num_key_value_heads"],
                config["head_dim"],
                reach=windowed if kind == "sliding_attention" else (None, 0 if causal else None),
            )
            for kind in config["layer_types"]
        ),
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        max_positions=config["max_position_embeddings"],
        tied_head=config.get("tie_word_embeddings", True),
        vision=TOWER if config.get("vision_config") else None,
    )


@hookimpl
def archport_build(spec, config):
    from toy_model import Toy

    return Toy(spec, config)


def publish(weights):
    return {f"toy.{name}": value for name, value in weights.items()}


@hookimpl
def archport_examples():
    return [
        Example("decoder, window of 6", DECODER, publish=publish),
        Example("encoder, reach 4", ENCODER, seed=1, publish=publish),
        Example("generator, a head of its own", GENERATOR, seed=2, publish=publish),
    ]
