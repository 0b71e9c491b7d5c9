"""NomicBert v1.5 as an outside plugin would write it, by its hub files and by what transformers 5 saves."""

from archport.contract import ArchSpec, AttentionLayer, Example, hookimpl

NOMIC = {
    "architectures": ["OutsideNomicBertModel"],
    "model_type": "nomic_bert",
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "hidden_act": "silu",
    "type_vocab_size": 2,
    "vocab_size": 199,
    "max_position_embeddings": 512,
    "layer_norm_eps": 1e-12,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
    "torch_dtype": "float32",
}
# The same model as its repository says it, in GPT-2's words.
HUB = {
    "architectures": ["OutsideNomicBertModel"],
    "model_type": "nomic_bert",
    "n_embd": 64,
    "n_layer": 3,
    "n_head": 4,
    "n_inner": 96,
    "n_positions": 512,
    "activation_function": "swiglu",
    "type_vocab_size": 2,
    "vocab_size": 199,
    "layer_norm_epsilon": 1e-12,
    "rotary_emb_base": 1000,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_scaling_factor": None,
    "prenorm": False,
    "qkv_proj_bias": False,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "parallel_block": False,
    "use_rms_norm": False,
    "torch_dtype": "float32",
}
# What the hub calls what transformers calls otherwise.
WORDS = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "n_positions": "max_position_embeddings",
    "layer_norm_epsilon": "layer_norm_eps",
    "rotary_emb_base": "rope_theta",
}
# Models of the same class that are built otherwise, v2 with its experts and biases among them.
OTHERWISE = (
    *("prenorm", "qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias", "parallel_block", "use_rms_norm", "num_experts"),
    *("rotary_emb_interleaved", "rotary_scaling_factor", "moe_every_n_layers"),
)


def read(config):
    """The config in transformers' words, with the class's values for what it leaves out."""
    found = {"hidden_act": "silu", "layer_norm_eps": 1e-12, "rope_theta": 1000.0, "type_vocab_size": 2, **config}
    found |= {new: config[old] for old, new in WORDS.items() if config.get(old) is not None}
    if "activation_function" in config:
        found["hidden_act"] = {"swiglu": "silu", "geglu": "gelu"}.get(config["activation_function"])
    return found


@hookimpl
def archport_claim(config):
    if "OutsideNomicBertModel" not in (config.get("architectures") or []) or config["causal"]:
        return None
    whole = config.get("rotary_emb_fraction", 1.0) == 1.0
    config = read(config)
    if any(config.get(key) for key in OTHERWISE) or not whole or config["hidden_act"] is None:
        return None
    heads = config["num_attention_heads"]
    layer = AttentionLayer(
        "bidirectional", n_heads=heads, n_kv_heads=heads, head_dim=config["hidden_size"] // heads
    )  # fmt: skip
    return ArchSpec(
        arch="nomic_bert",
        tasks=("embed",),
        layers=(layer,) * config["num_hidden_layers"],
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        max_positions=config["max_position_embeddings"],
        dtype=config.get("dtype", "float32"),
        qk_norm=False,
    )


@hookimpl
def archport_build(spec, config):
    from nomic_model import NomicBert

    return NomicBert(spec, read(config))


def hub(weights):
    from nomic_model import published

    return published(weights)


def saved(weights):
    from nomic_model import saved

    return saved(weights)


@hookimpl
def archport_examples():
    return [
        Example("nomic bert as transformers saves it", NOMIC, publish=saved),
        Example("nomic bert as the hub has it", HUB, seed=1, publish=hub),
    ]
