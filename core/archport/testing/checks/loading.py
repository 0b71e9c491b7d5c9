"""Tiny tier: from files to a module (published, saved again, packed, damaged), and the module against its spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from archport.contract import AttentionLayer, CausalLM, CheckpointError, Trunk
from archport.testing.check import CheckFailed, check, fail, skip
from archport.testing.measure import Tap, as_array, gap, taps
from archport.testing.subject import Tiny


@check("tiny")
def published_checkpoint_loads(t: Tiny) -> str:
    """A checkpoint in the published layout loads through engine.load and computes what its tensors say.

    Give the module the parameter names of published checkpoints, or translate them in `sanitize` (and back in the
    example's `publish`).
    """
    row = t.tokens(t.length(24))
    difference = gap(t.hidden(row), t.hidden(row, trunk=t.bare()))
    if difference > t.limit:
        fail(
            f"the loaded model differs by {difference:.2g} (limit {t.limit:.0e}) from the module filled with the same "
            f"{len(t.published)} tensors: `sanitize` changes values, or `publish` is not its inverse"
        )
    return f"{len(t.published)} tensors, {difference:.1e}"


@check("tiny")
def spec_matches_weights(t: Tiny) -> str:
    """The built module has the declared heads and words, and each attention layer attends once per pass as declared.

    Correct the spec in `archport_claim`, or the index and shapes that the module hands to `ctx.attend`.
    """
    row, found = t.tokens(t.length(12)), list[Tap]()
    hidden = t.hidden(row, wrap=taps(found))
    if hidden.shape != (len(row), t.spec.hidden_size):
        fail(f"hidden states are {hidden.shape}, the spec declares (L={len(row)}, hidden_size={t.spec.hidden_size})")
    calls = found[0].calls
    declared = [index for index, layer in enumerate(t.spec.layers) if isinstance(layer, AttentionLayer)]
    if [call.layer for call in calls] != declared:
        fail(f"ctx.attend was called for layers {[call.layer for call in calls]}; declared are {declared}, once each")
    for call in calls:
        layer = t.spec.layers[call.layer]
        assert isinstance(layer, AttentionLayer)
        shapes = tuple(None if array is None else array.shape for array in (call.q, call.k, call.v))
        # As many as the device makes of them.
        L = max(len(row), call.q.shape[2])
        wanted = (
            (1, layer.n_heads, L, layer.head_dim),
            None if layer.kv == "shared" else (1, layer.n_kv_heads, L, layer.head_dim),
            None if layer.kv in ("shared", "latent") else (1, layer.n_kv_heads, L, layer.v_head_dim),
        )
        if shapes != wanted or (call.sinks is not None) != layer.sinks:
            fail(f"layer {call.layer} attends with q, k, v {shapes}; declared {wanted}, sinks={layer.sinks}")
        if not (np.isfinite(call.scale) and call.scale > 0):
            fail(f"layer {call.layer} scales its scores by {call.scale}; expected a positive number")
    tables = [m.weight.shape for m in cast(Any, t.bare()).modules() if isinstance(m, nn.Embedding)]
    if tables and t.spec.vocab_size not in [shape[0] for shape in tables]:
        fail(f"no embedding has the declared {t.spec.vocab_size} rows; found {tables}")
    heads = ", ".join(f"{q.n_heads}:{q.n_kv_heads} x {q.head_dim}" for _, q in t.attention)
    return f"{len(calls)} layers, {heads}"


@check("tiny")
def saved_model_loads_equal(t: Tiny) -> str:
    """A checkpoint saved under the module's own names, as MLX conversions are, loads to the same values.

    `sanitize` must leave names and values alone that are already the module's own.
    """
    row = t.tokens(t.length(24))
    again = t.load(t.write(t.named("resaved"), t.weights))
    difference = gap(t.hidden(row, trunk=again._runtime.encoder.trunk), t.hidden(row, trunk=t.bare()))
    if difference > t.limit:
        fail(
            f"saved and loaded again it differs by {difference:.2g} (limit {t.limit:.0e}): `sanitize` is not idempotent"
        )
    return f"{difference:.1e}"


@check("tiny")
def damaged_checkpoint_is_refused(t: Tiny) -> str:
    """A missing, misshapen or unknown tensor is refused with its name, never filled in or passed over.

    `sanitize` may rename, reshape and drop tensors it knows; it must not invent, clip or drop unknown ones.
    """
    # A matrix: no derived buffer that a module may do without.
    name = max(t.published, key=lambda each: (t.published[each].ndim, t.published[each].size))
    cases: dict[str, dict[str, mx.array]] = {
        "missing": {key: value for key, value in t.published.items() if key != name},
        "misshapen": {**t.published, name: t.published[name][:-1]},
        "unknown": {**t.published, f"{name.removesuffix('.weight')}.surprise": mx.zeros((3, 5))},
    }
    for case, weights in cases.items():
        try:
            t.load(t.write(t.named(case), weights))
        except CheckpointError as error:
            leaf = ".".join(name.split(".")[-3:-1]) if case != "unknown" else "surprise"
            known = {name, leaf, name.split(".")[-2], *(_renamed(t, weights) if case != "unknown" else ())}
            if not any(part in str(error) for part in known):
                fail(f"the error for a {case} tensor does not name {name}: {str(error)[:160]}")
        else:
            fail(f"a checkpoint with {name} {case} loads without an error ({len(weights)} tensors)")
    return f"{len(cases)} kinds of damage"


def _renamed(t: Tiny, damaged: Mapping[str, mx.array]) -> set[str]:
    """What the module calls the tensors that it makes otherwise of the damaged ones, or not at all."""
    whole, found = (cast(Any, t.build()).sanitize(dict(weights)) for weights in (t.published, damaged))
    return {name for name, value in whole.items() if name not in found or found[name].shape != value.shape}


@check("tiny")
def quantised_round_trip(t: Tiny) -> str:
    """Packed to 8 and 4 bits and saved as MLX conversions are, it loads packed and unpacked to the same values.

    Call linear and embedding modules instead of reading their `.weight`: packed ones hold integers.
    """
    group = 32
    row, worst, count = t.tokens(t.length(24)), 0.0, 0
    for bits in (8, 4):
        module = cast(Any, t.bare())
        packable = {
            path: _packable(part, group) for path, part in module.named_modules() if hasattr(part, "to_quantized")
        }
        count = sum(packable.values())
        if not count:
            skip(f"no matrix of the example has rows in multiples of {group}")
        nn.quantize(module, group_size=group, bits=bits, class_predicate=lambda path, _, p=packable: p.get(path, False))
        weights: dict[str, mx.array] = dict(tree_flatten(module.parameters()))
        dense = dict(t.weights)
        for path in (path for path, packed in packable.items() if packed):
            dense[f"{path}.weight"] = mx.dequantize(
                *(weights[f"{path}.{part}"] for part in ("weight", "scales", "biases")), group_size=group, bits=bits
            )
        stated = {path: False for path, packed in packable.items() if not packed}
        quantization = {"group_size": group, "bits": bits, **stated}
        folder = t.write(t.named(f"{bits}bit"), weights, quantization=quantization)
        unpacked = t.bare(dense)
        want = t.hidden(row, trunk=unpacked)
        words = _words(t, unpacked, want)
        for dtype in ("float32", "checkpoint"):
            # A GPU keeps matrices packed in every type.
            how = "unpacked" if dtype == "float32" and t.model.device.kind == "cpu" else "packed"
            try:
                trunk = t.load(folder, dtype=dtype)._runtime.encoder.trunk
                difference = gap(t.hidden(row, trunk=trunk), want)
                if words is not None:
                    difference = max(difference, gap(_words(t, trunk, want), words))
            # The module meets packed weights here for the first time.
            except Exception as error:
                raise CheckFailed(f"{bits} bits, {how}: {type(error).__name__}: {error}") from error
            worst = max(worst, difference)
            if difference > 10 * t.limit:
                fail(f"{bits} bits, {how}: differs by {difference:.2g} (limit {10 * t.limit:.0e}), {count} matrices")
    return f"{count} matrices, {worst:.1e}"


def _words(t: Tiny, trunk: Trunk, hidden: np.ndarray) -> np.ndarray | None:
    """Logits of hidden states (L, D), and a few rows of the head; None of a model without one."""
    if not t.has_head:
        return None
    head, ids = cast(CausalLM, trunk), [5, 0, t.spec.vocab_size - 1]
    states = hidden.astype(np.float64)
    rows = states @ as_array(head.head_rows(ids)).T
    return np.concatenate([as_array(head.logits(mx.array(hidden[None])))[0], rows], axis=-1)


def _packable(part: Any, group: int) -> bool:
    return part.weight.ndim >= 2 and part.weight.shape[-1] % group == 0
