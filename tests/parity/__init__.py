"""Parity: random checkpoints of every family through transformers and through archport, row by row."""

# Before mlx, whose BLAS it replaces.
import archport  # noqa: F401
