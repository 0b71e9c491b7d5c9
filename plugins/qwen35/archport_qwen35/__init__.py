"""Qwen3.5 and Qwen3-Next: hybrids of gated delta nets and gated attention.

Claims text checkpoints and vision checkpoints. Knows the family's configs and layouts, and the published recipe of
Qwen3-Reranker for checkpoints that are called rerankers; knows nothing of masks, states, batches or memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from archport.contract import (
    ROPE_KEYS,
    ArchSpec,
    AttentionLayer,
    CheckpointError,
    CheckpointView,
    ConfigKeys,
    DeltaHeads,
    Example,
    Experts,
    Head,
    LayerSpec,
    PairText,
    RecurrentLayer,
    SpecError,
    Task,
    TextInputs,
    Trunk,
    VisionTower,
    YesNoHead,
    head_width,
    hookimpl,
)

# Architecture -> what its checkpoints may be for; which of it one is for, its head says.
TRUNK: tuple[Task, ...] = ("embed",)
WITH_HEAD: tuple[Task, ...] = ("embed", "rerank", "generate")
ARCHITECTURES = {
    "Qwen3_5ForConditionalGeneration": WITH_HEAD,
    "Qwen3_5ForCausalLM": WITH_HEAD,
    "Qwen3_5TextModel": TRUNK,
    "Qwen3_5MoeForConditionalGeneration": WITH_HEAD,
    "Qwen3_5MoeForCausalLM": WITH_HEAD,
    "Qwen3_5MoeTextModel": TRUNK,
    "Qwen3NextForCausalLM": WITH_HEAD,
    "Qwen3NextModel": TRUNK,
}
# The text around a pair, as Qwen3-Reranker's model card has it; a hybrid that reranks is trained on the same.
PAIR = PairText(
    prefix="<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n',
    body="<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}",
    suffix="<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    instruction="Given a web search query, retrieve relevant passages that answer the query",
    max_tokens=8192,
)
ANSWERS = ("yes", "no")
# Spelt out letter by letter, these would be another text than the recipe's.
MARKS = ("<|im_start|>", "<|im_end|>", "<think>", "</think>")
PARTS = ("text_config", "vision_config", "image_token_id", "video_token_id", "vision_start_token_id")
KEYS = ConfigKeys(
    "qwen35",
    obeyed=(
        *("attention_bias", "head_dim", "hidden_act", "hidden_size", "intermediate_size", "layer_types"),
        *("full_attention_interval", "max_position_embeddings", "num_attention_heads", "num_hidden_layers"),
        *("num_key_value_heads", "rms_norm_eps", "vocab_size", *ROPE_KEYS, *PARTS, "vision_end_token_id"),
        *("linear_conv_kernel_dim", "linear_key_head_dim", "linear_num_key_heads", "linear_num_value_heads"),
        *("linear_value_head_dim", "num_experts", "num_local_experts", "num_experts_per_tok", "norm_topk_prob"),
        *("moe_intermediate_size", "shared_expert_intermediate_size", "decoder_sparse_step", "mlp_only_layers"),
    ),
    # Of the drafting head, and of how kernels hold a state that is float32 here.
    inert=("mtp_num_hidden_layers", "mtp_use_dedicated_embeddings", "mamba_ssm_dtype", "language_model_only"),
    refused={"attn_output_gate": (True,), "output_gate_type": ("swish", "silu")},
)
TOWER = ConfigKeys(
    "qwen35, vision_config",
    obeyed=(
        *("depth", "hidden_act", "hidden_size", "intermediate_size", "num_heads", "num_position_embeddings"),
        *("num_attention_heads", "num_hidden_layers", "out_hidden_size", "patch_size", "spatial_merge_size"),
        *("temporal_patch_size", "rope_parameters", "rope_theta"),
    ),
    refused={"in_channels": (3,), "deepstack_visual_indexes": ()},
)
# Every fourth layer is full attention where a config says nothing else.
INTERVAL = 4


@hookimpl
def archport_models() -> Mapping[str, str]:
    names = ("Qwen3.5-27B", "Qwen3.5-35B-A3B", "Qwen3.5-122B-A10B", "Qwen3-Next-80B-A3B-Instruct")
    return {f"Qwen/{name}": f"Qwen/{name}" for name in names}


@hookimpl
def archport_claim(config: Mapping[str, Any]) -> ArchSpec | None:
    tasks = next((ARCHITECTURES[name] for name in config.get("architectures") or [] if name in ARCHITECTURES), None)
    if tasks is None or not config.get("causal", True):
        return None
    text = text_config(config)
    KEYS.check(config)
    KEYS.check(text)
    TOWER.check(config.get("vision_config") or {})
    experts = _experts(text)
    full = AttentionLayer(
        semantics="causal",
        n_heads=text["num_attention_heads"],
        n_kv_heads=text.get("num_key_value_heads") or text["num_attention_heads"],
        head_dim=text.get("head_dim") or 256,
        gated=True,
    )
    heads = DeltaHeads(
        n_key_heads=text["linear_num_key_heads"],
        n_value_heads=text["linear_num_value_heads"],
        key_dim=text["linear_key_head_dim"],
        value_dim=text["linear_value_head_dim"],
    )
    linear = RecurrentLayer.gated_delta(heads, text.get("linear_conv_kernel_dim") or 4)
    kinds: dict[str, LayerSpec] = {"full_attention": full, "linear_attention": linear}
    unknown = sorted({str(kind) for kind in layer_types(text)} - set(kinds))
    if unknown:
        raise SpecError(f"qwen35: layer_types holds {', '.join(unknown)}; expected {' and '.join(kinds)}")
    return ArchSpec(
        arch="qwen35",
        tasks=tasks,
        layers=tuple(kinds[kind] for kind in layer_types(text)),
        vocab_size=text["vocab_size"],
        hidden_size=text["hidden_size"],
        # Without a dense layer there is no dense width.
        intermediate_size=text.get("intermediate_size") or text["moe_intermediate_size"],
        max_positions=text["max_position_embeddings"],
        dtype=text.get("dtype") or config.get("dtype") or "float32",
        tied_head=bool(text.get("tie_word_embeddings", False)),
        experts=experts,
        vision=_tower(config.get("vision_config")),
    )


def _tower(vision: Mapping[str, Any] | None) -> VisionTower | None:
    """The tower of a vision checkpoint; its text half alone has none."""
    if not vision:
        return None
    heads = vision["num_heads"]
    head_dim = head_width("the vision tower", vision["hidden_size"], heads, multiple=4)
    return VisionTower(
        layers=(AttentionLayer("bidirectional", heads, heads, head_dim),) * vision["depth"],
        hidden_size=vision["hidden_size"],
        intermediate_size=vision["intermediate_size"],
        patch_size=vision["patch_size"],
        merge_size=vision.get("spatial_merge_size", 2),
    )


def _experts(text: Mapping[str, Any]) -> Experts | None:
    """The experts of every layer; Qwen3-Next may leave some layers dense."""
    if not text.get("num_experts"):
        return None
    step, dense = text.get("decoder_sparse_step") or 1, text.get("mlp_only_layers") or []
    layers = range(text["num_hidden_layers"])
    return Experts(
        count=text["num_experts"],
        per_token=text["num_experts_per_tok"],
        intermediate_size=text["moe_intermediate_size"],
        shared_intermediate_size=text.get("shared_expert_intermediate_size") or 0,
        layers=tuple(index for index in layers if index not in dense and (index + 1) % step == 0),
    )


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config that describes the language model."""
    return config.get("text_config") or config


