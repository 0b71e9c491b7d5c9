"""One token per row and step, after a prefill: the rows' caches, where they stand, and the paths of their layers.

All rows end at one column, so a step writes one column and shorter rows only hide what is in front of them. Knows
nothing of sampling or text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np

from archport.attention import Runner, prepare, sharing
from archport.attention.masks import lowest
from archport.contract import (
    ArchportError,
    ArchSpec,
    AttentionCall,
    AttentionLayer,
    AttentionPath,
    DistanceBias,
    Documents,
    MaskPolicy,
    RecurrentPath,
    Trunk,
)
from archport.contract.deprecation import documents_as_segments
from archport.memory import Caches, KVCache, RecurrentState
from archport.memory.snapshot import PrefixDraft, remember
from archport.planning import BatchPlan, Plan, Planner
from archport.running.context import StateStep, StepKeys, check_softcap, recurrent_path
from archport.running.steps import compiles

# Steps of the same rows before they are compiled, which takes as long as a few of them.
PATIENCE = 8


class Decoding:
    """The rows of a batch after their prefill.

    Args:
        trunk, spec, planner: of the model.
        plan: of the request; its only batch is decoded.
        caches: holding every row's tokens, aligned.
        lengths: tokens of each row.
        positions: where each row's next token stands; its length when left out.
    """

    def __init__(
        self,
        trunk: Trunk,
        spec: ArchSpec,
        planner: Planner,
        plan: Plan,
        caches: Caches,
        lengths: Sequence[int],
        positions: Sequence[int] | None = None,
    ) -> None:
        self._trunk, self._spec, self._planner, self._plan = trunk, spec, planner, plan
        (self._batch,) = plan.batches
        self.caches: Caches = caches
        # Columns written, those in front of each row that are not its own, and the position of its next token.
        self._written = max(lengths)
        self._pads = [self._written - length for length in lengths]
        self._positions = list(lengths if positions is None else positions)
        self._paths = decode_paths(spec, planner, plan, self._batch, len(lengths), padded=any(self._pads))
        # Steps since rows left.
        self._alike = 0

    @property
    def lengths(self) -> list[int]:
        """Tokens that are held of each row."""
        return [self._written - pad for pad in self._pads]

    @property
    def positions(self) -> list[int]:
        """Where the next token of each row stands."""
        return list(self._positions)

    def step(self, tokens: mx.array) -> mx.array:
        """Hidden states (B, 1, D) of the next token (B,) of every row, unevaluated.

        Raises:
            KvCeilingExceeded: before anything is written.
        """
        unused = min(self._pads)
        if unused and self.caches.full:
            # Columns that only longer rows used, which have left: shorter ones have room for as many more tokens.
            self.caches.drop_front(unused)
            self._written -= unused
            self._pads = [pad - unused for pad in self._pads]
        self.caches.check([1] * len(self._pads))
        compiled = self._alike >= PATIENCE and compiles(self._planner.device.kind)
        context = DecodeContext(
            self._plan, self._paths, self.caches, self._positions, self._pads, self._written + 1, compiled=compiled
        )
        hidden = self._trunk(tokens[:, None].astype(mx.int32), context)
        self._written += 1
        self._alike += 1
        self._positions = [at + 1 for at in self._positions]
        return hidden

    def remember(self, draft: PrefixDraft, row: int, ids: np.ndarray) -> None:
        """Have what a row's layers hold of its tokens `ids`, or of all but the last of them, ready for later calls."""
        skip = self._pads[row]
        remember(draft, self.caches, row, skip, ids, tokens=self._written - skip)

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Go on with these rows only, in this order; a row that is named several times goes on as so many."""
        self.caches.keep_rows(rows)
        self._alike = 0
        self._pads = [self._pads[row] for row in rows]
        self._positions = [self._positions[row] for row in rows]
        self._paths = decode_paths(
            self._spec, self._planner, self._plan, self._batch, len(rows), padded=any(self._pads)
        )


class DecodeContext:
    """What layers see of one decoded token per row.

    Args:
        paths: per kind of layer.
        positions: of the new token, per row.
        pads: columns in front of each row that are not its own.
        written: columns with the new one.
        compiled: whether blocks compile what surrounds their attention.
    """

    visual = None
    documents = Documents()
    segments = documents_as_segments()

    def __init__(
        self,
        plan: Plan,
        paths: Sequence[AttentionPath | RecurrentPath],
        caches: Caches,
        positions: list[int],
        pads: list[int],
        written: int,
        *,
        compiled: bool = False,
    ) -> None:
        self._kinds, self._paths, self._caches = plan.layer_kinds, paths, caches
        self._written, self._pads = written, pads
        self._layers: list[Any] = [kind.layer for kind in plan.batches[0].kinds]
        self._keys = StepKeys(self._layers)
        self._at = positions
        uneven = len(set(positions)) > 1
        self._offset: int | mx.array = mx.array(positions, dtype=mx.int32) if uneven else positions[0]
        self.decoding = mx.array(positions, dtype=mx.int32) if compiled else None
        # Layers of one kind share call and mask.
        self._calls: dict[tuple[int, int], tuple[Runner, mx.array | None]] = {}
        self._masks: dict[tuple[object, ...], mx.array] = {}
        self._known_fronts: dict[int, tuple[list[int], bool]] = {}

    @property
    def positions(self) -> mx.array:
        return mx.array(self._at, dtype=mx.int32)[:, None]

    def rotate(
        self, q: mx.array, k: mx.array, rope: Callable[[mx.array, int | mx.array], mx.array]
    ) -> tuple[mx.array, mx.array]:
        return rope(q, self._offset), rope(k, self._offset)

    def pause(self, x: mx.array) -> None:
        """One token per row leaves nothing to be released."""

    def state(self, layer: int, *inputs: mx.array) -> StateStep:
        held = self._caches[layer]
        path = self._paths[self._kinds[layer]]
        return StateStep(recurrent_path(layer, path), held if isinstance(held, RecurrentState) else None)

    def attend(
        self,
        layer: int,
        q: mx.array,
        k: mx.array | None,
        v: mx.array | None,
        *,
        scale: float,
        sinks: mx.array | None = None,
        softcap: float | None = None,
        bias: DistanceBias | None = None,
    ) -> mx.array:
        kind = self._kinds[layer]
        path, spec = self._paths[kind], self._layers[kind]
        cache, reads = self._caches[layer], spec.kv == "shared"
        if not isinstance(path, AttentionPath) or not (reads or isinstance(cache, KVCache)):
            raise ArchportError(f"layer {layer} attends while decoding but keeps no keys; declare it kv='own'")
        check_softcap(layer, path, softcap)
        k, v = self._keys.of(layer, spec, k, v, cache.advance if isinstance(cache, KVCache) else None)
        fronts, even = self._fronts(kind, spec)
        # Columns that no row sees.
        gone = fronts[0] - self._written + k.shape[2] if even else 0
        if gone > 0:
            k, v = k[:, :, gone:], v[:, :, gone:]
        key = (kind, k.shape[2])
        found = self._calls.get(key)
        if found is None:
            found = self._calls[key] = self._call(path, fronts, k.shape[2], q.dtype)
        run, mask = found
        with sharing(self._masks):
            return run(q, k, v, scale=scale, mask=mask, sinks=sinks, bias=bias)

    def _fronts(self, kind: int, layer: AttentionLayer) -> tuple[list[int], bool]:
        """Columns before what each row's token sees, as far as a cache does not cut them off; whether all alike."""
        found = self._known_fronts.get(kind)
        if found is None:
            fronts = self._pads
            if layer.chunk is not None:
                # The first column of the chunk that the token is in.
                fronts = [self._written - 1 - (self._written - 1 - pad) % layer.chunk for pad in self._pads]
            found = self._known_fronts[kind] = fronts, len(set(fronts)) == 1
        return found

    def _call(
        self, path: AttentionPath, fronts: list[int], width: int, dtype: mx.Dtype
    ) -> tuple[Runner, mx.array | None]:
        """What runs the planned call at the keys there are now, and what hides columns in front of short rows."""
        first = self._written - width
        if max(fronts) <= first:
            call = replace(path.call, kv_len=width, mask="none", reach=(None, None), mask_shape=())
            return prepare(replace(path, call=call)), None
        shown = mx.arange(first, self._written)[None] >= mx.array(fronts)[:, None]
        mask = shown[:, None, None]
        if path.call.additive:
            mask = mx.where(mask, mx.array(0, dtype), mx.array(lowest(dtype), dtype))
        call = replace(path.call, kv_len=width, mask_shape=tuple(mask.shape))
        return prepare(replace(path, call=call)), mask


