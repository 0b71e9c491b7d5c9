"""Which class of tokenizer reads a checkpoint, by what its files and its type of model are called. Knows no files."""

from __future__ import annotations

from collections.abc import Mapping

GENERIC = "TokenizersBackend"
_GENERIC_NAMES = frozenset({GENERIC, "PythonBackend", "PreTrainedTokenizer", "PreTrainedTokenizerFast"})
# The class that a type of model is read with where its files name none.
_BY_MODEL: Mapping[str, tuple[str, ...]] = {
    "BertTokenizer": (
        *(
            "align",
            "bark",
            "bert",
            "blip",
            "bros",
            "chinese_clip",
            "convbert",
            "distilbert",
            "electra",
            "ernie",
            "flava",
        ),
        *(
            "git",
            "grounding-dino",
            "layoutlm",
            "megatron-bert",
            "mm-grounding-dino",
            "nomic_bert",
            "squeezebert",
            "tvp",
        ),
        *("vilt", "visual_bert"),
    ),
    "RobertaTokenizer": (
        *("bart", "bridgetower", "clap", "data2vec-text", "ibert", "lilt", "longformer", "mra", "roberta"),
        "roberta-prelayernorm",
    ),
    "MPNetTokenizer": ("mpnet",),
    "CamembertTokenizer": ("camembert",),
    "AlbertTokenizer": ("albert",),
    "CLIPTokenizer": ("clip", "clipseg", "xclip"),
    "DebertaV2Tokenizer": ("deberta-v2",),
    "T5Tokenizer": ("mt5", "t5"),
    "XLMRobertaTokenizer": ("gte", "jina_embeddings_v3", "metaclip_2", "trocr", "xlm-roberta", "xmod"),
    "GemmaTokenizer": (
        *("gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n", "gemma3n_text", "recurrent_gemma", "shieldgemma2"),
        "t5gemma",
    ),
    "Qwen2Tokenizer": (
        *("audioflamingo3", "colqwen2", "internvl", "ovis2", "qwen2", "qwen2_5_omni", "qwen2_5_vl", "qwen2_audio"),
        *("qwen2_moe", "qwen2_vl", "qwen3", "qwen3_asr", "qwen3_moe", "qwen3_next", "qwen3_omni_moe", "qwen3_vl"),
        "qwen3_vl_moe",
    ),
    "Qwen3_5Tokenizer": ("qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_5_text"),
    GENERIC: (
        *(
            "flex_olmo",
            "glm",
            "glm4",
            "glm4_moe",
            "granite",
            "granitemoe",
            "granitemoehybrid",
            "kosmos-2",
            "modernbert",
        ),
        *("modernbert-decoder", "nystromformer", "olmo2", "olmo3", "persimmon", "phi3", "stablelm", "umt5", "arctic"),
        *(
            "xlm-roberta-xl",
            "nemotron",
            "jamba",
            "llava",
            "llava_next",
            "minicpm3",
            "minimax_m2",
            "internlm2",
            "phimoe",
        ),
        *("ernie4_5", "ernie4_5_moe", "vipllava", "smolvlm", "step3_vl", "internlm3"),
    ),
}
# Other names of that class.
_BERTS = frozenset({"ConvBertTokenizer", "ElectraTokenizer", "MobileBertTokenizer", "SqueezeBertTokenizer"})
# Classes that give each token of a pair the number of its text, unless a file says otherwise.
TYPED = frozenset({"BertTokenizer", "DebertaTokenizer", "DebertaV2Tokenizer", "FNetTokenizer"})
# Their published files name a class that is not the one their tokenizer was made with.
_MISNAMED = frozenset({*_BY_MODEL[GENERIC], "qwen2", "qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text", "siglip2"})


def is_generic(stated: str | None) -> bool:
    """Whether a stated class is one that tokenizer.json speaks for."""
    return stated in _GENERIC_NAMES


def class_name(stated: str | None, model_type: str | None, *, remote: bool, byte_level: bool) -> str:
    """The name of the class that reads a checkpoint, without "Fast".

    Args:
        stated: `tokenizer_class` of tokenizer_config.json, else of config.json.
        remote: whether the files name code of their own; it is never run, but the class they state is then kept.
        byte_level: whether tokenizer.json works on bytes.
    """
    registered = next((name for name, types in _BY_MODEL.items() if model_type in types), None)
    stated = stated.removesuffix("Fast") if stated else None
    stated = "BertTokenizer" if stated in _BERTS else stated
    if stated is None:
        return registered or GENERIC
    misnamed = model_type in _MISNAMED
    if not remote:
        if stated == "LlamaTokenizer" and byte_level and not misnamed:
            return GENERIC
        if registered is not None and registered != stated:
            stated = registered if misnamed else stated
            return GENERIC if registered == GENERIC or stated in _GENERIC_NAMES else stated
    return GENERIC if stated in _GENERIC_NAMES else stated
