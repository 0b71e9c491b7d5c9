"""config.json with a few keys changed, dropped or added."""

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


def cases() -> st.SearchStrategy[Any]:
    return st.tuples(st.sampled_from(sorted(BASES)), edits(KEYS))


def run(case: Any, bases: Path, place: Path, seen: Seen) -> None:
    base, changes = case
    folder = copied(bases, base, place)
    path = folder / "config.json"
    edit_json(path, edited(json.loads(path.read_text()), changes))
    use(load(folder, seen), seen)
