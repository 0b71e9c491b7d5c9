"""What a model weighs, what a token costs, and what stays in flight: every formula that needs no attention path.

All of it from an ArchSpec alone, so a plan needs no weights. Knows nothing of chunks or budgets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from archport.contract import (
    ArchSpec,
    AttentionLayer,
    DeviceFacts,
    DeviceKind,
    DType,
    Experts,
    LayerSpec,
    Quantization,
    RecurrentLayer,
)
from archport.planning.footprints import half_bytes, halves_bytes

Layer = TypeVar("Layer", bound=Hashable)
MIB = 2**20

# Arithmetic rate assumed where a device states none; said in the plan's notes.
UNKNOWN_FLOPS = 1e12

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

# MLX queues at most this many command buffers (tasks) before it waits, whatever the graph holds.
TASKS_IN_FLIGHT = 10


def itemsize(dtype: DType) -> int:
    return 4 if dtype == "float32" else 2


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
        mlp = 3 * D * (e.count * e.intermediate_size + e.shared_intermediate_size) + D * e.count
    else:
        mlp = mlp_matrices(spec) * D * spec.intermediate_size
    return mixer_elements(spec, layer) + mlp


def active_elements(spec: ArchSpec, layer: LayerSpec, experts: bool) -> int:
    """Elements of the matrices that one token meets in a layer; twice that is its arithmetic."""
    D = spec.hidden_size
    if experts and spec.experts is not None:
        e = spec.experts
        return mixer_elements(spec, layer) + 3 * D * (e.per_token * e.intermediate_size + e.shared_intermediate_size)
    return mixer_elements(spec, layer) + mlp_matrices(spec) * D * spec.intermediate_size


def mlp_matrices(spec: ArchSpec) -> int:
    return 3 if spec.gated_mlp else 2


def _vision_matrix_elements(spec: ArchSpec, layer: LayerSpec) -> int:
    assert spec.vision is not None
    h, inner = spec.vision.hidden_size, spec.vision.intermediate_size
    heads = layer.n_heads * layer.head_dim if isinstance(layer, AttentionLayer) else h
    return 4 * h * heads + 2 * h * inner


@dataclass(frozen=True, slots=True)
class LayerClass:
    """Layers that cost the same: equal specs, and both or neither with experts.

    Args:
        kind: index of the spec among the distinct ones.
        count: layers of this class.
        experts: whether its MLP is experts.
        token: temporaries of one token.
        flops: arithmetic of one token, attention excluded.
        matrix_bytes: bytes of the matrices that one token meets.
    """

    kind: int
    count: int
    experts: bool
    token: TokenBytes
    flops: float
    matrix_bytes: int


def kinds_of(layers: Sequence[Layer]) -> tuple[tuple[Layer, ...], tuple[int, ...]]:
    """Distinct values in order of appearance, and the index of each one's own."""
    kinds: dict[Layer, int] = {}
    indices = tuple(kinds.setdefault(layer, len(kinds)) for layer in layers)
    return tuple(kinds), indices


def classes_of(
    spec: ArchSpec, dtype: DType, device: DeviceFacts, weights: Weights
) -> tuple[tuple[LayerClass, ...], tuple[int, ...]]:
    """Distinct layer classes, and the index of each layer's own."""
    kinds, layer_kinds = kinds_of(spec.layers)
    classes, indices = kinds_of([(kind, has_experts(spec, index)) for index, kind in enumerate(layer_kinds)])
    per_element = element_bytes(dtype, spec.quantization if weights.packed else None)
    host = device.kind == "cpu" and device.vector_threads > 0 and dtype == "float32"
    counts, found = Counter(indices), list[LayerClass]()
    for index, (kind, experts) in enumerate(classes):
        elements = active_elements(spec, kinds[kind], experts)
        found.append(
            LayerClass(
                kind=kind,
                count=counts[index],
                experts=experts,
                token=token_bytes(spec, kinds[kind], experts, dtype, device.kind, host=host),
                flops=2.0 * elements,
                matrix_bytes=int(elements * per_element),
            )
        )
    return tuple(found), indices


@dataclass(frozen=True, slots=True)
class TokenBytes:
    """What one token of one layer leaves in memory until the stretch it belongs to was evaluated.

    Args:
        lazy: bytes of all temporaries when the layer runs in one stretch.
        unfused: the same when attention materialises its scores.
        documents: the same when attention runs document by document, without evaluating anything.
        mixed: the same when some documents evaluate what is before them, and others wait for what follows.
        split: bytes in flight when attention evaluates the graph in its middle, so that only one half is.
        held: of those, what is there while such an attention runs.
        carried: bytes that attention reads and what follows it adds to: q, k, v and the residual.
        output: bytes of attention's output.
        part: bytes of the heavier of its projections and its MLP.
        widest: bytes of the largest of them.
        widest_name: what that is.
        fewest: tokens of a step from which on the activation, or a recurrence's convolution, is computed on the host,
            which evaluates what is before it.
        small: bytes with fewer tokens, of which the layer is one stretch, whatever its attention does.
    """

    lazy: int
    unfused: int
    documents: int
    mixed: int
    split: int
    held: int
    carried: int
    output: int
    part: int
    widest: int
    widest_name: str
    fewest: int = 0
    small: int = 0


