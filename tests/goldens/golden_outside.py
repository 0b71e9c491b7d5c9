"""Record what transformers computes for the architectures that tests/outside claims: tiny, random, float32.

The configs are those of the plugins' own examples. Knows no mlx: the modules that hold them import none of it.
"""

import sys
from typing import Any

import numpy as np
import torch
from recording import HERE, randomise
from safetensors.torch import save_file
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    MPNetConfig,
    MPNetModel,
)

LENGTHS = (1, 5, 33, 100, 200)
NEW = 24


def configs() -> dict[str, dict[str, Any]]:
    """The examples' configs by folder, read without archport: their modules are text with dictionaries in it."""
    import ast

    found: dict[str, dict[str, Any]] = {}
    wanted = {"gemma2": "CONFIG", "encoders": "MPNET", "decoders": ("LLAMA4", "DEEPSEEK")}
    for module, names in wanted.items():
        tree = ast.parse((HERE.parent / "outside" / f"{module}.py").read_text())
        space: dict[str, Any] = {}
        for node in tree.body:
            if isinstance(node, ast.Assign):
                exec(compile(ast.Module([node], []), module, "exec"), space)
        for name in (names,) if isinstance(names, str) else names:
            found["gemma2" if name == "CONFIG" else name.lower()] = space[name]
    return found


@torch.no_grad()
def record(name: str, model: torch.nn.Module, config: dict[str, Any], seed: int) -> None:
    """Write the weights, hidden states of rows of every length and, of a decoder, what follows the longest."""
    folder = HERE / "outside" / name
    folder.mkdir(parents=True, exist_ok=True)
    model = model.eval()
    randomise(model, seed, {"q_proj": 2.0, "k_proj": 2.0, "attn.q.": 2.0, "attn.k.": 2.0})
    dice = torch.Generator().manual_seed(seed)
    trunk = getattr(model, "model", model)
    arrays: dict[str, np.ndarray] = {}
    for length in LENGTHS:
        ids = torch.randint(3, config["vocab_size"], (1, length), generator=dice)
        arrays[f"ids_{length}"] = ids[0].numpy().astype(np.int32)
        arrays[f"hidden_{length}"] = trunk(ids).last_hidden_state[0].numpy()
    if trunk is not model:
        ids = torch.from_numpy(arrays[f"ids_{LENGTHS[-1]}"][:60]).long()[None]
        for _ in range(NEW):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
        arrays["tokens"] = ids[0].numpy().astype(np.int32)
    np.savez_compressed(folder / "golden.npz", **arrays)
    tensors = {key: value.contiguous() for key, value in model.state_dict().items()}
    if config.get("tie_word_embeddings"):
        tensors.pop("lm_head.weight", None)
    save_file(tensors, folder / "model.safetensors")


def main() -> None:
    made = configs()
    eager = {"attn_implementation": "eager"}
    record("gemma2", Gemma2ForCausalLM(Gemma2Config(**made["gemma2"], **eager)), made["gemma2"], 1)
    record("mpnet", MPNetModel(MPNetConfig(**made["mpnet"])), made["mpnet"], 2)
    record("llama4", Llama4ForCausalLM(Llama4TextConfig(**made["llama4"], **eager)), made["llama4"], 3)
    record("deepseek", DeepseekV3ForCausalLM(DeepseekV3Config(**made["deepseek"], **eager)), made["deepseek"], 4)


if __name__ == "__main__":
    sys.exit(main())
