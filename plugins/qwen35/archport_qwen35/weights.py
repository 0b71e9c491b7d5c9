"""The three published layouts of one model, brought under the trunk's names. Knows names and shapes, and no values."""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx

from archport.contract import ArchSpec, DeltaHeads, RecurrentLayer
from archport.layers import stack_experts

# Vision checkpoints put the language model under a name of its own, each dialect another.
PREFIXES = (
    ("model.language_model.", "model."),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
)
VISION = ("model.visual.", "visual.", "vision_tower.")
PATCH = "visual.patch_embed.proj.weight"
# These are stored as w for a scale of 1 + w, where a checkpoint is not converted.
ZERO_CENTRED = (
    ".input_layernorm.weight",
    ".post_attention_layernorm.weight",
    ".q_norm.weight",
    ".k_norm.weight",
    "model.norm.weight",
)


def renamed(weights: Mapping[str, mx.array], spec: ArchSpec) -> dict[str, mx.array]:
    """A checkpoint's tensors under the trunk's names, without the drafting head, and a tower that nothing declares."""
    found: dict[str, mx.array] = {}
    for name, value in weights.items():
        if name.startswith("mtp.") or ".mtp." in name:
            continue
        if name.startswith(VISION):
            if spec.vision is not None:
                name = "visual." + name.split("visual." if "visual." in name else "vision_tower.", 1)[1]
                found[name] = _patch_matrix(value) if name == PATCH else value
            continue
        for before, after in PREFIXES:
            if name.startswith(before):
                name = after + name.removeprefix(before)
        # A bare trunk is saved without a prefix.
        found[name if name.startswith(("model.", "lm_head.")) else f"model.{name}"] = value
    # A conversion moves the taps of the convolution inwards, and adds the one to its norms in the same pass. Where no
    # convolution tells (none, or of one tap), it adds nothing either.
    converted = any(
        name.endswith("conv1d.weight") and value.shape[-1] == 1 and value.shape[1] != 1 for name, value in found.items()
    )
    if not converted:
        for name, value in found.items():
            if name.endswith("conv1d.weight"):
                found[name] = value.swapaxes(1, 2)
            elif name.endswith(ZERO_CENTRED):
                # In float32, for models that are not rounded afterwards: bfloat16 keeps 8 bits of the sum.
                found[name] = 1.0 + value.astype(mx.float32)
    for index, layer in enumerate(spec.layers):
        if isinstance(layer, RecurrentLayer) and layer.heads is not None:
            _part_projections(found, f"model.layers.{index}.linear_attn", layer.heads)
    if spec.experts is not None:
        for index in spec.experts.layers:
            path = f"model.layers.{index}.mlp"
            _part_experts(found, path)
            found = stack_experts(found, path, spec.experts.count)
    return found


def _part_experts(weights: dict[str, mx.array], path: str) -> None:
    """Experts stored as one stack, gate above up: part them."""
    both, down = (weights.pop(f"{path}.experts.{name}", None) for name in ("gate_up_proj", "down_proj"))
    if both is not None:
        gate, up = mx.split(both, 2, axis=1)
        weights |= {f"{path}.switch_mlp.gate_proj.weight": gate, f"{path}.switch_mlp.up_proj.weight": up}
    if down is not None:
        weights[f"{path}.switch_mlp.down_proj.weight"] = down


def _patch_matrix(weight: mx.array) -> mx.array:
    """A convolution's weight, channels first or last, as a matrix over (channel, frame, row, column)."""
    if weight.ndim == 5:
        # Square patches: where rows and columns stand last, channels stand first.
        if weight.shape[3] != weight.shape[4]:
            weight = weight.transpose(0, 4, 1, 2, 3)
        weight = weight.reshape(weight.shape[0], -1)
    return weight


def _part_projections(weights: dict[str, mx.array], path: str, heads: DeltaHeads) -> None:
    """Qwen3-Next stores q, k, v, z and b, a interleaved by key head: part them, packed rows included."""
    K, D = heads.n_key_heads, heads.key_dim
    V = heads.values // K
    each = heads.n_value_heads // K
    for leaf in ("weight", "scales", "biases"):
        both = weights.pop(f"{path}.in_proj_qkvz.{leaf}", None)
        if both is not None:
            rows = both.reshape(K, 2 * D + 2 * V, -1)
            q, k, v, z = mx.split(rows, [D, 2 * D, 2 * D + V], axis=1)
            parts = [part.reshape(-1, both.shape[-1]) for part in (q, k, v)]
            weights[f"{path}.in_proj_qkv.{leaf}"] = mx.concatenate(parts, axis=0)
            weights[f"{path}.in_proj_z.{leaf}"] = z.reshape(-1, both.shape[-1])
        both = weights.pop(f"{path}.in_proj_ba.{leaf}", None)
        if both is not None:
            rows = both.reshape(K, 2 * each, -1)
            for name, part in zip(("in_proj_b", "in_proj_a"), (rows[:, :each], rows[:, each:]), strict=True):
                weights[f"{path}.{name}.{leaf}"] = part.reshape(-1, both.shape[-1])


def published(weights: Mapping[str, mx.array]) -> Mapping[str, mx.array]:
    """The trunk's tensors as unconverted checkpoints have them, the inverse of `renamed` for text checkpoints."""
    found: dict[str, mx.array] = {}
    for name, value in weights.items():
        if name.endswith("conv1d.weight"):
            found[name] = value.swapaxes(1, 2)
        elif name.endswith(ZERO_CENTRED):
            found[name] = value - 1.0
        else:
            found[name] = value
    return found
