"""The values that parity draws from: what each key of a config, and each choice about a checkpoint, may be.

Pure data; both environments read it. An option's name says where it goes:
    hidden_act            a key of the config class
    text.hidden_act       the same of a part
    raw.rope_scaling      an edit of the saved config.json; DROP takes the key out
    make.head             what is done to the checkpoint: see `MAKE` and `PIPELINE`
The first value of an option is the default; nothing of it is said to the config class where it is `UNSAID`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DROP, UNSAID = "<drop>", "<unsaid>"
# make.head: "as saved", or an output head beside the tied matrix: "its own" or "a copy"
# make.dtype: element type of the stored tensors
# make.save: how mlx-lm quantises the checkpoint afterwards
MAKE = {"make.head": ["as saved", "its own", "a copy"], "make.dtype": ["float32", "bfloat16", "float16"]}

ACTS = ["swish", "gelu", "gelu_python", "gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast", "gelu_10"]
ACTS += ["gelu_accurate", "quick_gelu", "relu", "relu2", "relu6", "mish", "leaky_relu", "hardswish", "tanh", "sigmoid"]
ACTS += ["laplace", "linear", "sqrtsoftplus", "silu"]
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
ROPES: list[Any] = [
    {"rope_type": "default", "rope_theta": 1e6},
    {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
    {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32},
    {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "beta_fast": 16, "beta_slow": 2, "truncate": False},
    {"rope_type": "yarn", "rope_theta": 1e4, "factor": 3.0, "mscale": 1.0, "mscale_all_dim": 0.5},
    {"rope_type": "yarn", "rope_theta": 1e4, "factor": 3.0, "attention_factor": 1.3},
    {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3},
    {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
]
SCALINGS: list[Any] = [
    {"type": "linear", "factor": 2.0},
    {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    {"type": "yarn", "factor": 2.0},
    {"rope_type": "llama3", **LLAMA3},
    {"type": "dynamic", "factor": 3.0},
]
LAYERED: list[Any] = [
    {"full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    {"sliding_attention": {"rope_type": "linear", "factor": 3.0, "rope_theta": 300.0}},
    {
        "full_attention": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "truncate": False},
        "sliding_attention": {"rope_type": "default", "rope_theta": 77.0},
    },
]

VOCABULARY = 99
# Of a pipeline of sentence-transformers around the checkpoint:
# make.modules: those after the Transformer, in their order; make.dense: the activation of each Dense
# make.prompts: (prompts, the default one's name); make.special: tokens that the tokenizer puts around a text
# make.bert, make.tokenizer: keys of sentence_bert_config.json and tokenizer_config.json
# make.layout: as saved; the body in a folder of its own; names of files and keys of older versions; a CrossEncoder
# before there was a modules.json
# make.activation: (the activation of a CrossEncoder, the file that says it)
# make.false_token: of a LogitScore
PIPELINE: dict[str, list[Any]] = {
    "make.modules": ["pool", "pool norm", "pool dense", "pool dense norm", "pool norm dense", "pool norm dense norm",
                     "pool dense norm dense", "pool norm norm", "pool dropout dense", "norm pool",
                     "pool dense pool norm"],
    "make.pooling": ["mean", "cls", "max", "lasttoken", "weightedmean", "mean_sqrt_len_tokens", ["lasttoken", "mean"],
                     ["max", "cls", "weightedmean"]],
    "make.include_prompt": [True, False],
    "make.dense": ["Tanh", "Identity", "ReLU", "GELU", "Sigmoid", "SiLU", "Softmax", "LeakyReLU", "ELU", "Softplus"],
    "make.dense_bias": [True, False],
    "make.residual": [False, True],
    "make.prompts": [[{}, None], [{"query": "t07 T08 ", "document": "t09 "}, None], [{"query": "t07 "}, "query"],
                     [{"passage": "t10 ", "corpus": "t11 "}, None], [{"sts": "t12 t13 "}, "sts"],
                     [{"query": "t07 ", "document": "", "sts": "t14"}, "document"]],
    "make.truncate_dim": [None, 8, 64],
    "make.similarity": [None, "dot", "euclidean", "manhattan"],
    "make.special": [None, "around", "after", "before"],
    "make.bert": [{}, {"max_seq_length": 9}, {"do_lower_case": True}, {"query_length": 5, "document_length": 7},
                  {"processor_kwargs": {"model_max_length": 10}}, {"tokenizer_args": {"model_max_length": 30}},
                  {"processing_kwargs": {"text": {"max_length": 6}}}, {"max_seq_length": 64, "query_length": 4},
                  {"processing_kwargs": {"text": {"add_special_tokens": False}}}, {"max_seq_length": None}],
    "make.tokenizer": [{}, {"model_max_length": 11}, {"padding_side": "left"},
                       {"truncation_side": "left", "model_max_length": 9}, {"clean_up_tokenization_spaces": True},
                       {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]},
                       {"sep_token": "t03", "cls_token": "t02"}],
    "make.layout": ["today", "0_Transformer", "older names", "bare"],
    "make.activation": [[None, None], ["Identity", "pipeline"], ["Tanh", "pipeline"], ["Sigmoid", "config"],
                        ["Identity", "config"], ["Identity", "old key"], ["Softplus", "pipeline"]],
    "make.false_token": [12, None],
}  # fmt: skip


def pipeline(epsilon: str) -> dict[str, list[Any]]:
    """The options of pipelines, of a family that spells its norms' epsilon like this."""
    kwargs = [{"config_kwargs": {epsilon: 0.2}}, {"config_args": {epsilon: 0.5}}]
    return {**PIPELINE, "make.bert": [*PIPELINE["make.bert"], *kwargs]}


SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
EMBEDS = ("hidden", "vectors")
GENERATES = ("hidden", "logits", "tokens", "vectors", "scores")
DECODER: dict[str, list[Any]] = {
    "hidden_act": ["silu", *ACTS],
    "num_key_value_heads": [2, 1, 4],
    "head_dim": [16, 8, 32, 12],
    "attention_bias": [False, True],
    "rms_norm_eps": [1e-6, 1e-5, 1e-2],
    "tie_word_embeddings": [False, True],
    "intermediate_size": [48, 40, 100],
    "num_hidden_layers": [2, 1, 3],
    "max_position_embeddings": [128, 70],
    "rope_parameters": [UNSAID, *ROPES],
    "raw.rope_scaling": [UNSAID, *SCALINGS, None, {}],
    "raw.rope_theta": [UNSAID, 300.0, 1e7],
    "raw.rope_parameters": [UNSAID, DROP, None],
    "raw.rms_norm_eps": [UNSAID, DROP],
    "raw.hidden_act": [UNSAID, DROP],
    "raw.max_position_embeddings": [UNSAID, DROP],
    "raw.dtype": [UNSAID, DROP, None],
    "raw.architectures": [UNSAID, DROP],
    "raw.partial_rotary_factor": [UNSAID, 1.0, 0.5],
    "raw.use_cache": [UNSAID, False],
    "make.save": [None, "affine4", "affine8", "affine6", "mxfp4", "mxfp8", "nvfp4", "mixed"],
    **MAKE,
    **pipeline("rms_norm_eps"),
}
# Of classifiers that score the last token that is no padding.
SCORES_LAST = {"num_labels": [2, 1, 4], "pad_token_id": [None, 5]}
WINDOWS = {"use_sliding_window": [False, True], "sliding_window": [8, 3, 200], "max_window_layers": [1, 0, 2]}
EXPERTS = {
    "num_experts": [4, 6, 0],
    "num_experts_per_tok": [2, 1, 3],
    "moe_intermediate_size": [24, 40],
    "decoder_sparse_step": [1, 2],
    "mlp_only_layers": [[], [0]],
}
HYBRID = {
    "layer_types": [["linear_attention", "full_attention"], ["full_attention"] * 2, ["linear_attention"] * 2],
    "linear_num_key_heads": [2, 1, 4],
    "linear_num_value_heads": [4, 8],
    "linear_key_head_dim": [8, 16],
    "linear_value_head_dim": [16, 8],
    "linear_conv_kernel_dim": [4, 1, 2, 3],
}
LABELS = {"num_labels": [2, 1, 4]}
BERT = {
    "hidden_act": ["gelu", *ACTS],
    "num_attention_heads": [4, 2, 1],
    "intermediate_size": [48, 40],
    "num_hidden_layers": [2, 1, 3],
    "layer_norm_eps": [1e-12, 1e-5, 1e-3],
    "type_vocab_size": [2, 1, 3],
    "pad_token_id": [0, 1, 5],
    "max_position_embeddings": [128, 70],
    "tie_word_embeddings": [True, False],
    "raw.hidden_act": [UNSAID, DROP],
    "raw.layer_norm_eps": [UNSAID, DROP],
    "raw.type_vocab_size": [UNSAID, DROP],
    "raw.tie_word_embeddings": [UNSAID, DROP],
    "raw.architectures": [UNSAID, DROP],
    "raw.dtype": [UNSAID, DROP, None],
    "raw.position_embedding_type": [UNSAID, "absolute"],
    "raw.chunk_size_feed_forward": [UNSAID, 1],
    **LABELS,
    **MAKE,
    **pipeline("layer_norm_eps"),
}
MPNET = {key: values for key, values in BERT.items() if "type_vocab_size" not in key}
MPNET |= {"pad_token_id": [1, 0, 5], "relative_attention_num_buckets": [32, 40]}
NARROW_WORDS = {"embedding_size": [16, 32, 40]}
ALBERT_LAYERS = {"num_hidden_layers": [3, 1, 4], "num_hidden_groups": [1, 2, 3], "inner_group_num": [1, 2]}


