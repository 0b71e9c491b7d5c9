"""Record transformers' RoPE frequencies and gains for published kinds of `rope_scaling`, as rope_tables.json.

Needs torch and transformers (the `goldens` dependency group); tests read only the file.
"""

import json
from pathlib import Path

import transformers
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "original_max_position_embeddings": 32768}
CASES = [
    # Llama 3.1, Llama 3.2, a tiny one that has pairs in all three ranges.
    (128, 500000.0, {**LLAMA3, "factor": 8.0, "original_max_position_embeddings": 8192}),
    (64, 500000.0, {**LLAMA3, "factor": 32.0, "original_max_position_embeddings": 8192}),
    (16, 10000.0, {**LLAMA3, "factor": 4.0, "original_max_position_embeddings": 64}),
    # Qwen's published yarn, DeepSeek's two scales, a given attention factor, an untruncated ramp, no stretch at all.
    (128, 1000000.0, {**YARN, "factor": 4.0}),
    (64, 10000.0, {**YARN, "factor": 40.0, "original_max_position_embeddings": 4096, "mscale": 1.0, "beta_fast": 16}),
    (64, 10000.0, {**YARN, "factor": 40.0, "mscale": 0.707, "mscale_all_dim": 1.0}),
    (64, 10000.0, {**YARN, "factor": 2.0, "attention_factor": 1.5}),
    (32, 10000.0, {**YARN, "factor": 8.0, "original_max_position_embeddings": 512, "truncate": False}),
    (32, 10000.0, {**YARN, "factor": 1.0}),
]


def main() -> None:
    rows = []
    for dims, theta, scaling in CASES:
        config = LlamaConfig(
            hidden_size=dims, num_attention_heads=1, head_dim=dims, rope_parameters={"rope_theta": theta, **scaling}
        )
        frequencies, gain = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, "cpu")
        rows.append(
            {"dims": dims, "theta": theta, "scaling": scaling, "frequencies": frequencies.tolist(), "gain": gain}
        )
    table = {"transformers": transformers.__version__, "rows": rows}
    Path(__file__).with_name("rope_tables.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
