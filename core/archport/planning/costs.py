"""What a model weighs, and the constants of time and memory that formulas share. All of it from an ArchSpec alone.

Knows nothing of temporaries, chunks or budgets.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from archport.contract import (
    ArchSpec,
    AttentionLayer,
    DeviceFacts,
    DeviceKind,
    DType,
    LayerSpec,
    Quantization,
    RecurrentLayer,
)
from archport.contract.spec import itemsize
from archport.contract.split import TensorSplit

Layer = TypeVar("Layer", bound=Hashable)
MIB = 2**20

# What evaluating costs, measured on an H200 with 28 layers of 1024, MLP 3072, 128 to 32,768 tokens. Metal: not
# measured, taken as CUDA. CPU: a thread hand-over.
#
# The host spends so long on a layer whatever its size; a layer that the device does faster is bound by the host.
HOST_SECONDS: dict[DeviceKind, float] = {"cuda": 0.17e-3, "metal": 0.17e-3, "cpu": 0.0}
WAIT_SECONDS: dict[DeviceKind, float] = {"cuda": 0.0, "metal": 0.0, "cpu": 0.03e-3}
# With the next stretch already started, waiting is free once a stretch keeps the device busy for so long: 32 x 512
# tokens take 43.3 ms evaluated after every layer and 45.5 ms in one graph, of 2.2 and 11 GB. Smaller stretches are
# bound by the host.
BUSY_SECONDS = 0.12e-3
# Stretches are made at least so long where memory allows: 32 x 128 tokens, 0.25 ms a layer, lost a third to evaluating
# after every layer.
STRETCH_SECONDS = 1e-3
# Layers that a host-bound graph has unfinished at most, however long it is.
HOST_BOUND_LAYERS = 17
# Share of the memory bandwidth that norms, rotations and copies reach; fitted to the same runs.
POINTWISE_BANDWIDTH = 0.4
# Scratch of matrix products and constants that no formula counts.
WORKSPACE: dict[DeviceKind, int] = {"cuda": 32 * MIB, "metal": 0, "cpu": 0}

# Elements below which an activation or a convolution is MLX's own also where the host's functions are there.
HOST_ELEMENTS = 1 << 12


@dataclass(frozen=True, slots=True)
class Weights:
    """Bytes of the weights and of the largest tensor, whether they were estimated, and whether matrices stay packed."""

    total: int
    largest: int
    largest_name: str
    estimated: bool
    packed: bool = True


def element_bytes(dtype: DType, quantization: Quantization | None) -> float:
    """Bytes per matrix element as it lies on the device, scales and biases included."""
    if quantization is None:
        return float(itemsize(dtype))
    if quantization.mode == "affine":
        return quantization.bits / 8 + 2 * 2 / quantization.group_size
    # mxfp4, mxfp8: one scale byte per 32 elements; nvfp4: one per 16.
    return quantization.bits / 8 + 1 / (16 if quantization.mode == "nvfp4" else 32)


def estimate_weights(spec: ArchSpec, dtype: DType, *, packed: bool = True) -> Weights:
    """Bytes of a checkpoint's weights on the device, from its spec alone.

    Args:
        dtype: element type of unquantised weights as they are held.
        packed: whether quantised matrices stay packed; a CPU dequantises them.
    """
    per_element = element_bytes(dtype, spec.quantization if packed else None)
    embedding = spec.vocab_size * spec.hidden_size
    heads = 1 if spec.tied_head else 2
    matrices = embedding * heads + sum(
        matrix_elements(spec, layer, has_experts(spec, index)) for index, layer in enumerate(spec.layers)
    )
    norms = (4 * len(spec.layers) + 1) * spec.hidden_size * itemsize(dtype)
    vision = sum(_vision_matrix_elements(spec, layer) for layer in spec.vision.layers) if spec.vision else 0
    largest, name = embedding, "the embedding matrix"
    if spec.experts is not None:
        stack = spec.experts.count * spec.hidden_size * spec.experts.intermediate_size
        if stack > largest:
            largest, name = stack, "one stack of expert matrices"
    # Vision towers stay unquantised in published checkpoints.
    total = int(matrices * per_element) + norms + vision * itemsize(dtype)
    return Weights(total, int(largest * per_element), name, estimated=True, packed=packed)


def weights_on(spec: ArchSpec, device: DeviceFacts, dtype: DType, budget: int, known: int | None = None) -> Weights:
    """What a model's weights are on a device: packed, unless it is a CPU, which computes faster on unpacked matrices,
    and they fit the budget.

    Args:
        known: their bytes, where they are loaded or counted; estimated from the spec otherwise.
    """
    unpacked = estimate_weights(spec, dtype, packed=False)
    packed = device.kind != "cpu" or unpacked.total > budget
    weights = estimate_weights(spec, dtype, packed=True) if packed else unpacked
    if known is None:
        return weights
    return replace(weights, total=known, largest=min(weights.largest, known), estimated=False)


def has_experts(spec: ArchSpec, index: int) -> bool:
    return spec.experts is not None and index in spec.experts.layers


def mixer_elements(spec: ArchSpec, layer: LayerSpec) -> int:
    """Elements of the matrices around a layer's attention or recurrence."""
    D = spec.hidden_size
    if layer.footprint is not None and layer.footprint.matrices is not None:
        return layer.footprint.matrices
    if isinstance(layer, RecurrentLayer):
        channels, value = recurrent_widths(layer)
        return D * (channels + 2 * value)
    gate = layer.n_heads * layer.v_head_dim if layer.gated else 0
    return D * (
        layer.n_heads * layer.head_dim
        + gate
        + (0 if layer.kv == "shared" else layer.n_kv_heads * sum(layer.kv_widths))
        + layer.n_heads * layer.v_head_dim
    )


