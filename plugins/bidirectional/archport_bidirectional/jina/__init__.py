"""jina-embeddings-v3: XLM-RoBERTa with rotated heads, by its repository and by transformers 5.

Configs and names are those of both. The adapters of its tasks, which its repository keeps next to every matrix, are the
engine's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from archport.contract import (
    ROPE_KEYS,
    ArchSpec,
    AttentionLayer,
    ConfigKeys,
    Example,
    Footprint,
    SpecError,
    Task,
    head_width,
)
from archport_bidirectional.bert import TAGS
from archport_bidirectional.configs import of_model, tasks_of
from archport_bidirectional.scoring import encoder_head, pylate_inputs

ARCHS = ("jina_embeddings_v3",)
# Of its repository, whose config says XLM-RoBERTa.
HUB_ARCHITECTURE = "XLMRobertaModel"
ARCHITECTURES: Mapping[str, tuple[Task, ...]] = {
    **tasks_of("JinaEmbeddingsV3"),
    HUB_ARCHITECTURE: ("embed", "rerank"),
}
KEYS = ConfigKeys(
    "jina_embeddings_v3",
    obeyed=(
        *("head_dim", "hidden_act", "hidden_size", "intermediate_size", "layer_norm_eps", "max_position_embeddings"),
        *("num_attention_heads", "num_hidden_layers", "type_vocab_size", "vocab_size", *ROPE_KEYS),
        *("rotary_emb_base", "lora_adaptations", "lora_alpha", "lora_rank", "task_instructions"),
    ),
    # How its repository's code runs and was trained; dimensions that vectors may be cut to.
    inert=(
        *("emb_pooler", "load_trained_adapters", "lora_dropout_p", "lora_main_params_trainable"),
        *("matryoshka_dimensions", "output_past", "truncate_dim", "use_flash_attn", "use_reentrant"),
    ),
    refused={"partial_rotary_factor": (1.0,), "position_embedding_type": ("rope", "rotary")},
)
MODELS = {name: name for name in ("jinaai/jina-embeddings-v3", "jinaai/jina-embeddings-v3-hf")}


def claim(config: Mapping[str, Any], name: str) -> ArchSpec | None:
    of_hub = name == HUB_ARCHITECTURE
    if of_hub and not is_rotary(config):
        return None
    KEYS.check(config)
    if of_hub and not isinstance(config.get("rotary_emb_base"), int | float):
        raise SpecError(f"jina_embeddings_v3: rotary_emb_base={config.get('rotary_emb_base')!r}; expected a number")
    heads, width = config["num_attention_heads"], config["hidden_size"]
    head_dim = config.get("head_dim") or head_width("jina_embeddings_v3", width, heads)
    tasks = ARCHITECTURES[name]
    # Without a gate a block is priced as BERT's, which turns nothing.
    turned = Footprint(more=2 * heads * head_dim)
    layer = AttentionLayer("bidirectional", heads, heads, head_dim, footprint=turned)
    return ArchSpec(
        arch="jina_embeddings_v3",
        tasks=tasks,
        layers=(layer,) * config["num_hidden_layers"],
        vocab_size=config["vocab_size"],
        hidden_size=width,
        intermediate_size=config["intermediate_size"],
        max_positions=config["max_position_embeddings"],
        dtype=config.get("dtype", "float32"),
        tied_head="fill_mask" not in tasks or config.get("tie_word_embeddings") is not False,
        gated_mlp=False,
        qk_norm=False,
    )


build = of_model(__name__, "jina")
_hub = of_model(__name__, "HUB.published")
_saved = of_model(__name__, "SAVED.published")


def is_rotary(config: Mapping[str, Any]) -> bool:
    """Whether a config of XLM-RoBERTa means this model, whose code goes by that name."""
    return config.get("position_embedding_type") == "rotary"


head = encoder_head
inputs = pylate_inputs


EXAMPLE = {
    "architectures": ["JinaEmbeddingsV3Model"],
    "model_type": "jina_embeddings_v3",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "vocab_size": 199,
    "max_position_embeddings": 320,
    "type_vocab_size": 1,
    "rope_parameters": {"rope_type": "default", "rope_theta": 20000.0},
    "pad_token_id": 1,
    "torch_dtype": "float32",
}


def examples() -> Sequence[Example]:
    masked = {**EXAMPLE, "architectures": ["JinaEmbeddingsV3ForMaskedLM"]}
    classifier = {**EXAMPLE, "architectures": ["JinaEmbeddingsV3ForSequenceClassification"], "num_labels": 3}
    tagger = {**EXAMPLE, "architectures": ["JinaEmbeddingsV3ForTokenClassification"], "id2label": TAGS}
    return [
        Example("jina v3, as its repository names tensors", EXAMPLE, seed=81, publish=_hub),
        Example("jina v3, masked language model", masked, seed=82, publish=_saved),
        Example("jina v3, classifier of three labels", classifier, seed=83, publish=_saved),
        Example("jina v3, labels of tokens", tagger, seed=84, publish=_saved),
    ]
