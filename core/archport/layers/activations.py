"""Activation functions by the names configs use; on a CPU with MKL, in float32, through its vector functions.

A model's function is the same either way, within rounding. On a CPU it is MLX's own inside a transformation (compile,
grad, vmap) and in other element types. On CUDA large arrays of 16 bits go through a kernel, which compiles but has no
gradient.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from math import pi, sqrt

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from archport.contract import SpecError
from archport.device import vectormath, workers
from archport.device.evaluation import traced
from archport.kernels import activation as activating

Activation = Callable[[mx.array], mx.array]
InPlace = Callable[[np.ndarray, np.ndarray], None]

# Elements worked on at a time: two arrays of this size stay in a core's second-level cache.
_BLOCK = 1 << 16
# Below this a round through numpy costs more than it gains.
_WORTH = 1 << 12


def activation(name: str) -> Activation:
    """The activation a config names in `hidden_act`, as transformers understands the name.

    Raises:
        SpecError: for a name that is not known, or whose function has learned parameters.
    """
    if not isinstance(name, str) or name not in ACTIVATIONS:
        learned = " (it has learned parameters, which no model of archport holds)" if name in ("prelu", "xielu") else ""
        raise SpecError(f"activation {name!r} is not supported{learned}; known: {', '.join(sorted(ACTIVATIONS))}")
    return ACTIVATIONS[name]


def own(act: Activation) -> Activation:
    """The same function by archport's kernels, for MLX's gelu and silu, functions or modules; any other as it is.

    What plans count a layer's half for is what these hold: MLX's keep the arrays of their steps besides.
    """
    if isinstance(act, nn.SiLU):
        return silu
    if isinstance(act, nn.GELU):
        return {"none": gelu, "fast": _quick_gelu}.get(act._approx, gelu_tanh)
    # Modules have no hash; what they do when they are called has one.
    act = act.__call__ if isinstance(act, nn.Module) else act
    return next((function for plain, function in _OWN.items() if plain is act), act)


@functools.cache
def gated(act: Activation) -> Callable[[mx.array, mx.array], mx.array]:
    """`act(gate) * up` as one function of (gate, up); on a GPU one kernel, which saves a pass over memory."""
    # A kernel of our own has no shape before it is called, which a function for all shapes needs.
    plain = _PLAIN.get(act, act)
    together = mx.compile(lambda gate, up: plain(gate) * up, shapeless=True)

    def run(gate: mx.array, up: mx.array) -> mx.array:
        return together(gate, up) if mx.default_device().type == mx.DeviceType.gpu else act(gate) * up

    return run


@functools.cache
def gated_halves(act: Activation) -> Callable[[mx.array], mx.array]:
    """The same as a function of gate and up side by side in one array (B, L, 2 W)."""
    apart = gated(act)
    kind: activating.Kind | None = next((kind for kind, function in _KINDS.items() if function is act), None)

    def run(product: mx.array) -> mx.array:
        if kind is not None and activating.worthwhile(product, halves=True):
            return activating.activate(product, kind, halves=True)
        gate, up = mx.split(product, 2, axis=-1)
        return apart(gate, up)

    return run


def gelu(x: mx.array) -> mx.array:
    """x * P(X <= x) for a standard normal X, by erf."""
    if vectormath.available() and host_is_faster(x):
        return _on_host(x, _gelu)
    return activating.activate(x, "gelu") if activating.worthwhile(x) else nn.gelu(x)


def gelu_tanh(x: mx.array) -> mx.array:
    """The approximation of `gelu` by tanh."""
    if host_is_faster(x):
        return _on_host(x, _gelu_tanh)
    return activating.activate(x, "gelu_tanh") if activating.worthwhile(x) else nn.gelu_approx(x)


def silu(x: mx.array) -> mx.array:
    """x * sigmoid(x)."""
    if host_is_faster(x):
        return _on_host(x, _silu)
    return activating.activate(x, "silu") if activating.worthwhile(x) else nn.silu(x)


# One operation each, as MLX's own are: otherwise every step's array, as wide as the MLP, waits for the last.
_one = functools.partial(mx.compile, shapeless=True)


def _clipped_gelu(x: mx.array) -> mx.array:
    return mx.clip(nn.gelu(x), -10, 10)


def _laplace(x: mx.array) -> mx.array:
    """The distribution function of a normal with mean 0.707107 and deviation 0.282095 (arXiv:2209.10655)."""
    # MLX's erf is off by up to 5e-7 on a CPU.
    if vectormath.available() and _is_on_host(x):
        return _on_host(x, _host_laplace)
    return _plain_laplace(x)


@_one
def _plain_laplace(x: mx.array) -> mx.array:
    return 0.5 * (1.0 + mx.erf((x - 0.707107) / (0.282095 * sqrt(2.0))))


def _linear(x: mx.array) -> mx.array:
    return x


def _mish(x: mx.array) -> mx.array:
    if host_is_faster(x):
        return _on_host(x, _host_mish)
    return nn.mish(x)


def _quick_gelu(x: mx.array) -> mx.array:
    if host_is_faster(x):
        return _on_host(x, _host_quick_gelu)
    return nn.gelu_fast_approx(x)


@_one
def _relu2(x: mx.array) -> mx.array:
    return mx.square(nn.relu(x))


def _leaky_relu(x: mx.array) -> mx.array:
    if host_is_faster(x):
        return _on_host(x, _host_leaky_relu)
    return nn.leaky_relu(x)


def _hardswish(x: mx.array) -> mx.array:
    if host_is_faster(x):
        return _on_host(x, _host_hardswish)
    return nn.hardswish(x)


@_one
def _sqrt_softplus(x: mx.array) -> mx.array:
    return mx.sqrt(nn.softplus(x))


# Every name of transformers' table whose function has no parameters; several are one function.
ACTIVATIONS: dict[str, Activation] = {
    "gelu": gelu,
    "gelu_10": _clipped_gelu,
    "gelu_accurate": gelu_tanh,
    "gelu_fast": gelu_tanh,
    "gelu_new": gelu_tanh,
    "gelu_python": gelu,
    "gelu_python_tanh": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "hardswish": _hardswish,
    "laplace": _laplace,
    "leaky_relu": _leaky_relu,
    "linear": _linear,
    "mish": _mish,
    "quick_gelu": _quick_gelu,
    "relu": nn.relu,
    "relu2": _relu2,
    "relu6": nn.relu6,
    "sigmoid": mx.sigmoid,
    "silu": silu,
    "sqrtsoftplus": _sqrt_softplus,
    "swish": silu,
    "tanh": mx.tanh,
}

_KINDS: dict[activating.Kind, Activation] = {"gelu": gelu, "gelu_tanh": gelu_tanh, "silu": silu}
_PLAIN: dict[Activation, Activation] = {gelu: nn.gelu, gelu_tanh: nn.gelu_approx, silu: nn.silu}
_OWN: dict[Activation, Activation] = {plain: function for function, plain in _PLAIN.items()}


def host_is_faster(x: mx.array) -> bool:
    """Whether elementwise functions of x are better computed by numpy, on the CPU that holds it."""
    # Without MKL results are exact whatever shares a batch, so the function must not depend on the size, which is
    # asked first: whether a function is being transformed is known by starting what x waits for.
    return (x.size >= _WORTH or not vectormath.available()) and _is_on_host(x)


def _is_on_host(x: mx.array) -> bool:
    return x.dtype == mx.float32 and mx.default_device().type == mx.DeviceType.cpu and not traced(x)


def _on_host(x: mx.array, function: InPlace) -> mx.array:
    """`function` of x, block by block into a new array."""
    mx.eval(x)
    source = np.ascontiguousarray(np.asarray(x)).reshape(-1)
    # Zeros that nobody else holds: the view writes into the array's own memory, so nothing is copied into MLX.
    made = mx.zeros(x.shape, dtype=mx.float32)
    mx.eval(made)
    target = np.asarray(made).reshape(-1)

    def work(first: int) -> None:
        function(source[first : first + _BLOCK], target[first : first + _BLOCK])

    if source.size <= _BLOCK and function not in (_gelu, _host_laplace):
        # Another thread would only have to be woken. MKL's functions stay with it: MKL holds buffers for each thread.
        work(0)
    else:
        workers.spread(range(0, source.size, _BLOCK), lambda: work, workers.cores())
    return made


def _gelu(x: np.ndarray, out: np.ndarray) -> None:
    # One function and one product, and exact where 1 + erf(x) cancels.
    vectormath.normal_cdf(x, out)
    out *= x


def _host_laplace(x: np.ndarray, out: np.ndarray) -> None:
    # Rounded where the reference rounds: what is nearly zero is the rounding of 1 + erf there, and norms make it count.
    np.subtract(x, np.float32(0.707107), out=out)
    out /= np.float32(0.282095 * sqrt(2.0))
    vectormath.erf(out, out)
    out += np.float32(1)
    out *= np.float32(0.5)


def _gelu_tanh(x: np.ndarray, out: np.ndarray) -> None:
    np.multiply(x, x, out=out)
    out *= np.float32(0.044715)
    out += np.float32(1)
    out *= x
    out *= np.float32(sqrt(2 / pi))
    np.tanh(out, out=out)
    out += np.float32(1)
    out *= x
    out *= np.float32(0.5)


def _silu(x: np.ndarray, out: np.ndarray) -> None:
    np.negative(x, out=out)
    with np.errstate(over="ignore"):  # x / infinity is the 0 it should be
        np.exp(out, out=out)
    out += np.float32(1)
    np.divide(x, out, out=out)


# These hold a block and no more: as MLX's operations, each would hold an array as large as x next to the answer's.
def _host_mish(x: np.ndarray, out: np.ndarray) -> None:
    # tanh(log(1 + e)) is (e^2 + 2 e) / (e^2 + 2 e + 2), which is one from 20 on.
    np.minimum(x, np.float32(20), out=out)
    np.exp(out, out=out)
    out *= out + np.float32(2)
    out /= out + np.float32(2)
    out *= x


def _host_quick_gelu(x: np.ndarray, out: np.ndarray) -> None:
    np.multiply(x, np.float32(-1.702), out=out)
    with np.errstate(over="ignore"):  # x / infinity is the 0 it should be
        np.exp(out, out=out)
    out += np.float32(1)
    np.divide(x, out, out=out)


def _host_leaky_relu(x: np.ndarray, out: np.ndarray) -> None:
    np.multiply(x, np.float32(0.01), out=out)
    np.maximum(x, out, out=out)


def _host_hardswish(x: np.ndarray, out: np.ndarray) -> None:
    np.add(x, np.float32(3), out=out)
    np.clip(out, np.float32(0), np.float32(6), out=out)
    out *= x
    out /= np.float32(6)
