"""What the machine is: versions, the device's facts, settings that change what runs. Measures nothing but TF32."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import archport
from archport.contract import DeviceFacts

_LIBRARIES = (
    "mlx",
    "mlx-metal",
    "mlx-lm",
    "numpy",
    "tokenizers",
    "safetensors",
    "huggingface-hub",
    "pillow",
    "av",
    "mkl",
)
# What tells one device from all others of its kind.
_OWN = re.compile("uuid|serial|pci|bus", re.I)
# Settings that move routes, precision, memory or speed. Of archport's own by name: others hold keys, hosts and folders.
_SETTINGS = ("MLX_", "AGX_", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
_SETTINGS += ("ARCHPORT_BLAS", "ARCHPORT_PLUGINS", "ARCHPORT_PREFER", "ARCHPORT_VERIFY_MEMORY")


def about_machine(device: DeviceFacts) -> dict[str, Any]:
    """Versions, facts and settings, as JSON-ready values."""
    import mlx.core as mx

    from archport.device import blas, tf32

    facts = {each.name: getattr(device, each.name) for each in fields(device) if each.name != "simulated"}
    facts["flops"] = dict(device.flops)
    return {
        "archport": archport.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "release": platform.mac_ver()[0] or platform.release(),
        "processor": platform.machine(),
        "libraries": {name: found for name in _LIBRARIES if (found := _version(name)) is not None},
        "device": facts,
        "budget": device.default_budget,
        # The numbers that MLX states, of a GPU those of its driver.
        "device_info": {name: value for name, value in mx.device_info().items() if not _OWN.search(name)},
        "float32_is_rounded": tf32.in_use(),
        "blas": blas.status().kind,
        "settings": {name: value for name, value in sorted(os.environ.items()) if name.startswith(_SETTINGS)},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
