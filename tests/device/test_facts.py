"""Facts of this machine, and of machines described by what MLX says on them."""

import mlx.core as mx
import pytest

from archport.device.facts import cpu_facts, cuda_facts, has_nax, metal_facts, this_device
from archport.device.limits import usable_memory

M2_ULTRA = {
    "architecture": "applegpu_g14d",
    "device_name": "Apple M2 Ultra",
    "memory_size": 137_438_953_472,
    "max_recommended_working_set_size": 115_448_725_504,
    "max_buffer_length": 86_586_540_032,
    "resource_limit": 499_000,
}
H200 = {
    "architecture": "sm_90",
    "device_name": "NVIDIA H200",
    "compute_capability_major": 9,
    "compute_capability_minor": 0,
    "total_memory": 150_121_545_728,
    "free_memory": 149_000_000_000,
}


def test_this_device_is_the_one_mlx_computes_on():
    kinds = {mx.DeviceType.cpu: {"cpu"}, mx.DeviceType.gpu: {"metal", "cuda"}}
    assert this_device().kind in kinds[mx.default_device().type]


def test_this_device_is_found_once_per_process():
    assert this_device() is this_device()


@pytest.mark.skipif(mx.default_device().type != mx.DeviceType.cpu, reason="a GPU states its own memory")
def test_a_cpu_has_the_memory_the_process_may_use():
    assert this_device().total_memory == usable_memory()


def test_an_apple_gpu_states_working_set_buffer_and_watchdog():
    facts = metal_facts(M2_ULTRA, "15.4", ())
    assert (facts.working_set, facts.max_buffer) == (115_448_725_504, 86_586_540_032)
    assert facts.watchdog_seconds is not None


def test_an_unknown_apple_gpu_is_taken_for_the_smallest_desktop_one():
    strange = {**M2_ULTRA, "architecture": "applegpu_g99z"}
    assert (
        metal_facts(strange, "15.4", ()).flops
        == metal_facts({**M2_ULTRA, "architecture": "applegpu_g14g"}, "", ()).flops
    )


def test_an_nvidia_gpu_is_named_by_its_compute_capability():
    facts = cuda_facts(H200)
    assert (facts.kind, facts.architecture, facts.total_memory) == ("cuda", "sm_90", 150_121_545_728)


def test_an_nvidia_gpu_has_no_watchdog_and_no_buffer_limit():
    facts = cuda_facts(H200)
    assert (facts.watchdog_seconds, facts.max_buffer, facts.working_set) == (None, None, None)


def test_only_float32_gains_from_an_optimised_blas_on_a_cpu():
    slow, fast = (cpu_facts({}, 10**9, 4, kind).flops for kind in ("reference", "mkl"))
    assert [dtype for dtype in slow if fast[dtype] > slow[dtype]] == ["float32"]


@pytest.mark.parametrize(
    ("architecture", "macos", "tag", "expected"),
    [
        ("applegpu_g17s", "26.2", "py3-none-macosx_26_0_arm64", True),
        ("applegpu_g17g", "27.0", "py3-none-macosx_26_0_arm64", True),
        ("applegpu_g17s", "26.1", "py3-none-macosx_26_0_arm64", False),
        ("applegpu_g17s", "26.2", "py3-none-macosx_15_0_arm64", False),
        ("applegpu_g16s", "26.2", "py3-none-macosx_26_0_arm64", False),
        ("applegpu_g17p", "26.2", "py3-none-macosx_26_0_arm64", False),
        ("applegpu_g18p", "26.2", "py3-none-macosx_26_0_arm64", True),
        ("", "", "", False),
    ],
)
def test_matrix_accelerators_need_chip_system_and_wheel(architecture: str, macos: str, tag: str, expected: bool):
    assert has_nax(architecture, macos, (tag,)) is expected


M5_MAX = {**M2_ULTRA, "architecture": "applegpu_g17s", "device_name": "Apple M5 Max"}


@pytest.mark.parametrize(
    ("made", "switch", "rounded"),
    [
        (lambda: cuda_facts(H200), None, False),
        (lambda: cuda_facts(H200), "1", True),
        (lambda: cuda_facts({**H200, "compute_capability_major": 7}), "1", False),
        (lambda: metal_facts(M5_MAX, "26.2", ("py3-none-macosx_26_0_arm64",)), None, False),
        (lambda: metal_facts(M5_MAX, "26.2", ("py3-none-macosx_26_0_arm64",)), "1", True),
        (lambda: metal_facts(M2_ULTRA, "26.2", ("py3-none-macosx_26_0_arm64",)), "1", False),
    ],
)
def test_float32_is_rounded_where_the_user_asks_and_the_device_can(made, switch, rounded, monkeypatch):
    monkeypatch.delenv("MLX_ENABLE_TF32", raising=False)
    if switch is not None:
        monkeypatch.setenv("MLX_ENABLE_TF32", switch)
    assert made().tf32 is rounded
