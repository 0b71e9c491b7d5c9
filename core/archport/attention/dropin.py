"""A drop-in for `mx.fast.scaled_dot_product_attention` that plans the call it is given.

Same shapes, meanings and errors, plus a window and a choice of backend. Reads no value of any array.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, get_args

from archport.attention.backends.builtin import builtin_backends
from archport.attention.backends.flash import Flash
from archport.attention.backends.one_call import OneCall
from archport.attention.backends.split import Split
from archport.attention.choose import Chooser, choose
from archport.attention.local import local_device
from archport.attention.probe import probed_routes
from archport.contract.attention import AttentionCall, AttentionLimits, AttentionPath, MaskKind, Reach
from archport.contract.errors import InputError, shown
from archport.contract.spec import DType

if TYPE_CHECKING:
    import mlx.core as mx

THRESHOLD_VARIABLE = "MLX_SDPA_CHUNK_THRESHOLD"
SIZE_VARIABLE = "MLX_SDPA_CHUNK_SIZE"

# Shapes whose decisions are kept.
MOST_KNOWN = 1024
Runner = Callable[["mx.array", "mx.array", "mx.array", float, "mx.array | None"], "mx.array"]


@dataclass(frozen=True, slots=True)
class Settings:
    """What a call asks for on top of MLX's own arguments; as `scaled_dot_product_attention` takes them."""

    window: Reach | None
    backend: str
    budget: int | None


_chooser: Chooser | None = None
_known: dict[tuple[object, ...], Runner] = {}
# The limits of the environment, read once a process; what follows binds MLX's names once, which an import of archport
# does not bring.
_limits: AttentionLimits | None = None
_default_device: Callable[[], mx.Device] | None = None
_gpu: mx.Device | None = None


def limits_from_environment(
    limits: AttentionLimits | None = None, environment: Mapping[str, str] = os.environ
) -> AttentionLimits:
    """`limits` with MLX_SDPA_CHUNK_THRESHOLD and MLX_SDPA_CHUNK_SIZE applied; the threshold also forces chunks.

    Raises:
        InputError: when a variable is set to anything but an integer >= 1.
    """
    limits = limits or AttentionLimits()
    threshold = _positive(environment, THRESHOLD_VARIABLE)
    size = _positive(environment, SIZE_VARIABLE)
    if threshold is not None:
        limits = replace(limits, chunk_threshold=threshold, force_chunk=True)
    return limits if size is None else replace(limits, chunk_size=size)


def _positive(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name)
    if text is None:
        return None
    if len(text) > 30 or not text.strip().isdecimal() or int(text) < 1:
        raise InputError(f"environment variable {name}={shown(text)}; expected a number of keys >= 1, or unset it")
    return int(text)


def scaled_dot_product_attention(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    *,
    scale: float,
    mask: str | mx.array | None = None,
    sinks: mx.array | None = None,
    window: Reach | None = None,
    backend: str = "auto",
    budget: int | None = None,
) -> mx.array:
    """Attention of q (B, H, L, Dh) on k (B, K, S, Dh) and v (B, K, S, Dv) -> (B, H, L, Dv).

    Safe inside mx.compile (not with shapeless=True), mx.grad and mx.vmap over other axes: nothing is evaluated or read
    there, which means that a tiled call then holds what its traced graph holds. Under a backend that evaluates per
    tile the call is synchronous. MLX_SDPA_CHUNK_THRESHOLD and MLX_SDPA_CHUNK_SIZE are read by a process's first call.

    Args:
        scale: factor of the scores.
        mask: None, "causal" (lower-right aligned), or an array broadcastable to (B, H, L, S): bool, True where a key is
            seen, or additive. A row that sees no key comes out finite.
        sinks: (H,), one more logit per head in every softmax.
        window: keys seen to the (left, right) of a query's own position, None unlimited; on top of the mask.
        backend: "auto", or the name of the backend to run.
        budget: bytes the call may hold above its inputs and output; left out: `AttentionLimits.transient_on`.

    Raises:
        ValueError: on whatever MLX refuses, on a bad window, budget or environment variable, and when the backend
            refuses the call or is unknown.
    """
    plain = sinks is None and window is None and budget is None and backend.__class__ is str
    plain = plain and (mask is None or mask.__class__ is str)
    if not plain or _default_device is None:
        return _any_call(q, k, v, scale, mask, sinks, Settings(window, backend, budget))
    # What was decided for these shapes and types runs again without asking; what is refused never gets here. A call of
    # MLX takes some microseconds to describe, and this is to add no more than one.
    on = _default_device() == _gpu
    run = _known.get((q.shape, k.shape, v.shape, q.dtype, k.dtype, v.dtype, mask, backend, on))
    if run is None:
        return _any_call(q, k, v, scale, mask, sinks, Settings(window, backend, budget))
    return run(q, k, v, scale, sinks)


def _any_call(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    scale: float,
    mask: str | mx.array | None,
    sinks: mx.array | None,
    asked: Settings,
) -> mx.array:
    """A call of any kind: what was decided for its shapes, types and settings, or is now."""
    global _default_device, _gpu
    import mlx.core as mx

    _default_device, _gpu = mx.default_device, mx.Device(mx.gpu)
    if isinstance(mask, mx.array):
        return _decided(q, k, v, scale, mask, sinks, asked)(q, k, v, scale, sinks)
    window, budget = asked.window, asked.budget
    key: tuple[object, ...] = (q.shape, k.shape, v.shape, q.dtype, k.dtype, v.dtype, mask, asked.backend)
    key += (mx.default_device() == _gpu,)
    if not (sinks is None and window is None and budget is None):
        key += (
            *(None if sinks is None else (sinks.shape, sinks.dtype), budget, type(budget)),
            window if window is None else (*window, *map(type, window)) if isinstance(window, tuple) else [window],
        )
    try:
        run = _known.get(key)
    except TypeError:
        # Something that no call takes, and that can't be a key.
        return _decided(q, k, v, scale, mask, sinks, asked)(q, k, v, scale, sinks)
    if run is None:
        run = _decided(q, k, v, scale, mask, sinks, asked)
        if len(_known) >= MOST_KNOWN:
            _known.clear()
        _known[key] = run
    return run(q, k, v, scale, sinks)


