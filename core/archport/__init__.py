"""archport: per-architecture model adapters on MLX, behind one memory-safe engine."""

__version__ = "0.1.0"
