"""Running a chosen path: what the engine calls for every layer. Obeys the path and decides nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from archport.attention.backends.one_call import OneCall
from archport.contract.attention import AttentionPath, DistanceBias
from archport.contract.errors import InputError

if TYPE_CHECKING:
    import mlx.core as mx


Runner = Callable[..., "mx.array"]


def attend(
    path: AttentionPath,
    q: mx.array,
    k: mx.array,
    v: mx.array,
    *,
    scale: float,
    sinks: mx.array | None = None,
    bias: DistanceBias | None = None,
    zero_padding: bool = True,
) -> mx.array:
    """Attention as planned.

    Args:
        q, k, v: (B, H, L, Dh), (B, K, S, Dh), (B, K, S, Dv) of the path's call, padded on the right; keys in the order
            of their positions, cached ones first. What lies in padded rows is never read into a real row, but must be
            finite.
        sinks: one logit per head, when the call has them.
        bias: what distances add to the scores, when the call has it.
        zero_padding: whether padded query rows are set to zero; without it they hold finite values of no meaning.

    Returns:
        (B, H, L, Dv) in q's dtype.

    Raises:
        InputError: when the arrays are not those of the planned call.
    """
    out = prepare(path)(q, k, v, scale=scale, sinks=sinks, bias=bias)
    return _zeroed(path, out) if zero_padding else out


def prepare(path: AttentionPath) -> Runner:
    """What runs a path for layer after layer, as `attend` without zeroing.

    It takes (q, k, v, *, scale, mask, sinks, bias), where mask is the caller's array if the call has the shape of one.

    Whatever the call alone decides is decided here once; a host that binds feels each microsecond per layer.
    """
    call, price, backend = path.call, path.price, path.backend
    expected = (
        (call.B, call.n_heads, call.q_len, call.head_dim),
        (call.B, call.n_kv_heads, call.kv_len, call.head_dim),
        (call.B, call.n_kv_heads, call.kv_len, call.v_head_dim),
    )
    direct = backend.plain(call, price) if isinstance(backend, OneCall) else None

    def run(
        q: mx.array,
        k: mx.array,
        v: mx.array,
        *,
        scale: float,
        mask: mx.array | None = None,
        sinks: mx.array | None = None,
        bias: DistanceBias | None = None,
    ) -> mx.array:
        if (bias is not None) != bool(call.bias):
            raise InputError(
                "attention was planned with a bias, but is handed none; hand over what the layer's spec declares"
                if call.bias
                else "attention is handed a bias that was not planned; declare bias=True in the layer's spec"
            )
        if (q.shape, k.shape, v.shape) != expected or (sinks is not None) != call.sinks:
            raise InputError(
                f"attention was planned for q, k, v {expected} with{'' if call.sinks else 'out'} sinks, but is run "
                f"with {(q.shape, k.shape, v.shape)} with{'out' if sinks is None else ''} sinks; plan the shapes that "
                "are run"
            )
        if direct is not None:
            return direct(q, k, v, scale, sinks)
        if bias is not None:
            # Only a backend that names the feature is chosen, and takes the argument.
            return cast(Any, backend).run(call, price, q, k, v, scale=scale, mask=mask, sinks=sinks, bias=bias)
        return backend.run(call, price, q, k, v, scale=scale, mask=mask, sinks=sinks)

    return run


def _zeroed(path: AttentionPath, out: mx.array) -> mx.array:
    """`out` with padded query rows set to zero; documents in parts are written into zeros already."""
    import mlx.core as mx

    call = path.call
    queries = call.real_queries
    if call.mask == "documents":
        queries = (sum(call.q_lengths or call.lengths),) if call.B == 1 and not path.price.parts else ()
    elif not queries and 0 in call.lengths:
        queries = tuple(call.q_len if n else 0 for n in call.lengths)
    if not queries or min(queries) >= call.q_len:
        return out
    row = mx.arange(call.q_len, dtype=mx.int32).reshape(1, 1, -1, 1)
    real = row < mx.array(queries, dtype=mx.int32).reshape(-1, 1, 1, 1)
    return mx.where(real, out, mx.array(0, out.dtype))
