"""Tiny tier: what tokens really see. Perturbation per layer and end to end, and every path against float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np

from archport.contract import ArchSpec, AttentionCall, AttentionLayer, AttentionLimits
from archport.contract.attention import missing_features
from archport.contract.masks import mask_policies
from archport.contract.spec import kv_sources
from archport.testing.check import check, fail, skip
from archport.testing.measure import Attended, PackedContext, Tap, as_array, gap, reference, taps, visible
from archport.testing.subject import Tiny

# Below this a change counts as none, relative to the largest value.
STILL = 1e-6


def observing_length(t: Tiny) -> int:
    """Tokens at which a window of the spec can be seen to end, if the example has positions for them."""
    reaches = [side for layer in t.spec.attention_layers for side in layer.reach if side]
    return t.length(max(24, *(2 * reach + 8 for reach in reaches), 0))


def captured(t: Tiny, length: int, seed: int = 0) -> dict[int, Attended]:
    """What each layer hands to attend for one random row, without what the device pads it by."""
    found: list[Tap] = []
    t.hidden(t.tokens(length, seed), wrap=taps(found))
    calls = {call.layer: call.first(length) for call in found[0].calls}
    sources = kv_sources(t.spec.layers)
    for index, call in calls.items():
        layer, at = t.spec.layers[index], sources[index]
        if at is not None and at != index:
            calls[index] = call = replace(call, k=calls[at].k, v=calls[at].v)
        if isinstance(layer, AttentionLayer) and call.k is not None and call.v is None:
            calls[index] = replace(call, v=call.k[..., : layer.v_head_dim])
    return calls


@check("tiny")
def declared_mask_is_observed(t: Tiny) -> str:
    """Changing a token moves exactly the outputs that the declared semantics and reaches let it move.

    Mix tokens only through `ctx.attend`, and declare each layer's semantics and reach as the checkpoint was trained.
    """
    L = observing_length(t)
    for j in (L // 2, 1, L - 2):
        may = _reachable(t.spec, L)[j]
        row = t.tokens(L)
        other = row.copy()
        other[j] = (row[j] + 1) % t.spec.vocab_size
        before, after = t.hidden(row), t.hidden(other)
        moved = np.abs(after - before).max(axis=-1) / np.abs(before).max()
        leaked = np.flatnonzero((moved > STILL) & ~may)
        if len(leaked):
            i = int(leaked[moved[leaked].argmax()])
            fail(
                f"declared {_words(t.spec)}, but changing token {j} of {L} moved output {i} by {moved[i]:.3g} "
                f"(limit {STILL:.0e}); {len(leaked)} outputs moved that can't see it"
            )
        deaf = np.flatnonzero((moved <= STILL) & _surely(t.spec, L)[j])
        if len(deaf):
            fail(
                f"declared {_words(t.spec)}, but changing token {j} of {L} did not move output {deaf[0]} "
                f"(moved {moved[deaf[0]]:.3g}); {len(deaf)} outputs are deaf to it"
            )
    return f"{_words(t.spec)}, L={L}"


def _words(spec: ArchSpec) -> str:
    reaches = sorted({str(layer.reach) for layer in spec.attention_layers if layer.is_windowed})
    return spec.semantics + (f" with reach {', '.join(reaches)}" if reaches else "")


def _layer_masks(spec: ArchSpec, L: int) -> Iterator[np.ndarray]:
    for layer in spec.layers:
        # A recurrent layer reads left to right.
        yield visible(layer, L, L) if isinstance(layer, AttentionLayer) else np.tri(L, dtype=bool)


def _reachable(spec: ArchSpec, L: int) -> np.ndarray:
    """(token, output): whether any path through all layers leads from the one to the other."""
    total = np.eye(L, dtype=bool)
    for seen in _layer_masks(spec, L):
        total = (seen.astype(np.float32) @ total.astype(np.float32)) > 0
    return total.T


def _surely(spec: ArchSpec, L: int) -> np.ndarray:
    """(token, output): whether a single layer leads from the one to the other, so that the influence is no rounding."""
    return np.any([seen for seen in _layer_masks(spec, L)], axis=0).T


def moved_by_key(tap: Tap, call: Attended, k: mx.array, at: int) -> np.ndarray:
    """How far each row (L,) of a layer's attention moves when the key and value at one position change, relatively."""
    bump = mx.zeros((1, 1, k.shape[2], 1)).at[:, :, at].add(1.0).astype(k.dtype)
    v = None if call.v is None else call.v + 2 * bump
    largest = np.abs(as_array(k if call.v is None else call.v)).max()
    out = tap.inner.attend(call.layer, call.q, k + bump, v, scale=call.scale, sinks=call.sinks, bias=call.bias)
    return np.abs(as_array(out) - as_array(call.out)).max(axis=(0, 1, 3)) / largest


