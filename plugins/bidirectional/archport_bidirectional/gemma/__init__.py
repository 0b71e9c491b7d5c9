"""EmbeddingGemma: Gemma 3 text blocks without a causal mask, windowed but for every sixth layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from archport.contract import (
    ROPE_KEYS,
    ArchSpec,
    AttentionLayer,
    CheckpointView,
    ConfigKeys,
    Dense,
    EmbeddingHead,
    Example,
    SpecError,
    TextInputs,
)
from archport_bidirectional.configs import has_pipeline, of_model, prompted

ARCHS = ("embeddinggemma",)
ARCHITECTURES = ("Gemma3TextModel", "Gemma3TextForEmbedding")
MODELS = {
    "google/embeddinggemma": "google/embeddinggemma-300m",
    "google/embeddinggemma-300m": "google/embeddinggemma-300m",
    "unsloth/embeddinggemma-300m": "unsloth/embeddinggemma-300m",
}
KEYS = ConfigKeys(
    "embeddinggemma",
    obeyed=(
        *("attention_bias", "head_dim", "hidden_activation", "hidden_size", "intermediate_size", "layer_types"),
        *("max_position_embeddings", "num_attention_heads", "num_hidden_layers", "num_key_value_heads"),
        *(
            "query_pre_attn_scalar",
            "rms_norm_eps",
            "sliding_window",
            "sliding_window_pattern",
            "vocab_size",
            *ROPE_KEYS,
        ),
    ),
    # A name that the classes do not read; and of a head that an embedder does not have.
    inert=("hidden_act", "cache_implementation", "final_logit_softcapping"),
    refused={"attn_logit_softcapping": ()},
)
OVERFLOWS = "its activations grow past float16's largest number and become NaN"
FULL_EVERY, GLOBAL_THETA, LOCAL_THETA = 6, 1_000_000.0, 10_000.0
# Of the published pipeline file; its own prompts win where there is one.
PROMPTS = {
    "query": "task: search result | query: ",
    "document": "title: none | text: ",
    **{
        name: f"task: {task} | query: "
        for name, task in {
            "Clustering": "clustering",
            "Classification": "classification",
            "STS": "sentence similarity",
            "InstructionRetrieval": "code retrieval",
            "QuestionAnswering": "question answering",
            "FactVerification": "fact checking",
            "Summarization": "summarization",
        }.items()
    },
}


def claim(config: Mapping[str, Any], _: str) -> ArchSpec | None:
    # A causal Gemma 3 has the same name and no flag; it never gets here.
    if not config.get("use_bidirectional_attention"):
        return None
    KEYS.check(config)
    shape = (config["num_attention_heads"], config["num_key_value_heads"], config.get("head_dim", 256))
    # The file counts both sides; transformers halves it and then counts the token itself, so half of it is still seen.
    reach = (config.get("sliding_window") or 4096) // 2
    local = AttentionLayer("bidirectional", *shape, reach=(reach, reach))
    everything = AttentionLayer("bidirectional", *shape)
    return ArchSpec(
        arch="embeddinggemma",
        tasks=("embed",),
        layers=tuple(local if kind == "sliding_attention" else everything for kind in layer_types(config)),
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        max_positions=config["max_position_embeddings"],
        dtype=config.get("dtype", "float32"),
        dtypes_refused={"float16": OVERFLOWS},
    )


def layer_types(config: Mapping[str, Any]) -> list[str]:
    """`sliding_attention` or `full_attention` per layer."""
    every = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or FULL_EVERY
    derived = ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(config["num_hidden_layers"])]
    found = config.get("layer_types") or derived
    unknown = sorted({str(kind) for kind in found} - {"full_attention", "sliding_attention"})
    if unknown:
        raise SpecError(
            f"embeddinggemma: layer_types holds {', '.join(unknown)}; expected full_attention and sliding_attention"
        )
    return found


build = of_model(__name__, "EmbeddingGemma")


def head(spec: ArchSpec, checkpoint: CheckpointView) -> EmbeddingHead | None:
    stored = checkpoint.tensor_shape("dense.0.weight"), checkpoint.tensor_shape("dense.1.weight")
    folders = any((checkpoint.folder / f"{at}_Dense").is_dir() for at in (1, 2, 3))
    if stored[0] is None or stored[1] is None:
        if has_pipeline(checkpoint) or "embeddinggemma" not in checkpoint.label:
            return None
        return EmbeddingHead(("mean",), normalize=True, source="the model card")
    if has_pipeline(checkpoint) and folders:
        return None
    # Some conversions keep the two matrices among the main weights and drop their folders.
    wide, narrow = stored[0][0], stored[1][0]
    return EmbeddingHead(
        ("mean",),
        dense=(
            Dense("dense.0", spec.hidden_size, wide, bias=False, activation="identity"),
            Dense("dense.1", wide, narrow, bias=False, activation="identity"),
        ),
        normalize=True,
        source="the model card, with dense.0 and dense.1 of the main weights",
    )


def inputs(spec: ArchSpec, checkpoint: CheckpointView) -> TextInputs | None:
    if "embeddinggemma" not in checkpoint.label or has_pipeline(checkpoint):
        return None
    return prompted(checkpoint, PROMPTS, query="query", document="document")


EXAMPLE = {
    "architectures": ["Gemma3TextModel"],
    "model_type": "gemma3_text",
    "use_bidirectional_attention": True,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "query_pre_attn_scalar": 24,
    "intermediate_size": 96,
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "sliding_window": 16,
    "sliding_window_pattern": 3,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "vocab_size": 199,
    "max_position_embeddings": 512,
    "attention_bias": False,
    "torch_dtype": "float32",
}


def examples() -> Sequence[Example]:
    return [Example("embeddinggemma, windows of 8 tokens each side", EXAMPLE, seed=4)]