def matrix_elements(spec: ArchSpec, layer: LayerSpec, experts: bool) -> int:
    """Elements of all matrices of a layer, every expert counted."""
    D = spec.hidden_size
    if experts and spec.experts is not None:
        e = spec.experts
        mlp = mlp_matrices(spec) * D * (e.count * e.intermediate_size + e.shared_intermediate_size) + D * e.count
    else:
        mlp = mlp_matrices(spec) * D * spec.intermediate_size
    return mixer_elements(spec, layer) + mlp


def active_elements(spec: ArchSpec, layer: LayerSpec, experts: bool) -> int:
    """Elements of the matrices that one token meets in a layer; twice that is its arithmetic."""
    D = spec.hidden_size
    if experts and spec.experts is not None:
        e = spec.experts
        width = e.per_token * e.intermediate_size + e.shared_intermediate_size
    else:
        width = spec.intermediate_size
    return mixer_elements(spec, layer) + mlp_matrices(spec) * D * width


def mlp_matrices(spec: ArchSpec) -> int:
    """Matrices of an MLP, or of one expert."""
    return 3 if spec.gated_mlp else 2


def _vision_matrix_elements(spec: ArchSpec, layer: LayerSpec) -> int:
    assert spec.vision is not None
    h, inner = spec.vision.hidden_size, spec.vision.intermediate_size
    heads = layer.n_heads * layer.head_dim if isinstance(layer, AttentionLayer) else h
    return 4 * h * heads + 2 * h * inner


def kinds_of(layers: Sequence[Layer]) -> tuple[tuple[Layer, ...], tuple[int, ...]]:
    """Distinct values in order of appearance, and the index of each one's own."""
    kinds: dict[Layer, int] = {}
    indices = tuple(kinds.setdefault(layer, len(kinds)) for layer in layers)
    return tuple(kinds), indices


def collective_bytes(spec: ArchSpec, split: TensorSplit, size: int, tokens: int, drawn: int) -> int:
    """Bytes of what the processes of a group sum and gather apart from the layers, which count their own.

    Args:
        size: bytes of an element.
        tokens: of a step, whose rows of the table are summed.
        drawn: rows whose logits are gathered.
    """
    if not split.vocabulary:
        return 0
    padded = -(-spec.vocab_size // split.rank.count) * split.rank.count
    return size * 2 * (tokens * spec.hidden_size + drawn * padded)


def recurrent_widths(layer: RecurrentLayer) -> tuple[int, int]:
    """(projected channels, width of the answer) of a recurrent layer, as it declares them.

    Of one that declares bytes alone they are guessed: Hv x 128 x 128 numbers of state, and taps - 1 rows of its
    channels, all in float32 as a gated delta net keeps them.
    """
    if layer.heads is not None:
        return layer.heads.channels, layer.heads.values
    if layer.channels:
        return layer.channels, layer.values
    tail = layer.conv_bytes // (max(1, layer.conv_taps - 1) * 4)
    if not layer.state_bytes:
        return 3 * max(1, tail), max(1, tail)
    value = max(1, layer.state_bytes // (4 * 128))
    return tail or 3 * value, value
