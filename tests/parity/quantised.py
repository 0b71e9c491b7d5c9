"""A draw's checkpoint as mlx-lm converts it, and mlx-lm's own logits of it: the reference of quantised saves.

Runs in archport's environment, where mlx-lm is. Knows nothing of archport but its door to mlx-lm and its config.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from archport.checkpoint import normalise_config
from archport.layers.mlx_lm import reused

SAVES: dict[str, dict[str, Any]] = {
    "affine4": {"bits": 4, "group_size": 32, "mode": "affine"},
    "affine8": {"bits": 8, "group_size": 32, "mode": "affine"},
    "affine6": {"bits": 6, "group_size": 32, "mode": "affine"},
    "mxfp4": {"bits": 4, "group_size": 32, "mode": "mxfp4"},
    "mxfp8": {"bits": 8, "group_size": 32, "mode": "mxfp8"},
    "nvfp4": {"bits": 4, "group_size": 16, "mode": "nvfp4"},
    "mixed": {"bits": 4, "group_size": 32, "mode": "affine"},
}
# mlx-lm agrees with transformers on what it converts, or it is no reference for the conversion.
AGREES = 1e-3


def load(folder: Path) -> nn.Module:
    """mlx-lm's model of a checkpoint; it reads the classic spelling of a config only."""
    config = normalise_config(json.loads((folder / "config.json").read_text()))
    return reused("utils.load_model")(folder, model_config=config)[0]


def logits(model: nn.Module, ids: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [np.array(model(mx.array(row[None]))[0].astype(mx.float32)) for row in ids]


def agrees(folder: Path, expected: Mapping[str, np.ndarray], ids: Sequence[np.ndarray]) -> bool:
    """Whether mlx-lm computes what transformers does before anything is quantised."""
    try:
        found = logits(load(folder), ids)
    except Exception:
        return False
    pairs = [(each, expected[f"logits_{index}"]) for index, each in enumerate(found)]
    return all(float(np.abs(each - want).max()) <= AGREES * float(np.abs(want).max()) for each, want in pairs)


def convert(source: Path, target: Path, save: str) -> list[dict[str, Any]]:
    """Write a checkpoint as mlx-lm does, quantised; returns the settings of its modules."""
    settings = SAVES[save]
    model = load(source)
    model.set_dtype(mx.float32)
    stated: dict[str, Any] = dict(settings)

    def choose(path: str, module: nn.Module) -> bool | dict[str, Any]:
        width = module.weight.shape[-1] if hasattr(module, "to_quantized") else 0
        # Routers are kept in 8 bits by mlx-lm's own recipe; `mixed` has another width in some, and none in others.
        eight = {"bits": 8, "group_size": 32, "mode": "affine"}
        if not width or width % 32 or (save == "mixed" and path.endswith("k_proj")):
            return False
        if path.endswith(("mlp.gate", "shared_expert_gate")) or (save == "mixed" and path.endswith("v_proj")):
            stated[path] = eight
            return eight
        return True

    nn.quantize(model, **settings, class_predicate=choose)
    target.mkdir()
    reused("utils.save_model")(target, model)
    config = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "quantization": stated, "quantization_config": stated}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, target)
    return [value for value in stated.values() if isinstance(value, dict)]
