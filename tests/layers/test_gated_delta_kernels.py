"""The CUDA kernel's source, run on the host, against float64; benchmarks/qwen35_gpu.py asks the same of a GPU."""

import importlib.util
import shutil
from pathlib import Path

import cuda_on_host
import numpy as np
import pytest

from archport.kernels import gated_delta as kernels


def load(name):
    found = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


rule = load("test_gated_delta")

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ to run CUDA source on the host")

NAMES = ["q", "k", "v", "log_decay", "beta", "state_in", "y", "state_out"]


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    heads = {"Hk": rule.HK, "Hv": rule.HV, "Dk": rule.DK, "Dv": rule.DV}
    folder = tmp_path_factory.mktemp("kernel")
    return cuda_on_host.build(folder, kernels.SOURCE, kernels.HEADER, NAMES, heads, kernels.LANES * kernels.COLUMNS)


def answers(kernel, case):
    q, _, v, _, _, state = case
    filled = [*map(np.ascontiguousarray, case), np.full_like(v, np.nan), np.full_like(state, np.nan)]
    arrays = dict(zip(NAMES, filled, strict=True))
    kernel(arrays, q.shape, (v.shape[-1] // kernels.COLUMNS, v.shape[0] * v.shape[2]))
    return arrays["y"], arrays["state_out"]


@pytest.mark.parametrize("kind", rule.CASES)
def test_the_cuda_kernel_agrees_with_float64(kernel, kind):
    case = rule.inputs(kind, tokens=70)
    assert rule.worst(answers(kernel, case), rule.float64(*case)) <= rule.LIMIT


@pytest.mark.parametrize("tokens", [1, 15, 16, 17])
def test_the_cuda_kernel_takes_any_number_of_tokens_and_rows(kernel, tokens):
    case = rule.inputs("random", tokens=tokens, rows=2)
    assert rule.worst(answers(kernel, case), rule.float64(*case)) <= rule.LIMIT
