"""NomicBert: BERT blocks with rotated heads, by their repository and by transformers 5.

v1 and v1.5 have a gated MLP and no biases. v2 has biases, plain MLPs, and experts in every other layer; its repository
alone publishes it, since transformers' class drops the experts and draws other MLPs at random.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from archport.contract import (
    ROPE_KEYS,
    ArchSpec,
    AttentionLayer,
    CheckpointView,
    ConfigKeys,
    Example,
    Experts,
    SpecError,
    TextInputs,
    head_width,
)
from archport_bidirectional.configs import NOMIC_PROMPTS, of_model, prompted, tasks_of
from archport_bidirectional.scoring import encoder_head, pylate_inputs

ARCHS = ("nomic_bert",)
ARCHITECTURES = tasks_of("NomicBert")
MODELS = {f"nomic-ai/nomic-embed-text-{name}": f"nomic-ai/nomic-embed-text-{name}" for name in ("v1", "v1.5", "v2-moe")}
# What the repository's own code calls the activation of a gated MLP.
GATES = {"swiglu": "silu", "geglu": "gelu", "glu": "sigmoid"}
# And that of an MLP without a gate.
PLAIN = {"gelu": "gelu"}
BIASES = ("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias")
# Keys of the repository's files whose class fills in something else than transformers does: they have to be there.
STATED = ("n_embd", "n_head", "n_layer", "n_inner", "n_positions", "layer_norm_epsilon", "activation_function")
STATED += ("rotary_emb_base", "rotary_emb_fraction", "vocab_size")
KEYS = ConfigKeys(
    "nomic_bert",
    obeyed=(
        *("head_dim", "hidden_act", "hidden_size", "intermediate_size", "layer_norm_eps", "max_position_embeddings"),
        *("num_attention_heads", "num_hidden_layers", "type_vocab_size", "vocab_size", *ROPE_KEYS),
        *(*STATED, *BIASES, "pad_vocab_size_multiple", "num_experts", "moe_every_n_layers", "moe_top_k"),
    ),
    # How its code runs and was trained, and GPT-2's keys that its classes do not read.
    inert=(
        *("attn_pdrop", "dense_seq_output", "embd_pdrop", "fused_bias_fc", "fused_dropout_add_ln", "resid_pdrop"),
        *("max_trained_positions", "n_ctx", "reorder_and_upcast_attn", "scale_attn_by_inverse_layer_idx"),
        *("scale_attn_weights", "summary_activation", "summary_first_dropout", "summary_proj_to_labels"),
        *("summary_type", "summary_use_proj", "use_flash_attn", "use_xentropy", "model_max_length"),
        # The pooler is no part of what pipelines read; how experts were trained, and by which kernels.
        *("add_pooling_layer", "moe_impl", "moe_resid_pdrop", "router_aux_loss_coef"),
    ),
    refused={
        **dict.fromkeys(("prenorm", "parallel_block", "parallel_block_tied_norm", "use_rms_norm"), ()),
        "rotary_emb_interleaved": (),
        # Frequencies that depend on the length of the batch, and decay by distance.
        **dict.fromkeys(("rotary_scaling_factor", "rotary_emb_scale_base"), ()),
        # Nobody published what uses them, and the repository's code reads none of them.
        **dict.fromkeys(("num_shared_experts", "expert_choice_router", "moe_normalize_expert_weights"), ()),
        "ffn_div": (1,),
        "position_embedding_type": ("rope", "rotary"),
    },
)


def claim(config: Mapping[str, Any], name: str) -> ArchSpec:
    KEYS.check(config)
    if is_hub(config):
        _check_hub(config)
    else:
        _check_saved(config)
    heads, width = config["num_attention_heads"], config["hidden_size"]
    head_dim = config.get("head_dim") or head_width("nomic_bert", width, heads)
    tasks = ARCHITECTURES[name]
    # The repository's code widens its table to a multiple.
    multiple = (config.get("pad_vocab_size_multiple") or 1) if is_hub(config) else 1
    return ArchSpec(
        arch="nomic_bert",
        tasks=tasks,
        layers=(AttentionLayer("bidirectional", heads, heads, head_dim),) * config["num_hidden_layers"],
        vocab_size=-(-config["vocab_size"] // multiple) * multiple,
        hidden_size=width,
        intermediate_size=config["intermediate_size"],
        max_positions=config["max_position_embeddings"],
        dtype=config.get("dtype", "float32"),
        tied_head="fill_mask" not in tasks or config.get("tie_word_embeddings") is not False,
        gated_mlp=is_gated(config),
        qk_norm=False,
        experts=_experts(config),
    )


def is_hub(config: Mapping[str, Any]) -> bool:
    """Whether the file speaks its repository's words, which are GPT-2's, and not transformers'."""
    return config.get("n_embd") is not None


def is_gated(config: Mapping[str, Any]) -> bool:
    """Whether MLPs have a gate, as transformers' always have."""
    return not is_hub(config) or config["activation_function"] in GATES


