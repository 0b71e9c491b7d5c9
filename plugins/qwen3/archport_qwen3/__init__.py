"""Qwen3, dense and with experts, and Qwen2: checkpoints that embed, rerank, classify or generate.

Claims checkpoints of these blocks that are causal. Bidirectional ones (a flag in the config) are left to others.
Masks, batches and memory are the engine's; what model cards say is in `cards`.
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
    Head,
    SpecError,
    Task,
    TextInputs,
    Trunk,
    classification_head,
    head_width,
    hookimpl,
)
from archport_qwen3 import cards, examples

# Architecture -> what its checkpoints may be for; which of it one is for, its head says.
TRUNK: tuple[Task, ...] = ("embed",)
WITH_HEAD: tuple[Task, ...] = ("embed", "rerank", "generate")
LABELS: tuple[Task, ...] = ("classify", "rerank")
ARCHITECTURES = {
    f"{blocks}{kind}": tasks
    for blocks in ("Qwen2", "Qwen3", "Qwen3Moe")
    for kind, tasks in (("Model", TRUNK), ("ForCausalLM", WITH_HEAD), ("ForSequenceClassification", LABELS))
}
# Qwen3 blocks whose scores no head of archport makes.
LISTWISE = "JinaForRanking"

OBEYED = frozenset(
    {
        *("head_dim", "hidden_act", "hidden_size", "intermediate_size", "layer_types", "max_position_embeddings"),
        *("num_attention_heads", "num_hidden_layers", "num_key_value_heads", "rms_norm_eps", "vocab_size"),
        *("use_sliding_window", "sliding_window", "max_window_layers", *ROPE_KEYS),
    }
)
EXPERTS = ("num_experts", "num_local_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob")
KEYS = {
    "qwen3": ConfigKeys(
        "qwen3", obeyed={*OBEYED, "attention_bias", *EXPERTS, "decoder_sparse_step", "mlp_only_layers"}
    ),
    # Whatever it says of biases: q, k and v have them, the output has none.
    "qwen2": ConfigKeys("qwen2", obeyed=OBEYED, inert=("attention_bias",)),
}


@hookimpl
def archport_models() -> Mapping[str, str]:
    sizes = [f"Qwen/Qwen3-{kind}-{size}" for kind in ("Embedding", "Reranker") for size in ("0.6B", "4B", "8B")]
    rerankers = [f"mixedbread-ai/mxbai-rerank-{size}-v2" for size in ("base", "large")]
    return {
        # No repositories have these names; they are what people type.
        "Qwen/Qwen3-Embedding": "Qwen/Qwen3-Embedding-0.6B",
        "Qwen/Qwen3-Reranker": "Qwen/Qwen3-Reranker-0.6B",
        **{name: name for name in (*sizes, *rerankers)},
    }


@hookimpl
def archport_claim(config: Mapping[str, Any]) -> ArchSpec | None:
    names = config.get("architectures") or []
    if LISTWISE in names:
        raise SpecError(
            f"qwen3: {LISTWISE} (jina-reranker-v3) ranks a list of documents in one prompt, by the cosine of projected "
            "hidden states at marks after each document and the query; archport scores pairs one by one. Use a "
            "reranker of pairs: Qwen3-Reranker, zerank-2, mxbai-rerank-v2, or one ...ForSequenceClassification"
        )
    name = next((name for name in names if name in ARCHITECTURES), None)
    if name is None or not config.get("causal", True):
        return None
    arch = "qwen2" if name.startswith("Qwen2") else "qwen3"
    KEYS[arch].check(config)
    layer_types = config.get("layer_types") or ["full_attention"] * config["num_hidden_layers"]
    window = config.get("sliding_window")
    unknown = sorted({str(kind) for kind in layer_types} - {"full_attention", "sliding_attention"})
    if unknown:
        raise SpecError(
            f"{arch}: layer_types holds {', '.join(unknown)}; expected full_attention and sliding_attention"
        )
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or (128 if arch == "qwen3" else head_width(arch, config["hidden_size"], heads))
    tasks = ARCHITECTURES[name]
    return ArchSpec(
        arch=arch,
        tasks=tasks,
        layers=tuple(
            AttentionLayer(
                semantics="causal",
                n_heads=heads,
                n_kv_heads=config.get("num_key_value_heads") or heads,
                head_dim=head_dim,
                reach=(window - 1, 0) if kind == "sliding_attention" and window else (None, 0),
            )
            for kind in layer_types
        ),
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        max_positions=config["max_position_embeddings"],
        dtype=config.get("dtype", "float32"),
        # A trunk without an output head has no second matrix, whatever its config says.
        tied_head=bool(config.get("tie_word_embeddings", False)) or "classify" in tasks,
        experts=_experts(config, len(layer_types)),
        qk_norm=arch == "qwen3",
    )


def _experts(config: Mapping[str, Any], layers: int) -> Experts | None:
    """The experts of a Qwen3-MoE: every `decoder_sparse_step`-th layer but those listed as dense."""
    if not config.get("num_experts"):
        return None
    step, dense = config.get("decoder_sparse_step") or 1, config.get("mlp_only_layers") or []
    return Experts(
        count=config["num_experts"],
        per_token=config["num_experts_per_tok"],
        intermediate_size=config["moe_intermediate_size"],
        layers=tuple(index for index in range(layers) if index not in dense and (index + 1) % step == 0),
    )


@hookimpl
def archport_build(spec: ArchSpec, config: Mapping[str, Any]) -> Trunk:
    from archport_qwen3.model import Qwen3

    return Qwen3(spec, config)


@hookimpl
def archport_head(spec: ArchSpec, checkpoint: CheckpointView) -> Head | None:
    if "classify" in spec.tasks:
        # transformers scores the last token that is not the config's padding.
        return classification_head(checkpoint, "last", padding=checkpoint.config.get("pad_token_id"))
    return cards.head(spec, checkpoint)


@hookimpl
def archport_inputs(spec: ArchSpec, checkpoint: CheckpointView) -> TextInputs | None:
    return cards.inputs(spec, checkpoint)


@hookimpl
def archport_examples() -> Sequence[Example]:
    return examples.examples()
