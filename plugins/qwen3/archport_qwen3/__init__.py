"""Qwen3, dense and with experts: checkpoints that embed, rerank or generate.

Claims checkpoints of the Qwen3 block that are causal. Bidirectional ones (a flag in the config) are left to others.
Knows the published conventions of Qwen3-Embedding and Qwen3-Reranker; knows nothing of masks, batches or memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from archport.contract import (
    ROPE_KEYS,
    ArchSpec,
    AttentionLayer,
    CheckpointError,
    CheckpointView,
    ConfigKeys,
    EmbeddingHead,
    Example,
    Experts,
    Head,
    PairText,
    SpecError,
    Task,
    TextInputs,
    Trunk,
    YesNoHead,
    hookimpl,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

# Architecture -> what its checkpoints may be for; which of it one is for, its head says.
TRUNK: tuple[Task, ...] = ("embed",)
WITH_HEAD: tuple[Task, ...] = ("embed", "rerank", "generate")
ARCHITECTURES = {
    "Qwen3Model": TRUNK,
    "Qwen3ForCausalLM": WITH_HEAD,
    "Qwen3MoeModel": TRUNK,
    "Qwen3MoeForCausalLM": WITH_HEAD,
}

# The model card's default task, of embedding and of reranking.
TASK = "Given a web search query, retrieve relevant passages that answer the query"
# There is no space after "Query:" in the published format.
QUERY_PROMPT = f"Instruct: {TASK}\nQuery:"

PAIR = PairText(
    prefix="<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n',
    body="<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}",
    suffix="<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    instruction=TASK,
    max_tokens=8192,
)

END_OF_TEXT = "<|endoftext|>"

KEYS = ConfigKeys(
    "qwen3",
    obeyed=(
        *("attention_bias", "head_dim", "hidden_act", "hidden_size", "intermediate_size", "layer_types"),
        *("max_position_embeddings", "num_attention_heads", "num_hidden_layers", "num_key_value_heads"),
        *("rms_norm_eps", "vocab_size", "use_sliding_window", "sliding_window", "max_window_layers", *ROPE_KEYS),
        *("num_experts", "num_local_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob"),
        *("decoder_sparse_step", "mlp_only_layers"),
    ),
)


@hookimpl
def archport_models() -> Mapping[str, str]:
    sizes = [f"Qwen/Qwen3-{kind}-{size}" for kind in ("Embedding", "Reranker") for size in ("0.6B", "4B", "8B")]
    return {
        # No repositories have these names; they are what people type.
        "Qwen/Qwen3-Embedding": "Qwen/Qwen3-Embedding-0.6B",
        "Qwen/Qwen3-Reranker": "Qwen/Qwen3-Reranker-0.6B",
        **{name: name for name in sizes},
    }


@hookimpl
def archport_claim(config: Mapping[str, Any]) -> ArchSpec | None:
    tasks = next((ARCHITECTURES[name] for name in config.get("architectures") or [] if name in ARCHITECTURES), None)
    if tasks is None or not config.get("causal", True):
        return None
    KEYS.check(config)
    layer_types = config.get("layer_types") or ["full_attention"] * config["num_hidden_layers"]
    window = config.get("sliding_window")
    unknown = sorted({str(kind) for kind in layer_types} - {"full_attention", "sliding_attention"})
    if unknown:
        raise SpecError(f"qwen3: layer_types holds {', '.join(unknown)}; expected full_attention and sliding_attention")
    return ArchSpec(
        arch="qwen3",
        tasks=tasks,
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
        experts=_experts(config, len(layer_types)),
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


def _is_embedding(checkpoint: CheckpointView) -> bool:
    # Embedding repositories carry a sentence-transformers pipeline; conversions often drop it but keep the name.
    return checkpoint.modules is None and "qwen3-embed" in checkpoint.label


def _is_reranker(spec: ArchSpec, checkpoint: CheckpointView) -> bool:
    # Without a pipeline, nothing in the published files but their name tells them from generators.
    return checkpoint.modules is None and "rerank" in spec.tasks and "reranker" in checkpoint.label


@hookimpl
def archport_head(spec: ArchSpec, checkpoint: CheckpointView) -> Head | None:
    if _is_reranker(spec, checkpoint):
        return YesNoHead(_answer(checkpoint, "yes"), _answer(checkpoint, "no"), "the Qwen3-Reranker model card")
    if not _is_embedding(checkpoint):
        return None
    return EmbeddingHead(pooling=("last",), normalize=True, source="the Qwen3-Embedding model card")


def _answer(checkpoint: CheckpointView, word: str) -> int:
    found = checkpoint.token_id(word)
    if found is None:
        raise CheckpointError(
            f"{checkpoint.name}: the tokenizer has no token {word!r}, which a Qwen3-Reranker is scored by; the "
            "tokenizer files belong to another model, or this checkpoint is no reranker despite its name"
        )
    return found


@hookimpl
def archport_inputs(spec: ArchSpec, checkpoint: CheckpointView) -> TextInputs | None:
    if _is_reranker(spec, checkpoint):
        return TextInputs(pair=PAIR, source="the Qwen3-Reranker model card")
    if not _is_embedding(checkpoint):
        return None
    # Conversions that drop the pipeline may keep its prompts.
    kept = (checkpoint.json("config_sentence_transformers.json") or {}).get("prompts") or {}
    return replace(
        checkpoint.stored_inputs(),
        prompts={"query": QUERY_PROMPT, "document": "", **kept},
        query_prompt="query",
        document_prompt="document",
        source="the Qwen3-Embedding model card",
        # Pooling reads the final token, which the model was trained to find there; it is also the padding token.
        final_token=checkpoint.token_id(END_OF_TEXT),
    )


def _published(weights: Mapping[str, Any]) -> Mapping[str, Any]:
    """The trunk's tensors as embedding repositories name them: without the prefix."""
    return {name.removeprefix("model."): value for name, value in weights.items()}


def _split_experts(weights: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same tensors as hub repositories store them: one per expert."""
    found: dict[str, Any] = {}
    for name, value in weights.items():
        layer, stacked, part = name.partition(".switch_mlp.")
        if not stacked:
            found[name] = value
            continue
        found |= {f"{layer}.experts.{index}.{part}": value[index] for index in range(value.shape[0])}
    return found


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
    generates = {**config, "architectures": ["Qwen3ForCausalLM"]}
    experts = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "num_experts": 6,
        "num_experts_per_tok": 2,
        # Twice its width is not the model's, so that a transposed expert can't pass for a right one.
        "moe_intermediate_size": 48,
        "norm_topk_prob": True,
        "mlp_only_layers": [0],
    }
    windows = {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1, "head_dim": 64}
    return [
        Example("gqa 2:1, head_dim independent of width", config, publish=_published),
        Example("head_dim 256, attention bias", {**config, "head_dim": 256, "attention_bias": True}, seed=1),
        Example("generates, untied head", {**generates, "tie_word_embeddings": False}, seed=2),
        Example("generates, second layer in a window", {**generates, **windows}, seed=3),
        Example("experts in the second layer", {**generates, **experts}, seed=4, publish=_split_experts),
    ]
