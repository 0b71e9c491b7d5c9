"""What transformers fills in where a `config.json` is silent: per `model_type`, the values of its config class.

Pure data, compared with the classes themselves by tests/checkpoint/test_config_keys.py. Knows nothing of what a model
does with a key. A `model_type` that is not here is left as it is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from archport.checkpoint.config.config_class import DECODER, ConfigClass, RopeDefaults, sizes
from archport.checkpoint.config.encoders import ENCODERS

_WINDOWS = {"use_sliding_window": False}
_LINEAR = {
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "head_dim": 256,
}
_TOWER = {
    "depth": 27,
    "hidden_size": 1152,
    "hidden_act": "gelu_pytorch_tanh",
    "intermediate_size": 4304,
    "num_heads": 16,
    "in_channels": 3,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 3584,
    "num_position_embeddings": 2304,
}
_TOWER_NAMES = {"num_attention_heads": "num_heads", "num_hidden_layers": "depth"}
_PICTURES = {"image_token_id": 248056, "video_token_id": 248057}
_PICTURES |= {"vision_start_token_id": 248053, "vision_end_token_id": 248054}
_PICTURES_VL = {"image_token_id": 151655, "video_token_id": 151656}
_PICTURES_VL |= {"vision_start_token_id": 151652, "vision_end_token_id": 151653}
_DEEPSTACK = ConfigClass({**_TOWER, "deepstack_visual_indexes": [8, 16, 24]}, names=_TOWER_NAMES)
_PLAIN_TOWER = ConfigClass(_TOWER, names=_TOWER_NAMES)
_HYBRID_ROPE = RopeDefaults(partial=0.25)
_LOCAL_EXPERTS = {"num_local_experts": "num_experts"}
_LLAMA = ConfigClass(
    {**sizes(32000, 4096, 11008, 32, 32, 2048), **DECODER, "mlp_bias": False, "tie_word_embeddings": False},
    rope=RopeDefaults(),
    grouped=True,
    trunk="LlamaModel",
    head="LlamaForCausalLM",
)


def _qwen(name: str, **more: Any) -> ConfigClass:
    """A dense causal class of Qwen's, whose upper layers may be sliding."""
    return ConfigClass(
        {
            **sizes(151936, 4096, 22016, 32, 32, 32768),
            **{key: DECODER[key] for key in ("hidden_act", "rms_norm_eps")},
            **_WINDOWS,
            "max_window_layers": 28,
            "tie_word_embeddings": False,
            **more,
        },
        absent={"num_key_value_heads": 32, "sliding_window": 4096},
        rope=RopeDefaults(),
        layers="windows",
        grouped=True,
        trunk=f"{name}Model",
        head=f"{name}ForCausalLM",
        labels=f"{name}ForSequenceClassification",
    )


