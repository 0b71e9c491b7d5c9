"""Predicted against measured memory: a slice of the benchmark's cases, small enough for every test run."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import mlx.core as mx
import pytest
from tolerances import CPU

from archport.attention import TableRoutes, builtin_backends, choose
from archport.contract import AttentionCall, AttentionLimits
from archport.device.facts import this_device
from archport.device.profiles import profile


@pytest.fixture(scope="module")
def bench():
    path = Path(__file__).parents[2] / "benchmarks" / "attention_memory.py"
    spec = importlib.util.spec_from_file_location("attention_memory", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up while it is being executed.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_the_benchmark_holds_300_cases_on_a_cpu_and_100_on_cuda(bench, devices):
    assert len(bench.cases(devices["cpu"])) >= 300
    assert len(bench.cases(devices["h200"])) >= 100


def test_a_price_is_never_below_what_is_measured(bench):
    cases = [c for c in bench.cases(this_device(), [(2, 4, 2, 96, 1040, 64, 80)]) if c.call.dtype == "float32"]
    results = [bench.measure(case, this_device(), TableRoutes()) for case in cases]
    assert {r.backend for r in results} >= {"composite", "tiled", "banded", "chunked", "documents"}
    assert not [r for r in results if r.predicted < r.measured]


@pytest.mark.parametrize("sinks", [False, True])
def test_where_more_than_32_mb_move_a_price_is_at_most_a_quarter_too_high(sinks, bench):
    for name in ("composite", "tiled"):
        limits = AttentionLimits(transient_bytes=40_000_000)
        # Sinks hold the scores three times.
        rows = 256 if sinks else 700
        call = AttentionCall(1, 4, 2, rows, 3072, 64, 64, "float32", "causal", sinks=sinks, limits=limits)
        path = choose(call, this_device(), builtin_backends(), name)
        result = bench.measure(bench.Case(call, name), this_device(), TableRoutes())
        assert path.price.transient + path.price.output == result.predicted
        assert result.right


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_prices_hold_too(dtype, bench):
    for kind in ("causal", "none"):
        for name in ("composite", "tiled", "chunked"):
            limits = AttentionLimits(transient_bytes=2_000_000, chunk_threshold=512, chunk_size=256)
            call = AttentionCall(1, 4, 2, 256, 1024, 64, 64, dtype, kind, limits=limits)
            # Priced as for a CPU: a GPU runs most of these calls fused.
            result = bench.measure(bench.Case(call, name), profile("cpu"), TableRoutes())
            assert result.predicted >= result.measured


@pytest.mark.parametrize("keys", [4096, 8192, 16_384])
def test_chunked_scratch_does_not_grow_with_the_number_of_chunks(keys, bench):
    limits = AttentionLimits(chunk_threshold=1024, chunk_size=1024)
    call = AttentionCall(1, 2, 1, 64, keys, 64, 64, "float32", "causal", limits=limits)
    measured = bench.measure(bench.Case(call, "chunked"), this_device(), TableRoutes()).measured
    # A GPU's allocator rounds a buffer of more than 1 MiB up, and a few of them are under way.
    assert measured <= 1.1 * 64 * 2 * 1024 * 4 + (300_000 if CPU else 1 << 20)


def test_tiles_hold_a_share_of_what_one_call_holds(inputs):
    backends = builtin_backends()
    q, k, v = inputs(1, 2, 1, 1024, 1024, 64)
    peaks = {}
    for name in ("composite", "tiled"):
        call = AttentionCall(1, 2, 1, 1024, 1024, 64, 64, "float32", "causal")
        path = choose(call, profile("cpu"), backends, name)
        mx.eval(path.backend.run(call, path.price, q, k, v, scale=0.1))
        mx.synchronize()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(path.backend.run(call, path.price, q, k, v, scale=0.1))
        peaks[name] = mx.get_peak_memory() - before
    assert peaks["tiled"] <= peaks["composite"] / 4


def test_a_compiled_tiled_call_holds_a_few_tiles_and_not_all_of_them(inputs):
    from archport.attention import scaled_dot_product_attention

    q, _, _ = inputs(1, 4, 4, 2048, 2048, 32)

    def peak(backend):
        def call(x):
            return scaled_dot_product_attention(x, x, x, scale=0.1, mask="causal", backend=backend, budget=3_000_000)

        compiled = mx.compile(call)
        mx.eval(compiled(q))
        mx.synchronize()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(compiled(q))
        return mx.get_peak_memory() - before

    # Nothing is evaluated inside: a GPU's host is many operations ahead, so that more tiles are under way.
    assert peak("tiled") <= peak("composite") / (4 if CPU else 1.5)
