"""How gpt-oss's experts are published, and what they are called here. Knows tensors by name, no module.

transformers stores one matrix (E, D, 2 W) whose even columns are gates and odd ones up, and (E, W, D); OpenAI's files
the transposed ones in mxfp4, as `_blocks` of bytes and `_scales`; MLX conversions have them apart, as they are here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import mlx.core as mx

LEAVES = {"": "weight", "_blocks": "weight", "_scales": "scales", "_bias": "bias"}
FUSED = re.compile(r"(.*\.mlp\.)experts\.(gate_up_proj|down_proj)(|_blocks|_scales|_bias)")
APART = re.compile(r"(.*\.mlp\.)(router|experts)\.(.*)")
OURS = {"router": "gate", "experts": "switch_mlp"}


def renamed(weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """The tensors under this module's names, from any of the three layouts."""
    found: dict[str, mx.array] = {}
    for name, value in weights.items():
        fused = FUSED.fullmatch(name)
        if fused is None:
            apart = APART.fullmatch(name)
            found[name if apart is None else f"{apart[1]}{OURS[apart[2]]}.{apart[3]}"] = value
            continue
        block, part, leaf = fused.groups()
        if leaf == "":
            value = value.swapaxes(-1, -2)
        elif leaf == "_blocks":
            # (E, rows, groups, 16) bytes, two numbers in each: eight of them are one word of MLX's.
            value = value.view(mx.uint32).flatten(-2)
        path = f"{block}switch_mlp."
        if part == "down_proj":
            found[f"{path}down_proj.{LEAVES[leaf]}"] = value
        else:
            found[f"{path}gate_proj.{LEAVES[leaf]}"] = value[:, ::2]
            found[f"{path}up_proj.{LEAVES[leaf]}"] = value[:, 1::2]
    return found


def published(weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """The module's tensors as transformers stores them: the inverse of `renamed`."""
    found = dict[str, mx.array]()
    for name, value in weights.items():
        block, _, leaf = name.partition("switch_mlp.")
        if not leaf:
            found[name.replace(".mlp.gate.", ".mlp.router.")] = value
        elif leaf.startswith("down_proj."):
            found[f"{block}experts.{_stored(leaf)}"] = _turned(leaf, value)
        elif leaf.startswith("gate_proj."):
            pair = mx.stack([value, weights[name.replace("gate_proj", "up_proj")]], axis=2)
            found[f"{block}experts.{_stored(leaf).replace('gate', 'gate_up')}"] = _turned(leaf, pair.flatten(1, 2))
    return found


def _stored(leaf: str) -> str:
    return leaf.removesuffix(".weight").replace(".bias", "_bias")


def _turned(leaf: str, value: mx.array) -> mx.array:
    return value.swapaxes(-1, -2) if leaf.endswith(".weight") else value
