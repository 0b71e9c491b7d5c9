"""The BLAS preload, in processes of its own: it happens once per process and before mlx is imported."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from archport.device import blas

NEEDED = blas.status().kind != "not-needed"
pytestmark = pytest.mark.skipif(not NEEDED, reason="this MLX brings a fast BLAS of its own (macOS or a GPU build)")
FAST = blas.status().kind in ("mkl", "openblas")


def run(program: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a fresh Python without this process's BLAS settings; `environ` adds to its environment."""
    names = ("ARCHPORT_BLAS", "LD_PRELOAD", "MKL_THREADING_LAYER", "MKL_INTERFACE_LAYER")
    base = {name: value for name, value in os.environ.items() if name not in names}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**base, **environ},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def answer(program: str, **environ: str):
    """What a program that must succeed prints, read as JSON."""
    done = run(program, **environ)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


STATUS = """
    import dataclasses, json
    from archport.device import blas
    blas.preload()
    import mlx.core as mx
    a = mx.ones((64, 64))
    assert float(mx.sum(a @ a)) == 64.0**3
    print(json.dumps(dataclasses.asdict(blas.status())))
"""
SECONDS = """
    import time
    from archport.device import blas
    blas.preload()
    import mlx.core as mx
    a = mx.random.normal((1024, 1024)); b = mx.random.normal((1024, 1024))
    mx.eval(a, b, a[:8] @ b)
    taken = []
    for _ in range(3):
        start = time.perf_counter(); mx.eval(a @ b); taken.append(time.perf_counter() - start)
    print(min(taken))
"""


@pytest.mark.skipif(not FAST, reason="neither MKL nor OpenBLAS is installed")
def test_a_matmul_is_at_least_three_times_faster_than_with_the_wheels_own_blas():
    assert answer(SECONDS, ARCHPORT_BLAS="off") >= 3 * answer(SECONDS)


@pytest.mark.skipif(not FAST, reason="neither MKL nor OpenBLAS is installed")
def test_products_agree_with_numpy_whatever_the_shape_layout_and_batch():
    worst = answer("""
        import itertools
        from archport.device import blas
        blas.preload()
        import mlx.core as mx, numpy as np
        rng = np.random.default_rng(0)
        worst = 0.0
        shapes = [(1, 5, 7, 9), (3, 64, 33, 65), (12, 128, 64, 128), (1, 1, 384, 1536), (4, 250, 384, 96), (2, 2, 2, 2)]
        for (batch, m, k, n), flip_a, flip_b in itertools.product(shapes, (0, 1), (0, 1)):
            a = rng.standard_normal((batch, m, k), dtype=np.float32)
            b = rng.standard_normal((batch, k, n), dtype=np.float32)
            x = mx.array(a.swapaxes(1, 2).copy()).swapaxes(1, 2) if flip_a else mx.array(a)
            y = mx.array(b.swapaxes(1, 2).copy()).swapaxes(1, 2) if flip_b else mx.array(b)
            error = np.abs(np.array(x @ y) - a.astype(np.float64) @ b) / np.sqrt(k)
            worst = max(worst, float(error.max()))
        print(worst)
    """)
    assert worst <= 1e-5


@pytest.mark.skipif(not FAST, reason="neither MKL nor OpenBLAS is installed")
def test_products_from_several_threads_agree_with_numpy():
    worst = answer("""
        from concurrent.futures import ThreadPoolExecutor
        from archport.device import blas
        blas.preload()
        import mlx.core as mx, numpy as np
        a = np.random.default_rng(0).standard_normal((300, 300)).astype(np.float32)
        def error(k):
            with mx.stream(mx.new_stream(mx.cpu)):
                product = np.array(mx.array(a[:, :k]) @ mx.array(a[:k]))
            return float(np.abs(product - a[:, :k].astype(np.float64) @ a[:k]).max() / np.sqrt(k))
        with ThreadPoolExecutor(4) as pool:
            print(max(pool.map(error, range(200, 216))))
    """)
    assert worst <= 1e-5


