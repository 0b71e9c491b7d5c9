"""What this process holds now: MLX's live arrays and its pool of freed buffers, the host's memory, the device's. Bytes.

Reads counters only. Knows nothing of models or plans.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """Bytes that this process holds, all of its models together.

    Args:
        active: MLX's live arrays, weights and prefix caches included.
        pool: freed buffers that MLX keeps for later arrays.
        pool_limit: what the pool may hold since the last request; None before the first, when MLX's own limit holds.
        peak: the most that `active` has been since the process began, or since somebody reset MLX's counter.
        host: resident memory of the process as the operating system counts it, with what of the arrays is resident on
            a CPU and on Metal, where they lie in the same memory. None where the system does not say.
        device: bytes of the GPU that are in use, by all processes, as its driver says; None elsewhere than on CUDA.
    """

    active: int
    pool: int
    pool_limit: int | None
    peak: int
    host: int | None
    device: int | None


@dataclass(frozen=True, slots=True)
class ModelMemory:
    """Bytes that a model and its process hold.

    Args:
        weights: of this model.
        prefix_cache: what its calls of `generate` left for later ones.
        process: live arrays, pool of freed buffers, host and device, of all models of the process together.
    """

    weights: int
    prefix_cache: int
    process: ProcessMemory


def process_memory() -> ProcessMemory:
    """What this process holds now."""
    import mlx.core as mx

    from archport.device.pool import pool

    return ProcessMemory(
        active=mx.get_active_memory(),
        pool=mx.get_cache_memory(),
        pool_limit=pool().limit,
        peak=mx.get_peak_memory(),
        host=resident_bytes(),
        device=_device_bytes(),
    )


def resident_bytes() -> int | None:
    """Memory of this process that is resident; None where the system does not say."""
    try:
        if sys.platform.startswith("linux"):
            with open("/proc/self/statm", encoding="ascii") as counters:
                return int(counters.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        # macOS tells the largest so far only, except through a library call that needs its own headers.
        told = subprocess.run(["ps", "-o", "rss=", "-p", str(os.getpid())], capture_output=True, text=True, timeout=5)
        return int(told.stdout) * 1024
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return None


def _device_bytes() -> int | None:
    """Bytes of a CUDA device that are in use."""
    import mlx.core as mx

    if mx.default_device().type == mx.DeviceType.cpu or mx.metal.is_available():
        return None
    info = mx.device_info()
    total, free = info.get("total_memory"), info.get("free_memory")
    return int(total) - int(free) if total is not None and free is not None else None
