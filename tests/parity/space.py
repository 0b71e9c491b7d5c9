"""The config space that parity draws from: per family, what a checkpoint is by default and what else each key may be.

Pure data and a seeded draw. Knows no library: both environments read it. An option's name says where it goes:
    hidden_act            a key of the config class
    text.hidden_act       the same of a part
    raw.rope_scaling      an edit of the saved config.json; DROP takes the key out
    make.head             what is done to the checkpoint: see `MAKE`
The first value of an option is the default; nothing of it is said to the config class where it is `UNSAID`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

DROP, UNSAID = "<drop>", "<unsaid>"
# make.head: "as saved", or an output head beside the tied matrix: "its own" or "a copy"
# make.dtype: element type of the stored tensors
# make.save: how mlx-lm quantises the checkpoint afterwards
# make.pooling, make.normalize, make.dense: of a pipeline of sentence-transformers around the trunk
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


@dataclass(frozen=True, slots=True)
class Family:
    """One family of checkpoints.

    Args:
        model_type: of the config class.
        tasks: architecture class -> what it is asked for: `hidden`, `logits`, `tokens`, `labels`.
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


@dataclass(frozen=True, slots=True)
class Draw:
    """One checkpoint: a family, an architecture, its options that are not the default, and the seed of its values.

    `longest` is the tokens of its longest row, where its positions allow as many.
    """

    family: str
    architecture: str
    seed: int
    options: Mapping[str, Any]
    longest: int = 60

    def without(self, name: str) -> Draw:
        """The same with one option as it is by default."""
        rest = {key: value for key, value in self.options.items() if key != name}
        return Draw(self.family, self.architecture, self.seed, rest, self.longest)


VOCABULARY = 99


def word(index: int) -> str:
    """The text of a vocabulary id. No word begins another: a special token is found inside words, too."""
    return f"t{index:02d}"


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
GENERATES = ("hidden", "logits", "tokens")
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
}
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
PIPELINE: dict[str, list[Any]] = {
    "make.pooling": ["mean", "cls", "max", "lasttoken", "weightedmean", "mean_sqrt_len_tokens"],
    "make.normalize": [False, True],
    "make.dense": [None, "Tanh", "Identity", "ReLU", "GELU", "Sigmoid"],
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
    **PIPELINE,
    **MAKE,
}


def without(options: Mapping[str, list[Any]], *names: str) -> dict[str, list[Any]]:
    return {key: values for key, values in options.items() if key not in names}


