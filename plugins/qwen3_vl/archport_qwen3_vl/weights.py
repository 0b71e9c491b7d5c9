"""The names and layouts in which Qwen3-VL checkpoints are published, brought to those of the hub's dense files.

Three dialects: the hub's, mlx-community's conversions, and what transformers 5 saves. Knows no module.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from archport.contract import ArchSpec, CheckpointError

if TYPE_CHECKING:
    import mlx.core as mx

# The most specific first: a conversion's `language_model.model.` is not a bare model's `language_model.`.
PREFIXES = (
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("vision_tower.", "model.visual."),
    ("language_model.", "model.language_model."),
    ("visual.", "model.visual."),
)
PATCH = "model.visual.patch_embed.proj.weight"
FUSED = (".experts.gate_up_proj", ".experts.down_proj")


def sanitize(weights: Mapping[str, mx.array], spec: ArchSpec, *, channels: int) -> dict[str, mx.array]:
    """A checkpoint's tensors under the names of the module.

    Raises:
        CheckpointError: expert matrices or a patch embedding of shapes that no dialect has.
    """
    from archport.layers import stack_experts

    found = {_renamed(name): value for name, value in weights.items()}
    if PATCH in found:
        found[PATCH] = _patch_matrix(found[PATCH], channels)
    if spec.experts is not None:
        for index in spec.experts.layers:
            layer = f"model.language_model.layers.{index}.mlp"
            found = _split_experts(stack_experts(found, layer, spec.experts.count), layer, spec)
    return found


def _renamed(name: str) -> str:
    for old, new in PREFIXES:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _patch_matrix(weight: mx.array, channels: int) -> mx.array:
    """A convolution's weight, channels first or last, as a matrix over (channel, frame, row, column)."""
    if weight.ndim == 2:
        return weight
    if weight.ndim != 5:
        raise CheckpointError(f"{PATCH} has shape {weight.shape}; expected (out, C, t, h, w) or (out, t, h, w, C)")
    # Square patches: where rows and columns stand last, channels stand first.
    if weight.shape[1] != channels or weight.shape[3] != weight.shape[4]:
        weight = weight.transpose(0, 4, 1, 2, 3)
    if weight.shape[1] != channels:
        raise CheckpointError(f"{PATCH} has no axis of {channels} channels")
    return weight.reshape(weight.shape[0], -1)


def _split_experts(weights: dict[str, mx.array], layer: str, spec: ArchSpec) -> dict[str, mx.array]:
    """Fused expert matrices as (experts, out, in), whichever way round they are stored."""
    import mlx.core as mx

    assert spec.experts is not None
    names, inner, D = [layer + name for name in FUSED], spec.experts.intermediate_size, spec.hidden_size
    if names[0] not in weights or names[1] not in weights:
        # Already split; what is missing is reported by name.
        return weights
    stored = [weights.pop(name) for name in names]
    expected = [(2 * inner, D), (D, inner)]
    shapes = [tuple(each.shape[1:]) for each in stored]
    if shapes == expected:
        turned = False
    elif shapes == [(b, a) for a, b in expected]:
        turned = True
    else:
        raise CheckpointError(
            f"{names[0]} and {FUSED[1]} hold matrices of {shapes[0]} and {shapes[1]}; expected {expected[0]} and "
            f"{expected[1]}, or both transposed"
        )
    gate_up, down = (each.swapaxes(1, 2) if turned else each for each in stored)
    gate, up = mx.split(gate_up, 2, axis=1)
    for part, value in (("gate", gate), ("up", up), ("down", down)):
        weights[f"{layer}.switch_mlp.{part}_proj.weight"] = value
    return weights


def published(weights: Mapping[str, Any]) -> Mapping[str, Any]:
    """The module's tensors as the hub has them: experts fused and transposed, patches as a convolution."""
    import mlx.core as mx

    found = dict(weights)
    for name in [name for name in found if name.endswith("switch_mlp.gate_proj.weight")]:
        layer = name.removesuffix(".switch_mlp.gate_proj.weight")
        parts = [found.pop(f"{layer}.switch_mlp.{part}_proj.weight") for part in ("gate", "up", "down")]
        found[f"{layer}{FUSED[0]}"] = mx.concatenate(parts[:2], axis=1).swapaxes(1, 2)
        found[f"{layer}{FUSED[1]}"] = parts[2].swapaxes(1, 2)
    patch = found[PATCH]
    side = round((patch.shape[1] / 6) ** 0.5)
    found[PATCH] = patch.reshape(patch.shape[0], 3, 2, side, side)
    return found
