"""The tables of what MLX fuses, and the probes that correct them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from tolerances import DEVICE

from archport.attention import ProbedRoutes, TableRoutes, probe
from archport.attention.local import has_nax, local_device
from archport.attention.prices import METAL_FULL, FastCall, padded_dims, too_large


def fast(L, S, D, Dv=None, *, form="none", dtype="bfloat16", B=1, H=8, K=8, sinks=False):
    return FastCall(B, H, K, L, S, D, Dv or D, dtype, form, sinks)


# (device, call) -> kernel of a plain call, kernel under force_fused.
TABLE = [
    ("m2-ultra", fast(512, 512, 64), "full", "full"),
    ("m2-ultra", fast(512, 512, 96, 64), "full", "full"),
    ("m2-ultra", fast(512, 512, 80, form="array"), "full", "full"),
    ("m2-ultra", fast(512, 512, 48), "composite", None),
    ("m2-ultra", fast(512, 512, 112), "composite", None),
    ("m2-ultra", fast(512, 512, 192), "composite", "full"),
    ("m2-ultra", fast(512, 512, 192, 128), "composite", None),
    ("m2-ultra", fast(512, 256, 128, form="causal"), "composite", None),
    ("m2-ultra", fast(2048, 2048, 256, form="causal"), "full", "full"),
    ("m2-ultra", fast(2048, 4096, 256, form="causal"), "composite", "full"),
    ("m2-ultra", fast(2047, 2047, 256, form="causal"), "composite", "full"),
    # MLX 0.32.4 keeps float32 queries of head_dim 256 in registers; those of 192 exceed a threadgroup's memory.
    ("m2-ultra", fast(2048, 2048, 256, form="causal", dtype="float32"), "composite", "full"),
    ("m2-ultra", fast(512, 512, 192, dtype="float32"), "composite", None),
    ("m2-ultra", fast(512, 512, 128, dtype="float32"), "full", "full"),
    ("m2-ultra", fast(512, 512, 72, form="array"), "full", "full"),
    ("m2-ultra", fast(512, 512, 72, sinks=True, dtype="float32"), "full", "full"),
    ("m2-ultra", fast(512, 512, 96, form="causal"), "full", "full"),
    ("m2-ultra", fast(8, 512, 72), "composite", None),
    ("m2-ultra", fast(8, 512, 96), "vector", "vector"),
    ("m2-ultra", fast(1, 512, 256), "vector", "vector"),
    ("m2-ultra", fast(1024, 4096, 512, form="causal"), "blocked", None),
    ("m2-ultra", fast(1024, 4096, 512, form="causal", sinks=True), "composite", None),
    ("m2-ultra", fast(1024, 4096, 512, form="causal", dtype="float32"), "composite", None),
    ("m2-ultra", fast(1, 512, 128), "vector", "vector"),
    ("m2-ultra", fast(1, 1024, 128), "vector_two_pass", "vector_two_pass"),
    ("m1", fast(1, 1024, 128), "vector", "vector"),
    ("m1", fast(1, 4096, 128, K=2), "vector_two_pass", "vector_two_pass"),
    ("m2-ultra", fast(8, 512, 128, K=2), "vector", "vector"),
    ("m2-ultra", fast(5, 512, 128, K=1), "composite", None),
    ("m2-ultra", fast(4, 512, 128, K=1), "vector", "vector"),
    ("m2-ultra", fast(1, 512, 80), "composite", None),
    ("m2-ultra", fast(1, 512, 192), "composite", "vector"),
    ("m2-ultra", fast(1, 512, 192, 128), "vector", "vector"),
    ("m2-ultra", fast(1, 2048, 512, K=1), "vector_two_pass", "vector_two_pass"),
    ("m2-ultra", fast(1, 1000, 512, K=1), "composite", None),
    ("m2-ultra", fast(1, 2048, 512, K=2), "composite", None),
    ("m5-max", fast(1024, 8192, 256, form="causal"), "full", "full"),
    ("m5-max", fast(1024, 8192, 256, form="array"), "full", "full"),
    ("m5-max", fast(1024, 8192, 256), "composite", "full"),
    ("m5-max", fast(1023, 8192, 256, form="causal"), "composite", "full"),
    ("m5-max", fast(1024, 8192, 512, form="causal", H=32), "full", "full"),
    ("m5-max", fast(1024, 8192, 512, form="causal", H=16), "composite", "full"),
    ("m5-max", fast(512, 512, 192), "composite", "full"),
    ("m5-max", fast(2048, 2048, 256, form="causal", sinks=True), "full", "full"),
    # Matrix units take float32 as TF32 only, which nobody asked for here.
    ("m5-max", fast(1024, 8192, 256, form="causal", dtype="float32"), "composite", "full"),
    ("m5-max", fast(2048, 2048, 256, form="causal", dtype="float32"), "composite", "full"),
    ("m5-max", fast(1024, 8192, 512, form="causal", H=32, dtype="float32"), "composite", None),
    ("m5-max-tf32", fast(1024, 8192, 256, form="causal", dtype="float32"), "full", "full"),
    ("m5-max-tf32", fast(1024, 8192, 512, form="causal", H=32, dtype="float32"), "full", "full"),
    ("m5-max-tf32", fast(512, 512, 192, dtype="float32"), "composite", None),
    ("m5-max", fast(512, 512, 192, dtype="float32"), "composite", None),
    ("h200", fast(512, 512, 64, form="array"), "cudnn", "cudnn"),
    ("h200", fast(512, 512, 72), "cudnn", "cudnn"),
    ("h200", fast(512, 512, 36), "composite", None),
    ("h200", fast(512, 512, 64, 128), "cudnn", "cudnn"),
    ("h200", fast(512, 512, 192), "composite", None),
    ("h200", fast(512, 512, 128, dtype="float32"), "composite", None),
    ("h200", fast(3, 512, 128, dtype="float32"), "vector", "vector"),
    ("h200", fast(1, 65536, 128), "vector_two_pass", "vector_two_pass"),
    ("h200", fast(1, 65536, 256), "composite", None),
    ("h200", fast(1, 512, 128, form="array"), "composite", None),
    ("h200", fast(4, 512, 128, form="array"), "cudnn", "cudnn"),
    ("cpu", fast(512, 512, 128), "composite", None),
]


@pytest.mark.parametrize(("device", "call", "kernel", "forced"), TABLE, ids=str)
def test_the_table_names_the_kernel(device, call, kernel, forced, devices):
    route = TableRoutes().route(call, devices[device])
    assert (route.kernel, route.forced) == (kernel, forced)
    assert bool(route.why) == (kernel == "composite")


def test_only_head_dim_192_in_float32_exceeds_what_a_threadgroup_has():
    # The figure that ml-explore/mlx#3307 reports of an earlier float32 kernel of 256 without registers: 53,760.
    assert 4 * (32 * (256 + 4) + (16 + 4) * 256) == 53_760
    kinds = [(*dims, dtype) for dims in METAL_FULL for dtype in ("float32", "float16", "bfloat16")]
    assert [kind for kind in kinds if too_large(*kind)] == [(192, 192, "float32")]


@pytest.mark.parametrize(
    ("device", "D", "Dv", "L", "padded"),
    [
        ("m2-ultra", 48, 48, 512, (64, 64)),
        ("m2-ultra", 88, 88, 512, (96, 96)),
        ("m2-ultra", 88, 64, 512, (96, 64)),
        ("m2-ultra", 112, 112, 512, (128, 128)),
        ("m2-ultra", 192, 256, 512, (256, 256)),
        ("m2-ultra", 64, 64, 512, (0, 0)),
        ("m2-ultra", 576, 512, 512, (0, 0)),
        ("m2-ultra", 48, 48, 8, (0, 0)),
        ("h200", 36, 36, 512, (40, 40)),
        ("h200", 48, 48, 512, (0, 0)),
        ("h200", 130, 130, 512, (0, 0)),
        ("cpu", 48, 48, 512, (0, 0)),
    ],
)
def test_head_dims_are_padded_to_the_next_one_with_a_kernel(device, D, Dv, L, padded, devices):
    assert padded_dims(fast(L, 512, D, Dv), devices[device]) == padded


@pytest.mark.parametrize(("D", "padded"), [(160, (256, 256)), (192, (256, 256)), (48, (64, 64)), (256, (0, 0))])
def test_float32_is_padded_past_a_kernel_that_can_not_be_made(D, padded, devices):
    assert padded_dims(fast(512, 512, D, dtype="float32"), devices["m2-ultra"]) == padded


@pytest.mark.parametrize(
    ("architecture", "nax"),
    [("applegpu_g13g", False), ("applegpu_g16s", False), ("applegpu_g17s", True), ("applegpu_g17p", False),
     ("applegpu_g18p", True), ("x86_64", False)],
)  # fmt: skip
def test_matrix_accelerators_start_at_generation_17_and_18_on_phones(architecture, nax):
    assert has_nax(architecture) is nax


# What the table has for the call that is asked about on this machine.
HERE = {"cpu": "composite", "cuda": "cudnn", "metal": "full"}[DEVICE]


def test_a_probe_says_what_mlx_does_and_is_remembered_on_disk(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "routes.json"
    call = fast(100, 100, 64)
    assert ProbedRoutes(path=path).route(call, local_device()).kernel == HERE
    assert list(json.loads(path.read_text())["routes"].values()) == [[HERE != "composite"] * 2]
    assert [p.name for p in path.parent.iterdir()] == ["routes.json"]
    monkeypatch.setattr(probe, "ask", lambda *a: pytest.fail("asked again"))
    assert ProbedRoutes(path=path).route(call, local_device()).kernel == HERE


def test_an_answer_against_the_table_is_believed(tmp_path, monkeypatch, devices):
    monkeypatch.setattr(probe, "ask", lambda *a: (True, True))
    routes = ProbedRoutes(path=tmp_path / "r.json")
    # head_dim 36 has no kernel in the table of any device.
    assert routes.route(fast(100, 100, 36), local_device()).kernel == "full"
    assert routes.route(fast(5, 100, 36), local_device()).kernel == "vector_two_pass"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 99, "routes": {}}', '{"format": 1, "routes": {"a": 3}}'])
def test_a_damaged_cache_file_is_ignored_and_rewritten(text, tmp_path):
    path = tmp_path / "r.json"
    path.write_text(text)
    assert ProbedRoutes(path=path).route(fast(100, 100, 64), local_device()).kernel == HERE
    assert json.loads(path.read_text())["format"] == probe.FORMAT


def test_a_cache_that_cannot_be_written_costs_nothing_but_memory(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    routes = ProbedRoutes(path=blocked / "r.json")
    assert routes.route(fast(100, 100, 64), local_device()).kernel == HERE


def test_two_processes_keep_each_others_answers(tmp_path):
    path = tmp_path / "r.json"
    first, second = ProbedRoutes(path=path), ProbedRoutes(path=path)
    first.route(fast(100, 100, 64), local_device())
    second.route(fast(100, 100, 128), local_device())
    first.route(fast(100, 100, 96), local_device())
    assert len(json.loads(path.read_text())["routes"]) == 3


def test_the_file_is_written_seldom_and_has_every_answer_at_the_end(tmp_path, monkeypatch):
    path, real, written = tmp_path / "r.json", probe.write, []
    monkeypatch.setattr(probe, "write", lambda path, known: written.append(len(known)) or real(path, known))
    routes = ProbedRoutes(path=path)
    for heads in range(1, 201):
        routes.route(fast(100, 100, 64, H=heads, K=1), local_device())
    assert len(written) < 40
    assert len(json.loads(path.read_text())["routes"]) > 170
    routes.flush()
    assert len(json.loads(path.read_text())["routes"]) == 200
    before = len(written)
    routes.flush()
    assert len(written) == before


def test_models_of_a_process_share_what_mlx_answered_for_a_cache_file(tmp_path, monkeypatch):
    first = probe.probed_routes()
    assert probe.probed_routes() is first
    monkeypatch.setenv(probe.CACHE_VARIABLE, str(tmp_path / "other"))
    assert probe.probed_routes() is not first


def test_a_setting_that_moves_routes_is_asked_about_again_in_the_same_process(tmp_path, monkeypatch):
    asked, routes = [], ProbedRoutes(path=tmp_path / "r.json")
    monkeypatch.setattr(probe, "ask", lambda *_: asked.append(1) or (False, False))
    for value in ("0", "1", "0"):
        monkeypatch.setenv("MLX_ENABLE_TF32", value)
        routes.route(fast(100, 100, 64), local_device())
    assert len(asked) == 2


def test_a_simulated_device_is_never_probed(monkeypatch, devices, tmp_path):
    monkeypatch.setattr(probe, "ask", lambda *a: pytest.fail("asked"))
    routes = ProbedRoutes(path=tmp_path / "r.json")
    for device, call, kernel, _ in TABLE:
        assert routes.route(call, devices[device]).kernel == kernel


def test_a_failing_probe_falls_back_to_the_table(monkeypatch, tmp_path, caplog):
    def broken(*a):
        raise RuntimeError("no device")

    monkeypatch.setattr(probe, "ask", broken)
    assert ProbedRoutes(path=tmp_path / "r.json").route(fast(100, 100, 64), local_device()).kernel == HERE
    assert "the table is used: no device" in caplog.text
    assert not (tmp_path / "r.json").exists()


def test_mlx_is_not_asked_about_a_kernel_that_can_not_be_made(tmp_path, monkeypatch, devices):
    # It accepts force_fused, and raises when the kernel is first run.
    gpu = replace(devices["m2-ultra"], simulated=False)
    monkeypatch.setattr(probe, "ask", lambda *a: (False, True))
    routes = ProbedRoutes(path=tmp_path / "r.json")
    assert routes.route(fast(100, 100, 192, dtype="float32"), gpu).forced is None
    assert routes.route(fast(100, 100, 192, dtype="float16"), gpu).forced == "full"


def test_where_mlx_fuses_nothing_at_all_no_answer_is_taken(tmp_path, monkeypatch, devices):
    # Inside grad MLX answers "not fused" for every call.
    gpu = replace(devices["m2-ultra"], simulated=False)
    monkeypatch.setattr(probe, "local_device", lambda: gpu)
    monkeypatch.setattr(probe, "_lazy_call", lambda *_, **__: False)
    routes = ProbedRoutes(path=tmp_path / "r.json")
    assert routes.route(fast(100, 100, 64), gpu).kernel == "full"
    assert not (tmp_path / "r.json").exists()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (fast(3, 100, 64), fast(4, 100, 64)),
        (fast(8, 100, 64), fast(9, 100, 64)),
        (fast(1023, 9000, 64), fast(1024, 9000, 64)),
        (fast(2047, 9000, 64), fast(2048, 9000, 64)),
        (fast(100, 255, 64), fast(100, 256, 64)),
        (fast(100, 1023, 64), fast(100, 1024, 64)),
        (fast(100, 4095, 64), fast(100, 4096, 64)),
        (fast(100, 8191, 64), fast(100, 8192, 64)),
        (fast(2048, 2048, 64), fast(2048, 2049, 64)),
        (fast(5, 100, 64, K=2), fast(5, 100, 64, K=1)),
        (fast(100, 100, 64), fast(100, 100, 64, form="array")),
        (fast(100, 100, 64), fast(100, 100, 64, sinks=True)),
        (fast(100, 100, 64), fast(100, 100, 64, dtype="float16")),
    ],
)
def test_lengths_and_kinds_on_two_sides_of_a_boundary_are_asked_separately(one, other, devices):
    assert probe.class_of(one, devices["cpu"]) != probe.class_of(other, devices["cpu"])


def test_planning_imports_no_mlx():
    program = (
        "import sys\n"
        "from archport.attention import builtin_backends, choose\n"
        "from archport.contract import AttentionCall, DeviceFacts\n"
        "call = AttentionCall(1, 8, 2, 2048, 65536, 256, 256, 'bfloat16', 'causal')\n"
        "device = DeviceFacts('m2', 'metal', 'applegpu_g14d', 2**36, working_set=2**35, simulated=True)\n"
        "print(choose(call, device, builtin_backends()).backend.name, 'mlx.core' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["tiled", "False"]
