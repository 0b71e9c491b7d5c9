"""Two encoders as an outside plugin would write them: one with ALiBi's slopes, one with MPNet's bucketed table."""

from archport.contract import ArchSpec, AttentionLayer, Example, hookimpl

# Under a name of its own: archport's bidirectional plugin claims the published one.
MPNET = {
    "architectures": ["OutsideMPNetModel"],
    "model_type": "mpnet",
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "intermediate_size": 80,
    "num_attention_heads": 6,
    "relative_attention_num_buckets": 32,
    "vocab_size": 199,
    "max_position_embeddings": 514,
    "layer_norm_eps": 1e-5,
    "hidden_act": "gelu",
    "torch_dtype": "float32",
}
ALIBI = {
    **MPNET,
    "architectures": ["AlibiBertModel"],
    "model_type": "alibi-bert",
    "max_position_embeddings": 512,
    "layer_norm_eps": 1e-12,
}


@hookimpl
def archport_claim(config):
    names = config.get("architectures") or []
    # Where neither the file nor core says anything, an encoder is what these architectures are.
    causal = config["causal"] and config.get("causal_stated", True)
    if causal or not {"OutsideMPNetModel", "AlibiBertModel"} & set(names):
        return None
    heads = config["num_attention_heads"]
    layer = AttentionLayer(
        "bidirectional", n_heads=heads, n_kv_heads=heads, head_dim=config["hidden_size"] // heads, bias=True
    )
    return ArchSpec(
        arch="mpnet" if "OutsideMPNetModel" in names else "alibi-bert",
        tasks=("embed",),
        layers=(layer,) * config["num_hidden_layers"],
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        # MPNet counts positions from 2 on, after its padding index.
        max_positions=config["max_position_embeddings"] - (2 if "OutsideMPNetModel" in names else 0),
        dtype=config.get("dtype", "float32"),
        gated_mlp=False,
        qk_norm=False,
    )


@hookimpl
def archport_build(spec, config):
    from encoders_model import AlibiBert, MPNet

    return MPNet(spec, config) if spec.arch == "mpnet" else AlibiBert(spec, config)


@hookimpl
def archport_examples():
    return [Example("a bucketed table that layers share", MPNET), Example("slopes", ALIBI, seed=1)]