def _decided(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    scale: float,
    mask: str | mx.array | None,
    sinks: mx.array | None,
    asked: Settings,
) -> Runner:
    """What runs calls of these shapes and types."""
    import mlx.core as mx

    # MLX's own checks, its promotion of types and its words: a lazy call that is never evaluated.
    checked = mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask, sinks=sinks)
    dtype = checked.dtype
    limits, window, budget = _limits_of_process(), asked.window, asked.budget
    if budget is not None:
        if not isinstance(budget, int) or isinstance(budget, bool) or budget < 0:
            raise InputError(f"budget={budget!r}; expected bytes >= 0, or None")
        limits = replace(limits, transient_bytes=budget)
    device = local_device()
    array = mask if isinstance(mask, mx.array) else None
    if array is not None and device.kind == "cuda" and array.dtype == mx.bool_:
        # MLX expands a bool mask to a full additive one there; in q's dtype its broadcast shape stays a view.
        array = mx.where(array, mx.array(0, dtype), mx.array(float(mx.finfo(dtype).min) / 2, dtype))
    call = AttentionCall(
        B=q.shape[0],
        n_heads=q.shape[1],
        n_kv_heads=k.shape[1],
        q_len=q.shape[2],
        kv_len=k.shape[2],
        head_dim=q.shape[3],
        v_head_dim=v.shape[3],
        dtype=_element_type(dtype),
        mask=_kind(mask, window),
        reach=_reach(mask, window),
        additive=(device.kind == "cuda") if array is None else array.dtype != mx.bool_,
        mask_shape=() if array is None else tuple(array.shape) or (1,),
        sinks=sinks is not None,
        limits=limits,
    )
    if not call.output_bytes or not call.kv_len:
        # Nothing to plan; MLX says what an empty call returns.
        return lambda q, k, v, scale, sinks: mx.fast.scaled_dot_product_attention(
            q, k, v, scale=scale, mask=mask, sinks=sinks
        )
    run = _runner(_shared_chooser()(call, device, None if asked.backend == "auto" else asked.backend), array)
    if {x.dtype for x in (q, k, v)} == {dtype}:
        return run
    return lambda q, k, v, scale, sinks: run(q.astype(dtype), k.astype(dtype), v.astype(dtype), scale, sinks)


def _runner(path: AttentionPath, mask: mx.array | None) -> Runner:
    """What runs a path; the gradient of archport's own kernels, and what a vmap adds to them, take a path of MLX's."""
    import mlx.core as mx

    call, price, backend = path.call, path.price, path.backend
    direct = backend.plain(call, price) if isinstance(backend, OneCall) else None
    if direct is not None:
        return direct
    if not isinstance(backend, Flash | Split):
        return lambda q, k, v, scale, sinks: backend.run(call, price, q, k, v, scale=scale, mask=mask, sinks=sinks)
    others = tuple(other for other in _shared_chooser().backends if not isinstance(other, Flash | Split))
    fallback = choose(call, local_device(), others)

    def run(q: mx.array, k: mx.array, v: mx.array, scale: float, sinks: mx.array | None) -> mx.array:
        def plain(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
            return fallback.backend.run(call, fallback.price, q, k, v, scale=scale)

        kernel: Any = mx.custom_function(lambda q, k, v: backend.run(call, price, q, k, v, scale=scale))
        kernel.vjp(lambda primals, cotangents, _: mx.vjp(plain, list(primals), [cotangents])[1])
        kernel.vmap(lambda arrays, axes: (mx.vmap(plain, in_axes=tuple(axes))(*arrays), 0))
        return kernel(q, k, v)

    return run


def _limits_of_process() -> AttentionLimits:
    global _limits
    if _limits is None:
        _limits = limits_from_environment()
    return _limits


def forget() -> None:
    """Forget what was decided and what the environment said: tests change it, and a process reads it once."""
    global _limits
    _limits = None
    _known.clear()


def _shared_chooser() -> Chooser:
    global _chooser
    if _chooser is None:
        _chooser = Chooser(builtin_backends(probed_routes()))
    return _chooser


def _kind(mask: str | mx.array | None, window: Reach | None) -> MaskKind:
    if mask is not None and not isinstance(mask, str):
        return "dense"
    if window is not None:
        return "window"
    return "none" if mask is None else "causal"


def _reach(mask: str | mx.array | None, window: Reach | None) -> Reach:
    if window is None:
        return (None, None)
    if not isinstance(window, tuple) or len(window) != 2:
        raise InputError(f"window={window!r}; expected (left, right), each None or a number of keys >= 0")
    for side, value in zip(("left", "right"), window, strict=True):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
            raise InputError(f"window {side}={value!r}; expected None or a number of keys >= 0")
    return (window[0], 0) if isinstance(mask, str) else window


def _element_type(dtype: mx.Dtype) -> DType:
    name = str(dtype).rpartition(".")[2]
    for known in get_args(DType):
        if name == known:
            return known
    raise InputError(f"q, k and v promote to {name}; expected one of {', '.join(get_args(DType))}")
