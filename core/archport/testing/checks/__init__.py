"""The checks, one property each, in the order in which reports list them: importing them fills CHECKS."""

from archport.testing.checks import declared, claims, loading, masks, policies, batches  # noqa: I001
from archport.testing.checks import caches, spans, generation, numbers, memory, texts, golden, ranks

__all__ = [
    "batches",
    "caches",
    "claims",
    "declared",
    "generation",
    "golden",
    "loading",
    "masks",
    "memory",
    "numbers",
    "policies",
    "ranks",
    "spans",
    "texts",
]
