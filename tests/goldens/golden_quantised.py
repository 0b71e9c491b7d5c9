"""Record the quantised Qwen3 checkpoints: transformers in float32 on the weights that the packed files stand for.

Unpacks MLX's layouts with numpy alone, so the golden and an engine that calls mlx share no code. Knows nothing of how
the files were made; quantise.py did that.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden_qwen3 import hidden_rows, notes_for, rows_for
from recording import HERE, SHORT_LENGTHS, write_golden
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import Qwen3Config, Qwen3Model

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
        codes = unpack(value.numpy(), own["bits"])
        scales = raw[f"{path}.scales"]
        if own["mode"] == "nvfp4":
            steps = e4m3(scales.numpy()).astype(np.float32).repeat(own["group_size"], axis=1)
            full = E2M1[codes] * steps
        elif own["mode"] == "mxfp4":  # scales are powers of two, stored as exponent + 127
            steps = np.exp2(scales.numpy().astype(np.float32) - 127).repeat(own["group_size"], axis=1)
            full = E2M1[codes] * steps
        else:
            steps = scales.float().numpy().repeat(own["group_size"], axis=1)
            full = codes.astype(np.float32) * steps + raw[f"{path}.biases"].float().numpy().repeat(own["group_size"], 1)
        weights[name] = torch.from_numpy(full)
    return weights


def record_one(folder: Path) -> None:
    """Write golden.npz, texts.json and golden.json of one quantised checkpoint."""
    config = json.loads((folder / "config.json").read_text())
    settings = config.pop("quantization")
    config.pop("quantization_config")
    weights = dequantise(load_file(folder / "model.safetensors"), settings)
    model = Qwen3Model(Qwen3Config(**config)).eval()
    model.load_state_dict({name.removeprefix("model."): value for name, value in weights.items()}, strict=True)
    rows = rows_for(Tokenizer.from_file(str(folder / "tokenizer.json")), SHORT_LENGTHS)
    hidden = hidden_rows(model, rows)
    notes = notes_for(model, rows, hidden)
    notes["weights"] = "dequantised to float32, scales and biases widened first"
    write_golden(folder, rows, {f"hidden_{i}": array for i, array in enumerate(hidden)}, notes)
    print(f"{folder.name}: {len(rows)} rows, float32 vs float64 {notes['float32_vs_float64']:.1e}")


def record() -> None:
    """Record all of them."""
    for name in ("qwen3-4bit", "qwen3-6bit", "qwen3-mxfp4", "qwen3-nvfp4"):
        record_one(HERE / name)
