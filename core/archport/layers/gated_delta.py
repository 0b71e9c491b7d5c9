"""The gated delta rule: S <- g S + k u', u = beta (v - g S'k), y = S'q, per value head, in float32.

Two forms in plain operations that agree on every input: chunks of tokens at once, and one token. Gates come as log g,
and decays are sums of them, never differences of prefixes, so log g = -inf is a reset that leaks nothing. A token with
log g = 0 and beta = 0 leaves the state as it is. Knows nothing of projections, convolutions or devices.

Shapes, shared by all forms: q, k (B, T, Hk, Dk), v (B, T, Hv, Dv), log_decay, beta (B, T, Hv), state (B, Hv, Dk, Dv);
value heads h R .. h R + R - 1 read key head h. Float32 in both forms.
"""

from __future__ import annotations

from itertools import pairwise

import mlx.core as mx

from archport.contract import RecurrentPath
from archport.kernels import gated_delta as kernels

# Chunks whose inner products are made at once: enough to fill a device, few enough to stay small.
SPAN = 512


def run_rule(
    path: RecurrentPath,
    q: mx.array,
    k: mx.array,
    v: mx.array,
    log_decay: mx.array,
    beta: mx.array,
    state: mx.array,
) -> tuple[mx.array, mx.array]:
    """The rule in the planned form; q, k and v in any float type, gates and state in float32.

    Returns:
        y (B, T, Hv, Dv) in v's type from a kernel and in float32 otherwise, and the state after the last token.
    """
    if path.form == "cuda":
        return kernels.cuda(q, k, v, log_decay, beta, state)
    if path.form == "metal":
        return kernels.metal(q, k, v, log_decay, beta, state)
    q, k, v = (each.astype(mx.float32) for each in (q, k, v))
    if path.form == "chunked":
        return chunked(q, k, v, log_decay, beta, state, path.chunk)
    return sequential(q, k, v, log_decay, beta, state)