@pytest.mark.skipif(not FAST, reason="neither MKL nor OpenBLAS is installed")
def test_factorisations_call_the_same_library_and_agree_with_numpy():
    worst = answer("""
        from archport.device import blas
        blas.preload()
        import mlx.core as mx, numpy as np
        a = np.random.default_rng(0).standard_normal((80, 40)).astype(np.float32)
        q, r = mx.linalg.qr(mx.array(a), stream=mx.cpu)
        _, s, _ = mx.linalg.svd(mx.array(a), stream=mx.cpu)
        singular = np.linalg.svd(a.astype(np.float64), compute_uv=False)
        print(max(float(np.abs(np.array(q @ r) - a).max()), float(np.abs(np.array(s) - singular).max())))
    """)
    assert worst <= 1e-4


def test_numpy_imported_before_and_used_after_still_multiplies_right():
    worst = answer("""
        import numpy as np
        a = np.random.default_rng(0).standard_normal((200, 200))
        before = a @ a
        from archport.device import blas
        blas.preload()
        import mlx.core as mx
        mx.eval(mx.ones((64, 64)) @ mx.ones((64, 64)))
        print(float(np.abs(a @ a - before).max()))
    """)
    assert worst <= 1e-12


def test_preload_imports_neither_mlx_nor_numpy_and_takes_under_30_ms():
    program = """
        import json, sys, time
        start = time.process_time()
        from archport.device import blas
        blas.preload()
        taken = time.process_time() - start
        print(json.dumps([taken, [m for m in sys.modules if m.partition(".")[0] in ("mlx", "numpy", "pluggy")]]))
    """
    # The least of several: the cost of the work, not of whatever else the machine does. archport's own __init__ is
    # measured by the packaging tests.
    program = program.replace("from archport.device import blas", "\n        ".join(BARE_IMPORT))
    runs = [answer(program) for _ in range(5)]
    assert min(taken for taken, _ in runs) < 0.030
    assert runs[0][1] == []


# The module by its file, so that nothing but it and what it imports is counted.
BARE_IMPORT = (
    "import importlib.util",
    f"spec = importlib.util.spec_from_file_location('blas', {blas.__file__!r})",
    "blas = importlib.util.module_from_spec(spec); sys.modules['blas'] = blas; spec.loader.exec_module(blas)",
)


def test_off_leaves_the_wheels_own_blas():
    assert answer(STATUS, ARCHPORT_BLAS="off")["kind"] == "off"


@pytest.mark.parametrize(
    ("value", "says"), [("/no/such/libblas.so", "can't be loaded"), ("libm.so.6", "no cblas_sgemm")]
)
def test_a_library_that_cannot_serve_is_one_warning_and_never_a_crash(value: str, says: str):
    done = run(STATUS, ARCHPORT_BLAS=value)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kind"] == "reference"
    warned = [line for line in done.stderr.splitlines() if "RuntimeWarning" in line]
    assert len(warned) == 1
    assert f"ARCHPORT_BLAS={value}" in warned[0]
    assert says in warned[0]


@pytest.mark.skipif(not FAST, reason="neither MKL nor OpenBLAS is installed")
def test_a_named_library_is_the_one_used():
    found = answer(STATUS)
    named = answer(STATUS, ARCHPORT_BLAS=found["path"])
    assert (named["kind"], named["path"]) == ("path", found["path"])


@pytest.mark.skipif(not FAST, reason="neither MKL nor OpenBLAS is installed")
def test_a_blas_that_is_already_global_is_left_alone():
    path = answer(STATUS)["path"]
    preloaded = answer(STATUS, LD_PRELOAD=path)
    assert os.path.realpath(preloaded["path"]) == os.path.realpath(path)


@pytest.mark.skipif(not FAST, reason="neither MKL nor OpenBLAS is installed")
def test_mlx_imported_first_is_warned_about_once():
    done = run("""
        import mlx.core
        from archport.device import blas
        assert blas.preload().too_late and blas.status().kind == "reference"
        blas.warn_if_late(); blas.warn_if_late()
    """)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("mlx was imported before archport") == 1


