"""Build a tiny random Llama 3 with torch and record what transformers computes from it in float32 on a CPU.

    python tests/record_golden.py       # needs torch, transformers and tokenizers; writes tests/golden/

Weights are stored as float32. Every norm is moved off its trivial value, attention is far from uniform, and rows are
longer than `original_max_position_embeddings`, so that a forgotten part shows.
"""

import json
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaModel

FOLDER = Path(__file__).with_name("golden")
VOCABULARY = 131
LENGTHS = (1, 2, 31, 100, 257)
ROPE = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
SHAPE = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 320,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCABULARY,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}


@torch.no_grad()
def perturbed(model: LlamaModel, seed: int = 5) -> LlamaModel:
    """Fill every parameter: norms 1 + 0.3 N, matrices N / sqrt(fan_in), queries and keys sharper."""
    dice = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=dice)
        if parameter.ndim == 1:
            parameter.copy_(1 + 0.3 * noise)
        elif "embed" in name:
            parameter.copy_(noise)
        else:
            gain = 1.7 if "q_proj" in name or "k_proj" in name else 1.0
            parameter.copy_(gain * noise / parameter.shape[-1] ** 0.5)
    return model.eval()


@torch.no_grad()
def hidden(model: LlamaModel, ids: np.ndarray) -> np.ndarray:
    return model(input_ids=torch.tensor(ids)[None]).last_hidden_state[0].numpy()


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    model = perturbed(LlamaModel(LlamaConfig(**SHAPE, rope_parameters={"rope_theta": 10000.0, **ROPE})))
    dice = np.random.default_rng(7)
    rows = [dice.integers(0, VOCABULARY, length, dtype=np.int64) for length in LENGTHS]
    found = [hidden(model, row) for row in rows]

    plain = LlamaModel(LlamaConfig(**SHAPE, rope_parameters={"rope_theta": 10000.0, "rope_type": "default"})).eval()
    plain.load_state_dict(model.state_dict())
    unstretched = np.abs(hidden(plain, rows[-1]) - found[-1]).max() / np.abs(found[-1]).max()
    assert unstretched > 1e-2, f"the golden would not notice that rope_scaling is ignored: {unstretched}"

    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, FOLDER / "model.safetensors")
    # The classic spelling of the hub; transformers 5 itself would write `rope_parameters`.
    config = {
        "architectures": ["LlamaModel"],
        "model_type": "llama",
        **SHAPE,
        "rope_theta": 10000.0,
        "rope_scaling": ROPE,
        "torch_dtype": "float32",
    }
    (FOLDER / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    words = {f"w{index}": index for index in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(FOLDER / "tokenizer.json"))
    arrays = {f"ids_{index}": row.astype(np.int32) for index, row in enumerate(rows)}
    arrays |= {f"hidden_{index}": rows_hidden for index, rows_hidden in enumerate(found)}
    np.savez_compressed(FOLDER / "golden.npz", **arrays)
    print(f"{len(rows)} rows, transformers {transformers.__version__}, unstretched differs by {unstretched:.2g}")


if __name__ == "__main__":
    main()
