"""Build a tiny Qwen2 with windowed layers and record what transformers computes from it.

The guide for plugin authors ends with a Qwen2; this is what its hidden states are held against.
"""

import shutil
from typing import Any

import torch
from golden_qwen3 import hidden_rows, save_tokenizer, train_tokenizer
from recording import HERE, SHORT_LENGTHS, randomise, relative_error, write_golden, write_json
from safetensors.torch import save_file
from transformers import Qwen2Config, Qwen2Model

# One layer that sees everything, two that see 24 tokens; biases on q, k and v; classic Hub spelling.
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2Model"],
    "model_type": "qwen2",
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "hidden_act": "silu",
    "use_sliding_window": True,
    "sliding_window": 24,
    "max_window_layers": 1,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
}


def record() -> None:
    """Write qwen2-windowed: no prefix, tied, float32, windows on the last two layers, rows of random ids."""
    folder = HERE / "qwen2-windowed"
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer = train_tokenizer(append_endoftext=False)
    save_tokenizer(tokenizer, folder)
    config = CONFIG | {"vocab_size": tokenizer.get_vocab_size()}
    write_json(folder / "config.json", config)
    model = Qwen2Model(Qwen2Config(**config)).eval()
    randomise(model, 21, {"q_proj": 1.7, "k_proj": 1.7})
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors")

    dice = torch.Generator().manual_seed(22)
    rows = [
        {"length": n, "ids": torch.randint(0, config["vocab_size"], (n,), generator=dice).tolist()}
        for n in SHORT_LENGTHS
    ]
    hidden = hidden_rows(model, rows)
    wide = Qwen2Model(Qwen2Config(**config | {"use_sliding_window": False})).eval()
    wide.load_state_dict(model.state_dict())
    wrong = {"no window": relative_error(hidden_rows(wide, rows)[-1], hidden[-1])}
    for name, parameter in model.named_parameters():
        if name.endswith("layers.0.self_attn.k_proj.bias"):
            kept = parameter.detach().clone()
            parameter.data.zero_()
            wrong["no bias on k"] = relative_error(hidden_rows(model, rows)[-1], hidden[-1])
            parameter.data.copy_(kept)
    assert min(wrong.values()) > 1e-3, wrong
    notes = {"attention_implementation": model.config._attn_implementation, "dtype": "float32", "wrong_engines": wrong}
    write_golden(folder, rows, {f"hidden_{i}": array for i, array in enumerate(hidden)}, notes)
    print(f"qwen2-windowed: {len(rows)} rows, {wrong}")
