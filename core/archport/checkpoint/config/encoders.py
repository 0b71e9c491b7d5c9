"""The config classes of text encoders, by `model_type`: what transformers fills in where a file is silent.

Pure data, compared with the classes themselves by tests/checkpoint/test_config_classes.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from archport.checkpoint.config.config_class import BERT, DECODER, ConfigClass, RopeDefaults, sizes

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


ENCODERS: Mapping[str, ConfigClass] = {
    "bert": ConfigClass(
        {**sizes(30522, 768, 3072, 12, 12, 512), **BERT, "pad_token_id": 0},
        trunk="BertModel",
        head="BertForMaskedLM",
        labels="BertForSequenceClassification",
    ),
    "roberta": ConfigClass(
        {**sizes(50265, 768, 3072, 12, 12, 512), **BERT, "pad_token_id": 1},
        trunk="RobertaModel",
        head="RobertaForMaskedLM",
        labels="RobertaForSequenceClassification",
    ),
    "xlm-roberta": ConfigClass(
        {**sizes(30522, 768, 3072, 12, 12, 512), **BERT, "pad_token_id": 1},
        trunk="XLMRobertaModel",
        head="XLMRobertaForMaskedLM",
        labels="XLMRobertaForSequenceClassification",
    ),
    "camembert": ConfigClass(
        {**sizes(30522, 768, 3072, 12, 12, 512), **BERT, "pad_token_id": 1},
        trunk="CamembertModel",
        head="CamembertForMaskedLM",
        labels="CamembertForSequenceClassification",
    ),
    "mpnet": ConfigClass(
        {
            **sizes(30527, 768, 3072, 12, 12, 512),
            **{key: value for key, value in BERT.items() if key != "type_vocab_size"},
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
        {**sizes(30522, 256, 1024, 12, 4, 512), **BERT, "embedding_size": 128, "pad_token_id": 0},
        trunk="ElectraModel",
        head="ElectraForMaskedLM",
        labels="ElectraForSequenceClassification",
    ),
    "albert": ConfigClass(
        {
            **sizes(30000, 4096, 16384, 12, 64, 512),
            **BERT,
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
            **sizes(50368, 768, 1152, 22, 12, 8192),
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
            **sizes(30528, 768, 3072, 12, 12, 2048),
            **{key: BERT[key] for key in ("layer_norm_eps", "type_vocab_size")},
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
        {**sizes(250048, 768, 3072, 12, 12, 8192), **BERT, "type_vocab_size": 1, "pad_token_id": 1},
        rope=RopeDefaults(160_000.0),
        trunk="GteModel",
        head="GteForMaskedLM",
        labels="GteForSequenceClassification",
    ),
    # GTE as its own code says it.
    "new": ConfigClass(
        {**sizes(30528, 768, 3072, 12, 12, 2048), **BERT, "type_vocab_size": 1, "pad_token_id": 0},
        rope=RopeDefaults(),
        trunk="NewModel",
        head="NewForMaskedLM",
        labels="NewForSequenceClassification",
    ),
    "jina_embeddings_v3": ConfigClass(
        {
            **sizes(250002, 1024, 4096, 24, 16, 8194),
            **BERT,
            "layer_norm_eps": 1e-5,
            "type_vocab_size": 1,
            "pad_token_id": 1,
        },
        rope=RopeDefaults(20_000.0),
        trunk="JinaEmbeddingsV3Model",
        head="JinaEmbeddingsV3ForMaskedLM",
        labels="JinaEmbeddingsV3ForSequenceClassification",
    ),
    "eurobert": ConfigClass(
        {
            **sizes(128256, 768, 3072, 12, 12, 8192),
            **DECODER,
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
    "deberta-v2": ConfigClass(
        {
            **sizes(128100, 1536, 6144, 24, 24, 512),
            **BERT,
            "layer_norm_eps": 1e-7,
            "type_vocab_size": 0,
            "relative_attention": False,
            "max_relative_positions": -1,
            "position_biased_input": True,
            "pooler_hidden_act": "gelu",
            "legacy": True,
            "pad_token_id": 0,
        },
        trunk="DebertaV2Model",
        head="DebertaV2ForMaskedLM",
        labels="DebertaV2ForSequenceClassification",
    ),
    "t5": _t5("T5", 32128, 2048, 6, 8, "relu"),
    "mt5": _t5("MT5", 250112, 1024, 8, 6, "gated-gelu"),
    "umt5": _t5("UMT5", 250112, 1024, 8, 6, "gated-gelu"),
}