def sequential(
    q: mx.array, k: mx.array, v: mx.array, log_decay: mx.array, beta: mx.array, state: mx.array
) -> tuple[mx.array, mx.array]:
    """The rule as it is defined, token by token; the fastest form of one token.

    Returns:
        y (B, T, Hv, Dv), and the state after the last token.
    """
    B, T, Hk, Dk = q.shape
    Hv, Dv = v.shape[2:]
    S = state.reshape(B, Hk, Hv // Hk, Dk, Dv)
    gates = (mx.exp(log_decay).reshape(B, T, Hk, -1, 1, 1), beta.reshape(B, T, Hk, -1, 1, 1))
    v = v.reshape(B, T, Hk, -1, 1, Dv)
    rows: list[mx.array] = []
    for t in range(T):
        key, query = k[:, t, :, None, None], q[:, t, :, None, None]
        S = gates[0][:, t] * S
        u = gates[1][:, t] * (v[:, t] - key @ S)
        S = S + key.swapaxes(-1, -2) * u
        rows.append(query @ S)
    y = rows[0] if T == 1 else mx.concatenate(rows, axis=3)
    return y.reshape(B, Hv, T, Dv).swapaxes(1, 2), S.reshape(B, Hv, Dk, Dv)


def chunked(
    q: mx.array, k: mx.array, v: mx.array, log_decay: mx.array, beta: mx.array, state: mx.array, chunk: int
) -> tuple[mx.array, mx.array]:
    """The rule in matrix products over `chunk` tokens; any number works, and the last chunk may be shorter.

    Returns:
        y (B, T, Hv, Dv), and the state after the last token.
    """
    B, T, Hk, Dk = q.shape
    Hv, Dv = v.shape[2:]
    S = state.reshape(B, Hk, Hv // Hk, Dk, Dv)
    parts: list[mx.array] = []
    whole, span = T - T % chunk, max(1, SPAN // chunk) * chunk
    edges = sorted({*range(0, whole, span), whole, T})
    for start, stop in pairwise(edges):
        piece = slice(start, stop)
        tokens = [each[:, piece] for each in (q, k, v, log_decay, beta)]
        if parts:
            # Their inner products need nothing of the span before: MLX would make all spans' at once, and hold them.
            tokens = mx.depends(tokens, [S])
        y, S = _span(*tokens, S, C=min(chunk, stop - start))
        parts.append(y)
    y = parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=1)
    return y.reshape(B, T, Hv, Dv), S.reshape(B, Hv, Dk, Dv)


def _span(
    q: mx.array, k: mx.array, v: mx.array, log_decay: mx.array, beta: mx.array, S: mx.array, *, C: int
) -> tuple[mx.array, mx.array]:
    """Whole chunks of C tokens, one after the other; y (B, T, Hk, R, Dv) and S (B, Hk, R, Dk, Dv)."""
    B, T, Hk, Dk = q.shape
    R, N = S.shape[2], T // C
    # Per key head: keys above queries, so that one product with a matrix serves both.
    k = k.reshape(B, N, C, Hk, Dk).transpose(0, 3, 1, 2, 4)
    q = q.reshape(B, N, C, Hk, Dk).transpose(0, 3, 1, 2, 4)
    both = mx.concatenate([k, q], axis=-2)
    dots = (both @ k.swapaxes(-1, -2))[:, :, None]
    # Per value head: (B, Hk, R, N, C).
    log_decay, beta = (each.reshape(B, N, C, Hk, R).transpose(0, 3, 4, 1, 2) for each in (log_decay, beta))
    v = v.reshape(B, N, C, Hk, R, -1).transpose(0, 3, 4, 1, 2, 5)
    at = mx.arange(C)
    before = at[:, None] > at[None]
    # Row i, column j: the sum of log g over j < t <= i, which no subtraction has touched.
    sums = mx.cumsum(mx.where(before, log_decay[..., None], 0.0), axis=-2)
    decay = mx.where(at[:, None] >= at[None], mx.exp(sums), 0.0)
    attention = dots[..., C:, :] * decay
    solved = _inverse(mx.where(before, dots[..., :C, :] * decay * beta[..., None], 0.0)) * beta[..., None, :]
    head = mx.exp(mx.cumsum(log_decay, axis=-1))[..., None]
    # The last row of `decay`: how much of each token's update is left at the end of its chunk.
    tail, whole = decay[..., -1, :, None], head[..., -1:, :]
    rows: list[mx.array] = []
    for n in range(N):
        from_state = both[:, :, None, n] @ S
        before_chunk = head[:, :, :, n] * from_state[..., :C, :]
        update = solved[:, :, :, n] @ (v[:, :, :, n] - before_chunk)
        y = head[:, :, :, n] * from_state[..., C:, :] + attention[:, :, :, n] @ update
        S = whole[:, :, :, n] * S + k[:, :, None, n].swapaxes(-1, -2) @ (tail[:, :, :, n] * update)
        rows.append(y.transpose(0, 3, 1, 2, 4))
    return rows[0] if N == 1 else mx.concatenate(rows, axis=1), S


def _inverse(lower: mx.array) -> mx.array:
    """(I + lower)^-1 for strictly lower triangular matrices (..., C, C), by block forward substitution.

    A power series of `lower` would overflow where keys are alike; substitution is stable and doubles its blocks.
    """
    C = lower.shape[-1]
    at, size = mx.arange(C), 2
    # Blocks of two tokens need no product.
    inverse = mx.eye(C) - mx.where(_below_diagonal(at, 1), lower, 0.0)
    while size < C:
        inverse = inverse - inverse @ (mx.where(_below_diagonal(at, size), lower, 0.0) @ inverse)
        size *= 2
    return inverse


def _below_diagonal(at: mx.array, size: int) -> mx.array:
    """The blocks of `size` that a substitution step joins: second half of each pair by its first half, (C, C)."""
    block = at // size
    return (block[:, None] == block[None] + 1) & (block[None] % 2 == 0)
