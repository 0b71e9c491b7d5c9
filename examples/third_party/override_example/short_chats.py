"""Begin caches small: one policy hook for a chat whose answers are short and have no stated limit.

    import short_chats
    model = engine.load(name, overrides=[short_chats])

Where nobody says how long an answer may become, a cache begins with room for 4,096 tokens a row and doubles. Many short
chats at once then hold mostly room: `benchmarks/policy_hooks_cpu.py`. A row that does grow is copied at 512, 1,024 ...
"""

from __future__ import annotations

from archport.contract import AttentionLayer, BatchShape, KVAllocation, LayerSpec, Limits, hookimpl

TOKENS = 512


@hookimpl
def archport_kv_allocation(layer: LayerSpec, shape: BatchShape, limits: Limits) -> KVAllocation | None:
    if not isinstance(layer, AttentionLayer) or layer.reach[0] is not None:
        # A window's ring is small already, and so is a recurrent state.
        return None
    if shape.new_tokens or shape.S + shape.L >= TOKENS:
        # A stated limit is allocated once.
        return None
    return KVAllocation("growing", TOKENS, limits.max_context, why="answers are short")
