"""The families of checkpoints that parity draws from. Pure data; both environments read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .options import (
    ACTS,
    ALBERT_LAYERS,
    BERT,
    BIDIRECTIONAL,
    DEBERTA,
    DECODER,
    DROP,
    EMBEDS,
    EUROBERT,
    EXPERTS,
    GENERATES,
    GLM4_MOE,
    GROWING,
    HYBRID_DECODER,
    LABELS,
    LAYERED,
    MAKE,
    MPNET,
    NARROW_WORDS,
    NORMED,
    OUTSIDE,
    PICTURES,
    PIPELINE,
    ROPES,
    ROTARY_BERT,
    SCALINGS,
    SCORES_LAST,
    SEEING,
    SEES,
    SHARED,
    SIZES,
    T5,
    T5_SIZES,
    TAPPED,
    TOWER,
    TOWER_OPTIONS,
    TOWERS,
    UNSAID,
    VOCABULARY,
    WINDOWS,
    distilled,
    encoder_tasks,
    of_text,
    pipeline,
    without,
)


@dataclass(frozen=True, slots=True)
class Family:
    """One family of checkpoints.

    Args:
        model_type: of the config class.
        tasks: architecture class -> what it is asked for: `hidden`, `logits`, `tokens`, `labels`, `tags` of
            every token, `vectors` and
            `scores` of a pipeline, `seen` and `pictures` of a tower.
        base: keys of the config class.
        options: name -> values, the default first.
        zero_centred: whether norms store their distance from one.
        claimed: (model_type, architectures) written into the saved config, of families with classes of their own.
    """

    model_type: str
    tasks: Mapping[str, tuple[str, ...]]
    base: Mapping[str, Any]
    options: Mapping[str, list[Any]] = field(default_factory=dict)
    zero_centred: bool = False
    claimed: tuple[str, str] | None = None


FAMILIES: dict[str, Family] = {
    "qwen2": Family(
        "qwen2",
        {"Qwen2Model": EMBEDS, "Qwen2ForCausalLM": GENERATES, "Qwen2ForSequenceClassification": ("labels", "scores")},
        SIZES,
        {**DECODER, **WINDOWS, **SCORES_LAST, "head_dim": [UNSAID, 16], "attention_bias": [UNSAID, True]},
    ),
    "qwen3": Family(
        "qwen3",
        {"Qwen3Model": EMBEDS, "Qwen3ForCausalLM": GENERATES, "Qwen3ForSequenceClassification": ("labels", "scores")},
        SIZES,
        {**DECODER, **WINDOWS, **SCORES_LAST},
    ),
    "qwen3-moe": Family(
        "qwen3_moe",
        {
            "Qwen3MoeModel": EMBEDS,
            "Qwen3MoeForCausalLM": GENERATES,
            "Qwen3MoeForSequenceClassification": ("labels", "scores"),
        },
        SIZES,
        {**DECODER, **without(WINDOWS, "max_window_layers"), **EXPERTS, **NORMED, **SCORES_LAST},
    ),
    "qwen3-next": Family(
        "qwen3_next",
        {"Qwen3NextModel": EMBEDS, "Qwen3NextForCausalLM": GENERATES},
        SIZES,
        {**HYBRID_DECODER, **EXPERTS, **SHARED, **NORMED},
        zero_centred=True,
    ),
    "qwen3.5": Family(
        "qwen3_5_text",
        {"Qwen3_5TextModel": EMBEDS, "Qwen3_5ForCausalLM": GENERATES},
        SIZES,
        HYBRID_DECODER,
        zero_centred=True,
    ),
    "qwen3.5-moe": Family(
        "qwen3_5_moe_text",
        {"Qwen3_5MoeTextModel": EMBEDS, "Qwen3_5MoeForCausalLM": GENERATES},
        without(SIZES, "intermediate_size"),
        {
            **without(HYBRID_DECODER, "intermediate_size"),
            **{key: EXPERTS[key] for key in ("num_experts_per_tok", "moe_intermediate_size")},
            "num_experts": [4, 6],
            **SHARED,
            "raw.norm_topk_prob": [UNSAID, False, True],
        },
        zero_centred=True,
    ),
    "qwen3.5-vl": Family(
        "qwen3_5",
        {"Qwen3_5ForConditionalGeneration": SEES},
        {"text_config": SIZES, "vision_config": TOWER, **PICTURES},
        of_text(without(HYBRID_DECODER, "raw.rope_parameters", *PIPELINE))
        | {"text.rope_parameters": [{"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25,
                                     "mrope_section": [1, 1, 0]}]
           + [{**rope, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]} for rope in ROPES]}
        | {"raw.text.rope_scaling": [UNSAID, None], "text.head_dim": [16], **TOWER_OPTIONS},
        zero_centred=True,
    ),
    "qwen3-vl": Family(
        "qwen3_vl",
        {"Qwen3VLModel": ("hidden", "seen"), "Qwen3VLForConditionalGeneration": SEES},
        {"text_config": SIZES, "vision_config": TOWER, **PICTURES},
        of_text(without(SEEING, "head_dim", "raw.partial_rotary_factor"))
        | {"text.rope_parameters": [{"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}]
           + [{**rope, "mrope_section": [4, 2, 2]} for rope in ROPES], "raw.text.rope_scaling": [UNSAID, None]}
        | {"text.head_dim": [16], "raw.text.rope_parameters": [UNSAID], **TOWER_OPTIONS, **TAPPED},
    ),
    "qwen3-vl-moe": Family(
        "qwen3_vl_moe",
        {"Qwen3VLMoeModel": ("hidden", "seen"), "Qwen3VLMoeForConditionalGeneration": SEES},
        {"text_config": SIZES, "vision_config": TOWER, **PICTURES},
        of_text(without(SEEING, "head_dim", "raw.partial_rotary_factor") | without(EXPERTS, "num_experts"))
        | {"text.rope_parameters": [{"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}]
           + [{**rope, "mrope_section": [4, 2, 2]} for rope in ROPES], "raw.text.rope_scaling": [UNSAID, None]}
        | {"text.head_dim": [16, None], "text.num_experts": [4, 6], "raw.text.norm_topk_prob": [UNSAID, False]}
        | {"raw.text.rope_parameters": [UNSAID], **TOWER_OPTIONS, **TAPPED},
    ),
    "bert": Family("bert", encoder_tasks("Bert"), SIZES, BERT),
    "roberta": Family("roberta", encoder_tasks("Roberta"), SIZES, {**BERT, "pad_token_id": [1, 0, 5]}),
    "xlm-roberta": Family("xlm-roberta", encoder_tasks("XLMRoberta"), SIZES, {**BERT, "pad_token_id": [1, 0, 5]}),
    "camembert": Family("camembert", encoder_tasks("Camembert"), SIZES, {**BERT, "pad_token_id": [1, 0, 5]}),
    "mpnet": Family("mpnet", encoder_tasks("MPNet"), SIZES, MPNET),
    "distilbert": Family(
        "distilbert",
        encoder_tasks("DistilBert"),
        {
            **without(SIZES, "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
            "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4,
        },
        distilled(BERT),
    ),
    "electra": Family("electra", encoder_tasks("Electra"), SIZES, {**BERT, **NARROW_WORDS}),
    "albert": Family("albert", encoder_tasks("Albert"), SIZES, {**BERT, **NARROW_WORDS, **ALBERT_LAYERS}),
    "modernbert": Family(
        "modernbert",
        encoder_tasks("ModernBert"),
        {**SIZES, "cls_token_id": None, "sep_token_id": None, "num_hidden_layers": 4},
        {
            "hidden_activation": ["gelu", *ACTS],
            "classifier_activation": ["gelu", *ACTS],
            "classifier_pooling": ["cls", "mean"],
            "num_attention_heads": [4, 2],
            "intermediate_size": [48, 40],
            "norm_eps": [1e-5, 1e-12, 1e-3],
            "norm_bias": [False, True],
            "attention_bias": [False, True],
            "mlp_bias": [False, True],
            "decoder_bias": [True, False],
            "classifier_bias": [False, True],
            "local_attention": [16, 2, 7, 128],
            "tie_word_embeddings": [True, False],
            "layer_types": [UNSAID, ["sliding_attention"] * 4, ["full_attention"] * 2 + ["sliding_attention"] * 2],
            "global_attn_every_n_layers": [UNSAID, 2],
            "rope_parameters": [UNSAID, *LAYERED],
            "raw.rope_parameters": [UNSAID, DROP],
            "raw.rope_scaling": [UNSAID, *SCALINGS],
            "raw.global_rope_theta": [UNSAID, 500.0],
            "raw.local_rope_theta": [UNSAID, 50.0],
            "raw.norm_eps": [UNSAID, DROP],
            "raw.architectures": [UNSAID, DROP],
            "raw.dtype": [UNSAID, DROP, None],
            **LABELS,
            **MAKE,
            **pipeline("norm_eps"),
        },
    ),
    "nomic": Family("nomic_bert", encoder_tasks("NomicBert"), SIZES, {**ROTARY_BERT, "head_dim": [UNSAID, 16]}),
    "gte": Family("gte", encoder_tasks("Gte"), SIZES, {**ROTARY_BERT, "type_vocab_size": [1, 2, 0]}),
    "jina-v3": Family(
        "jina_embeddings_v3", encoder_tasks("JinaEmbeddingsV3"), SIZES, {**ROTARY_BERT, "pad_token_id": [1, 0, 5]}
    ),
    "eurobert": Family("eurobert", encoder_tasks("EuroBert"), SIZES, EUROBERT),
    "deberta-v2": Family("deberta-v2", encoder_tasks("DebertaV2"), SIZES, DEBERTA),
    **{
        name: Family(
            name,
            {f"{name.upper()}EncoderModel": (*EMBEDS, "scores"), f"{name.upper()}ForTokenClassification": ("tags",)},
            T5_SIZES,
            T5,
        )
        for name in ("t5", "mt5", "umt5")
    },
    "embeddinggemma": Family(
        "gemma3_text",
        {"Gemma3TextModel": EMBEDS},
        {**SIZES, "use_bidirectional_attention": True, "num_hidden_layers": 4},
        {
            "hidden_activation": ["gelu_pytorch_tanh", *ACTS],
            **{key: DECODER[key] for key in ("num_key_value_heads", "head_dim", "attention_bias", "rms_norm_eps")},
            "query_pre_attn_scalar": [256, 16, 24],
            "sliding_window": [8, 3, 512],
            "intermediate_size": [48, 40],
            "layer_types": [UNSAID, ["sliding_attention", "full_attention"] * 2, ["full_attention"] * 4],
            "sliding_window_pattern": [UNSAID, 2, 3],
            "rope_parameters": [UNSAID, *LAYERED],
            "raw.rope_parameters": [UNSAID, DROP],
            "raw.rope_scaling": [UNSAID, *SCALINGS],
            "raw.rope_theta": [UNSAID, 500.0],
            "raw.rope_local_base_freq": [UNSAID, 50.0],
            "raw.architectures": [UNSAID, DROP],
            "raw.dtype": [UNSAID, DROP, None],
            "final_logit_softcapping": [None, 30.0],
            "make.dtype": MAKE["make.dtype"],
            **pipeline("rms_norm_eps"),
        },
        zero_centred=True,
    ),
    "llama-bidirec": Family(
        "llama",
        {"LlamaModel": EMBEDS},
        {**SIZES, "is_causal": False},
        {**BIDIRECTIONAL, "mlp_bias": [False, True]},
        claimed=("llama_bidirec", "LlamaBidirectionalModel"),
    ),
    # Its text half: the published code puts the same blocks behind a tower.
    "llama-nemotron-vl": Family(
        "llama",
        {"LlamaModel": ("hidden",)},
        {**SIZES, "is_causal": False},
        without(BIDIRECTIONAL, "make.dtype", "raw.dtype", *PIPELINE),
        claimed=("llama_nemotron_vl", "LlamaNemotronVLModel"),
    ),
    "qwen3-bidirectional": Family(
        "qwen3",
        {"Qwen3Model": EMBEDS},
        {**SIZES, "is_causal": False},
        BIDIRECTIONAL,
    ),
    "qwen2-bidirectional": Family(
        "qwen2",
        {"Qwen2Model": EMBEDS},
        {**SIZES, "is_causal": False},
        {**BIDIRECTIONAL, "head_dim": [UNSAID, 16], "attention_bias": [UNSAID, True]},
    ),
    # The rest is claimed by an example of an outside plugin.
    "llama": Family(
        "llama",
        {"LlamaModel": EMBEDS, "LlamaForCausalLM": GENERATES},
        SIZES,
        {**DECODER, "mlp_bias": [False, True]},
    ),
    "mistral": Family(
        "mistral",
        {"MistralModel": EMBEDS, "MistralForCausalLM": GENERATES},
        SIZES,
        {**OUTSIDE, "sliding_window": [None, 3, 8, 200]},
    ),
    "ministral3": Family(
        "ministral3",
        {"Ministral3Model": EMBEDS, "Ministral3ForCausalLM": GENERATES},
        SIZES,
        {
            **{key: values for key, values in OUTSIDE.items() if "rope" not in key and "rotary" not in key},
            "sliding_window": [None, 3, 8],
            "rope_parameters": [{**rope, **GROWING} for rope in ROPES if rope["rope_type"] != "dynamic"],
        },
    ),
    "gemma": Family(
        "gemma",
        {"GemmaModel": EMBEDS, "GemmaForCausalLM": GENERATES},
        SIZES,
        {
            **without(OUTSIDE, "raw.partial_rotary_factor"),
            "hidden_act": ["gelu_pytorch_tanh", *ACTS],
            "attention_bias": [False, True],
            "tie_word_embeddings": [True, False],
        },
        zero_centred=True,
    ),
    "gemma2": Family(
        "gemma2",
        {"Gemma2Model": EMBEDS, "Gemma2ForCausalLM": GENERATES},
        {**SIZES, "num_hidden_layers": 3},
        {
            **without(OUTSIDE, "hidden_act", "raw.hidden_act", "num_hidden_layers", "raw.partial_rotary_factor"),
            "hidden_activation": ["gelu_pytorch_tanh", *ACTS],
            "attention_bias": [False, True],
            "tie_word_embeddings": [True, False],
            "query_pre_attn_scalar": [16, 24, 256],
            "sliding_window": [8, 3, 512],
            "layer_types": [UNSAID, ["full_attention"] * 3, ["full_attention", "sliding_attention", "full_attention"]],
            "attn_logit_softcapping": [50.0, 2.0, None],
            "final_logit_softcapping": [30.0, None],
        },
        zero_centred=True,
    ),
    "gemma3": Family(
        "gemma3_text",
        {"Gemma3TextModel": EMBEDS, "Gemma3ForCausalLM": GENERATES},
        {**SIZES, "num_hidden_layers": 4},
        {
            **without(OUTSIDE, "hidden_act", "raw.hidden_act", "num_hidden_layers", "raw.partial_rotary_factor"),
            "hidden_activation": ["gelu_pytorch_tanh", *ACTS],
            "attention_bias": [False, True],
            "tie_word_embeddings": [True, False],
            "query_pre_attn_scalar": [16, 24, 256],
            "sliding_window": [8, 3, 512],
            "layer_types": [UNSAID, ["sliding_attention", "full_attention"] * 2, ["full_attention"] * 4],
            "rope_parameters": [UNSAID, *LAYERED],
            "raw.rope_parameters": [UNSAID, DROP],
            "final_logit_softcapping": [None, 30.0],
        },
        zero_centred=True,
    ),
    "lfm2": Family(
        "lfm2",
        {"Lfm2Model": EMBEDS, "Lfm2ForCausalLM": GENERATES},
        {**SIZES, "num_hidden_layers": 3, "block_multiple_of": 8},
        {
            **without(OUTSIDE, "hidden_act", "raw.hidden_act", "head_dim", "num_hidden_layers", "rms_norm_eps",
                      "raw.rms_norm_eps", "raw.partial_rotary_factor", *PIPELINE),
            "norm_eps": [1e-5, 1e-2],
            "layer_types": [["conv", "full_attention", "conv"], ["full_attention", "conv", "conv"]],
            "conv_L_cache": [3, 2, 4],
            "conv_bias": [False, True],
            "block_auto_adjust_ff_dim": [True, False],
            "tie_word_embeddings": [True, False],
            "raw.norm_eps": [UNSAID, DROP],
            **pipeline("norm_eps"),
        },
    ),
    "gpt-oss": Family(
        "gpt_oss",
        {"GptOssModel": EMBEDS, "GptOssForCausalLM": GENERATES},
        {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2},
        {
            **without(OUTSIDE, "hidden_act", "raw.hidden_act", "raw.partial_rotary_factor", "make.save",
                      "raw.rope_parameters", "raw.rope_scaling", "raw.rope_theta"),
            "head_dim": [16, 8, 32],
            "attention_bias": [True, False],
            "sliding_window": [8, 3, 128],
            "swiglu_limit": [7.0, 1.0],
            "num_experts_per_tok": [2, 1, 3],
            "layer_types": [UNSAID, ["full_attention"] * 2],
            "num_hidden_layers": [2],
            "rope_parameters": ROPES[2:4],
        },
    ),
    "glm4-moe": Family(
        "glm4_moe",
        {"Glm4MoeModel": EMBEDS, "Glm4MoeForCausalLM": GENERATES},
        {**SIZES, "num_hidden_layers": 3, "n_routed_experts": 8},
        GLM4_MOE,
    ),
    "clip": Family(
        "clip",
        {"CLIPModel": ("pictures",)},
        {
            "projection_dim": 32,
            "text_config": {**TOWERS, "vocab_size": VOCABULARY, "max_position_embeddings": 16, "eos_token_id": 2},
            "vision_config": {**TOWERS, "hidden_size": 24, "image_size": 16, "patch_size": 4},
        },
        {
            **{f"{half}.hidden_act": ["quick_gelu", *ACTS] for half in ("text", "vision")},
            **{f"{half}.layer_norm_eps": [1e-5, 1e-12, 1e-3] for half in ("text", "vision")},
            **{f"{half}.num_attention_heads": [4, 2] for half in ("text", "vision")},
            **{f"{half}.intermediate_size": [48, 40] for half in ("text", "vision")},
            **{f"{half}.num_hidden_layers": [2, 1] for half in ("text", "vision")},
            "text.max_position_embeddings": [16, 40],
            "vision.hidden_size": [24, 32],
            "vision.patch_size": [4, 8],
            "vision.image_size": [16, 24],
            "raw.text.hidden_act": [UNSAID, DROP],
            "raw.vision.layer_norm_eps": [UNSAID, DROP],
            "raw.architectures": [UNSAID, DROP],
            "raw.dtype": [UNSAID, DROP, None],
            "make.dtype": MAKE["make.dtype"],
        },
    ),
    "siglip": Family(
        "siglip",
        {"SiglipModel": ("pictures",)},
        {
            "text_config": {**TOWERS, "vocab_size": VOCABULARY, "max_position_embeddings": 16, "pad_token_id": 1,
                            "bos_token_id": None, "eos_token_id": 1},
            "vision_config": {**TOWERS, "image_size": 16, "patch_size": 4},
        },
        {
            **{f"{half}.hidden_act": ["gelu_pytorch_tanh", *ACTS] for half in ("text", "vision")},
            **{f"{half}.layer_norm_eps": [1e-6, 1e-12, 1e-3] for half in ("text", "vision")},
            **{f"{half}.num_attention_heads": [4, 2] for half in ("text", "vision")},
            **{f"{half}.intermediate_size": [48, 40] for half in ("text", "vision")},
            **{f"{half}.num_hidden_layers": [2, 1] for half in ("text", "vision")},
            "text.max_position_embeddings": [16, 64],
            "text.projection_size": [UNSAID, 32],
            "vision.patch_size": [4, 8],
            "vision.image_size": [16, 24],
            "raw.text.hidden_act": [UNSAID, DROP],
            "raw.vision.layer_norm_eps": [UNSAID, DROP],
            "raw.architectures": [UNSAID, DROP],
            "raw.dtype": [UNSAID, DROP, None],
            "make.dtype": MAKE["make.dtype"],
        },
    ),
}  # fmt: skip