def test_warn_if_late_is_silent_when_archport_came_first():
    done = run("from archport.device import blas; blas.preload(); import mlx.core; blas.warn_if_late()")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(blas.status().kind != "mkl", reason="MKL is not installed")
@pytest.mark.parametrize(
    "settings",
    [{"MKL_INTERFACE_LAYER": "LP64,GNU"}, {"MKL_THREADING_LAYER": "TBB"}],
    ids=lambda settings: "".join(settings.values()),
)
def test_mkl_settings_that_would_end_the_process_are_refused_first(settings: dict[str, str]):
    state = answer(STATUS, **settings)  # without the check, MKL ends the process at the matmul of STATUS
    assert state["kind"] != "reference" or next(iter(settings)) in state["advice"]


def files_beside(folder: Path, *names: str) -> str:
    for name in names:
        (folder / name).touch()
    return str(folder)


def test_mkl_without_its_threading_layer_is_refused(tmp_path: Path):
    reason = blas.why_mkl_would_fail(files_beside(tmp_path, "libmkl_rt.so.3"), {})
    assert "libmkl_intel_thread.so" in reason


def test_mkl_with_its_layers_beside_it_is_accepted(tmp_path: Path):
    folder = files_beside(tmp_path, "libmkl_rt.so.3", "libmkl_intel_thread.so.3", "libiomp5.so")
    assert blas.why_mkl_would_fail(folder, {}) == ""


def test_mkl_set_to_64_bit_integers_is_refused(tmp_path: Path):
    folder = files_beside(tmp_path, "libmkl_intel_thread.so.3", "libiomp5.so")
    assert "64-bit integers" in blas.why_mkl_would_fail(folder, {"MKL_INTERFACE_LAYER": "ILP64"})


def test_mkl_is_found_in_the_environments_lib_folder(tmp_path: Path):
    (tmp_path / "lib").mkdir()
    files_beside(tmp_path / "lib", "libmkl_rt.so.2", "libmkl_rt.so.3")
    assert blas.mkl_libraries(str(tmp_path), None)[0] == str(tmp_path / "lib" / "libmkl_rt.so.3")


def test_mkl_outside_the_environment_is_found_by_its_record(tmp_path: Path):
    record = tmp_path / "user/lib/python3.11/site-packages/mkl-2026.0.dist-info"
    record.mkdir(parents=True)
    (record / "RECORD").write_text("../../libmkl_core.so.3,sha256=x,1\n../../libmkl_rt.so.3,sha256=x,1\n")
    assert blas.mkl_libraries(str(tmp_path / "venv"), str(record)) == [str(tmp_path / "user/lib/libmkl_rt.so.3")]


def test_distributions_are_found_by_their_metadata_folders(tmp_path: Path):
    for name in ("mlx_cpu-0.32.4.dist-info", "mlx-0.32.4.dist-info", "mlx_cuda_13-0.32.4.dist-info"):
        (tmp_path / name).mkdir()
    path = [str(tmp_path / "gone.zip"), str(tmp_path)]
    assert set(blas.installed_distributions(path, ("mlx_cpu", "mlx_cuda_13", "mkl"))) == {"mlx_cpu", "mlx_cuda_13"}


@pytest.mark.skipif(blas.status().kind != "mkl", reason="MKL is not installed")
def test_threads_of_mkl_take_no_core_from_what_follows_a_product_unless_the_user_says_so():
    program = """
        import os, time
        from archport.device import blas
        blas.preload()
        import mlx.core as mx
        a = mx.random.normal((512, 512))
        mx.eval(a @ a)
        mx.eval(a @ a)
        before, until = time.process_time(), time.monotonic() + PATIENCE
        time.sleep(0.15)
        while time.process_time() - before < 0.1 and time.monotonic() < until:
            time.sleep(0.05)
        print(time.process_time() - before)
    """
    asleep = answer(program.replace("PATIENCE", "0"))
    assert asleep <= 0.05
    if len(os.sched_getaffinity(0)) > 1:
        # A core that others use too spins for part of the time only.
        assert answer(program.replace("PATIENCE", "60"), KMP_BLOCKTIME="infinite") >= 0.05 + asleep
