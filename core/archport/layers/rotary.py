"""Rotary position embedding (RoPE) on one axis or several, applied at positions that the layer context supplies.

Knows the published ways of stretching its frequencies that do not depend on the length of a request. Those that do
(`dynamic`, `longrope`) are refused: a row's result must not depend on how long the batch around it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import mlx.core as mx

from archport.contract import SpecError
from archport.kernels.rotate import turn

KNOWN = ("default", "linear", "llama3", "yarn")


class Rotary:
    """Rotates the first `dims` of each head.

    Args:
        dims: rotated width, even and at most head_dim.
        theta: base of the frequencies.
        scaling: `rope_scaling` of the config; None or type `default` leaves frequencies alone, `linear` divides
            positions by `factor`, `llama3` stretches slow frequencies, `yarn` also scales what is rotated.
        interleaved: rotate neighbouring pairs instead of the two halves.

    Attributes:
        periods: what a position is divided by, in radians, per rotated pair.
        scale, gain: factors of positions, and of what is rotated.

    Raises:
        SpecError: for a scaling type this block does not know, or one that lacks a number it needs, before any weight
            is read.
    """

    def __init__(
        self, dims: int, theta: float, scaling: Mapping[str, Any] | None = None, *, interleaved: bool = False
    ) -> None:
        if dims <= 0 or dims % 2:
            raise SpecError(f"rotary embedding: {dims=} is not a positive even number")
        if not isinstance(theta, int | float) or isinstance(theta, bool) or not theta > 0:
            raise SpecError(f"rotary embedding: rope_theta={theta!r}; expected a number > 0")
        self.dims, self.interleaved, self.scale, self.gain = dims, interleaved, 1.0, 1.0
        # In float64 here: the kernel's own powers of theta turn a position of 8,192 by up to 1e-4 rad too far.
        self.periods = _periods(*_plain(dims, theta))
        scaling = scaling or {}
        kind = scaling.get("rope_type") or scaling.get("type") or "default"
        if kind == "linear":
            self.scale = 1.0 / _number(scaling, kind, "factor")
        elif kind == "llama3":
            self.periods = _periods(*_llama3(dims, theta, scaling))
        elif kind == "yarn":
            self.periods = _periods(*_yarn(dims, theta, scaling))
            self.gain = _yarn_gain(scaling)
        elif kind != "default":
            raise SpecError(f"rotary embedding: rope_type={kind!r} is not supported; known: {', '.join(KNOWN)}")

    def __call__(self, x: mx.array, offset: int | mx.array) -> mx.array:
        """Rotate x (B, H, L, Dh); token i of row b stands at position offset[b] + i (or offset + i)."""
        if self.gain != 1.0:
            whole = self.dims == x.shape[-1]
            # Where nothing is left over, joining would copy it once more.
            x = (
                x * self.gain
                if whole
                else mx.concatenate([x[..., : self.dims] * self.gain, x[..., self.dims :]], axis=-1)
            )
        if too_narrow(self.dims, x.shape[2]) and mx.default_device().type == mx.DeviceType.gpu:
            return self._by_angles(x, offset)
        return mx.fast.rope(
            x,
            self.dims,
            traditional=self.interleaved,
            base=None,
            scale=self.scale,
            offset=offset,
            freqs=self.periods,
        )

    def _by_angles(self, x: mx.array, offset: int | mx.array) -> mx.array:
        """What `mx.fast.rope` gives, operation by operation."""
        first = mx.array([[offset]]) if isinstance(offset, int) else offset.reshape(-1, 1)
        angles = (first + mx.arange(x.shape[2])).astype(mx.float32)[:, None, :, None] * self.scale / self.periods
        cos, sin = mx.cos(angles), mx.sin(angles)
        turned = x[..., : self.dims].astype(mx.float32)
        pairs = turned.reshape(*turned.shape[:-1], *((-1, 2) if self.interleaved else (2, -1)))
        axis = -1 if self.interleaved else -2
        a, b = (half.squeeze(axis) for half in mx.split(pairs, 2, axis=axis))
        pairs = mx.stack([a * cos - b * sin, b * cos + a * sin], axis=axis)
        return mx.concatenate([pairs.reshape(turned.shape).astype(x.dtype), x[..., self.dims :]], axis=-1)

    def tables(
        self, offset: int | mx.array, tokens: int, known: dict[object, tuple[mx.array, mx.array]]
    ) -> tuple[mx.array, mx.array]:
        """Cosines and sines (1 or B, tokens, dims / 2) float32 of tokens at offset, offset + 1, ..., times `gain`.

        Args:
            offset: of all rows, or (B,).
            known: tables of a step, so that its layers share them.
        """
        # Layers of one theta hold the same array.
        key = (id(self.periods), self.scale, self.gain)
        found = known.get(key)
        if found is None:
            first = mx.array([[offset]]) if isinstance(offset, int) else offset[:, None]
            angles = (first + mx.arange(tokens)).astype(mx.float32)[..., None] * self.scale / self.periods
            found = known[key] = (mx.cos(angles) * self.gain, mx.sin(angles) * self.gain)
        return found


def too_narrow(dims: int, tokens: int) -> bool:
    """Whether MLX's CUDA kernel of rotation can't be launched for many rows of so few numbers (0.32.4).

    A block has up to 1,024 threads in powers of two, what pairs and tokens leave over goes to rows and heads, and CUDA
    allows 64 there. 16 numbers of one token each leave 128: packed rows, or a decoding step of eleven rows and more.
    """
    return (dims // 2).bit_length() + tokens.bit_length() < 6


def _number(scaling: Mapping[str, Any], kind: str, name: str, default: float | None = None) -> float:
    value = scaling.get(name, default)
    value = default if value is None else value
    if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
        raise SpecError(f"rotary embedding: rope_scaling of type {kind!r} has {name}={value!r}; expected a number > 0")
    return float(value)


@lru_cache(maxsize=64)
def _periods(*frequencies: float) -> mx.array:
    """What MLX divides positions by, in radians."""
    return mx.array([1.0 / each for each in frequencies], dtype=mx.float32)


def _plain(dims: int, theta: float) -> list[float]:
    """Radians per position of each rotated pair."""
    return [theta ** (-index / dims) for index in range(0, dims, 2)]


def _llama3(dims: int, theta: float, scaling: Mapping[str, Any]) -> list[float]:
    """Pairs that turn rarely within the trained context are slowed by `factor`, those that turn often are kept."""
    factor, low, high, trained = (
        _number(scaling, "llama3", name)
        for name in ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    )
    if low >= high:
        raise SpecError(
            f"rotary embedding: rope_scaling of type 'llama3' has low_freq_factor={low}, high_freq_factor={high}; "
            "expected the first below the second"
        )
    found: list[float] = []
    for frequency in _plain(dims, theta):
        turns = trained * frequency / (2 * math.pi)
        # Between the two bounds, a blend; beyond them the share is all or nothing.
        kept = min(1.0, max(0.0, (turns - low) / (high - low)))
        found.append(frequency * (kept + (1 - kept) / factor))
    return found


def _yarn(dims: int, theta: float, scaling: Mapping[str, Any]) -> list[float]:
    """A ramp over the pairs' indices, from kept to slowed by `factor` (arXiv:2309.00071)."""
    factor, trained = (_number(scaling, "yarn", name) for name in ("factor", "original_max_position_embeddings"))

    def index_of(turns: float) -> float:
        return dims * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(theta))

    if theta == 1:
        raise SpecError("rotary embedding: rope_theta=1 turns every pair alike, which yarn can't stretch")
    # A stated zero is none, as in transformers.
    first = index_of(_number(scaling, "yarn", "beta_fast", 32) if scaling.get("beta_fast") else 32)
    last = index_of(_number(scaling, "yarn", "beta_slow", 1) if scaling.get("beta_slow") else 1)
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dims - 1)
    width = (last - first) or 0.001
    found: list[float] = []
    for index, frequency in enumerate(_plain(dims, theta)):
        slowed = min(1.0, max(0.0, (index - first) / width))
        found.append(frequency * (1 - slowed + slowed / factor))
    return found