def of_text(options: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """The same options of the text half of a multimodal config."""
    found: dict[str, list[Any]] = {}
    for key, values in options.items():
        kind, dot, rest = key.rpartition("raw.")
        whole = key.startswith("make.") or key in ("tie_word_embeddings", "raw.architectures", "raw.dtype")
        found[key if whole else f"{kind}{dot}text.{rest}"] = values
    return found


def encoder_tasks(name: str) -> dict[str, tuple[str, ...]]:
    labels = f"{name}ForSequenceClassification"
    return {f"{name}Model": ("hidden", "vectors"), f"{name}ForMaskedLM": ("hidden", "logits"), labels: ("labels",)}


PICTURES = {"image_token_id": 95, "video_token_id": 96, "vision_start_token_id": 97, "vision_end_token_id": 98}
TOWER = {"depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 4}
TOWER |= {"out_hidden_size": 32, "num_position_embeddings": 16}
SEES = (*GENERATES, "seen")
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
SEEING = without(DECODER, "make.save")
BIDIRECTIONAL = without(DECODER, "make.head", "make.save", "tie_word_embeddings", "raw.architectures")
HYBRID_DECODER = {**without(DECODER, "raw.partial_rotary_factor", "num_hidden_layers"), **HYBRID}
HYBRID_DECODER["head_dim"] = [16, 8, 32]
HYBRID_DECODER["rope_parameters"] = [UNSAID, *[{**rope, "partial_rotary_factor": 0.5} for rope in ROPES], *ROPES]
TOWERS = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SHARED = {"shared_expert_intermediate_size": [24, 40]}
NORMED = {"norm_topk_prob": [True, False]}

FAMILIES: dict[str, Family] = {
    "qwen3": Family("qwen3", {"Qwen3Model": ("hidden",), "Qwen3ForCausalLM": GENERATES}, SIZES, {**DECODER, **WINDOWS}),
    "qwen3-moe": Family(
        "qwen3_moe",
        {"Qwen3MoeModel": ("hidden",), "Qwen3MoeForCausalLM": GENERATES},
        SIZES,
        {**DECODER, **without(WINDOWS, "max_window_layers"), **EXPERTS, **NORMED},
    ),
    "qwen3-next": Family(
        "qwen3_next",
        {"Qwen3NextModel": ("hidden",), "Qwen3NextForCausalLM": GENERATES},
        SIZES,
        {**HYBRID_DECODER, **EXPERTS, **SHARED, **NORMED},
        zero_centred=True,
    ),
    "qwen3.5": Family(
        "qwen3_5_text",
        {"Qwen3_5TextModel": ("hidden",), "Qwen3_5ForCausalLM": GENERATES},
        SIZES,
        HYBRID_DECODER,
        zero_centred=True,
    ),
    "qwen3.5-moe": Family(
        "qwen3_5_moe_text",
        {"Qwen3_5MoeTextModel": ("hidden",), "Qwen3_5MoeForCausalLM": GENERATES},
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
        of_text(without(HYBRID_DECODER, "raw.rope_parameters", "make.save"))
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
            **PIPELINE,
        },
    ),
    "embeddinggemma": Family(
        "gemma3_text",
        {"Gemma3TextModel": ("hidden",)},
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
        },
        zero_centred=True,
    ),
    "llama-bidirec": Family(
        "llama",
        {"LlamaModel": ("hidden",)},
        {**SIZES, "is_causal": False},
        {**BIDIRECTIONAL, "mlp_bias": [False, True]},
        claimed=("llama_bidirec", "LlamaBidirectionalModel"),
    ),
    # Its text half: the published code puts the same blocks behind a tower.
    "llama-nemotron-vl": Family(
        "llama",
        {"LlamaModel": ("hidden",)},
        {**SIZES, "is_causal": False},
        without(BIDIRECTIONAL, "make.dtype", "raw.dtype"),
        claimed=("llama_nemotron_vl", "LlamaNemotronVLModel"),
    ),
    "qwen3-bidirectional": Family(
        "qwen3",
        {"Qwen3Model": ("hidden",)},
        {**SIZES, "is_causal": False},
        BIDIRECTIONAL,
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
# An option is something else than its default so often.
OFTEN = 0.22


def draws(family: str, seed: int, count: int) -> list[Draw]:
    """`count` draws of a family; the first has every option as it is by default."""
    about, found = FAMILIES[family], list[Draw]()
    for index in range(count):
        dice = random.Random(f"{family} {seed} {index}")
        options: dict[str, Any] = {}
        for name, values in about.options.items():
            if len(values) > 1 and dice.random() < OFTEN and index:
                options[name] = dice.choice(values[1:])
        found.append(Draw(family, dice.choice(list(about.tasks)), 1000 * seed + index, options))
    return found


def config_of(draw: Draw) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """(keys of the config class, edits of the saved file, what is done to the checkpoint) of a draw."""
    about = FAMILIES[draw.family]
    config: dict[str, Any] = {
        key: dict(value) if isinstance(value, dict) else value for key, value in about.base.items()
    }
    raw: dict[str, Any] = {}
    make: dict[str, Any] = {}
    for name, values in about.options.items():
        value = draw.options.get(name, values[0])
        kind, _, rest = name.partition(".")
        if kind in ("raw", "make"):
            (raw if kind == "raw" else make)[rest] = value
        elif value != UNSAID:
            (config[f"{kind}_config"] if rest else config)[rest or name] = value
    return config, {key: value for key, value in raw.items() if value != UNSAID}, make


def lengths_of(seed: int, longest: int) -> list[int]:
    """Tokens of the rows that a draw is asked for: ragged, with one of a single token."""
    dice = random.Random(seed)
    return [1, *(dice.randint(2, longest) for _ in range(3)), longest]