CLASSES: Mapping[str, ConfigClass] = {
    **ENCODERS,
    "gemma3_text": ConfigClass(
        {
            **sizes(262208, 2304, 9216, 26, 8, 131072),
            "num_key_value_heads": 4,
            "head_dim": 256,
            "hidden_activation": "gelu_pytorch_tanh",
            "rms_norm_eps": 1e-6,
            "attention_bias": False,
            "query_pre_attn_scalar": 256,
            "sliding_window": 4096,
            "tie_word_embeddings": True,
        },
        rope=RopeDefaults(1_000_000.0, 10_000.0),
        layers="pattern",
        trunk="Gemma3TextModel",
        head="Gemma3ForCausalLM",
    ),
    "llama": _LLAMA,
    # Published with classes of its own, which are Llama's with a flag.
    "llama_bidirec": _LLAMA,
    "qwen2": _qwen("Qwen2"),
    "qwen3": _qwen("Qwen3", attention_bias=False, head_dim=128),
    "qwen3_moe": ConfigClass(
        {
            **sizes(151936, 2048, 6144, 24, 32, 32768),
            **DECODER,
            **_WINDOWS,
            "num_key_value_heads": 4,
            "decoder_sparse_step": 1,
            "moe_intermediate_size": 768,
            "num_experts_per_tok": 8,
            "num_experts": 128,
            "norm_topk_prob": False,
            "mlp_only_layers": [],
            "tie_word_embeddings": False,
        },
        absent={"sliding_window": 4096},
        names=_LOCAL_EXPERTS,
        rope=RopeDefaults(),
        layers="all",
        grouped=True,
        trunk="Qwen3MoeModel",
        head="Qwen3MoeForCausalLM",
        labels="Qwen3MoeForSequenceClassification",
    ),
    "qwen3_next": ConfigClass(
        {
            **sizes(151936, 2048, 5632, 48, 16, 32768),
            **DECODER,
            **_LINEAR,
            "num_key_value_heads": 2,
            "decoder_sparse_step": 1,
            "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 512,
            "num_experts_per_tok": 10,
            "num_experts": 512,
            "norm_topk_prob": True,
            "mlp_only_layers": [],
            "tie_word_embeddings": False,
        },
        rope=_HYBRID_ROPE,
        layers="interval",
        trunk="Qwen3NextModel",
        head="Qwen3NextForCausalLM",
    ),
    "qwen3_5": ConfigClass(_PICTURES, parts=("qwen3_5_text", "qwen3_5_vision"), head="Qwen3_5ForConditionalGeneration"),
    "qwen3_5_text": ConfigClass(
        {**sizes(248320, 4096, 12288, 32, 16, 32768), **DECODER, **_LINEAR, "num_key_value_heads": 4},
        rope=_HYBRID_ROPE,
        layers="interval",
        trunk="Qwen3_5TextModel",
        head="Qwen3_5ForCausalLM",
    ),
    "qwen3_5_moe": ConfigClass(
        _PICTURES, parts=("qwen3_5_moe_text", "qwen3_5_moe_vision"), head="Qwen3_5MoeForConditionalGeneration"
    ),
    "qwen3_5_moe_text": ConfigClass(
        {
            **{key: value for key, value in sizes(248320, 2048, 0, 40, 16, 32768).items() if value},
            **DECODER,
            **_LINEAR,
            "num_key_value_heads": 2,
            "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 512,
            "num_experts_per_tok": 8,
            "num_experts": 256,
        },
        rope=_HYBRID_ROPE,
        layers="interval",
        trunk="Qwen3_5MoeTextModel",
        head="Qwen3_5MoeForCausalLM",
        renormalises=True,
    ),
    "qwen3_5_vision": _PLAIN_TOWER,
    "qwen3_5_moe_vision": _PLAIN_TOWER,
    "qwen3_vl": ConfigClass(
        _PICTURES_VL,
        parts=("qwen3_vl_text", "qwen3_vl_vision"),
        trunk="Qwen3VLModel",
        head="Qwen3VLForConditionalGeneration",
    ),
    "qwen3_vl_text": ConfigClass(
        {**sizes(151936, 4096, 22016, 32, 32, 128000), **DECODER, "head_dim": 128},
        absent={"num_key_value_heads": 32},
        rope=RopeDefaults(500_000.0),
        grouped=True,
    ),
    "qwen3_vl_moe": ConfigClass(
        _PICTURES_VL,
        parts=("qwen3_vl_moe_text", "qwen3_vl_moe_vision"),
        trunk="Qwen3VLMoeModel",
        head="Qwen3VLMoeForConditionalGeneration",
    ),
    "qwen3_vl_moe_text": ConfigClass(
        {
            **sizes(151936, 2048, 5632, 24, 16, 128000),
            **DECODER,
            "decoder_sparse_step": 1,
            "moe_intermediate_size": 1408,
            "num_experts_per_tok": 4,
            "num_experts": 60,
            "mlp_only_layers": [],
        },
        absent={"num_key_value_heads": 16},
        names=_LOCAL_EXPERTS,
        rope=RopeDefaults(500_000.0),
        grouped=True,
        renormalises=True,
    ),
    "qwen3_vl_vision": _DEEPSTACK,
    "qwen3_vl_moe_vision": _DEEPSTACK,
    "clip": ConfigClass(
        {"projection_dim": 512}, parts=("clip_text_model", "clip_vision_model"), whole=True, trunk="CLIPModel"
    ),
    "clip_text_model": ConfigClass(
        {
            **sizes(49408, 512, 2048, 12, 8, 77),
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
            "eos_token_id": 49407,
        },
    ),
    "clip_vision_model": ConfigClass(
        {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "num_channels": 3,
            "image_size": 224,
            "patch_size": 32,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
        },
    ),
    "siglip": ConfigClass(parts=("siglip_text_model", "siglip_vision_model"), whole=True, trunk="SiglipModel"),
    "siglip_text_model": ConfigClass(
        {**sizes(32000, 768, 3072, 12, 12, 64), "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
        trunk="SiglipTextModel",
    ),
    "siglip_vision_model": ConfigClass(
        {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "num_channels": 3,
            "image_size": 224,
            "patch_size": 16,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-6,
            "vision_use_head": True,
        },
        trunk="SiglipVisionModel",
    ),
    # Published with classes of its own around these two.
    "llama_nemotron_vl": ConfigClass(parts=("llama", "siglip_vision_model")),
}
