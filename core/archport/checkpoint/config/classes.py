"""What transformers fills in where a `config.json` is silent: per `model_type`, the values of its config class.

Pure data, compared with the classes themselves by tests/checkpoint/test_config_keys.py. Knows nothing of what a model
does with a key. A `model_type` that is not here is left as it is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

# How a class names its layers where no `layer_types` does:
#   interval  every fourth (`full_attention_interval`) is full attention, the others are linear
#   windows   the layers from `max_window_layers` on are sliding, with `use_sliding_window`
#   all       every layer is sliding, with `use_sliding_window`; `layer_types` is not read
#   pattern   every sixth (`sliding_window_pattern`) is full attention, the others are sliding
#   every     the first and every third (`global_attn_every_n_layers`) is full attention, the others are sliding
LayerRule = Literal["interval", "windows", "all", "pattern", "every"]


@dataclass(frozen=True, slots=True)
class RopeDefaults:
    """The rope of a class.

    Args:
        theta: of all layers, or of those with full attention.
        local_theta: of sliding layers, where they have a rope of their own.
        partial: share of a head that turns, where the class knows one.
        scales_local: whether `rope_scaling` of a file is meant for sliding layers as well.
        keys: names of the two thetas in files of the class.
    """

    theta: float = 10_000.0
    local_theta: float | None = None
    partial: float | None = None
    scales_local: bool = False
    keys: tuple[str, str] = ("rope_theta", "rope_local_base_freq")


@dataclass(frozen=True, slots=True)
class ConfigClass:
    """One config class.

    Args:
        defaults: key -> value where a file leaves it out or says null.
        absent: the same, where null means something else than the default does.
        names: other names that files may use -> the key that is read.
        rope: None where positions are learned or a tower's own.
        layers: how layers are named; None where all are alike.
        grouped: whether null for `num_key_value_heads` means as many as heads, and for `head_dim` width / heads.
        parts: the classes of `text_config` and `vision_config`.
        whole: whether a part that a file leaves out is there all the same; a text half alone is published of others.
        trunk, head, labels: the architectures that a file without `architectures` means: a trunk alone, with an output
            head, and with a classifier.
        renormalises: whether its routers always do, whatever a file says.
    """

    defaults: Mapping[str, Any] = field(default_factory=dict[str, Any])
    absent: Mapping[str, Any] = field(default_factory=dict[str, Any])
    names: Mapping[str, str] = field(default_factory=dict[str, str])
    rope: RopeDefaults | None = None
    layers: LayerRule | None = None
    grouped: bool = False
    parts: tuple[str, str] | None = None
    whole: bool = False
    trunk: str | None = None
    head: str | None = None
    labels: str | None = None
    renormalises: bool = False


def _sizes(vocabulary: int, width: int, inner: int, layers: int, heads: int, positions: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": positions,
    }


_DECODER = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "attention_bias": False}
_BERT = {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "type_vocab_size": 2, "tie_word_embeddings": True}
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
# What NomicBert's repository says in GPT-2's words.
_GPT2 = {"n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads"}
_GPT2 |= {"n_inner": "intermediate_size", "n_positions": "max_position_embeddings"}
_GPT2 |= {"layer_norm_epsilon": "layer_norm_eps", "rotary_emb_base": "rope_theta"}

# Of T5's classes, under the usual names.
_T5 = {"d_model": "hidden_size", "num_heads": "num_attention_heads", "num_layers": "num_hidden_layers"}
_T5 |= {"d_kv": "head_dim"}


def _t5(name: str, vocabulary: int, inner: int, layers: int, heads: int, proj: str) -> ConfigClass:
    return ConfigClass(
        {
            "vocab_size": vocabulary,
            "hidden_size": 512,
            "head_dim": 64,
            "d_ff": inner,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "relative_attention_num_buckets": 32,
            "relative_attention_max_distance": 128,
            "layer_norm_epsilon": 1e-6,
            "feed_forward_proj": proj,
            "pad_token_id": 0,
        },
        names=_T5,
        trunk=f"{name}EncoderModel",
    )


_LLAMA = ConfigClass(
    {**_sizes(32000, 4096, 11008, 32, 32, 2048), **_DECODER, "mlp_bias": False, "tie_word_embeddings": False},
    rope=RopeDefaults(),
    grouped=True,
    trunk="LlamaModel",
    head="LlamaForCausalLM",
)


def _qwen(name: str, **more: Any) -> ConfigClass:
    """A dense causal class of Qwen's, whose upper layers may be sliding."""
    return ConfigClass(
        {
            **_sizes(151936, 4096, 22016, 32, 32, 32768),
            **{key: _DECODER[key] for key in ("hidden_act", "rms_norm_eps")},
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
    "bert": ConfigClass(
        {**_sizes(30522, 768, 3072, 12, 12, 512), **_BERT, "pad_token_id": 0},
        trunk="BertModel",
        head="BertForMaskedLM",
        labels="BertForSequenceClassification",
    ),
    "roberta": ConfigClass(
        {**_sizes(50265, 768, 3072, 12, 12, 512), **_BERT, "pad_token_id": 1},
        trunk="RobertaModel",
        head="RobertaForMaskedLM",
        labels="RobertaForSequenceClassification",
    ),
    "xlm-roberta": ConfigClass(
        {**_sizes(30522, 768, 3072, 12, 12, 512), **_BERT, "pad_token_id": 1},
        trunk="XLMRobertaModel",
        head="XLMRobertaForMaskedLM",
        labels="XLMRobertaForSequenceClassification",
    ),
    "camembert": ConfigClass(
        {**_sizes(30522, 768, 3072, 12, 12, 512), **_BERT, "pad_token_id": 1},
        trunk="CamembertModel",
        head="CamembertForMaskedLM",
        labels="CamembertForSequenceClassification",
    ),
    "mpnet": ConfigClass(
        {
            **_sizes(30527, 768, 3072, 12, 12, 512),
            **{key: value for key, value in _BERT.items() if key != "type_vocab_size"},
            "relative_attention_num_buckets": 32,
            "pad_token_id": 1,
        },
        trunk="MPNetModel",
        head="MPNetForMaskedLM",
        labels="MPNetForSequenceClassification",
    ),
    "distilbert": ConfigClass(
        {
            "vocab_size": 30522,
            "max_position_embeddings": 512,
            "hidden_size": 768,
            "num_attention_heads": 12,
            "num_hidden_layers": 6,
            "hidden_dim": 3072,
            "activation": "gelu",
            "pad_token_id": 0,
            "tie_word_embeddings": True,
        },
        names={"dim": "hidden_size", "n_heads": "num_attention_heads", "n_layers": "num_hidden_layers"},
        trunk="DistilBertModel",
        head="DistilBertForMaskedLM",
        labels="DistilBertForSequenceClassification",
    ),
    "electra": ConfigClass(
        {**_sizes(30522, 256, 1024, 12, 4, 512), **_BERT, "embedding_size": 128, "pad_token_id": 0},
        trunk="ElectraModel",
        head="ElectraForMaskedLM",
        labels="ElectraForSequenceClassification",
    ),
    "albert": ConfigClass(
        {
            **_sizes(30000, 4096, 16384, 12, 64, 512),
            **_BERT,
            "hidden_act": "gelu_new",
            "embedding_size": 128,
            "num_hidden_groups": 1,
            "inner_group_num": 1,
            "pad_token_id": 0,
        },
        trunk="AlbertModel",
        head="AlbertForMaskedLM",
        labels="AlbertForSequenceClassification",
    ),
    "modernbert": ConfigClass(
        {
            **_sizes(50368, 768, 1152, 22, 12, 8192),
            "hidden_activation": "gelu",
            "norm_eps": 1e-5,
            "norm_bias": False,
            "attention_bias": False,
            "mlp_bias": False,
            "local_attention": 128,
            "decoder_bias": True,
            "classifier_pooling": "cls",
            "classifier_bias": False,
            "classifier_activation": "gelu",
            "tie_word_embeddings": True,
        },
        rope=RopeDefaults(160_000.0, 10_000.0, scales_local=True, keys=("global_rope_theta", "local_rope_theta")),
        layers="every",
        trunk="ModernBertModel",
        head="ModernBertForMaskedLM",
        labels="ModernBertForSequenceClassification",
    ),
    "nomic_bert": ConfigClass(
        {
            **_sizes(30528, 768, 3072, 12, 12, 2048),
            **{key: _BERT[key] for key in ("layer_norm_eps", "type_vocab_size")},
            "hidden_act": "silu",
            "pad_token_id": 0,
        },
        names=_GPT2,
        rope=RopeDefaults(1_000.0),
        trunk="NomicBertModel",
        head="NomicBertForMaskedLM",
        labels="NomicBertForSequenceClassification",
    ),
    "gte": ConfigClass(
        {**_sizes(250048, 768, 3072, 12, 12, 8192), **_BERT, "type_vocab_size": 1, "pad_token_id": 1},
        rope=RopeDefaults(160_000.0),
        trunk="GteModel",
        head="GteForMaskedLM",
        labels="GteForSequenceClassification",
    ),
    # GTE as its own code says it.
    "new": ConfigClass(
        {**_sizes(30528, 768, 3072, 12, 12, 2048), **_BERT, "type_vocab_size": 1, "pad_token_id": 0},
        rope=RopeDefaults(),
        trunk="NewModel",
        head="NewForMaskedLM",
        labels="NewForSequenceClassification",
    ),
    "eurobert": ConfigClass(
        {
            **_sizes(128256, 768, 3072, 12, 12, 8192),
            **_DECODER,
            "rms_norm_eps": 1e-5,
            "mlp_bias": False,
            "classifier_pooling": "late",
            "tie_word_embeddings": False,
        },
        rope=RopeDefaults(),
        grouped=True,
        trunk="EuroBertModel",
        head="EuroBertForMaskedLM",
        labels="EuroBertForSequenceClassification",
    ),
    "t5": _t5("T5", 32128, 2048, 6, 8, "relu"),
    "mt5": _t5("MT5", 250112, 1024, 8, 6, "gated-gelu"),
    "umt5": _t5("UMT5", 250112, 1024, 8, 6, "gated-gelu"),
    "gemma3_text": ConfigClass(
        {
            **_sizes(262208, 2304, 9216, 26, 8, 131072),
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
            **_sizes(151936, 2048, 6144, 24, 32, 32768),
            **_DECODER,
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
            **_sizes(151936, 2048, 5632, 48, 16, 32768),
            **_DECODER,
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
        {**_sizes(248320, 4096, 12288, 32, 16, 32768), **_DECODER, **_LINEAR, "num_key_value_heads": 4},
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
            **{key: value for key, value in _sizes(248320, 2048, 0, 40, 16, 32768).items() if value},
            **_DECODER,
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
        {**_sizes(151936, 4096, 22016, 32, 32, 128000), **_DECODER, "head_dim": 128},
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
            **_sizes(151936, 2048, 5632, 24, 16, 128000),
            **_DECODER,
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
    "siglip": ConfigClass(parts=("siglip_text_model", "siglip_vision_model"), whole=True, trunk="SiglipModel"),
    "siglip_text_model": ConfigClass(
        {**_sizes(32000, 768, 3072, 12, 12, 64), "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
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
