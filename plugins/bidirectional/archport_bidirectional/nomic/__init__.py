"""NomicBert v1 and v1.5: BERT blocks with rotated heads and a gated MLP, by their repository and by transformers 5."""

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
    SpecError,
    Task,
    TextInputs,
    Trunk,
    head_width,
)
from archport_bidirectional.configs import named, prompted
from archport_bidirectional.scoring import encoder_head, pylate_inputs

ARCHS = ("nomic_bert",)
ARCHITECTURES: Mapping[str, tuple[Task, ...]] = {
    "NomicBertModel": ("embed", "rerank"),
    "NomicBertForMaskedLM": ("embed", "fill_mask"),
    "NomicBertForSequenceClassification": ("classify", "rerank"),
    "NomicBertForTokenClassification": ("tag",),
}
MODELS = {name: name for name in ("nomic-ai/nomic-embed-text-v1", "nomic-ai/nomic-embed-text-v1.5")}
# What the repository's own code calls the activation of a gated MLP.
GATES = {"swiglu": "silu", "geglu": "gelu", "glu": "sigmoid"}
# Keys of the repository's files whose class fills in something else than transformers does: they have to be there.
STATED = ("n_embd", "n_head", "n_layer", "n_inner", "n_positions", "layer_norm_epsilon", "activation_function")
STATED += ("rotary_emb_base", "rotary_emb_fraction", "vocab_size")
KEYS = ConfigKeys(
    "nomic_bert",
    obeyed=(
        *("head_dim", "hidden_act", "hidden_size", "intermediate_size", "layer_norm_eps", "max_position_embeddings"),
        *("num_attention_heads", "num_hidden_layers", "type_vocab_size", "vocab_size", *ROPE_KEYS),
        *(*STATED, "pad_vocab_size_multiple"),
    ),
    # How its code runs and was trained, and GPT-2's keys that its classes do not read.
    inert=(
        *("attn_pdrop", "dense_seq_output", "embd_pdrop", "fused_bias_fc", "fused_dropout_add_ln", "resid_pdrop"),
        *("max_trained_positions", "n_ctx", "reorder_and_upcast_attn", "scale_attn_by_inverse_layer_idx"),
        *("scale_attn_weights", "summary_activation", "summary_first_dropout", "summary_proj_to_labels"),
        *("summary_type", "summary_use_proj", "use_flash_attn", "use_xentropy", "model_max_length"),
    ),
    refused={
        **dict.fromkeys(("prenorm", "parallel_block", "parallel_block_tied_norm", "use_rms_norm"), ()),
        **dict.fromkeys(("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias", "rotary_emb_interleaved"), ()),
        # Frequencies that depend on the length of the batch, and decay by distance.
        **dict.fromkeys(("rotary_scaling_factor", "rotary_emb_scale_base"), ()),
        **dict.fromkeys(("num_experts", "moe_every_n_layers", "num_shared_experts", "expert_choice_router"), ()),
        "position_embedding_type": ("rope", "rotary"),
    },
)


def claim(config: Mapping[str, Any]) -> ArchSpec | None:
    name = named(config, ARCHITECTURES)
    if name is None:
        return None
    KEYS.check(config)
    if is_hub(config):
        _check_hub(config)
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
        qk_norm=False,
    )


def is_hub(config: Mapping[str, Any]) -> bool:
    """Whether the file speaks its repository's words, which are GPT-2's, and not transformers'."""
    return config.get("n_embd") is not None


def _check_hub(config: Mapping[str, Any]) -> None:
    missing = [key for key in STATED if config.get(key) is None]
    if missing:
        raise SpecError(f"nomic_bert: config.json has n_embd, and lacks {', '.join(missing)}; expected all of its kind")
    if config["rotary_emb_fraction"] != 1.0:
        raise SpecError(
            f"nomic_bert: rotary_emb_fraction={config['rotary_emb_fraction']!r}; expected 1.0, heads that turn whole"
        )
    if config["activation_function"] not in GATES:
        raise SpecError(
            f"nomic_bert: activation_function={config['activation_function']!r}; expected one of {', '.join(GATES)}"
        )


def build(spec: ArchSpec, config: Mapping[str, Any]) -> Trunk:
    from archport_bidirectional.nomic.model import nomic_bert

    return nomic_bert(spec, config)


head = encoder_head


def inputs(spec: ArchSpec, checkpoint: CheckpointView) -> TextInputs | None:
    # The card asks for these words.
    if checkpoint.label.startswith("nomic-embed-text-v1"):
        known = {"query": "search_query: ", "document": "search_document: "}
        known |= {"classification": "classification: ", "clustering": "clustering: "}
        return prompted(checkpoint, known, query="query", document="document")
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


def examples() -> Sequence[Example]:
    masked = {**EXAMPLE, "architectures": ["NomicBertForMaskedLM"]}
    classifier = {**EXAMPLE, "architectures": ["NomicBertForSequenceClassification"], "num_labels": 3}
    tagger = {**EXAMPLE, "architectures": ["NomicBertForTokenClassification"], "num_labels": 3}
    return [
        Example("nomic bert, as its repository says it", HUB_EXAMPLE, seed=31, publish=_hub),
        Example("nomic bert, masked language model", masked, seed=32, publish=_saved),
        Example("nomic bert, classifier of three labels", classifier, seed=33, publish=_saved),
        Example("nomicbert, labels of tokens", tagger, seed=61, publish=_saved),
    ]


def _hub(weights: Mapping[str, Any]) -> Mapping[str, Any]:
    from archport_bidirectional.nomic.model import HUB

    return HUB.published(weights)


def _saved(weights: Mapping[str, Any]) -> Mapping[str, Any]:
    from archport_bidirectional.nomic.model import SAVED

    return SAVED.published(weights)