def decode_paths(
    spec: ArchSpec, planner: Planner, plan: Plan, batch: BatchPlan, rows: int, *, padded: bool
) -> tuple[AttentionPath | RecurrentPath, ...]:
    """Per kind of layer the path of one query per row at the fullest cache.

    The plan's own where it holds as it is; rows that left, and columns that are hidden, change the call it is for.
    """
    assert batch.decode is not None
    found: list[Any] = []
    for kind, planned in zip(batch.kinds, batch.decode.paths, strict=True):
        if not isinstance(planned, AttentionPath):
            found.append(planned)
            continue
        layer = kind.layer
        assert isinstance(layer, AttentionLayer)
        width = planned.call.kv_len if layer.reach[0] is None else min(planned.call.kv_len, layer.reach[0] + 1)
        call = AttentionCall.of(
            layer,
            MaskPolicy("dense" if padded else "none"),
            planner.device,
            B=rows,
            q_len=1,
            kv_len=width,
            dtype=plan.dtype,
            limits=planned.call.limits,
        )
        if padded:
            # One row of hidden columns per sequence, handed over: nothing else says that padding lies in front.
            call = replace(call, mask_shape=(rows, 1, 1, width))
        found.append(planned if call == planned.call else planner.choose(call, planner.device))
    return tuple(found)
