"""archport and torch in one process (docs/adr/0016): every order of imports, right products, in turns and at once.

Each order is a process of its own, because which BLAS and which OpenMP a process has is settled once.
"""

import json
import subprocess
import sys

import pytest

PROGRAM = """
import sys, json, os, threading
for name in sys.argv[1].split(","):
    if name == "used":
        from archport import engine
        engine.load("all-MiniLM-L6-v2").embed("a text")
    else:
        __import__(name)
import numpy as np
import archport, torch
import mlx.core as mx
from archport import engine
from archport.device.blas import status

dice = np.random.default_rng(0)
a, b = (dice.standard_normal((512, 512)).astype(np.float32) for _ in range(2))
expected = a.astype(np.float64) @ b.astype(np.float64)
wrong = {"mlx": 0.0, "torch": 0.0}

def by_mlx():
    made = np.array(mx.matmul(mx.array(a), mx.array(b), stream=mx.cpu))
    wrong["mlx"] = max(wrong["mlx"], float(np.abs(made - expected).max()))

def by_torch():
    made = torch.relu(torch.from_numpy(a) @ torch.from_numpy(b)).numpy()
    wrong["torch"] = max(wrong["torch"], float(np.abs(made - np.maximum(expected, 0)).max()))

for _ in range(10):
    by_mlx(), by_torch()
threads = [threading.Thread(target=lambda call=call: [call() for _ in range(10)]) for call in (by_mlx, by_torch)]
[thread.start() for thread in threads], [thread.join() for thread in threads]

model = engine.load("all-MiniLM-L6-v2")
vectors = model.embed(["a text", "another text " * 40]).astype(float).round(6)
files = {os.path.basename(line.split()[-1]) for line in open("/proc/self/maps")} if sys.platform == "linux" else set()
runtimes = sorted({name.split(".")[0] for name in files if name.startswith(("libgomp.", "libiomp5.", "libomp."))})
print(json.dumps({"wrong": wrong, "late": status().too_late, "kind": status().kind, "runtimes": runtimes,
                  "vectors": vectors.tolist()}))
"""
ORDERS = ["archport,torch", "torch,archport", "archport,used,torch", "sentence_transformers,archport"]


def facts(order):
    done = subprocess.run([sys.executable, "-c", PROGRAM, order], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.fixture(scope="module")
def first():
    return facts(ORDERS[0])[0]


@pytest.mark.parametrize("order", ORDERS)
def test_products_are_right_in_turns_and_at_once(order, first):
    told, _ = facts(order)
    assert max(told["wrong"].values()) <= 5e-4
    assert not told["late"]
    assert told["kind"] == first["kind"]
    pairs = zip(told["vectors"], first["vectors"], strict=True)
    assert max(abs(x - y) for row, other in pairs for x, y in zip(row, other, strict=True)) <= 2e-6


@pytest.mark.skipif(sys.platform != "linux", reason="MKL is Linux's here")
@pytest.mark.parametrize(("order", "expected"), [(ORDERS[0], {"libgomp"}), (ORDERS[2], {"libgomp", "libiomp5"})])
def test_mkl_takes_torchs_openmp_where_it_is_there_first(order, expected):
    told, _ = facts(order)
    if told["kind"] != "mkl":
        pytest.skip("no MKL in this environment")
    assert set(told["runtimes"]) == expected


@pytest.mark.skipif(sys.platform != "linux", reason="only there MLX is given another BLAS")
def test_mlx_before_archport_is_told():
    program = "import torch, mlx.core, archport\nfrom archport import engine\nengine.load('all-MiniLM-L6-v2')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "mlx was imported before archport" in done.stderr
