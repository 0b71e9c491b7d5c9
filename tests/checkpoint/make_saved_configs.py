"""Record what transformers writes for classic configs, into saved_configs.json. Run by hand, with transformers 5.

    python tests/checkpoint/make_saved_configs.py

`test_config.py` checks that both spellings normalise to the same thing.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import transformers
from transformers import CONFIG_MAPPING

SIZES = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96, "vocab_size": 128}
MROPE = {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
LLAMA3 = {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 1024}
GEMMA = {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window": 512, "sliding_window_pattern": 6}
MODERNBERT = {"global_rope_theta": 160000.0, "local_rope_theta": 10000.0, "global_attn_every_n_layers": 3}
GDN_ROPE = {"rope_theta": 1e7, "partial_rotary_factor": 0.25, "mrope_section": [11, 11, 10], "rope_type": "default"}


def wrapper(model_type: str, tied: bool, **text: object) -> dict:
    """A multimodal config of the given family."""
    return {
        "model_type": model_type,
        "tie_word_embeddings": tied,
        "text_config": {"model_type": f"{model_type}_text", **SIZES, **text},
        "vision_config": {"model_type": model_type, "depth": 2},
    }


CLASSIC = {
    "qwen3": {"model_type": "qwen3", **SIZES, "num_hidden_layers": 4, "rope_theta": 1e6, "torch_dtype": "bfloat16"},
    "qwen3 yarn": {"model_type": "qwen3", "rope_theta": 1e6, "rope_scaling": YARN},
    "qwen3 bidirectional": {"model_type": "qwen3", **SIZES, "is_causal": False},
    "qwen3_moe": {"model_type": "qwen3_moe", "num_experts": 8, "norm_topk_prob": True, "rope_theta": 1e6},
    "gemma3_text": {"model_type": "gemma3_text", "num_hidden_layers": 7, "use_bidirectional_attention": True, **GEMMA},
    "modernbert": {"model_type": "modernbert", "num_hidden_layers": 7, "local_attention": 128, **MODERNBERT},
    "llama3": {"model_type": "llama", "rope_theta": 5e5, "rope_scaling": {**LLAMA3, "rope_type": "llama3"}},
    "bert": {"model_type": "bert", "num_hidden_layers": 2},
    "xlm-roberta": {"model_type": "xlm-roberta", "num_hidden_layers": 2},
    "qwen3_vl": wrapper("qwen3_vl", True, rope_theta=5e6, rope_scaling=MROPE),
    "qwen3_vl_moe": wrapper("qwen3_vl_moe", False, rope_theta=5e6, rope_scaling=MROPE, num_experts=8),
    "qwen3_5": wrapper("qwen3_5", False, num_hidden_layers=8, full_attention_interval=4, rope_parameters=GDN_ROPE),
    "qwen3_5_moe": wrapper("qwen3_5_moe", False, num_hidden_layers=4, num_experts=8, rope_parameters=GDN_ROPE),
}


def main() -> None:
    pairs = {}
    for name, classic in CLASSIC.items():
        # The class changes dicts that it is given.
        config = CONFIG_MAPPING[classic["model_type"]].from_dict(copy.deepcopy(classic))
        pairs[name] = {"classic": classic, "saved": json.loads(config.to_json_string(use_diff=True))}
    target = Path(__file__).with_name("saved_configs.json")
    target.write_text(json.dumps({"transformers": transformers.__version__, "pairs": pairs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
