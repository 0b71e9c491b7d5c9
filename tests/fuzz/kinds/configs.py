"""config.json, or another file of settings, with a few keys changed, dropped or added."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from fuzz.cases import BASES, Seen, copied, edit_json, load, use
from fuzz.values import edited, edits

FILES = True
KEYS = [
    *("architectures", "model_type", "num_hidden_layers", "hidden_size", "vocab_size", "num_experts", "layer_types"),
    *("rope_scaling", "rope_parameters", "rope_theta", "sliding_window", "use_sliding_window", "max_window_layers"),
    *("text_config", "vision_config", "quantization", "quantization_config", "id2label", "label2id", "num_labels"),
    *("eos_token_id", "pad_token_id", "dtype", "torch_dtype", "tie_word_embeddings", "hidden_act", "auto_map"),
    *("is_decoder", "is_causal", "head_dim", "num_key_value_heads", "max_position_embeddings", "mlp_only_layers"),
    *("num_experts_per_tok", "decoder_sparse_step", "partial_rotary_factor", "full_attention_interval"),
    *(
        "initializer_range",
        "attention_dropout",
        "transformers_version",
        "use_cache",
        "classifier_dropout",
        "temperature",
    ),
    *(
        "llm_config",
        "sentence_transformers",
        "sbert_ce_default_activation_function",
        "pruned_heads",
        "deepstack_visual_indexes",
    ),
]

SETTINGS = [
    *("size", "min_pixels", "max_pixels", "patch_size", "merge_size", "temporal_patch_size", "image_mean", "image_std"),
    *(
        "do_resize",
        "do_normalize",
        "do_rescale",
        "rescale_factor",
        "resample",
        "do_convert_rgb",
        "image_processor_type",
    ),
    *("eos_token_id", "temperature", "max_length", "processor_class", "fps", "min_frames", "max_frames", "crop_size"),
]


def cases() -> st.SearchStrategy[Any]:
    settings = st.sampled_from(["preprocessor_config.json", "generation_config.json"])
    return st.one_of(
        *[st.tuples(st.sampled_from(sorted(BASES)), edits(KEYS), st.just("config.json"))] * 5,
        st.tuples(st.sampled_from(["sees", "siglip", "generates"]), edits(SETTINGS), settings),
    )


def run(case: Any, bases: Path, place: Path, seen: Seen) -> None:
    base, changes, file = case
    folder = copied(bases, base, place)
    path = folder / file
    edit_json(path, edited(json.loads(path.read_text()) if path.exists() else {}, changes))
    use(load(folder, seen), seen)
