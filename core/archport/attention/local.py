"""The few facts of this machine that the drop-in call needs when nobody hands it a DeviceFacts. Measures nothing."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import re
from typing import Any

from archport.contract.device import DeviceFacts, DeviceKind

# Seconds after which Metal may kill a command buffer; reports start at one.
METAL_WATCHDOG = 1.0
GPU_GENERATION_WITH_NAX = 17


def local_device() -> DeviceFacts:
    """Facts of MLX's current default device."""
    import mlx.core as mx

    from archport.device.facts import host_device

    if mx.default_device() != mx.Device(mx.gpu):
        return host_device()
    return _facts("metal" if mx.metal.is_available() else "cuda")


@functools.lru_cache(maxsize=4)
def _facts(kind: DeviceKind) -> DeviceFacts:
    import mlx.core as mx

    from archport.device import tf32

    info: dict[str, Any] = dict(mx.device_info()) if kind != "cpu" else {}
    architecture = str(info.get("architecture", os.uname().machine))
    memory = int(info.get("memory_size") or info.get("total_memory") or _host_memory())
    return DeviceFacts(
        name=str(info.get("device_name", kind)),
        kind=kind,
        architecture=architecture,
        total_memory=memory,
        working_set=info.get("max_recommended_working_set_size"),
        max_buffer=info.get("max_buffer_length"),
        watchdog_seconds=METAL_WATCHDOG if kind == "metal" else None,
        nax=kind == "metal" and has_nax(architecture),
        mlx_version=mlx_version(),
        tf32=kind != "cpu" and tf32.wanted(),
    )


@functools.cache
def mlx_version() -> str:
    """The installed MLX release."""
    return importlib.metadata.version("mlx")


def has_nax(architecture: str) -> bool:
    """Whether an Apple GPU architecture ("applegpu_g17s") is of a generation with matrix accelerators."""
    found = re.fullmatch(r"applegpu_g(\d+)(\w)", architecture)
    if found is None:
        return False
    # Phone GPUs carry the suffix p and get them one generation later.
    return int(found[1]) >= GPU_GENERATION_WITH_NAX + (found[2] == "p")


def _host_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
