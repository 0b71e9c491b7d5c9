"""What a plan needs to know about a machine. Pure numbers: a plan for a machine you do not own is a value of this.

Knows nothing of how the numbers were found; `archport.device` reads them from MLX or from a profile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from archport.contract.spec import DType

DeviceKind = Literal["cpu", "metal", "cuda"]

# Float32 arithmetic per second of a device that states none; of other types a GPU does twice as much.
NOMINAL_FLOPS: Mapping[DeviceKind, float] = {"cpu": 5e9, "metal": 4e12, "cuda": 1.5e14}


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """One device.

    Args:
        name: the profile's name, or what the operating system calls the device.
        kind: which MLX backend runs on it.
        architecture: MLX's name of it ("applegpu_g14d", "sm_90", "x86_64").
        total_memory: bytes the device holds; on a CPU the bytes this process may use (cgroup limits included).
        working_set: Metal's recommended working set in bytes; None elsewhere.
        max_buffer: the largest single allocation in bytes; None where the device states none.
        flops: sustained matrix FLOP/s by element type, measured or profiled.
        bandwidth: sustained bytes/s of device memory.
        watchdog_seconds: longest one dispatch may take without risk of the system killing it; None where nothing
            watches. Metal's own bound is undocumented, reported between 1 and 10 s.
        vector_threads: threads on which this CPU computes float32 attention outside MLX, through MKL; 0 where MKL is
            not loaded, and on GPUs.
        nax: whether MLX's matrix-accelerator kernels apply (Apple GPU generation 17 and later).
        tf32: whether float32 products are rounded to TF32 here, which a user asks for; only then do the matrix
            accelerators of an Apple GPU take float32.
        mlx_version: the MLX release whose routes are meant.
        simulated: whether the numbers come from a profile and not from this machine.
    """

    name: str
    kind: DeviceKind
    architecture: str
    total_memory: int
    working_set: int | None = None
    max_buffer: int | None = None
    flops: Mapping[DType, float] = field(default_factory=dict["DType", float])
    bandwidth: float = 0.0
    watchdog_seconds: float | None = None
    vector_threads: int = 0
    nax: bool = False
    mlx_version: str = ""
    simulated: bool = False
    tf32: bool = False

    @property
    def compute_capability(self) -> int:
        """What NVIDIA calls 9.0 as 90; 0 where the architecture is none of NVIDIA's."""
        number = self.architecture.removeprefix("sm_").rstrip("af")
        return int(number) if self.kind == "cuda" and number.isdecimal() else 0

    @property
    def default_budget(self) -> int:
        """Bytes archport plans with when the caller names no budget: a constant of the machine, never what is free."""
        if self.kind == "metal":
            # MLX's own memory limit on Metal is min(1.5 x working set, 0.95 x memory); the working set is the knee.
            return min(int(0.9 * (self.working_set or self.total_memory)), int(0.95 * self.total_memory))
        return int((0.9 if self.kind == "cuda" else 0.8) * self.total_memory)


def rate(device: DeviceFacts, dtype: DType) -> float:
    """Sustained arithmetic per second; a nominal one where the device states none."""
    known = device.flops.get(dtype) or min((value for value in device.flops.values() if value), default=0.0)
    return known or NOMINAL_FLOPS[device.kind] * (1 if dtype == "float32" else 2)
