"""The checks, one property each, in the order in which reports list them: importing them fills CHECKS."""

from archport.testing.checks import declared, claims, loading, masks, batches, caches, numbers, memory, texts, golden  # noqa: I001

__all__ = ["batches", "caches", "claims", "declared", "golden", "loading", "masks", "memory", "numbers", "texts"]
