"""Prefill in small chunks: one policy hook of an architecture that somebody else's plugin claims.

    import small_chunks
    model = engine.load(name, overrides=[small_chunks])

A module is enough; it needs no package and no entry point, because it is named where it is used.
"""

from __future__ import annotations

from archport.contract import BatchShape, hookimpl

TOKENS = 64


@hookimpl
def archport_prefill_chunk(shape: BatchShape) -> int | None:
    return TOKENS if shape.L > TOKENS else None
