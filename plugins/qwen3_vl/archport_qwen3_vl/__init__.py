"""Qwen3-VL: dense and mixture-of-experts decoders that see images and video, embed, rerank and generate.

Claims checkpoints of the family. Knows its published templates; knows nothing of masks, batches or memory.
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
    EmbeddingHead,
    Example,
    Experts,
    Head,
    TextInputs,
    Trunk,
    VisionTower,
    YesNoHead,
    head_width,
    hookimpl,
)

DENSE = ("Qwen3VLForConditionalGeneration", "Qwen3VLModel", "Qwen3VLForEmbedding")
SPARSE = ("Qwen3VLMoeForConditionalGeneration", "Qwen3VLMoeModel")

ROOT = ConfigKeys(
    "qwen3_vl",
    obeyed=(
        *("text_config", "vision_config", "image_token_id", "video_token_id", "vision_start_token_id"),
        "vision_end_token_id",
    ),
)
KEYS = ConfigKeys(
    "qwen3_vl, text_config",
    obeyed=(
        *("attention_bias", "head_dim", "hidden_act", "hidden_size", "intermediate_size", "max_position_embeddings"),
        *("num_attention_heads", "num_hidden_layers", "num_key_value_heads", "rms_norm_eps", "vocab_size", *ROPE_KEYS),
        *("num_experts", "num_local_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob"),
        *("decoder_sparse_step", "mlp_only_layers"),
    ),
    # Of other Qwen models; this one has neither windows nor named layers.
    inert=("layer_types", "max_window_layers", "sliding_window", "use_sliding_window"),
)
TOWER = ConfigKeys(
    "qwen3_vl, vision_config",
    obeyed=(
        *("deepstack_visual_indexes", "depth", "hidden_act", "hidden_size", "intermediate_size", "num_heads"),
        *("num_attention_heads", "num_hidden_layers", "num_position_embeddings", "out_hidden_size", "patch_size"),
        *("spatial_merge_size", "temporal_patch_size", "rope_parameters", "rope_theta"),
    ),
    refused={"in_channels": (3,)},
)

# What the published embedder and reranker read at most; the model has far more positions. The reranker's closing five
# tokens come on top of its own number.
EMBEDDING_TOKENS = 8192
RERANKER_TOKENS = 10240 + 5


@hookimpl
def archport_models() -> Mapping[str, str]:
    return {
        # No repository has these names; they are what people type.
        "Qwen/Qwen3-VL-Embedding": "Qwen/Qwen3-VL-Embedding-2B",
        "Qwen/Qwen3-VL-Reranker": "Qwen/Qwen3-VL-Reranker-2B",
        **{f"Qwen/Qwen3-VL-{kind}-{size}": f"Qwen/Qwen3-VL-{kind}-{size}"
           for kind in ("Embedding", "Reranker") for size in ("2B", "8B")},
    }  # fmt: skip


@hookimpl
def archport_claim(config: Mapping[str, Any]) -> ArchSpec | None:
    names = config.get("architectures") or []
    text, vision = config.get("text_config"), config.get("vision_config")
    if not any(name in DENSE + SPARSE for name in names) or not isinstance(text, Mapping):
        return None
    if not config.get("causal", True) or not isinstance(vision, Mapping):
        return None
    for keys, part in ((ROOT, config), (KEYS, text), (TOWER, vision)):
        keys.check(part)
    layers = text["num_hidden_layers"]
    headed = any(name.endswith("ForConditionalGeneration") for name in names)
    experts = None
    if text.get("num_experts"):
        every, dense = text.get("decoder_sparse_step") or 1, text.get("mlp_only_layers") or []
        experts = Experts(
            count=text["num_experts"],
            per_token=text["num_experts_per_tok"],
            intermediate_size=text["moe_intermediate_size"],
            layers=tuple(index for index in range(layers) if (index + 1) % every == 0 and index not in dense),
        )
    layer = AttentionLayer(
        semantics="causal",
        n_heads=text["num_attention_heads"],
        n_kv_heads=text.get("num_key_value_heads") or text["num_attention_heads"],
        head_dim=text.get("head_dim") or 128,
    )
    return ArchSpec(
        arch="qwen3_vl",
        tasks=("embed", "rerank", "generate") if headed else ("embed",),
        layers=(layer,) * layers,
        vocab_size=text["vocab_size"],
        hidden_size=text["hidden_size"],
        intermediate_size=text["intermediate_size"],
        max_positions=text["max_position_embeddings"],
        dtype=config.get("dtype") or text.get("dtype") or "float32",
        tied_head=bool(config.get("tie_word_embeddings", False)),
        experts=experts,
        vision=_tower(vision),
    )


def _tower(vision: Mapping[str, Any]) -> VisionTower:
    heads = vision["num_heads"]
    block = AttentionLayer(
        "bidirectional", heads, heads, head_width("the vision tower", vision["hidden_size"], heads, multiple=4)
    )
    return VisionTower(
        layers=(block,) * vision["depth"],
        hidden_size=vision["hidden_size"],
        intermediate_size=vision["intermediate_size"],
        patch_size=vision["patch_size"],
        merge_size=vision.get("spatial_merge_size", 2),
        taps=len(vision.get("deepstack_visual_indexes") or ()),
    )


@hookimpl
def archport_build(spec: ArchSpec, config: Mapping[str, Any]) -> Trunk:
    from archport_qwen3_vl.model import Qwen3VL

    return Qwen3VL(spec, config)


def is_embedding(checkpoint: CheckpointView) -> bool:
    """By its pipeline; a name counts only without one."""
    if checkpoint.modules is not None:
        return "Pooling" in checkpoint.modules
    return "embedding" in checkpoint.label


def is_reranker(checkpoint: CheckpointView) -> bool:
    """By its pipeline; a name counts only without one."""
    if checkpoint.modules is not None:
        return "LogitScore" in checkpoint.modules
    return "reranker" in checkpoint.label


@hookimpl
def archport_head(checkpoint: CheckpointView) -> Head | None:
    if checkpoint.modules is not None:
        return None
    if is_reranker(checkpoint):
        yes, no = checkpoint.token_id("yes"), checkpoint.token_id("no")
        if yes is None or no is None:
            raise CheckpointError(f"{checkpoint.name}: the tokenizer has no token for 'yes' or for 'no'")
        return YesNoHead(yes, no, source="the Qwen3-VL-Reranker model card")
    if not is_embedding(checkpoint):
        return None
    return EmbeddingHead(pooling=("last",), normalize=True, source="the Qwen3-VL-Embedding model card")


@hookimpl
def archport_inputs(spec: ArchSpec, checkpoint: CheckpointView) -> TextInputs:
    from archport.media import image_settings, video_settings
    from archport_qwen3_vl.reader import Qwen3VLReader, settings_of

    ranks = is_reranker(checkpoint)
    embeds = is_embedding(checkpoint) and not ranks
    most = EMBEDDING_TOKENS if embeds else RERANKER_TOKENS if ranks else None
    settings = settings_of(
        checkpoint.config,
        image_settings(checkpoint),
        video_settings(checkpoint),
        embeds=embeds or ranks,
    )
    # A prompt is the instruction, which stands in the system's text.
    stored = checkpoint.stored_inputs()
    limit = stored.max_tokens if checkpoint.modules is not None and stored.max_tokens else most
    return replace(
        stored,
        max_tokens=min(limit, spec.max_positions) if limit else None,
        reader=Qwen3VLReader(settings, embeds=embeds or ranks),
    )


def _published(weights: Mapping[str, Any]) -> Mapping[str, Any]:
    from archport_qwen3_vl.weights import published

    return published(weights)


@hookimpl
def archport_examples() -> Sequence[Example]:
    text: dict[str, Any] = {
        "model_type": "qwen3_vl_text",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 160,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "rms_norm_eps": 1e-6,
        "rope_theta": 5000000.0,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [6, 5, 5], "rope_type": "default"},
        "vocab_size": 199,
        "max_position_embeddings": 512,
        "attention_bias": False,
        "hidden_act": "silu",
        "dtype": "float32",
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "in_channels": 3,
        "patch_size": 4,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "out_hidden_size": 64,
        "num_position_embeddings": 49,
        "deepstack_visual_indexes": [0],
        "hidden_act": "gelu_pytorch_tanh",
    }
    config = {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "text_config": text,
        "vision_config": vision,
        "tie_word_embeddings": True,
        "image_token_id": 193,
        "video_token_id": 194,
        "vision_start_token_id": 195,
        "vision_end_token_id": 196,
    }
    sparse = {
        **config,
        "architectures": ["Qwen3VLMoeForConditionalGeneration"],
        "model_type": "qwen3_vl_moe",
        "text_config": {
            **text,
            "model_type": "qwen3_vl_moe_text",
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 40,
        },
    }
    return [
        Example("dense, one tap", config, publish=_published),
        Example("experts", sparse, seed=1, publish=_published),
    ]