def _experts(config: Mapping[str, Any]) -> Experts | None:
    """The experts of layers 1, 1 + n, 1 + 2 n ..., where n is `moe_every_n_layers`; as wide as the other MLPs."""
    every = config.get("moe_every_n_layers") or 0
    layers = tuple(index for index in range(config["num_hidden_layers"]) if every > 0 and index % every == 1)
    if not layers:
        return None
    count, chosen = config.get("num_experts"), config.get("moe_top_k")
    if not count or not chosen:
        raise SpecError(
            f"nomic_bert: moe_every_n_layers={every} puts experts into {len(layers)} layers, and config.json has "
            f"num_experts={count!r}, moe_top_k={chosen!r}; expected how many there are, and how many a token visits"
        )
    if is_gated(config):
        raise SpecError(
            f"nomic_bert: experts with activation_function={config['activation_function']!r}; expected 'gelu', since "
            "published experts have no gate"
        )
    return Experts(count=count, per_token=chosen, intermediate_size=config["intermediate_size"], layers=layers)


def _check_saved(config: Mapping[str, Any]) -> None:
    """Refuse keys of the repository's files next to transformers' words, whose class reads none of them."""
    found = [f"{key}={config[key]!r}" for key in (*BIASES, "num_experts", "moe_every_n_layers") if config.get(key)]
    if found:
        raise SpecError(
            f"nomic_bert: config.json says {', '.join(found)} and is in transformers' words, whose class has neither "
            "biases nor experts; expected n_embd and the other words of the model's repository"
        )


def _check_hub(config: Mapping[str, Any]) -> None:
    missing = [key for key in STATED if config.get(key) is None]
    if missing:
        raise SpecError(f"nomic_bert: config.json has n_embd, and lacks {', '.join(missing)}; expected all of its kind")
    if config["rotary_emb_fraction"] != 1.0:
        raise SpecError(
            f"nomic_bert: rotary_emb_fraction={config['rotary_emb_fraction']!r}; expected 1.0, heads that turn whole"
        )
    if config["activation_function"] not in {**GATES, **PLAIN}:
        known = ", ".join({**GATES, **PLAIN})
        raise SpecError(f"nomic_bert: activation_function={config['activation_function']!r}; expected one of {known}")


build = of_model(__name__, "nomic_bert")
_hub = of_model(__name__, "HUB.published")
_saved = of_model(__name__, "SAVED.published")
head = encoder_head


def inputs(spec: ArchSpec, checkpoint: CheckpointView) -> TextInputs | None:
    if checkpoint.label.startswith("nomic-embed-text-v"):
        return prompted(checkpoint, NOMIC_PROMPTS, query="query", document="document")
    return pylate_inputs(spec, checkpoint)


EXAMPLE = {
    "architectures": ["NomicBertModel"],
    "model_type": "nomic_bert",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "hidden_act": "silu",
    "layer_norm_eps": 1e-12,
    "vocab_size": 199,
    "max_position_embeddings": 320,
    "type_vocab_size": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
    "pad_token_id": 0,
    "torch_dtype": "float32",
}
HUB_EXAMPLE = {
    "architectures": ["NomicBertModel"],
    "model_type": "nomic_bert",
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_inner": 96,
    "n_positions": 320,
    "activation_function": "swiglu",
    "type_vocab_size": 2,
    "vocab_size": 192,
    "pad_vocab_size_multiple": 64,
    "layer_norm_epsilon": 1e-12,
    "rotary_emb_base": 1000,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_scaling_factor": None,
    "prenorm": False,
    "qkv_proj_bias": False,
    "torch_dtype": "float32",
}
# nomic-embed-text-v2-moe's file, shrunk.
EXPERTS_EXAMPLE = {
    **HUB_EXAMPLE,
    "n_layer": 4,
    "activation_function": "gelu",
    "type_vocab_size": 1,
    "layer_norm_epsilon": 1e-5,
    "rotary_emb_base": 10000,
    "qkv_proj_bias": True,
    "mlp_fc1_bias": True,
    "mlp_fc2_bias": True,
    "moe_every_n_layers": 2,
    "num_experts": 4,
    "moe_top_k": 2,
    "moe_impl": "megablocks",
    "moe_normalize_expert_weights": False,
    "num_shared_experts": 0,
    "expert_choice_router": False,
    "ffn_div": 1,
}


def examples() -> Sequence[Example]:
    masked = {**EXAMPLE, "architectures": ["NomicBertForMaskedLM"]}
    classifier = {**EXAMPLE, "architectures": ["NomicBertForSequenceClassification"], "num_labels": 3}
    tagger = {**EXAMPLE, "architectures": ["NomicBertForTokenClassification"], "num_labels": 3}
    return [
        Example("nomic bert, as its repository says it", HUB_EXAMPLE, seed=31, publish=_hub),
        Example("nomic bert, masked language model", masked, seed=32, publish=_saved),
        Example("nomic bert, classifier of three labels", classifier, seed=33, publish=_saved),
        Example("nomicbert, labels of tokens", tagger, seed=61, publish=_saved),
        Example("nomic bert v2, with experts", EXPERTS_EXAMPLE, seed=62, publish=_hub_experts),
    ]


def _hub_experts(weights: Mapping[str, Any]) -> Mapping[str, Any]:
    from archport_bidirectional.nomic.model import HUB_PLAIN, apart

    return HUB_PLAIN.published(apart(weights))
