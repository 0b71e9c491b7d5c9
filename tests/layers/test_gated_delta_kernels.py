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


@pytest.fixture(scope="module", params=[1, 2], ids=["one column a thread", "two columns a thread"])
def kernel(tmp_path_factory, request):
    """A function (case) -> y, state."""
    columns = request.param
    sizes = {"Hk": rule.HK, "Hv": rule.HV, "Dk": rule.DK, "Dv": 16 * columns * 2, "Columns": columns}
    folder = tmp_path_factory.mktemp("kernel")
    run = cuda_on_host.build(folder, kernels.SOURCE, kernels.HEADER, NAMES, sizes, kernels.THREADS)

    def answers(kind, **more):
        case = rule.inputs(kind, value_dim=sizes["Dv"], **more)
        q, _, v, _, _, state = case
        filled = [*map(np.ascontiguousarray, case), np.full_like(v, np.nan), np.full_like(state, np.nan)]
        arrays = dict(zip(NAMES, filled, strict=True))
        run(arrays, q.shape, (2, v.shape[0] * v.shape[2]))
        return rule.worst((arrays["y"], arrays["state_out"]), rule.float64(*case))

    return answers


@pytest.mark.parametrize("kind", rule.CASES)
def test_the_cuda_kernel_agrees_with_float64(kernel, kind):
    assert kernel(kind, tokens=70) <= rule.LIMIT


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 15, 16, 17])
def test_the_cuda_kernel_takes_any_number_of_tokens_and_rows(kernel, tokens):
    assert kernel("random", tokens=tokens, rows=2) <= rule.LIMIT


def test_threads_own_two_columns_where_that_leaves_blocks_enough():
    assert kernels.columns_of_a_thread(32, 128, 128) == 2
    assert kernels.columns_of_a_thread(16, 128, 128) == 1
    assert kernels.columns_of_a_thread(64, 256, 128) == 1
    assert kernels.columns_of_a_thread(1024, 128, 48) == 1
