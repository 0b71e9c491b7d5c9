"""Facts of machines you may not own, by name, so that a plan for them is a test or a command.

Numbers come from public specifications and published measurements; each says which. Knows nothing of this machine.
"""

from __future__ import annotations

import difflib
from types import MappingProxyType

from archport.contract import DeviceFacts, DType, InputError

GIB = 2**30
MLX = "0.32.4"

# The shortest bound that users of Metal report; Apple documents none. Plans stay at half of it.
METAL_WATCHDOG = 1.0
# MLX's matrix products reach about this share of the fp32 rate that Apple's core counts and clocks give.
METAL_EFFICIENCY = 0.8


def _apple(
    name: str,
    architecture: str,
    *,
    memory: int,
    working_set: int,
    max_buffer: int,
    tflops: float,
    gigabytes_per_second: float,
    nax_tflops: float | None = None,
) -> DeviceFacts:
    """An Apple GPU; `tflops` is its fp32 peak, `nax_tflops` the 16-bit peak of its matrix units where it has them."""
    plain = tflops * 1e12 * METAL_EFFICIENCY
    half = plain if nax_tflops is None else nax_tflops * 1e12 * METAL_EFFICIENCY
    flops: dict[DType, float] = {"float32": plain, "float16": half, "bfloat16": half}
    return DeviceFacts(
        name=name,
        kind="metal",
        architecture=architecture,
        total_memory=memory,
        working_set=working_set,
        max_buffer=max_buffer,
        flops=MappingProxyType(flops),
        bandwidth=gigabytes_per_second * 1e9 * 0.85,
        watchdog_seconds=METAL_WATCHDOG,
        nax=nax_tflops is not None,
        mlx_version=MLX,
        simulated=True,
    )


def _all() -> dict[str, DeviceFacts]:
    # Recommended working sets are what `device_info` printed for these sizes of memory: two thirds up to 32 GB, 84 %
    # of 128 GB, 87 % of 256 GB. The largest buffer is three quarters of the working set in every published pair.
    profiles = [
        # 8 GPU cores at 1.278 GHz: 2.6 TFLOP/s. 68 GB/s (Apple). Working set 10,922.67 MiB (logs of 16 GB machines).
        _apple(
            "m1-16gb",
            "applegpu_g13g",
            memory=16 * GIB,
            working_set=11_453_251_584,
            max_buffer=8_589_934_592,
            tflops=2.6,
            gigabytes_per_second=68,
        ),
        # 76 cores at 1.398 GHz: 27.2 TFLOP/s. 800 GB/s (Apple). Largest buffer: Blaizzy/mlx-embeddings#68.
        _apple(
            "m2-ultra-128gb",
            "applegpu_g14d",
            memory=128 * GIB,
            working_set=115_448_725_504,
            max_buffer=86_586_540_032,
            tflops=27.2,
            gigabytes_per_second=800,
        ),
        # 80 cores at 1.398 GHz: 28.6 TFLOP/s. 819 GB/s (Apple). Largest buffer: ml-explore/mlx#3312.
        _apple(
            "m3-ultra-256gb",
            "applegpu_g15d",
            memory=256 * GIB,
            working_set=239_143_780_352,
            max_buffer=179_357_827_072,
            tflops=28.6,
            gigabytes_per_second=819,
        ),
        # 20 cores at 1.578 GHz: 8.1 TFLOP/s. 273 GB/s (Apple). Two thirds of 24 GiB.
        _apple(
            "m4-pro-24gb",
            "applegpu_g16s",
            memory=24 * GIB,
            working_set=17_179_869_184,
            max_buffer=12_884_901_888,
            tflops=8.1,
            gigabytes_per_second=273,
        ),
        # 40 cores at about 1.6 GHz: 16.6 TFLOP/s in fp32; the matrix units give about four times the 16-bit rate of an
        # M4 Max (Apple). 614 GB/s (Apple). Memory limits as on other machines of 128 GB.
        _apple(
            "m5-max-128gb",
            "applegpu_g17s",
            memory=128 * GIB,
            working_set=115_448_725_504,
            max_buffer=86_586_540_032,
            tflops=16.6,
            gigabytes_per_second=614,
            nax_tflops=66.0,
        ),
        # 143,771 MiB (nvidia-smi). TFLOP/s measured with MLX 0.32.4, 8192^3: bf16 553 to 640, float32 50, as TF32 276.
        # 4.8 TB/s (NVIDIA). Compute-only cards have no watchdog.
        DeviceFacts(
            name="h200",
            kind="cuda",
            architecture="sm_90",
            total_memory=143_771 * 2**20,
            flops=MappingProxyType({"float32": 50e12, "float16": 550e12, "bfloat16": 550e12}),
            bandwidth=4.8e12 * 0.85,
            mlx_version=MLX,
            simulated=True,
        ),
        # Two x86-64 cores with MKL, 16 GiB: measured 166 GFLOP/s in float32; 16-bit products stay on the
        # reference loops at 3.5 and 4.5 GFLOP/s.
        DeviceFacts(
            name="cpu",
            kind="cpu",
            architecture="x86_64",
            total_memory=16 * GIB,
            flops=MappingProxyType({"float32": 166e9, "float16": 3.5e9, "bfloat16": 4.5e9}),
            bandwidth=20e9,
            vector_threads=2,
            mlx_version=MLX,
            simulated=True,
        ),
    ]
    return {facts.name: facts for facts in profiles}


PROFILES = MappingProxyType(_all())


def profile(name: str) -> DeviceFacts:
    """The facts of a known machine.

    Raises:
        InputError: no such profile; the message lists near matches, or all names.
    """
    known = PROFILES.get(name.strip().lower())
    if known is not None:
        return known
    near = difflib.get_close_matches(name.strip().lower(), PROFILES, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(PROFILES)}"
    raise InputError(f"no device profile is called {name!r}; {hint}")
