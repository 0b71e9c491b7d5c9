"""What each half of a layer makes per token, measured: the half around attention or a recurrence, and the MLP's.

A half ends where its block pauses. Attention is replaced by an array of its output, so its own scratch is not counted;
the host is as far ahead of its device as it gets, so nothing of a half is gone before its end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx

from archport.contract import AttentionLayer, Footprint, LayerContext, LayerSpec
from archport.testing.measure import host_ahead
from archport.testing.subject import Tiny

# Rows and tokens of each: enough that an array is far above a page.
ROWS, TOKENS = 32, 128
# Runs of which the highest counts: which arrays coexist differs from run to run.
RUNS = 3


@dataclass(frozen=True, slots=True)
class Halves:
    """Numbers per token that the halves of one layer make.

    Args:
        layer: its index.
        mixer, mlp: of the halves; `mlp` is None of a block that does not pause in its middle, whose `mixer` is both.
    """

    layer: int
    mixer: int
    mlp: int | None


def measured(t: Tiny) -> dict[LayerSpec, Halves]:
    """The halves of the last layer of every kind, by its spec; none of blocks that never pause."""
    wanted = {layer: index for index, layer in enumerate(t.spec.layers)}
    highest: dict[tuple[int, str], int] = {}
    rows = [t.tokens(t.length(TOKENS), seed) for seed in range(ROWS)]
    plan = t.plan([len(row) for row in rows], mode="generate")
    for _ in range(RUNS):
        with host_ahead():
            meter = _Meter(t)
            t.run(plan, rows, trunk=cast(Any, t.bare()), wrap=meter.around)
        for key, numbers in meter.found.items():
            highest[key] = max(highest.get(key, 0), numbers)
    return {
        layer: Halves(index, highest[index, "mixer"], highest.get((index, "mlp")))
        for layer, index in wanted.items()
        if (index, "mixer") in highest
    }


class _Meter:
    """Numbers per token above what was there at the last pause, by (layer, half): of the fullest step."""

    def __init__(self, t: Tiny) -> None:
        self.found: dict[tuple[int, str], int] = {}
        self._spec = t.spec
        self._layer, self._asked, self._first, self._base = -1, False, True, 0

    def around(self, ctx: LayerContext) -> LayerContext:
        self._begin(first=True)
        return cast(LayerContext, _Metered(ctx, self))

    def asked(self, layer: int) -> None:
        """A layer's attention or state was asked for."""
        self._layer, self._asked = layer, True

    def pause(self, x: mx.array) -> None:
        mx.eval(x)
        mx.synchronize()
        if self._layer >= 0:
            grown = mx.get_peak_memory() - self._base
            # The first half of a step makes the embeddings too, which are its block's input.
            grown -= x.nbytes if self._first else 0
            key = (self._layer, "mixer" if self._asked else "mlp")
            numbers = -(-grown // (x.itemsize * x.shape[0] * x.shape[1]))
            self.found[key] = max(self.found.get(key, 0), numbers)
        self._begin(first=False)

    def _begin(self, *, first: bool) -> None:
        self._asked, self._first = False, first
        mx.synchronize()
        mx.reset_peak_memory()
        self._base = mx.get_active_memory()


class _Metered:
    """A context whose pauses are measured and whose attention makes nothing but its output."""

    def __init__(self, inner: LayerContext, meter: _Meter) -> None:
        self._inner, self._meter = inner, meter

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def pause(self, x: mx.array) -> None:
        self._meter.pause(x)

    def state(self, layer: int, *inputs: mx.array) -> Any:
        self._meter.asked(layer)
        return self._inner.state(layer, *inputs)

    def attend(self, layer: int, q: mx.array, k: mx.array | None, v: mx.array | None, **_: Any) -> mx.array:
        self._meter.asked(layer)
        spec = self._meter._spec.layers[layer]
        assert isinstance(spec, AttentionLayer), f"layer {layer} is declared recurrent but called attend"
        given = [each for each in (q, k, v) if each is not None]
        out = mx.full((*q.shape[:-1], spec.v_head_dim), 0.1, dtype=q.dtype)
        return mx.depends([out], given)[0]


def too_small(shown: Mapping[LayerSpec, Halves]) -> list[str]:
    """Halves that make more than their layer's footprint says, in words."""
    wrong: list[str] = []
    for layer, halves in shown.items():
        for name, declared, made in _pairs(layer.footprint, halves):
            if made > declared + max(4, declared // 50):
                wrong.append(
                    f"layer {halves.layer} declares footprint {name}={declared:,} and makes {made:,} numbers per token "
                    "there"
                )
    return wrong


def _pairs(footprint: Footprint | None, halves: Halves) -> list[tuple[str, int, int]]:
    """(name, declared, measured) of each half that is declared, or of both where a block doesn't pause between them."""
    if footprint is None:
        return []
    if halves.mlp is None:
        whole = [each for each in (footprint.mixer, footprint.mlp) if each is not None]
        return [("mixer and mlp", sum(whole), halves.mixer)] if len(whole) == 2 else []
    pairs = [("mixer", footprint.mixer, halves.mixer), ("mlp", footprint.mlp, halves.mlp)]
    return [(name, declared, made) for name, declared, made in pairs if declared is not None]


def in_words(shown: Mapping[LayerSpec, Halves]) -> str:
    """What each kind of layer makes, and what it declares."""
    found: list[str] = []
    for layer, halves in shown.items():
        own = layer.footprint or Footprint()
        if halves.mlp is None:
            found.append(f"layer {halves.layer} makes {halves.mixer:,} numbers per token")
            continue
        mixer, mlp = (f" (declared {each:,})" if each else "" for each in (own.mixer, own.mlp))
        found.append(
            f"layer {halves.layer} makes {halves.mixer:,}{mixer} numbers per token around its mixer and "
            f"{halves.mlp:,}{mlp} in its MLP"
        )
    return "; ".join(found)
