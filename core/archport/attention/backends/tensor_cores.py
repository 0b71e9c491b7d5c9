"""What archport's own CUDA kernels have in common: 16 bits, one head dim, no sinks and no array masks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from archport.contract.attention import AttentionCall

if TYPE_CHECKING:
    import mlx.core as mx

# Head dims that MLX runs unfused on CUDA.
WIDE = (192, 256)


def misfits(call: AttentionCall, head_dims: str, *, fits: bool) -> list[str]:
    """Why no such kernel takes a call; empty when one may.

    Args:
        head_dims: those of the kernel, in words.
        fits: whether the call's head dim is one of them.
    """
    found: list[str] = []
    if call.dtype == "float32":
        found.append("tensor cores take 16 bits here, the call has float32")
    if call.head_dim != call.v_head_dim or not fits:
        found.append(f"head dims {call.head_dim}/{call.v_head_dim}; expected {head_dims}")
    if call.sinks:
        found.append("sinks")
    if call.mask_shape:
        found.append("an array mask")
    return found


def of_one_type(call: AttentionCall, *arrays: mx.array) -> tuple[mx.array, ...]:
    """The arrays in the call's type, which a rope of somebody else's may not have kept; a kernel reads all as one."""
    import mlx.core as mx

    kind = {"float16": mx.float16, "bfloat16": mx.bfloat16}[call.dtype]
    return tuple(array if array.dtype == kind else array.astype(kind) for array in arrays)
