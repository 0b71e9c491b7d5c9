"""Parity: random checkpoints of every family through transformers and through archport, row by row."""

from contextlib import suppress

# Before mlx, whose BLAS it replaces. The reference's environment has neither.
with suppress(ModuleNotFoundError):
    import archport  # noqa: F401
