"""Facts of machines you may not own, by name, so that a plan for them is a test or a command.

Numbers come from public specifications and published measurements; each says which, or what it is derived from. Budgets
that follow are estimates. Knows nothing of this machine.
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


# Chip, architecture, GPU cores, fp32 TFLOP/s, GB/s, GB of memory that Macs have with it. Cores, bandwidth, memory are
# Apple's, of the variant with most cores that comes with so much memory: a Max of 36 GB, and an M3 Max of 96 GB, have
# fewer cores and less bandwidth. Derived: the M5 Max's 460 GB/s of 36 GB, three quarters of its 614 as on the M3 and M4
# Max. fp32 follows from cores x 256 x clock (M1 1.278 GHz, its larger chips 1.296, M2 and M3 1.398, M4 1.47, its larger
# chips 1.578, M5 about 1.6), clocks as people measured them.
_CHIPS: tuple[tuple[str, str, int, float, float, tuple[int, ...]], ...] = (
    ("m1", "applegpu_g13g", 8, 2.6, 68, (8, 16)),
    ("m1-pro", "applegpu_g13s", 16, 5.3, 200, (16, 32)),
    ("m1-max", "applegpu_g13c", 32, 10.6, 400, (32, 64)),
    ("m1-ultra", "applegpu_g13d", 64, 21.2, 800, (64, 128)),
    ("m2", "applegpu_g14g", 10, 3.6, 100, (8, 16, 24)),
    ("m2-pro", "applegpu_g14s", 19, 6.8, 200, (16, 32)),
    ("m2-max", "applegpu_g14c", 38, 13.6, 400, (32, 64, 96)),
    ("m2-ultra", "applegpu_g14d", 76, 27.2, 800, (64, 128, 192)),
    ("m3", "applegpu_g15g", 10, 3.6, 100, (8, 16, 24)),
    ("m3-pro", "applegpu_g15s", 18, 6.4, 150, (18, 36)),
    ("m3-max", "applegpu_g15c", 30, 10.7, 300, (36, 96)),
    ("m3-max", "applegpu_g15c", 40, 14.3, 400, (48, 64, 128)),
    ("m3-ultra", "applegpu_g15d", 80, 28.6, 819, (96, 256, 512)),
    ("m4", "applegpu_g16g", 10, 3.8, 120, (16, 24, 32)),
    ("m4-pro", "applegpu_g16s", 20, 8.1, 273, (24, 48, 64)),
    ("m4-max", "applegpu_g16s", 32, 12.9, 410, (36,)),
    ("m4-max", "applegpu_g16s", 40, 16.2, 546, (48, 64, 128)),
    ("m5", "applegpu_g17g", 10, 4.1, 153, (16, 24, 32)),
    ("m5-pro", "applegpu_g17s", 20, 8.3, 307, (24, 48, 64)),
    ("m5-max", "applegpu_g17s", 32, 13.3, 460, (36,)),
    ("m5-max", "applegpu_g17s", 40, 16.6, 614, (48, 64, 128)),
)
# 16-bit TFLOP/s of a core's matrix units: about four times an M4 Max's rate with 40 cores (Apple).
_NAX_TFLOPS_PER_CORE = 1.65

# Recommended working sets that Macs printed, in bytes, by GB of memory: 16 GB 10,922.67 MiB, 128 GB 107.52 GiB on two
# chips, 256 GB 239.1 GB. Others follow from shares that logs show: two thirds up to 32 GB, three quarters up to
# 192 GB (64 GB 48 GiB, 96 GB 72 GiB, 192 GB 144 GiB). 512 GB is derived from 256. macOS moves them between versions.
_WORKING_SETS = {
    16: 11_453_251_584,
    24: 17_179_869_184,
    128: 115_448_725_504,
    256: 239_143_780_352,
    512: 2 * 239_143_780_352,
}
# The largest buffers that were published; three quarters of the working set in each pair, and elsewhere by that rule.
_LARGEST_BUFFERS = {16: 8_589_934_592, 128: 86_586_540_032, 256: 179_357_827_072}

# Card: (architecture, MiB as nvidia-smi tells them, fp32 and dense 16-bit TFLOP/s with fp32 sums, GB/s), by NVIDIA's
# data sheets. MLX reaches what it does on the H200 by share: measured 50 of 67 and 550 of 989.
_CARDS: dict[str, tuple[str, int, float, float, float]] = {
    "t4-16gb": ("sm_75", 15_360, 8.1, 65.0, 320),
    "rtx-3060-12gb": ("sm_86", 12_288, 12.7, 25.5, 360),
    "rtx-3090-24gb": ("sm_86", 24_576, 35.6, 71.0, 936),
    "rtx-4060-ti-16gb": ("sm_89", 16_380, 22.1, 44.1, 288),
    "rtx-4090-24gb": ("sm_89", 24_564, 82.6, 165.2, 1008),
    "rtx-5090-32gb": ("sm_120", 32_607, 104.8, 209.5, 1792),
    "a10g-24gb": ("sm_86", 23_028, 31.2, 70.0, 600),
    "l4-24gb": ("sm_89", 23_034, 30.3, 121.0, 300),
    "l40s-48gb": ("sm_89", 46_068, 91.6, 362.0, 864),
    "a100-40gb": ("sm_80", 40_960, 19.5, 312.0, 1555),
    "a100-80gb": ("sm_80", 81_920, 19.5, 312.0, 2039),
    "h100-80gb": ("sm_90", 81_559, 67.0, 989.0, 3350),
    "b200-180gb": ("sm_100", 183_359, 75.0, 2250.0, 8000),
}
_FP32_SHARE, _HALF_SHARE = 50 / 67, 550 / 989


def _macs() -> list[DeviceFacts]:
    """Every chip with every size of memory."""
    made: list[DeviceFacts] = []
    for chip, architecture, cores, tflops, bandwidth, sizes in _CHIPS:
        nax = cores * _NAX_TFLOPS_PER_CORE if chip.startswith("m5") else None
        for size in sizes:
            share = (2, 3) if size <= 32 else (3, 4)
            working_set = _WORKING_SETS.get(size, size * GIB * share[0] // share[1])
            made.append(
                _apple(
                    f"{chip}-{size}gb",
                    architecture,
                    memory=size * GIB,
                    working_set=working_set,
                    max_buffer=_LARGEST_BUFFERS.get(size, working_set * 3 // 4),
                    tflops=tflops,
                    gigabytes_per_second=bandwidth,
                    nax_tflops=nax,
                )
            )
    return made


def _cards() -> list[DeviceFacts]:
    """NVIDIA's cards but the H200, which was measured."""
    return [
        DeviceFacts(
            name=name,
            kind="cuda",
            architecture=architecture,
            total_memory=mebibytes * 2**20,
            flops=MappingProxyType(
                {
                    "float32": full * 1e12 * _FP32_SHARE,
                    "float16": half * 1e12 * _HALF_SHARE,
                    "bfloat16": half * 1e12 * _HALF_SHARE,
                }
            ),
            bandwidth=bandwidth * 1e9 * 0.85,
            mlx_version=MLX,
            simulated=True,
        )
        for name, (architecture, mebibytes, full, half, bandwidth) in _CARDS.items()
    ]


def _all() -> dict[str, DeviceFacts]:
    measured = [
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
    return {facts.name: facts for facts in (*_macs(), *_cards(), *measured)}


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