@check("tiny", hook="archport_claim")
def each_layer_sees_its_reach(t: Tiny) -> str:
    """In every layer the planned attention lets a key reach exactly the rows within the layer's declared reach.

    A backend or mask policy that the plugin pins must keep the reach; drop the pin to see whether it is the cause.
    """
    if not t.attention:
        skip("no attention layer is declared")
    L = observing_length(t)
    unseen: list[str] = []
    kinds = dict(t.attention)
    told: list[str] = []

    def again(tap: Tap, call: Attended) -> None:
        layer = kinds.get(call.layer)
        if layer is None or call.k is None:
            # What reads another layer's keys has its reach, which is looked at there.
            return
        at = L // 2
        moved = moved_by_key(tap, call, call.k, at)[:L]
        want = visible(layer, L, L)[:, at]
        wrong = np.flatnonzero((moved > STILL) != want)
        if len(wrong):
            i = int(wrong[0])
            verb = "moved" if moved[i] > STILL else "did not move"
            fail(
                f"layer {call.layer} is declared {layer.semantics} with reach {layer.reach}, but key {at} of {L} "
                f"{verb} row {i} ({i - at:+d}; by {moved[i]:.3g}); {len(wrong)} rows are wrong"
            )
        if layer.is_windowed and want.all():
            unseen.append(f"reach {layer.reach} is longer than the example's {L} positions")
        rows = np.flatnonzero(want) - at
        told.append(f"layer {call.layer}: rows {rows.min():+d} to {rows.max():+d}")

    t.hidden(t.tokens(L), wrap=taps([], again))
    if unseen:
        fail(f"{unseen[0]}, so its end can't be seen; give the example a smaller window or more positions")
    return f"{'; '.join(told)} of L={L}"


@check("tiny", hook="archport_sdpa_backends")
def backends_agree(t: Tiny) -> str:
    """Every attention backend that accepts a layer's call computes it like float64, whole, cached and decoding.

    A backend must refuse in `reasons_against` what it can't compute.
    """
    if not t.attention:
        skip("no attention layer is declared")
    L, worst, count, names = observing_length(t), 0.0, 0, set[str]()
    calls = captured(t, L)
    tight = AttentionLimits(transient_bytes=4 * 4 * L, chunk_threshold=8, chunk_size=16)
    for index, layer in t.attention:
        got = calls[index]
        for q_len in dict.fromkeys((L, 5, 1)):
            q = got.q[:, :, L - q_len :]
            want = reference(q, got.k, got.v, got.scale, visible(layer, q_len, L), got.sinks, layer.softcap, got.bias)
            policy = mask_policies(layer, q_len=q_len, kv_len=L)[0]
            for limits in (AttentionLimits(), tight):
                call = AttentionCall.of(
                    layer, policy, t.planner.device, B=1, q_len=q_len, kv_len=L, dtype="float32", limits=limits
                )
                for backend in _backends(t):
                    if missing_features(backend, call) or backend.reasons_against(call, t.planner.device):
                        continue
                    price = backend.price(call, t.planner.device)
                    more = {} if got.bias is None else {"bias": got.bias}
                    out = backend.run(call, price, q, got.k, got.v, scale=got.scale, sinks=got.sinks, **more)
                    difference = gap(out, want)
                    worst, count = max(worst, difference), count + 1
                    names.add(backend.name)
                    if difference > t.limit:
                        fail(
                            f"backend {backend.name!r} differs by {difference:.2g} (limit {t.limit:.0e}) from float64 "
                            f"for layer {index}, {q_len} queries on {L} keys, mask {policy.kind}"
                        )
    return f"{count} calls of {', '.join(sorted(names))}, {worst:.1e}"


def _backends(t: Tiny) -> tuple[Any, ...]:
    from archport.loading import path_chooser

    return path_chooser(t.hooks).backends


@check("tiny")
def packed_documents_do_not_leak(t: Tiny) -> str:
    """Documents packed one behind another in a row come out as each does alone.

    Take positions from `ctx.positions` and rotate with `ctx.rotate`; never count tokens in the module. Where
    something passes from token to token, `ctx.documents.age` says where it must not.
    """
    documents = [t.tokens(length, seed) for seed, length in enumerate((11, 5, 17))]
    context = PackedContext(t.spec.layers, [len(d) for d in documents], replace(t.planner, dtype="float32"))
    packed = as_array(t.trunk(mx.array(np.concatenate(documents)[None]), context))[0]
    worst, start = 0.0, 0
    for index, document in enumerate(documents):
        difference = gap(packed[start : start + len(document)], t.hidden(document))
        worst, start = max(worst, difference), start + len(document)
        if difference > t.limit:
            fail(f"packed document {index} of {len(document)} tokens differs by {difference:.2g} (limit {t.limit:.0e})")
    return f"{len(documents)} documents, {worst:.1e}"
