"""Tiny tier: bytes that a run takes against bytes that its plan says."""

from __future__ import annotations

from archport.contract import EmbeddingHead
from archport.planning import Plan
from archport.testing.check import check, fail
from archport.testing.subject import Tiny

# Below this a measurement is mostly page rounding.
WORTH_MEASURING = 32 << 20
FACTOR = 1.25
# MLX hands a CPU's worker ten operations at a time, and releases what they held when all ten are done: which arrays
# coexist depends on where a ten ends and how far ahead the worker is. So many runs see every place.
RUNS = 10


@check("tiny")
def peak_is_predicted(t: Tiny) -> str:
    """No run's peak is above what its plan predicts, and above 32 MB the prediction is within 1.25 of the highest.

    Make no arrays that the declared widths do not account for: masks, repeated heads, wide temporaries.
    """
    length = t.length(256)
    count = 8
    while True:
        plan = t.plan([length] * count, tokens_per_batch=length * count)
        if plan.peak > 1.5 * WORTH_MEASURING or count >= 4096:
            break
        count += count // 2
    measured = 0
    for _ in range(RUNS):
        measured = max(measured, _measure(t, plan, length, count))
        if measured * FACTOR >= plan.peak:
            break
    if measured > plan.peak:
        fail(
            f"{count} rows of {length} tokens took {measured:,} bytes, the plan predicts {plan.peak:,} "
            f"(measured / predicted {measured / plan.peak:.2f}, limit 1)"
        )
    if measured > WORTH_MEASURING and plan.peak > FACTOR * measured:
        parts = ", ".join(f"{name} {size:,}" for name, size in plan.bytes.items() if size)
        fail(
            f"{count} rows of {length} tokens took {measured:,} bytes, the plan predicts {plan.peak:,} (predicted / "
            f"measured {plan.peak / measured:.2f}, limit {FACTOR}): {parts}"
        )
    return (
        f"{count} x {length} tokens: {measured >> 20} MiB, predicted {plan.peak >> 20} MiB, {plan.peak / measured:.2f}"
    )


def _measure(t: Tiny, plan: Plan, length: int, count: int) -> int:
    """Peak bytes of encoding and pooling the planned rows, weights included."""
    import mlx.core as mx

    from archport.running.pool import VectorHead

    rows = [t.tokens(length, seed) for seed in range(count)]
    pooling = VectorHead(EmbeddingHead(("mean",)))
    head = t.model._runtime.embedder().head if t.embeds else pooling
    encoder = t.model._runtime.encoder
    mx.synchronize()
    mx.clear_cache()
    mx.reset_peak_memory()
    # What other models of this process hold is not part of the plan.
    others = mx.get_active_memory() - plan.bytes["weights"]
    for batch in plan.batches:
        mx.eval(encoder.pooled(plan, batch, [rows[row] for row in batch.rows], head, 0))
    mx.synchronize()
    return mx.get_peak_memory() - max(0, others)