def _yarn_gain(scaling: Mapping[str, Any]) -> float:
    """What yarn multiplies the rotated part of q and k by."""
    if scaling.get("attention_factor") is not None:
        return _number(scaling, "yarn", "attention_factor")
    factor = _number(scaling, "yarn", "factor")

    def gain(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    weight, everywhere = scaling.get("mscale"), scaling.get("mscale_all_dim")
    return gain(weight) / gain(everywhere) if weight and everywhere else gain(1.0)


class SectionedRotary(Rotary):
    """A Rotary whose frequencies are dealt out to axes in turn (time, row, column; time, row, column; ...).

    Args:
        sections: frequencies per axis. The first axis takes what the others leave, whatever its own number says, and
            shares beyond half of `dims` are cut: a config may leave its own out, and a class means other heads.
        dims, theta, scaling: as in Rotary; `mrope_section` inside `scaling` is not read.

    Raises:
        SpecError: for sections that are no numbers of frequencies.
    """

    def __init__(self, dims: int, theta: float, scaling: Mapping[str, Any] | None, sections: Sequence[int]) -> None:
        kind = (scaling or {}).get("rope_type") or (scaling or {}).get("type")
        # Some files name the type after the axes; the frequencies are the plain ones.
        super().__init__(dims, theta, {} if kind == "mrope" else scaling)
        self.axis_of = dealt(dims // 2, sections)
        self.axes = len(sections)

    def angles(self, positions: mx.array) -> tuple[mx.array, mx.array]:
        """Cosines and sines (B, 1, L, dims / 2) float32 of tokens at positions (axes, B, L), times `gain`."""
        places = positions.astype(mx.float32)[mx.array(self.axis_of)]
        angles = places.transpose(1, 2, 0)[:, None] * self.scale / self.periods
        return mx.cos(angles) * self.gain, mx.sin(angles) * self.gain

    def shared(
        self, positions: mx.array, known: dict[object, tuple[mx.array, mx.array]] | None
    ) -> tuple[mx.array, mx.array]:
        """`angles`, computed once per `known`."""
        found = None if known is None else known.get(id(self))
        if found is None:
            found = self.angles(positions)
            if known is not None:
                known[id(self)] = found
        return found

    def at(
        self, positions: mx.array, known: dict[object, tuple[mx.array, mx.array]] | None = None
    ) -> Callable[[mx.array], mx.array]:
        """What rotates x (B, H, L, Dh) whose token i of row b stands at positions (axes, B, L).

        Args:
            known: angles of the step by rotary, so that layers share what costs more than turning by it.
        """
        cos, sin = self.shared(positions, known)
        dims = self.dims

        def turned(x: mx.array) -> mx.array:
            if x.shape[-1] == dims:
                return turn(x, cos, sin)
            return mx.concatenate([turn(x[..., :dims], cos, sin), x[..., dims:]], axis=-1)

        return turned


def dealt(frequencies: int, sections: Sequence[int]) -> list[int]:
    """The axis of each frequency: dealt out in turn, until an axis has its share; what is left goes to the first.

    Raises:
        SpecError: for shares that are no numbers of frequencies.
    """
    axes = len(sections)
    if not axes or any(not isinstance(share, int) or isinstance(share, bool) or share < 0 for share in sections):
        raise SpecError(f"rotary embedding: sections {sections!r}; expected a number of frequencies >= 0 per axis")
    return [
        index % axes if index % axes and index < axes * sections[index % axes] else 0 for index in range(frequencies)
    ]