def layer_types(text: Mapping[str, Any]) -> Sequence[str]:
    """`full_attention` or `linear_attention` per layer."""
    return text.get("layer_types") or [
        "linear_attention" if (index + 1) % INTERVAL else "full_attention" for index in range(text["num_hidden_layers"])
    ]


@hookimpl
def archport_build(spec: ArchSpec, config: Mapping[str, Any]) -> Trunk:
    from archport_qwen35.model import Qwen35

    return Qwen35(spec, text_config(config), config.get("vision_config"))


def _is_reranker(spec: ArchSpec, checkpoint: CheckpointView) -> bool:
    # Without a pipeline, nothing in a reranker's files but its name tells it from a generator.
    return checkpoint.modules is None and "rerank" in spec.tasks and "reranker" in checkpoint.label


@hookimpl
def archport_head(spec: ArchSpec, checkpoint: CheckpointView) -> Head | None:
    if not _is_reranker(spec, checkpoint):
        return None
    found = {token: checkpoint.token_id(token) for token in (*ANSWERS, *MARKS)}
    absent = [token for token, at in found.items() if at is None or at >= spec.vocab_size]
    yes, no = (found[answer] for answer in ANSWERS)
    if absent or yes is None or no is None:
        raise CheckpointError(
            f"{checkpoint.name}: the vocabulary of {spec.vocab_size:,} entries has no token {', '.join(absent)}, which "
            "the pairs and answers of a yes/no reranker are written in; the tokenizer files belong to another model, "
            "or this checkpoint is no reranker despite its name"
        )
    return YesNoHead(yes, no, "the Qwen3-Reranker model card")