def without(options: Mapping[str, list[Any]], *names: str) -> dict[str, list[Any]]:
    return {key: values for key, values in options.items() if key not in names}


def distilled(options: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """BERT's options under DistilBERT's names."""
    names = {"hidden_act": "activation", "num_attention_heads": "n_heads", "intermediate_size": "hidden_dim",
             "num_hidden_layers": "n_layers", "raw.hidden_act": "raw.activation"}  # fmt: skip
    left_out = ("layer_norm_eps", "type_vocab_size", "raw.layer_norm_eps", "raw.type_vocab_size")
    return {names.get(key, key): values for key, values in options.items() if key not in left_out}


def of_text(options: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """The same options of the text half of a multimodal config."""
    found: dict[str, list[Any]] = {}
    for key, values in options.items():
        kind, dot, rest = key.rpartition("raw.")
        whole = key.startswith("make.") or key in ("tie_word_embeddings", "raw.architectures", "raw.dtype")
        found[key if whole else f"{kind}{dot}text.{rest}"] = values
    return found


ROTARY_BERT = {
    **without(BERT, "raw.position_embedding_type"),
    "rope_parameters": [UNSAID, *ROPES],
    "raw.rope_parameters": [UNSAID, DROP, None],
    "raw.rope_scaling": [UNSAID, *SCALINGS],
    "raw.rope_theta": [UNSAID, 300.0],
}
EUROBERT = {
    **without(DECODER, "make.save", "tie_word_embeddings", "raw.partial_rotary_factor"),
    "mlp_bias": [False, True],
    "tie_word_embeddings": [False, True],
    "classifier_pooling": ["late", "bos", "mean"],
    **LABELS,
}


DEBERTA = {
    **without(BERT, "raw.position_embedding_type", "raw.chunk_size_feed_forward"),
    "layer_norm_eps": [1e-7, 1e-5, 1e-3],
    "type_vocab_size": [0, 2, 1],
    "max_position_embeddings": [128, 96],
    "relative_attention": [True, True, True, False],
    "pos_att_type": [["p2c", "c2p"], "p2c|c2p", ["c2p"], "p2c", None],
    "position_biased_input": [False, True],
    "position_buckets": [24, 16, UNSAID, 256],
    "max_relative_positions": [-1, 40, 200],
    "norm_rel_ebd": ["layer_norm", UNSAID, "none"],
    "share_att_key": [True, False, UNSAID],
    "pooler_hidden_act": ["gelu", "tanh"],
    "legacy": [True, False],
    "raw.layer_norm_eps": [UNSAID, DROP],
}
# Sizes and options of T5, under names of its own.
T5_SIZES = {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
            "pad_token_id": 0, "eos_token_id": 1}  # fmt: skip
T5 = {
    "feed_forward_proj": ["relu", "gated-gelu", "gelu", "gated-silu", "gelu_new", "gated-relu"],
    "d_kv": [8, 12, 16],
    "d_ff": [48, 40],
    "num_heads": [4, 2, 1],
    "num_layers": [2, 1, 3],
    "layer_norm_epsilon": [1e-6, 1e-5, 1e-2],
    "relative_attention_num_buckets": [32, 8, 20],
    "relative_attention_max_distance": [128, 20, 50],
    "is_encoder_decoder": [True, False],
    "raw.dense_act_fn": [UNSAID, "silu"],
    "raw.layer_norm_epsilon": [UNSAID, DROP],
    "raw.n_positions": [UNSAID, 16],
    "raw.architectures": [UNSAID, DROP],
    "raw.dtype": [UNSAID, DROP, None],
    "make.dtype": MAKE["make.dtype"],
    **LABELS,
    **pipeline("layer_norm_epsilon"),
}


def encoder_tasks(name: str) -> dict[str, tuple[str, ...]]:
    labels = f"{name}ForSequenceClassification"
    return {
        f"{name}Model": (*EMBEDS, "scores"),
        f"{name}ForMaskedLM": ("hidden", "logits", "vectors"),
        labels: ("labels", "scores"),
        f"{name}ForTokenClassification": ("tags",),
    }


PICTURES = {"image_token_id": 95, "video_token_id": 96, "vision_start_token_id": 97, "vision_end_token_id": 98}
TOWER = {"depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 4}
TOWER |= {"out_hidden_size": 32, "num_position_embeddings": 16}
SEES = ("hidden", "logits", "tokens", "seen")
TOWER_OPTIONS: dict[str, list[Any]] = {
    "vision.hidden_act": ["gelu_pytorch_tanh", *ACTS],
    "vision.depth": [1, 2, 3],
    "vision.num_heads": [2, 1, 4],
    "vision.intermediate_size": [24, 20],
    "vision.patch_size": [4, 2],
    "vision.spatial_merge_size": [2, 1],
    "vision.temporal_patch_size": [2, 1],
    "vision.num_position_embeddings": [16, 9, 20],
    "vision.rope_parameters": [UNSAID, {"rope_type": "axial", "rope_theta": 50.0}, {"rope_theta": 300.0}],
    "raw.vision.hidden_act": [UNSAID, DROP],
    "raw.vision.rope_theta": [UNSAID, 700.0],
}
TAPPED = {"vision.deepstack_visual_indexes": [[0], [], [1], [2, 0]]}
SEEING = without(DECODER, *PIPELINE)
BIDIRECTIONAL = without(DECODER, "make.head", "make.save", "tie_word_embeddings", "raw.architectures")
# Of classes that archport itself does not know, so that a file has to name its architecture.
OUTSIDE = without(DECODER, "raw.architectures", "attention_bias")
GLM4_MOE = {
    **without(OUTSIDE, "num_hidden_layers", "raw.partial_rotary_factor", "rope_parameters"),
    "attention_bias": [False, True],
    "use_qk_norm": [False, True],
    "moe_intermediate_size": [32, 24, 40],
    "num_experts_per_tok": [2, 1, 3],
    "n_shared_experts": [1, 2, 0],
    "n_group": [1, 2, 4],
    "topk_group": [1, 2],
    "routed_scaling_factor": [1.0, 2.5],
    "norm_topk_prob": [True, False],
    "first_k_dense_replace": [1, 0, 2, 3],
    "rope_parameters": [UNSAID, *[{**rope, "partial_rotary_factor": 0.5} for rope in ROPES], *ROPES],
    "raw.partial_rotary_factor": [UNSAID, 1.0, 0.25],
    "raw.routed_scaling_factor": [UNSAID, DROP],
}
GROWING = {"llama_4_scaling_beta": 0.3, "original_max_position_embeddings": 16}
HYBRID_DECODER = {**without(DECODER, "raw.partial_rotary_factor", "num_hidden_layers"), **HYBRID}
HYBRID_DECODER["head_dim"] = [16, 8, 32]
HYBRID_DECODER["rope_parameters"] = [UNSAID, *[{**rope, "partial_rotary_factor": 0.5} for rope in ROPES], *ROPES]
TOWERS = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SHARED = {"shared_expert_intermediate_size": [24, 40]}
NORMED = {"norm_topk_prob": [True, False]}
