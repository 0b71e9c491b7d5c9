"""The layer context of one planned step: it owns the caches, the positions and the order of evaluation.

Every decision was made in the plan; here each layer's call finds its path and runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import mlx.core as mx

from archport.attention import Runner, prepare, sharing
from archport.contract import (
    ArchportError,
    AttentionLayer,
    AttentionPath,
    DistanceBias,
    Documents,
    InputError,
    LayerSpec,
    RecurrentPath,
    VisualRows,
)
from archport.contract.deprecation import documents_as_segments
from archport.device.evaluation import Stretches, traced
from archport.layers.norm_rotate import NormRotate
from archport.memory import Caches, KVCache, RecurrentState
from archport.planning import BatchPlan, Plan, StepPlan
from archport.running.pool import packed_positions
from archport.running.vision import BatchVisual

KeysValues = tuple[mx.array, mx.array]


class StepKeys:
    """Whose keys and values later layers of the step read again, and those.

    Args:
        kinds: distinct specs of the model's layers.
    """

    def __init__(self, kinds: Iterable[LayerSpec]) -> None:
        self._read = {kind.kv_group for kind in kinds if isinstance(kind, AttentionLayer) and kind.kv == "shared"}
        # What the last layer of each group has handed over.
        self._kept: dict[str | None, KeysValues] = {}

    def of(
        self,
        index: int,
        layer: AttentionLayer,
        k: mx.array | None,
        v: mx.array | None,
        write: Callable[[mx.array, mx.array | None], tuple[mx.array, mx.array | None]] | None,
    ) -> KeysValues:
        """All that layer number `index` may attend to.

        Args:
            k, v: what the layer hands over: nothing where it reads another layer's, k alone where it holds the values.
            write: puts the new tokens behind what is cached and returns both; None where nothing is cached.

        Raises:
            InputError: the layer hands over what its spec does not say.
        """
        if layer.kv == "shared":
            if k is not None or v is not None:
                raise InputError(
                    f"layer {index} is declared to read the keys and values of an earlier layer (kv_group="
                    f"{layer.kv_group!r}), but hands over its own; hand over None for both"
                )
            if layer.kv_group not in self._kept:
                raise ArchportError(
                    f"layer {index} reads the keys of kv_group={layer.kv_group!r}, of which no layer has attended in "
                    "this step"
                )
            return self._kept[layer.kv_group]
        if k is None or (v is None) != (layer.kv == "latent"):
            raise InputError(
                f"layer {index} is declared kv={layer.kv!r} and hands over {'no' if k is None else 'its'} keys and "
                f"{'no' if v is None else 'its'} values; expected {'keys alone' if layer.kv == 'latent' else 'both'}"
            )
        cached = write is not None
        if write is not None:
            k, v = write(k, v)
        if v is None:
            v = k[..., : layer.v_head_dim]
        if layer.kv_group in self._read:
            if not cached:
                # A view would keep the projection that all heads lie in until the last layer that reads it. The layer's
                # own attention takes the copies too, so that they are made when it runs.
                k, v = mx.contiguous(k), mx.contiguous(v)
            self._kept[layer.kv_group] = k, v
        return k, v


@dataclass(frozen=True, slots=True)
class StateStep:
    """One recurrent layer in one step; without `held` nothing is kept between steps."""

    path: RecurrentPath
    held: RecurrentState | None

    @property
    def arrays(self) -> tuple[mx.array, ...]:
        return () if self.held is None else self.held.arrays

    @property
    def keeps(self) -> bool:
        return self.held is not None

    def store(self, arrays: Sequence[mx.array]) -> None:
        if self.held is not None:
            self.held.store(arrays)


def padding(real: Sequence[int], tokens: int) -> Documents:
    """The documents of a step in which row b holds `real[b]` tokens, padded on the right to `tokens`."""
    if min(real) >= tokens:
        return Documents()
    return Documents(real=mx.arange(tokens)[None] < mx.array(list(real))[:, None])


def recurrent_path(layer: int, path: AttentionPath | RecurrentPath | None) -> RecurrentPath:
    """The planned form of a recurrent layer; raises ArchportError for a layer that is declared otherwise."""
    if not isinstance(path, RecurrentPath):
        raise ArchportError(
            f"layer {layer} is declared an attention layer but asked for recurrent state; declare it a RecurrentLayer"
        )
    return path


class StepContext:
    """What layers see of one step of a batch of right-padded rows.

    Args:
        plan, batch, step: what was decided.
        offsets: position of the step's first token, per row.
        caches: of the batch; None when nothing is kept between steps.
        stretches: evaluations of the request that are under way.
        visual: the batch's pictures; None without any.
    """

    decoding = None

    def __init__(
        self,
        plan: Plan,
        batch: BatchPlan,
        step: StepPlan,
        offsets: tuple[int, ...],
        caches: Caches | None,
        stretches: Stretches,
        visual: BatchVisual | None = None,
    ) -> None:
        self._plan, self._batch, self._stretches = plan, batch, stretches
        self._paths, self._caches = step.paths, caches
        self._keys = StepKeys(kind.layer for kind in batch.kinds)
        self._masks: dict[tuple[object, ...], mx.array] = {}
        self._runners: dict[int, Runner] = {}
        # How often a block paused since its attention: between that and its MLP, and after it.
        self._pauses = 2
        self._tokens = step.tokens
        if batch.packed:
            self._positions = mx.array(packed_positions(batch.lengths, step.tokens))[None]
            self._documents = Documents(self._positions, padding([sum(batch.lengths)], step.tokens).real)
        else:
            starts = mx.array(offsets, dtype=mx.int32)
            self._offset = offsets[0] if len(set(offsets)) == 1 else starts
            self._positions = starts[:, None] + mx.arange(step.tokens, dtype=mx.int32)
            # Nothing reads what a row without a cache passes on after its end.
            real = [max(0, min(step.tokens, length - step.start)) for length in batch.lengths]
            self._documents = padding(real, step.tokens) if caches is not None else Documents()
        self._visual = None if visual is None else visual.step(step.start, step.tokens)
        self._axes = None if visual is None else visual.axes(step.start, step.tokens)
        self._turns: dict[int, Callable[[mx.array], mx.array]] = {}
        self._angles: dict[object, tuple[mx.array, mx.array]] = {}

    @property
    def positions(self) -> mx.array:
        return self._positions

    @property
    def documents(self) -> Documents:
        return self._documents

    segments = documents_as_segments()

    def state(self, layer: int, *inputs: mx.array) -> StateStep:
        path = recurrent_path(layer, self._paths[self._plan.layer_kinds[layer]])
        if self._ends_before(layer):
            self._stretches.start(*inputs, room=self._plan.ahead(self._batch, paused=self._pauses > 1))
        self._pauses = 0
        held = None if self._caches is None else self._caches[layer]
        return StateStep(path, held if isinstance(held, RecurrentState) else None)

    @property
    def visual(self) -> VisualRows | None:
        return self._visual

    def rotate(
        self, q: mx.array, k: mx.array, rope: Callable[[mx.array, int | mx.array], mx.array]
    ) -> tuple[mx.array, mx.array]:
        turn = self._turns.get(id(rope))
        if turn is None:
            turn = self._turns[id(rope)] = self._turn(rope)
        turned = turn(q)
        return turned, turned if k is q else turn(k)

    def _turn(self, rope: Callable[[mx.array, int | mx.array], mx.array]) -> Callable[[mx.array], mx.array]:
        """What turns one array; layers share their angles, which cost more than turning by them."""
        if self._axes is not None:
            return cast(Any, rope).at(self._axes, self._angles)
        if self._batch.packed:
            # Each token is a row of its own to a rope, which knows one position per row.
            at = self._positions[0]
            return (
                rope.along(at, 1, self._angles) if isinstance(rope, NormRotate) else partial(_rotated_apart, rope, at)
            )
        if hasattr(rope, "along"):
            return cast(Any, rope).along(self._offset, self._tokens, self._angles)
        # Not a closure over this context, which would hold itself and all it made until the garbage collector comes.
        return partial(_rotated, rope, self._offset)

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
        path = self._paths[self._plan.layer_kinds[layer]]
        if not isinstance(path, AttentionPath):
            raise ArchportError(f"layer {layer} is declared recurrent but called attend; declare it an AttentionLayer")
        check_softcap(layer, path, softcap)
        if self._ends_before(layer):
            here = [array for array in (q, k, v) if array is not None]
            self._stretches.start(*here, room=self._plan.ahead(self._batch, paused=self._pauses > 1))
        if path.price.evaluations > 1 and self._batch.schedule.in_flight > 1 and not traced(q):
            # It evaluates by itself, while nothing else is still on its way.
            self._stretches.drain()
        spec = self._batch.kinds[self._plan.layer_kinds[layer]].layer
        assert isinstance(spec, AttentionLayer)
        cache = None if self._caches is None else self._caches[layer]
        k, v = self._keys.of(layer, spec, k, v, cache.put if isinstance(cache, KVCache) else None)
        run = self._runners.get(id(path))
        if run is None:
            run = self._runners[id(path)] = prepare(path)
        # Padded rows need no zeros: their keys are hidden from real rows, and pooling knows the lengths.
        with sharing(self._masks):
            out = run(q, k, v, scale=scale, sinks=sinks, bias=bias)
        if self._batch.batch.visible:
            out = self._seeing(out, path.call.reach[0])
        if self._batch.schedule.split:
            self._stretches.start(out, room=self._plan.ahead(self._batch))
            self._pauses = 0
        return out

    def _seeing(self, out: mx.array, left: int | None) -> mx.array:
        """Attention's output (B, H, L, Dh), zeros where all that a query reaches is hidden, as in the references."""
        if left is None or all(end + left >= out.shape[2] for end in self._batch.batch.visible):
            return out
        ends = mx.array(self._batch.batch.visible, dtype=mx.int32)[:, None]
        sees = self._positions - left < ends
        return mx.where(sees[:, None, :, None], out, mx.zeros((), dtype=out.dtype))

    def pause(self, x: mx.array) -> None:
        if self._batch.schedule.split:
            self._stretches.start(x, room=self._plan.ahead(self._batch))
            self._pauses += 1

    def _ends_before(self, layer: int) -> bool:
        """Whether the layers before this one are evaluated apart, as the plan's peak needs."""
        return layer > 0 and layer % self._batch.schedule.eval_every_layers == 0


def check_softcap(layer: int, path: AttentionPath, softcap: float | None) -> None:
    """Raises InputError where a layer hands over another soft cap than the one that was planned."""
    if softcap is not None and softcap != path.call.softcap:
        raise InputError(
            f"layer {layer} attends with softcap={softcap}, planned was {path.call.softcap}; declare it in the layer's "
            "AttentionLayer, which is what plans price"
        )


def _rotated(rope: Callable[[mx.array, int | mx.array], mx.array], offset: int | mx.array, x: mx.array) -> mx.array:
    return rope(x, offset)


def _rotated_apart(rope: Callable[[mx.array, int | mx.array], mx.array], at: mx.array, x: mx.array) -> mx.array:
    """x (1, H, L, Dh) rotated with token i at position at[i]."""
    return rope(x.transpose(2, 1, 0, 3), at).transpose(2, 1, 0, 3)