@hookimpl
def archport_inputs(spec: ArchSpec, checkpoint: CheckpointView) -> TextInputs | None:
    pair = PAIR if _is_reranker(spec, checkpoint) else None
    if spec.vision is None:
        return None if pair is None else TextInputs(pair=pair)
    from archport.media import Settings, image_settings, video_settings
    from archport_qwen35.reader import Qwen35Reader

    settings = Settings.of(
        checkpoint.config,
        image_settings(checkpoint),
        video_settings(checkpoint),
    )
    return replace(checkpoint.stored_inputs(), reader=Qwen35Reader(settings), pair=pair)


def _published(weights: Mapping[str, Any]) -> Mapping[str, Any]:
    from archport_qwen35.weights import published

    return published(weights)


# What the tiny configs of the examples share.
_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}
_TEXT = {
    "model_type": "qwen3_5_text",
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
    "rms_norm_eps": 1e-6,
    "rope_parameters": _ROPE,
    "vocab_size": 199,
    "max_position_embeddings": 512,
    "hidden_act": "silu",
    "dtype": "float32",
}


@hookimpl
def archport_examples() -> Sequence[Example]:
    order = ["full_attention", "linear_attention", "linear_attention", "full_attention"]
    following = {**_TEXT, "model_type": "qwen3_next", "architectures": ["Qwen3NextForCausalLM"], "num_experts": 0}
    return [
        Example("text", {**_TEXT, "architectures": ["Qwen3_5ForCausalLM"]}, publish=_published),
        Example(
            "vision checkpoint, tied, layer_types beside the interval, one value head per key head",
            {
                "architectures": ["Qwen3_5ForConditionalGeneration"],
                "model_type": "qwen3_5",
                "text_config": {**_TEXT, "layer_types": order, "linear_num_key_heads": 4},
                "tie_word_embeddings": True,
                "dtype": "float32",
            },
            seed=1,
        ),
        Example(
            "with its vision tower",
            {
                "architectures": ["Qwen3_5ForConditionalGeneration"],
                "model_type": "qwen3_5",
                "text_config": {**_TEXT, "rope_parameters": {**_ROPE, "mrope_section": [2, 1, 1]}},
                "vision_config": {
                    "depth": 2,
                    "hidden_size": 32,
                    "intermediate_size": 48,
                    "num_heads": 2,
                    "patch_size": 4,
                    "out_hidden_size": 64,
                    "num_position_embeddings": 49,
                },
                "image_token_id": 193,
                "video_token_id": 194,
                "vision_start_token_id": 195,
                "vision_end_token_id": 196,
                "tie_word_embeddings": True,
            },
            seed=4,
        ),
        Example("qwen3-next, head_dim 256", {**following, "head_dim": 256}, seed=2),
        Example(
            "experts, one of them shared",
            {
                **_TEXT,
                "architectures": ["Qwen3_5MoeForCausalLM"],
                "model_type": "qwen3_5_moe_text",
                "num_experts": 6,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 24,
                "shared_expert_intermediate_size": 40,
            },
            seed=3,
            publish=_published,
        ),
    ]
