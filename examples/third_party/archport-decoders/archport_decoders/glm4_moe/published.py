"""How GLM-4 MoE's tensors are published, and what they are called here. Knows tensors by name, no module.

The hub has one tensor per expert and matrix; transformers 5 holds (E, 2 W, D), each expert's gate above its up, and
(E, D, W); MLX conversions have them as they are here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import mlx.core as mx
from archport.contract import ArchSpec
from archport.layers import stack_experts

LAYER = re.compile(r"model\.layers\.(\d+)\.")


def renamed(weights: Mapping[str, mx.array], spec: ArchSpec) -> dict[str, mx.array]:
    """The tensors under this module's names, from any of the three layouts, without the layers that draft tokens."""
    found: dict[str, mx.array] = {}
    for name, value in weights.items():
        layer = LAYER.match(name)
        if layer is not None and int(layer[1]) >= len(spec.layers):
            continue
        if ".shared_experts." in name and not value.size:
            # transformers saves the matrices of no shared expert, without a number in them.
            continue
        block, experts, matrix = name.partition(".mlp.experts.")
        if experts and matrix == "gate_up_proj":
            gate, up = mx.split(value, 2, axis=1)
            found[f"{block}.mlp.switch_mlp.gate_proj.weight"] = gate
            found[f"{block}.mlp.switch_mlp.up_proj.weight"] = up
        elif experts and matrix == "down_proj":
            found[f"{block}.mlp.switch_mlp.down_proj.weight"] = value
        else:
            found[name] = value
    for index in spec.experts.layers if spec.experts else ():
        found = stack_experts(found, f"model.layers.{index}.mlp", spec.experts.count)
    return found


def published(weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """The module's tensors as the hub has them: every expert's matrices apart."""
    found: dict[str, mx.array] = {}
    for name, value in weights.items():
        block, stack, leaf = name.partition("switch_mlp.")
        if stack:
            found |= {f"{block}experts.{index}.{leaf}": value[index] for index in range(value.shape[0])}
        else:
            found[name] = value
    return found


def stacked(weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """The module's tensors as transformers 5 holds them."""
    found: dict[str, mx.array] = {}
    for name, value in weights.items():
        block, stack, leaf = name.partition("switch_mlp.")
        if not stack:
            found[name] = value
        elif leaf == "down_proj.weight":
            found[f"{block}experts.down_proj"] = value
        elif leaf == "gate_proj.weight":
            pair = [value, weights[name.replace("gate_proj", "up_proj")]]
            found[f"{block}experts.gate_up_proj"] = mx.concatenate(pair, axis=1)
    return found
