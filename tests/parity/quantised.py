"""A draw's checkpoint as mlx-lm converts it, and mlx-lm's own logits of it: the reference of quantised saves.

Runs in archport's environment, where mlx-lm is. Knows nothing of archport but its door to mlx-lm and its config.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from archport.checkpoint import normalise_config
from archport.device.mlx_lm import reused

SAVES: dict[str, dict[str, Any]] = {
    "affine4": {"bits": 4, "group_size": 32, "mode": "affine"},
    "affine8": {"bits": 8, "group_size": 32, "mode": "affine"},
    "affine6": {"bits": 6, "group_size": 32, "mode": "affine"},
    "mxfp4": {"bits": 4, "group_size": 32, "mode": "mxfp4"},
    "mxfp8": {"bits": 8, "group_size": 32, "mode": "mxfp8"},
    "nvfp4": {"bits": 4, "group_size": 16, "mode": "nvfp4"},
    "mixed": {"bits": 4, "group_size": 32, "mode": "affine"},
}
# The hub's Qwen3-VL-MoE has them the other way round than transformers 5 saves them.
FUSED = (".experts.gate_up_proj", ".experts.down_proj")
# mlx-lm agrees with transformers on what it converts, or it is no reference for the conversion.
AGREES = 1e-3


def load(folder: Path) -> nn.Module:
    """mlx-lm's model of a checkpoint; it knows the classic spelling of a config, and the hub's layout of tensors."""
    config = normalise_config(json.loads((folder / "config.json").read_text()))
    config["model_type"] = config["model_type"].removesuffix("_text")
    for part in (config, config.get("text_config") or {}):
        kinds = part.get("layer_types") or []
        # It knows layers by this number alone, and the ropes of one type of model by this object alone.
        if "linear_attention" in kinds and "full_attention" in kinds:
            part["full_attention_interval"] = kinds.index("full_attention") + 1
        if "qwen3_5" in config["model_type"] and "rope_theta" in part:
            names = ("rope_theta", "partial_rotary_factor")
            part["rope_parameters"] = {**(part.get("rope_scaling") or {}), **{name: part[name] for name in names}}
    if config["model_type"] != "qwen3_vl_moe":
        return reused("utils.load_model")(folder, model_config=config)[0]
    with tempfile.TemporaryDirectory() as place:
        shutil.copytree(folder, place, dirs_exist_ok=True)
        for path in Path(place).glob("model*.safetensors"):
            stored = mx.load(str(path))
            turned = {name: each.swapaxes(1, 2) if name.endswith(FUSED) else each for name, each in stored.items()}
            mx.save_safetensors(str(path), turned, {"format": "pt"})
        return reused("utils.load_model")(Path(place), model_config=config)[0]


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
    """Write a checkpoint as mlx-lm does, quantised; returns the settings of its modules.

    mlx-lm leaves a tower out, which is then stored as mlx-vlm does, not quantised.
    """
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
    _add_tower(source, target)
    config = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "quantization": stated, "quantization_config": stated}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, target)
    return [value for value in stated.values() if isinstance(value, dict)]


def _add_tower(source: Path, target: Path) -> None:
    tower = {
        "vision_tower." + name.partition("visual.")[2]: each.transpose(0, 2, 3, 4, 1) if each.ndim == 5 else each
        for name, each in mx.load(str(source / "model.safetensors")).items()
        if "visual." in name
    }
    if tower:
        mx.save_safetensors(str(target / "vision.safetensors"), tower, {"format": "mlx"})
        index = json.loads((target / "model.safetensors.index.json").read_text())
        index["weight_map"] |= dict.fromkeys(tower, "vision.safetensors")
        (target / "model.safetensors.index.json").write_text(json.dumps(index))
