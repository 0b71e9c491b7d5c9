"""This machine as `DeviceFacts`: what MLX and the operating system say of the device that MLX computes on.

Speeds are coarse defaults per kind of device, good for orders of magnitude; a calibration may replace them. Knows
nothing of other machines (profiles do) and chooses no attention path.
"""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import re
from collections.abc import Mapping

import mlx.core as mx

from archport.contract.device import DeviceFacts
from archport.contract.spec import DType
from archport.device import blas, tf32, workers
from archport.device.limits import usable_memory

GB = 10**9
MLX_VERSION: str = mx.__version__  # pyright: ignore[reportAttributeAccessIssue]  # missing in its type stubs
TERA = 1e12

# Longest time one command buffer may take on Metal. Reports range from 1 to 10 s (ml-explore/mlx#3302,
# ollama/ollama#15206); Apple documents none, so the shortest reported is the bound.
METAL_WATCHDOG_SECONDS = 1.0

# Sustained matrix FLOP/s and bytes/s by the size letter of "applegpu_g14d": about 0.7 of what Apple publishes for the
# oldest chip of that size (M1, M1 Pro, M1 Max, M1 Ultra), because too low a speed only makes dispatches shorter.
METAL_SPEEDS: Mapping[str, tuple[float, float]] = {
    "p": (0.7 * TERA, 30 * GB),
    "g": (1.8 * TERA, 50 * GB),
    "s": (3.6 * TERA, 150 * GB),
    "c": (7.2 * TERA, 300 * GB),
    "d": (14.5 * TERA, 600 * GB),
}
# One H200 under MLX 0.32.4: GEMM 8192^3 bf16 553 to 640 TFLOP/s, float32 50, as TF32 276. Older ones: about 0.6 of
# NVIDIA's dense peaks for A100 (312, 19.5, 156 as TF32).
CUDA_HOPPER: Mapping[DType, float] = {"float32": 50 * TERA, "float16": 550 * TERA, "bfloat16": 550 * TERA}
CUDA_AMPERE: Mapping[DType, float] = {"float32": 12 * TERA, "float16": 190 * TERA, "bfloat16": 190 * TERA}
HOPPER_TF32, AMPERE_TF32 = 270 * TERA, 90 * TERA
CUDA_OLDER: Mapping[DType, float] = {"float32": 8 * TERA, "float16": 30 * TERA, "bfloat16": 8 * TERA}
# Per core; 2 cores of an AMD EPYC measured 166 GFLOP/s float32 with MKL. Without it, one core whatever their number:
# float32 5, bfloat16 4.5, float16 3.5 GFLOP/s (16-bit matrices never reach a BLAS).
CPU_BLAS_FLOPS_PER_CORE = 40e9
CPU_REFERENCE: Mapping[DType, float] = {"float32": 5e9, "float16": 3.5e9, "bfloat16": 4.5e9}
CPU_BANDWIDTH = 15 * GB


@functools.cache
def this_device() -> DeviceFacts:
    """Facts of MLX's default device, found once per process."""
    device = mx.default_device()
    if device.type == mx.DeviceType.cpu:
        return host_device()
    info = mx.device_info(device)
    if mx.metal.is_available():
        return metal_facts(info, platform.mac_ver()[0], _metal_wheel_tags())
    return cuda_facts(info)


@functools.cache
def host_device() -> DeviceFacts:
    """Facts of this machine's CPU, also next to a GPU, found once per process."""
    info = mx.device_info(mx.Device(mx.cpu))
    return cpu_facts(info, usable_memory(), workers.cores(), blas.status().kind, workers.threads())


def cpu_facts(
    info: Mapping[str, str | int], memory: int, cores: int, blas_kind: blas.BlasKind, vector_threads: int = 0
) -> DeviceFacts:
    """Facts of a CPU from MLX's `device_info`, the bytes and cores the process may use, its BLAS and vector threads."""
    fast = blas_kind in ("mkl", "openblas", "path", "not-needed")
    flops = dict(CPU_REFERENCE)
    if fast:
        flops["float32"] = CPU_BLAS_FLOPS_PER_CORE * cores
    return DeviceFacts(
        name=str(info.get("device_name", platform.machine())),
        kind="cpu",
        architecture=str(info.get("architecture", platform.machine())),
        total_memory=memory,
        flops=flops,
        bandwidth=CPU_BANDWIDTH,
        vector_threads=vector_threads,
        mlx_version=MLX_VERSION,
    )


def metal_facts(info: Mapping[str, str | int], macos: str, wheel_tags: tuple[str, ...]) -> DeviceFacts:
    """Facts of an Apple GPU from MLX's `device_info`, the macOS version and the tags of the installed MLX wheel."""
    architecture = str(info["architecture"])
    nax = has_nax(architecture, macos, wheel_tags)
    flops, bandwidth = METAL_SPEEDS.get(architecture[-1:], METAL_SPEEDS["g"])
    return DeviceFacts(
        name=str(info.get("device_name", architecture)),
        kind="metal",
        architecture=architecture,
        total_memory=int(info["memory_size"]),
        working_set=int(info["max_recommended_working_set_size"]),
        max_buffer=int(info["max_buffer_length"]),
        flops={"float32": flops, "float16": flops, "bfloat16": flops},
        bandwidth=bandwidth,
        watchdog_seconds=METAL_WATCHDOG_SECONDS,
        nax=nax,
        mlx_version=MLX_VERSION,
        tf32=nax and tf32.wanted(),
    )


def cuda_facts(info: Mapping[str, str | int]) -> DeviceFacts:
    """Facts of an NVIDIA GPU from MLX's `device_info`."""
    major = int(info.get("compute_capability_major", 0))
    flops = dict(CUDA_HOPPER if major >= 9 else CUDA_AMPERE if major == 8 else CUDA_OLDER)
    rounded = major >= 8 and tf32.wanted()
    if rounded:
        flops["float32"] = HOPPER_TF32 if major >= 9 else AMPERE_TF32
    return DeviceFacts(
        name=str(info.get("device_name", "cuda")),
        kind="cuda",
        architecture=f"sm_{major}{info.get('compute_capability_minor', 0)}",
        total_memory=int(info["total_memory"]),
        flops=flops,
        bandwidth=2000.0 * GB if major >= 9 else 1000.0 * GB if major == 8 else 300.0 * GB,
        mlx_version=MLX_VERSION,
        tf32=rounded,
    )


def has_nax(architecture: str, macos: str, wheel_tags: tuple[str, ...]) -> bool:
    """Whether MLX's matrix-accelerator kernels run: M5-class GPU, macOS 26.2 or later, and a wheel built with them.

    Args:
        architecture: MLX's name, as "applegpu_g17s"; the letter "p" is a phone, whose kernels start one generation up.
        macos: the version, as "26.2".
        wheel_tags: platform tags of the installed MLX wheel, as "py3-none-macosx_26_0_arm64".
    """
    match = re.fullmatch(r"applegpu_g(\d+)([a-z])", architecture)
    if match is None or not any("macosx_26" in tag for tag in wheel_tags):
        return False
    version = tuple(int(part) for part in re.findall(r"\d+", macos)[:2])
    return version >= (26, 2) and int(match[1]) >= (18 if match[2] == "p" else 17)


def _metal_wheel_tags() -> tuple[str, ...]:
    try:
        wheel = importlib.metadata.distribution("mlx-metal").read_text("WHEEL") or ""
    except importlib.metadata.PackageNotFoundError:
        return ()
    return tuple(line.partition(":")[2].strip() for line in wheel.splitlines() if line.startswith("Tag:"))
