"""Which precision float32 products have: chosen by a load, never by an import, and the user's own choice stands."""

from __future__ import annotations

import archport  # noqa: F401

# isort: split
import os
import subprocess
import sys
import warnings
from pathlib import Path

import mlx.core as mx
import pytest

from archport.cli import doctor
from archport.device import tf32
from archport.device.facts import cuda_facts

GOLDEN = Path(__file__).parents[1] / "goldens" / "bert-plain"
on_gpu = pytest.mark.skipif(
    mx.default_device().type == mx.DeviceType.cpu, reason="a CPU has no TF32; its rules are in the other tests"
)


@pytest.fixture
def unset(monkeypatch):
    monkeypatch.delenv(tf32.SWITCH, raising=False)
    return monkeypatch


@pytest.fixture
def a_gpu(unset):
    class Device:
        type = mx.DeviceType.gpu

    unset.setattr(tf32.mx, "default_device", lambda: Device)
    return unset


def test_a_gpu_multiplies_in_full_precision_unless_told_otherwise(a_gpu):
    tf32.choose_precision()
    assert os.environ[tf32.SWITCH] == "0"


def test_the_user_s_own_choice_stands(a_gpu):
    a_gpu.setenv(tf32.SWITCH, "1")
    tf32.choose_precision()
    assert os.environ[tf32.SWITCH] == "1"
    assert tf32.wanted()


def test_a_cpu_is_left_alone(unset):
    class Device:
        type = mx.DeviceType.cpu

    unset.setattr(tf32.mx, "default_device", lambda: Device)
    tf32.choose_precision()
    assert tf32.SWITCH not in os.environ
    assert not tf32.in_use.__wrapped__()


def test_an_import_changes_no_environment():
    script = (
        f"import os; before = dict(os.environ); import archport, archport.engine; print({tf32.SWITCH!r} in os.environ)"
    )
    environment = {name: value for name, value in os.environ.items() if name != tf32.SWITCH}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_rounding_that_nobody_asked_for_is_a_warning(a_gpu):
    a_gpu.setattr(tf32, "in_use", lambda: True)
    with pytest.warns(RuntimeWarning, match="MLX_ENABLE_TF32=0 before Python starts"):
        tf32.warn_if_rounded()


@pytest.mark.parametrize("asked", [True, False])
def test_no_warning_where_products_are_what_was_asked_for(a_gpu, asked):
    if asked:
        a_gpu.setenv(tf32.SWITCH, "1")
    a_gpu.setattr(tf32, "in_use", lambda: asked)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tf32.warn_if_rounded()


@pytest.mark.parametrize(
    ("rounded", "asked", "fact", "faults"),
    [
        (False, False, "products in full precision", 0),
        (True, True, "products rounded to TF32 (MLX_ENABLE_TF32 asks for it)", 0),
        (True, False, "products rounded to TF32", 1),
    ],
)
def test_doctor_says_what_products_are_and_how_to_have_others(rounded, asked, fact, faults, a_gpu):
    if asked:
        a_gpu.setenv(tf32.SWITCH, "1")
    a_gpu.setattr(tf32, "in_use", lambda: rounded)
    said, found = doctor.PROBES["float32"]()
    assert said == fact
    assert len(found) == faults
    assert all("MLX_ENABLE_TF32=0 before Python starts" in each for each in found)


def test_a_plan_counts_on_the_speed_that_products_have(unset):
    info = {"device_name": "H200", "compute_capability_major": 9, "total_memory": 10**11}
    exact = cuda_facts(info).flops["float32"]
    unset.setenv(tf32.SWITCH, "1")
    assert cuda_facts(info).flops["float32"] > 4 * exact


# What a process of its own says: MLX reads its switch once.
PRODUCT = f"""
import sys, warnings
import archport
from archport import engine
import mlx.core as mx
if "early" in sys.argv:
    mx.eval(mx.ones((64, 64)) @ mx.ones((64, 64)))
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    engine.load({str(GOLDEN)!r}, dtype="float32")
from archport.device import tf32
print(tf32.in_use(), sum("TF32" in str(each.message) for each in said))
"""


@on_gpu
@pytest.mark.parametrize(
    ("arguments", "switch", "said"),
    [([], None, "False 0"), ([], "1", "True 0"), ([], "0", "False 0"), (["early"], None, "True 1")],
)
def test_a_load_settles_it_and_says_where_it_is_too_late(arguments, switch, said):
    environment = {name: value for name, value in os.environ.items() if name != tf32.SWITCH}
    environment |= {tf32.SWITCH: switch} if switch else {}
    command = [sys.executable, "-c", PRODUCT, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == said
