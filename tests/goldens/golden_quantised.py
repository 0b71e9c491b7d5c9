"""Record the quantised Qwen3 checkpoints: transformers in float32 on the weights that the packed files stand for.

Unpacks MLX's layouts with numpy alone, so the golden and an engine that calls mlx share no code. Knows nothing of how
the files were made; quantise.py did that.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden_qwen3 import greedy, hidden_rows, last_logits, notes_for, rows_for
from recording import HERE, SHORT_LENGTHS, relative_error, write_golden
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

# 4-bit floats: sign, two exponent bits, one mantissa bit, in the order of their codes.
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def unpack(words: np.ndarray, bits: int) -> np.ndarray:
    """Return the codes of (rows, words) uint32 as (rows, words * 32 / bits), the lowest bits first."""
    stream = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little")
    return stream.reshape(words.shape[0], -1, bits) @ (1 << np.arange(bits))


def e4m3(codes: np.ndarray) -> np.ndarray:
    """Return the values of 8-bit floats with four exponent bits (bias 7) and three of mantissa."""
    sign, exponent, mantissa = codes >> 7, (codes >> 3) & 15, (codes & 7).astype(np.float32)
    normal = (1 + mantissa / 8) * np.exp2(exponent.astype(np.float32) - 7)
    return np.where(sign, -1, 1) * np.where(exponent > 0, normal, mantissa / 8 * np.float32(2**-6))


def dequantise(raw: dict[str, torch.Tensor], settings: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return every weight as float32 under its own name, `.scales` and `.biases` used up.

    A module is packed when it has scales; its bits and group are its own entry in settings or the default. Scales and
    biases are widened to float32 before they multiply.
    """
    weights = {}
    for name, value in raw.items():
        path = name.removesuffix(".weight")
        if name.endswith((".scales", ".biases")):
            continue
        if f"{path}.scales" not in raw:
            weights[name] = value.float()
            continue
        own = settings | settings.get(path, {})
        # Stacked experts are so many matrices below each other.
        codes = unpack(value.flatten(0, -2).numpy(), own["bits"])
        scales = raw[f"{path}.scales"].flatten(0, -2)
        if own["mode"] == "nvfp4":
            steps = e4m3(scales.numpy()).astype(np.float32).repeat(own["group_size"], axis=1)
            full = E2M1[codes] * steps
        elif own["mode"] == "mxfp4":  # scales are powers of two, stored as exponent + 127
            steps = np.exp2(scales.numpy().astype(np.float32) - 127).repeat(own["group_size"], axis=1)
            full = E2M1[codes] * steps
        else:
            steps = scales.float().numpy().repeat(own["group_size"], axis=1)
            biases = raw[f"{path}.biases"].flatten(0, -2).float().numpy()
            full = codes.astype(np.float32) * steps + biases.repeat(own["group_size"], axis=1)
        weights[name] = torch.from_numpy(full).unflatten(0, value.shape[:-1])
    return weights


def transformers_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the weights of stacked experts under transformers' names: gate above up in one tensor."""
    named = {}
    for name, value in weights.items():
        layer, stacked, part = name.partition(".switch_mlp.")
        if not stacked:
            named[name] = value
        elif part == "gate_proj.weight":
            up = weights[f"{layer}.switch_mlp.up_proj.weight"]
            named[f"{layer}.experts.gate_up_proj"] = torch.cat([value, up], dim=1)
        elif part == "down_proj.weight":
            named[f"{layer}.experts.down_proj"] = value
    return named


def record_one(folder: Path, *, logits: bool) -> None:
    """Write golden.npz, texts.json and golden.json of one quantised checkpoint.

    Args:
        logits: whether last logits and greedy tokens are recorded too.
    """
    config = json.loads((folder / "config.json").read_text())
    settings = config.pop("quantization")
    config.pop("quantization_config")
    weights = dequantise(load_file(folder / "model.safetensors"), settings)
    experts = "num_experts" in config
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**config)) if experts else Qwen3ForCausalLM(Qwen3Config(**config))
    model.eval().load_state_dict(transformers_names(weights), strict=experts)
    model.tie_weights()
    rows = rows_for(Tokenizer.from_file(str(folder / "tokenizer.json")), SHORT_LENGTHS)
    hidden = hidden_rows(model.model, rows)
    arrays = {f"hidden_{i}": array for i, array in enumerate(hidden)}
    if experts:
        model.config._experts_implementation = "eager"  # the grouped product knows no float64
        exact = hidden_rows(model.model.double(), rows)
        model.float()
        notes: dict[str, Any] = {
            "attention_implementation": model.config._attn_implementation,
            "dtype": "float32",
            "float32_vs_float64": max(relative_error(a, b) for a, b in zip(hidden, exact, strict=True)),
        }
    else:
        notes = notes_for(model.model, rows, hidden)
    if logits:
        arrays |= {f"logits_{i}": array for i, array in enumerate(last_logits(model, rows))}
        made = [greedy(model, row["ids"]) for row in rows]
        arrays |= {f"greedy_{i}": np.asarray(tokens, np.int32) for i, (tokens, _) in enumerate(made)}
        notes["narrowest_greedy_gap"] = {i: gap for i, (_, gap) in enumerate(made)}
        print(folder.name, "gaps", notes["narrowest_greedy_gap"])
    notes["weights"] = "dequantised to float32, scales and biases widened first"
    write_golden(folder, rows, arrays, notes)
    print(f"{folder.name}: {len(rows)} rows, float32 vs float64 {notes['float32_vs_float64']:.1e}")


def record() -> None:
    """Record all of them."""
    for name in ("qwen3-4bit", "qwen3-6bit", "qwen3-mxfp4", "qwen3-nvfp4", "qwen3-moe-4bit"):
        record_one(HERE / name, logits=name.endswith("4bit"))