def token_bytes(
    spec: ArchSpec, layer: LayerSpec, experts: bool, dtype: DType, kind: DeviceKind, *, host: bool = False
) -> TokenBytes:
    """Temporaries of one token in one layer: residuals, norms, projections, heads, MLP.

    Args:
        host: whether attention and activations are computed on the host, as a CPU with vector functions does in
            float32. Each evaluates what is before it, so the two halves of a layer never coexist.

    The counts of arrays are fitted to MLX's peak counter with pre-norm (Qwen3, merged projections) and post-norm (BERT)
    blocks over widths varied one by one: never below the measurement, at most a quarter above it.
    """
    s, D, fewest, small = itemsize(dtype), spec.hidden_size, 0, 0
    inner, mlp_widths = _mlp_bytes(spec, experts, s, kind)
    if isinstance(layer, RecurrentLayer):
        channels, value = recurrent_widths(layer)
        lazy, split, held = recurrent_bytes(layer, D, inner, s, kind)
        unfused = documents = mixed = lazy
        if host and layer.heads is not None:
            small = (10 * D + 4 * channels + 8 * value) * s + inner
            fewest = -(-HOST_ELEMENTS // channels)
        carried, output, part_of_mixer = D * s, value * s, lazy - inner
        mixer_widths = {"the recurrence's fp32 heads": value * 4, "the convolution's channels": channels * s}
    else:
        q, k = layer.n_heads * layer.head_dim, layer.n_kv_heads * layer.head_dim
        out = layer.n_heads * layer.v_head_dim
        # Values that are a part of the keys are not made.
        v = layer.n_kv_heads * layer.v_head_dim if len(layer.kv_widths) == 2 else 0
        gate = out if layer.gated else 0
        # Families without a gate are older than rotary positions and norms of q and k: fewer copies of each.
        modern = spec.gated_mlp
        carried, output = (D + q + k + v) * s, out * s
        part_of_mixer = (2 * D + 3 * (q + k + gate) + 2 * v + out) * s
        if kind == "cpu":
            # An unfused call copies keys and values into rows and spreads them over the query heads.
            unfused = (7 * D + 4 * (q + out + k + v)) * s if modern else (9 * D + 3 * (q + out + k + v)) * s
            split = (8 * D + 2 * (q + out) + 3 * (k + v) // 2) * s
            held = (4 * D + 5 * (q + out) // 2 + 2 * (k + v)) * s
            documents = split + (3 if modern else 2) * (q + out) * s // 2
            lazy = unfused
        else:
            lazy = (8 * D + 3 * q + 2 * (out + k + v)) * s if modern else (6 * D + q + k + v + 2 * out) * s
            unfused = lazy + 2 * (q + out) * s
            # What a GPU was handed is released late, so nothing of a layer is gone when its attention has run.
            documents = split = lazy
            held = lazy + inner
        # The gate lies in the projections until the output is multiplied by its sigmoid.
        lazy, unfused, documents, split = (each + inner + 3 * gate * s for each in (lazy, unfused, documents, split))
        held += gate * s
        mixer_widths = {"the projections of q, k and v": (q + gate + k + v) * s}
        moe = spec.experts if experts else None
        if kind == "cpu" and not host and moe is not None:
            # An expert at a time: their answers and the sorted ones coexist. Over seven shapes 0 to 15 % above MLX.
            more = (q + out + k + v + moe.per_token * D // 2) * s
            lazy, unfused, documents, split = (each + more for each in (lazy, unfused, documents, split))
        mixed = documents
        if host:
            attention, whole = _host_floats(spec, layer, moe)
            small = max(unfused, whole * s)
            lazy = split = whole * s
            held = attention * s
            # Documents that MLX's own calls run wait for the activation: until then their inputs, the output, a copy
            # of it for the projection, its sum, a norm before the MLP and its first product are all there; copies
            # that norms of q and k made are gone.
            before = 0 if moe else (2 if modern else 1) * spec.intermediate_size
            waiting = attention + out + (2 if modern else 1) * D + before - (q + k if spec.qk_norm else 0)
            documents = max(whole, waiting) * s
            if modern and not moe:
                # Of one call, keys and values are spread over the query heads.
                unfused = min(unfused, max(whole, waiting + q + out) * s)
            # Evaluated once, q, k and v have left nothing behind but the product that v lies in.
            waiting = 3 * D + 2 * (q + k + out) + v + before
            mixed = max(whole, waiting) * s
            fewest = 0 if moe else -(-HOST_ELEMENTS // spec.intermediate_size)
        elif kind == "cpu" and not experts:
            # Heads far wider than the model were not among the fitted shapes; their halves weigh at least this.
            split, documents = (max(each, _host_floats(spec, layer)[1] * s) for each in (split, documents))
            if s == 2 and not modern:
                # So does its LayerNorm: over ten BERT shapes the peak is 2 to 3 % above the measurement.
                lazy, unfused, split = (each + 8 * D * s for each in (lazy, unfused, split))
                documents = unfused
            elif s == 2:
                apart, together = (floats * s + inner + gate * s for floats in _sixteen_bit_floats(spec, layer))
                split = max(split, apart)
                lazy, unfused, documents = (max(each, together) for each in (lazy, unfused, documents))
    widths = {"hidden states": D * s, **mixer_widths, **mlp_widths}
    name = max(widths, key=lambda key: widths[key])
    own = layer.footprint
    if own is not None and (own.mixer is not None or own.mlp is not None):
        # A half of archport's is what splitting a layer takes it for, and on a CPU no less than what attention holds.
        if kind == "cpu" and isinstance(layer, AttentionLayer):
            part_of_mixer = max(part_of_mixer, held - D * s)
        mixer, mlp = (
            half_bytes(usual // s if declared is None else declared, s, kind)
            for declared, usual in ((own.mixer, part_of_mixer), (own.mlp, inner + 3 * D * s))
        )
        # Its input, which its caller holds as well, and what the half before ended in.
        sizes = halves_bytes(3 * D * s, mixer, mlp, carried - D * s + output, apart=host)
        return TokenBytes(
            **sizes,
            carried=carried,
            output=output,
            widest=widths[name],
            widest_name=name,
            fewest=fewest,
            small=sizes["lazy"],
        )
    return TokenBytes(
        lazy=lazy,
        unfused=unfused,
        documents=documents,
        mixed=max(mixed, split) if host else documents,
        split=split,
        held=held,
        carried=carried,
        output=output,
        part=max(part_of_mixer, inner + 3 * D * s),
        widest=widths[name],
        widest_name=name,
        fewest=fewest,
        small=small,
    )


def _mlp_bytes(spec: ArchSpec, experts: bool, s: int, kind: DeviceKind) -> tuple[int, dict[str, int]]:
    """(bytes of the temporaries inside the MLP, the widest of them by name) of one token."""
    if experts and spec.experts is not None:
        e, D = spec.experts, spec.hidden_size
        wide = e.per_token * e.intermediate_size + e.shared_intermediate_size
        # Each token is copied to its experts and their answers are gathered again.
        total = 3 * wide * s + 2 * e.per_token * D * s + 8 * e.count
        if e.biases and kind != "cpu":
            # On a CPU an expert's tokens meet its biases one expert at a time.
            total += e.per_token * (2 * e.intermediate_size + D) * s
        copies, gate = e.per_token * D * s, 2 * e.per_token * e.intermediate_size * s
        return total, {"the experts' inputs": copies, "the experts' gate and up": gate}
    if spec.gated_mlp:
        return 3 * spec.intermediate_size * s, {"gate and up": 2 * spec.intermediate_size * s}
    # CUDA's activations are kernels of our own, which MLX does not let write over what they read.
    inside = 2 if kind == "cuda" else 1
    return inside * spec.intermediate_size * s, {"the MLP's inside": spec.intermediate_size * s}


def _host_floats(spec: ArchSpec, layer: AttentionLayer, experts: Experts | None = None) -> tuple[int, int]:
    """Floats of one token where attention and activations evaluate by themselves: (while attention runs, at most).

    Fitted like the others, over 50 Qwen3 and 12 BERT shapes: at most 4 % below the measurement, which the plan's margin
    covers, and where D is not far above the heads' widths at most a fifth above it.
    """
    D, inner = spec.hidden_size, spec.intermediate_size
    q, k = layer.n_heads * layer.head_dim, layer.n_kv_heads * layer.head_dim
    out, v = layer.n_heads * layer.v_head_dim, layer.n_kv_heads * layer.v_head_dim
    # Rotated in a quarter of each head; the gate's sigmoid waits for the output.
    gated = (5 * D + 11 * (q + (k + v) // 2)) // 2 if layer.gated else 0
    if experts is not None:
        # One expert at a time; then all answers as they came, in order, and weighted.
        attention = gated or 3 * D + 4 * (q + k) + out + v
        answers = 3 * experts.per_token * D + max(experts.intermediate_size, 3 * experts.shared_intermediate_size)
        return attention, max(attention, 3 * D + q + k + v + answers)
    if layer.gated:
        return gated, max(gated, 4 * D + 2 * (out + inner), 3 * (D + inner))
    if spec.gated_mlp and not spec.qk_norm:
        # Over 36 Llama, Qwen2 and ModernBERT shapes the plan is up to 34 % above the measurement.
        attention = 2 * D + 4 * (q + k) + out + v
        return attention, max(attention, 4 * D + 2 * q + out + 3 * k + v + 3 * inner)
    if spec.gated_mlp:
        # q and k are copied by their norms and by the rotation, from a product that v keeps alive.
        attention = 3 * D + max(0, D - q - k) + 5 * (q + k) + out + v
        return attention, max(attention, 4 * D + 2 * q + out + 3 * k + v + 3 * inner)
    attention = 5 * D + q + k + v + out
    return attention, max(attention, 4 * D + 2 * inner)


def _sixteen_bit_floats(spec: ArchSpec, layer: AttentionLayer) -> tuple[int, int]:
    """Numbers of one token, MLP excluded, of a block with a gated MLP in 16 bits: (attention evaluates, it does not).

    MLX's norms, rotations and biases of 16 bits pass through float32 on a CPU, each in arrays of its own. Counted by
    varying widths one by one with the host as far ahead as it gets: 3 to 25 % above that over Qwen3, Llama, ModernBERT
    and Gemma shapes of three kinds.
    """
    D, q, kv = spec.hidden_size, layer.n_heads * layer.head_dim, layer.n_kv_heads * (layer.head_dim + layer.v_head_dim)
    if not spec.qk_norm:
        wide = (33 * D + 9 * q + 13 * kv) // 2
        return wide, wide
    # A spec does not say how many norms a block has. Gemma has four: the bidirectional family with norms of its heads.
    norms = (30 if spec.semantics == "bidirectional" else 17) * D + 7 * q + 7 * kv // 2
    return max(norms, 9 * D + (41 * q + 22 * kv) // 4), max(norms, 17 * D + 11 * q + 11 * kv // 2)


def in_flight_cap(device: DeviceFacts, widest: int, dtype: DType) -> int:
    """Bytes of temporaries that MLX has unfinished at most, however long the graph is.

    It queues ten command buffers and closes one when its operations touched enough: 1,000 MiB on large CUDA cards,
    50 x 2^20 elements on Metal. One operation more always fits in. A CPU queues ten tasks of ten operations.

    Args:
        widest: bytes of the largest temporary.
    """
    if device.kind == "cuda":
        return TASKS_IN_FLIGHT * (1000 * MIB + widest)
    if device.kind == "metal":
        return TASKS_IN_FLIGHT * (50 * MIB * itemsize(dtype) + widest)
    return TASKS_IN_FLIGHT * 10 * widest


def rate(device: DeviceFacts, dtype: DType) -> float:
    """Sustained arithmetic per second; the assumed one where the device states none."""
    return device.flops.get(dtype) or min((value for value in device.flops.values() if value), default=UNKNOWN_FLOPS)


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


def recurrent_bytes(layer: RecurrentLayer, D: int, inner: int, s: int, kind: DeviceKind) -> tuple[int, int, int]:
    """Bytes of one token's temporaries in a recurrent layer: (in one graph, outside its rule, while its rule runs).

    Args:
        D, inner: model width, and bytes of the temporaries inside the MLP.
        s: bytes per element.

    Fitted like attention's on a CPU, with the convolution on the host; elsewhere counted and not measured.
    """
    channels, value = recurrent_widths(layer)
    keys = (channels - value) // 2
    if layer.heads is None:
        # Projections and convolution in the model's type; q, k, v, gates and output per value head in fp32.
        wide = 6 * value * 4 if layer.state_bytes else 0
        total = (8 * D + 3 * channels + 3 * value) * s + wide + inner
        return total, total, total
    if kind == "cpu":
        # In 16 bits the convolution's taps are products of their own, in float32, and q, k and v are widened.
        wide = 0 if s == 4 else 4
        convolution = (2 * D + 2 * (channels + value)) * s + 3 * channels * wide
        held = (7 * D // 2 + channels + value + 3 * keys) * s + channels * wide
        split = max(convolution, 4 * D * s + inner)
        return max(split, held + 2 * value * 4), split, held
    total = (8 * D + 3 * channels + 5 * value + 3 * keys) * s + inner
    return total, total, total
