"""Decoder blocks that run without a causal mask: Llama (llama_bidirec), Qwen2, Qwen3, told from decoders by a flag."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
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
    Head,
    PairText,
    PoolingMode,
    SpecError,
    Task,
    TextInputs,
    classification_head,
    head_width,
)
from archport_bidirectional.configs import has_pipeline, named, of_model, prompted

KEYS = ConfigKeys(
    "decoder blocks without a causal mask",
    obeyed=(
        *("attention_bias", "head_dim", "hidden_act", "hidden_size", "intermediate_size", "layer_types", "mlp_bias"),
        *("max_position_embeddings", "num_attention_heads", "num_hidden_layers", "num_key_value_heads"),
        *("rms_norm_eps", "vocab_size", *ROPE_KEYS, "pooling", "temperature"),
    ),
    # With full attention in every layer, windows are nobody's.
    inert=("max_window_layers", "sliding_window", "use_sliding_window"),
)
LLAMA, QWEN2, QWEN3 = "llama_bidirec", "qwen2_bidirectional", "qwen3_bidirectional"
ARCHS = (LLAMA, QWEN2, QWEN3)
ARCHITECTURES = {
    "LlamaBidirectionalModel": LLAMA,
    "LlamaBidirectionalForSequenceClassification": LLAMA,
    # With a flag in their config these are encoders, too.
    "LlamaModel": LLAMA,
    "Qwen2Model": QWEN2,
    "Qwen2ForCausalLM": QWEN2,
    "Qwen3Model": QWEN3,
    "Qwen3ForCausalLM": QWEN3,
    "Qwen3BidirectionalModel": QWEN3,
    "PPLXQwen3Model": QWEN3,
}
MODELS = {
    name: name
    for name in (
        "nvidia/llama-nemotron-embed-1b-v2",
        "nvidia/llama-3.2-nv-embedqa-1b-v2",
        "nvidia/llama-nemotron-rerank-1b-v2",
        "nvidia/llama-3.2-nv-rerankqa-1b-v2",
        "voyageai/voyage-4-nano",
        "Alibaba-NLP/gte-Qwen2-1.5B-instruct",
        "Alibaba-NLP/gte-Qwen2-7B-instruct",
        "NovaSearch/stella_en_1.5B_v5",
    )
}
# How `pooling` of a llama_bidirec config names the modes. `weighted_avg` of its published code divides by nothing.
POOLING: Mapping[str, PoolingMode] = {
    "avg": "mean",
    "cls": "cls",
    "cls_last": "cls",
    "last": "last",
    "weighted_avg": "sum",
}
VOYAGE_PROMPTS = {
    "query": "Represent the query for retrieving supporting documents: ",
    "document": "Represent the document for retrieval: ",
}
# How the model card of the rerankers puts a query and a passage into one text.
RERANK_BODY = "question:{query} \n \n passage:{document}"
# Pooling that is linear in its rows gives the same whether a matrix comes before or after it.
LINEAR: tuple[PoolingMode, ...] = ("cls", "mean", "mean_sqrt_len", "weighted_mean", "last", "sum")


def claim(config: Mapping[str, Any], name: str) -> ArchSpec:
    tasks: tuple[Task, ...] = ("classify", "rerank") if name.endswith("ForSequenceClassification") else ("embed",)
    return decoder_spec(ARCHITECTURES[name], config, tasks)


def decoder_spec(arch: str, config: Mapping[str, Any], tasks: tuple[Task, ...] = ("embed",)) -> ArchSpec:
    """The spec of decoder blocks in which every token sees every other."""
    replace(KEYS, arch=arch).check(config)
    kinds = config.get("layer_types") or []
    if any(kind != "full_attention" for kind in kinds):
        raise SpecError(
            f"{arch}: layer_types holds {sorted(set(kinds))}; how far a windowed layer of this family sees without a "
            "causal mask is not published. Expected full_attention only"
        )
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or (128 if arch == QWEN3 else head_width(arch, config["hidden_size"], heads))
    layer = AttentionLayer("bidirectional", heads, config.get("num_key_value_heads") or heads, head_dim)
    return ArchSpec(
        arch=arch,
        tasks=tasks,
        layers=(layer,) * config["num_hidden_layers"],
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        max_positions=config["max_position_embeddings"],
        dtype=config.get("dtype", "float32"),
        qk_norm=arch == QWEN3,
    )


build = of_model(__name__, "DecoderEncoder")


def config_pooling(checkpoint: CheckpointView) -> PoolingMode:
    """The pooling that a config names; the mean where it names none."""
    stated = checkpoint.config.get("pooling") or "avg"
    if stated not in POOLING:
        raise SpecError(f"{LLAMA}: pooling={stated!r} of the config is not known; expected {', '.join(POOLING)}")
    return POOLING[stated]


def head(spec: ArchSpec, checkpoint: CheckpointView) -> Head | None:
    if "classify" in spec.tasks:
        temperature = checkpoint.config.get("temperature") or 1.0
        return classification_head(checkpoint, config_pooling(checkpoint), temperature=temperature)
    if spec.arch == LLAMA:
        if has_pipeline(checkpoint) or not _is_nvidias(checkpoint):
            return None
        return EmbeddingHead((config_pooling(checkpoint),), normalize=True, source="pooling of the config, unit length")
    shape = checkpoint.tensor_shape("linear.weight")
    if shape is None:
        return None
    default = EmbeddingHead(("mean",), normalize=True, source="the model card: linear per token, mean, unit length")
    stored = checkpoint.stored_head() if has_pipeline(checkpoint) else default
    if not isinstance(stored, EmbeddingHead):
        raise SpecError(f"{spec.arch}: linear.weight projects tokens, and the pipeline makes no vectors of them")
    if any(mode not in LINEAR for mode in stored.pooling) or len(stored.pooling) > 1 or stored.dense:
        raise SpecError(
            f"{spec.arch}: the projection of every token, linear.weight, is applied behind pooling, which is the same "
            f"for one of {', '.join(LINEAR)}; the checkpoint asks for {' + '.join(stored.pooling)} and "
            f"{len(stored.dense)} Dense modules"
        )
    # Published as a matrix per token in front of the pooling. It has no bias, so after the pooling it gives the same,
    # for one row of a text instead of all.
    projection = Dense("linear", spec.hidden_size, shape[0], bias=False, activation="identity")
    return replace(stored, dense=(projection,))


def _is_nvidias(checkpoint: CheckpointView) -> bool:
    """Whether the config is that of llama_bidirec, whose own code pools, and scales to unit length."""
    config = checkpoint.config
    return bool(config.get("pooling")) or named(config, ("LlamaBidirectionalModel",)) is not None


def inputs(spec: ArchSpec, checkpoint: CheckpointView) -> TextInputs | None:
    if "classify" in spec.tasks:
        start = (checkpoint.json("tokenizer_config.json") or {}).get("bos_token") or ""
        start = start.get("content", "") if isinstance(start, dict) else start
        return replace(checkpoint.stored_inputs(), pair=PairText(prefix=start, body=RERANK_BODY, suffix=""))
    if spec.arch == LLAMA and _is_nvidias(checkpoint) and not has_pipeline(checkpoint):
        known = {"query": "query: ", "passage": "passage: "}
        return prompted(checkpoint, known, query="query", document="passage")
    if checkpoint.label.startswith("voyage-4-nano"):
        return prompted(checkpoint, VOYAGE_PROMPTS, query="query", document="document")
    return None


EXAMPLE = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "rms_norm_eps": 1e-6,
    "rope_theta": 500000.0,
    "vocab_size": 199,
    "max_position_embeddings": 512,
    "attention_bias": False,
    "hidden_act": "silu",
    "torch_dtype": "float32",
}


def examples() -> Sequence[Example]:
    stretched = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    llama = {**EXAMPLE, "architectures": ["LlamaBidirectionalModel"], "model_type": "llama_bidirec", "pooling": "avg"}
    reranker = {**llama, "architectures": ["LlamaBidirectionalForSequenceClassification"], "temperature": 0.2}
    qwen3 = {**EXAMPLE, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
    qwen2 = {**EXAMPLE, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
    return [
        Example("llama_bidirec, stretched rope", {**llama, "rope_scaling": stretched}, seed=5, publish=_bare),
        Example("llama_bidirec, reranker", {**reranker, "id2label": {"0": "LABEL_0"}}, seed=16, publish=_bare),
        Example("qwen3 blocks, bidirectional by flag", {**qwen3, "use_bidirectional_attention": True}, seed=6),
        Example("qwen2 blocks, bidirectional by flag", {**qwen2, "is_causal": False}, seed=64),
    ]


def _bare(weights: Mapping[str, Any]) -> Mapping[str, Any]:
    """The trunk's tensors as embedding repositories name them: without the prefix."""
    return {name.removeprefix("model."): value for name, value in weights.items()}
