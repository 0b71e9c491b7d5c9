"""Qwen3: dense decoder trunks that embed.

Claims checkpoints of the Qwen3 block that are causal. Bidirectional ones (a flag in the config) are left to others.
Knows the published conventions of Qwen3-Embedding; knows nothing of masks, batches or memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from archport.contract import (
    ArchSpec,
    AttentionLayer,
    CheckpointView,
    EmbeddingHead,
    Example,
    TextInputs,
    Trunk,
    hookimpl,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

ARCHITECTURES = ("Qwen3Model", "Qwen3ForCausalLM")

# The model card's default task. There is no space after "Query:" in the published format.
QUERY_TASK = "Given a web search query, retrieve relevant passages that answer the query"
QUERY_PROMPT = f"Instruct: {QUERY_TASK}\nQuery:"

END_OF_TEXT = "<|endoftext|>"


@hookimpl
def archport_models() -> Mapping[str, str]:
    return {
        # No repository has this name; it is what people type.
        "Qwen/Qwen3-Embedding": "Qwen/Qwen3-Embedding-0.6B",
        "Qwen/Qwen3-Embedding-0.6B": "Qwen/Qwen3-Embedding-0.6B",
        "Qwen/Qwen3-Embedding-4B": "Qwen/Qwen3-Embedding-4B",
        "Qwen/Qwen3-Embedding-8B": "Qwen/Qwen3-Embedding-8B",
    }


@hookimpl
def archport_claim(config: Mapping[str, Any]) -> ArchSpec | None:
    names = config.get("architectures") or []
    if not config.get("causal", True) or not any(name in ARCHITECTURES for name in names):
        return None
    layer_types = config.get("layer_types") or ["full_attention"] * config["num_hidden_layers"]
    window = config.get("sliding_window")
    return ArchSpec(
        arch="qwen3",
        tasks=("embed",),
        layers=tuple(
            AttentionLayer(
                semantics="causal",
                n_heads=config["num_attention_heads"],
                n_kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
                head_dim=config.get("head_dim") or 128,
                reach=(window - 1, 0) if kind == "sliding_attention" and window else (None, 0),
            )
            for kind in layer_types
        ),
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        max_positions=config["max_position_embeddings"],
        dtype=config.get("dtype", "float32"),
        tied_head=bool(config.get("tie_word_embeddings", False)),
    )


@hookimpl
def archport_build(spec: ArchSpec, config: Mapping[str, Any]) -> Trunk:
    from archport_qwen3.model import Qwen3

    return Qwen3(spec, config)


def _has_pipeline(checkpoint: CheckpointView) -> bool:
    return (checkpoint.folder / "modules.json").exists()


def _is_embedding(checkpoint: CheckpointView) -> bool:
    # Embedding repositories carry a sentence-transformers pipeline; conversions often drop it but keep the name.
    return _has_pipeline(checkpoint) or "embedding" in checkpoint.name.lower()


@hookimpl
def archport_head(checkpoint: CheckpointView) -> EmbeddingHead | None:
    if _has_pipeline(checkpoint) or not _is_embedding(checkpoint):
        return None
    return EmbeddingHead(pooling=("last",), normalize=True, source="the Qwen3-Embedding model card")


@hookimpl
def archport_inputs(checkpoint: CheckpointView) -> TextInputs | None:
    if not _is_embedding(checkpoint):
        return None
    stored = checkpoint.json("config_sentence_transformers.json") or {}
    prompts = {"query": QUERY_PROMPT, "document": "", **(stored.get("prompts") or {})}
    return TextInputs(
        prompts=prompts,
        query_prompt="query",
        document_prompt="document",
        default_prompt=stored.get("default_prompt_name"),
        # Pooling reads the final token, which the model was trained to find there; it is also the padding token.
        final_token=checkpoint.token_id(END_OF_TEXT),
    )


def _published(weights: Mapping[str, Any]) -> Mapping[str, Any]:
    """The trunk's tensors as embedding repositories name them: without the prefix."""
    return {name.removeprefix("model."): value for name, value in weights.items()}


@hookimpl
def archport_examples() -> Sequence[Example]:
    config = {
        "architectures": ["Qwen3Model"],
        "model_type": "qwen3",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "vocab_size": 199,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "hidden_act": "silu",
        "torch_dtype": "float32",
    }
    return [
        Example("gqa 2:1, head_dim independent of width", config, publish=_published),
        Example("head_dim 256, attention bias", {**config, "head_dim": 256, "attention_bias": True}, seed=1),
    ]
