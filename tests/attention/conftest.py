"""Shared by the attention tests: a float64 reference, inputs, and simulated devices."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from archport.attention import builtin_backends, choose, dropin
from archport.contract import AttentionCall, AttentionLimits, DeviceFacts

GIB = 2**30
DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


def _numpy(x):
    return np.array(x.astype(mx.float32)).astype(np.float64)


def _attention64(q, k, v, *, scale, shown=None, added=None, sinks=None):
    """Softmax attention in float64, one head at a time; a query that sees no key gives zeros."""
    q, k, v = _numpy(q), _numpy(k), _numpy(v)
    B, H, L, _ = q.shape
    group = H // k.shape[1]
    out = np.zeros((B, H, L, v.shape[3]))
    logit = None if sinks is None else _numpy(sinks)
    for b in range(B):
        for h in range(H):
            x = (q[b, h] * scale) @ k[b, h // group].T
            if added is not None:
                x = x + np.broadcast_to(added, (B, H, *x.shape))[b, h]
            if shown is not None:
                x = np.where(np.broadcast_to(shown, (B, H, *x.shape))[b, h], x, -np.inf)
            top = x.max(-1, keepdims=True)
            if logit is not None:
                top = np.maximum(top, logit[h])
            top = np.where(np.isinf(top), 0.0, top)
            e = np.exp(x - top)
            total = e.sum(-1, keepdims=True)
            if logit is not None:
                total = total + np.exp(logit[h] - top)
            out[b, h] = (e / np.where(total == 0, 1.0, total)) @ v[b, h // group]
    return out


def _visible(L, S, left=None, right=None, offset=None):
    """Bool (L, S): key j within (left, right) of query i at offset + i, lower right aligned by default."""
    at = np.arange(L)[:, None] + (S - L if offset is None else offset)
    keys = np.arange(S)[None]
    shown = np.ones((L, S), dtype=bool)
    if left is not None:
        shown &= keys >= at - left
    if right is not None:
        shown &= keys <= at + right
    return shown


def _inputs(B, H, K, L, S, D, Dv=None, dtype="float32", seed=0):
    """q, k, v as MLX's own tests draw them: uniform(0, 0.5), values uniform(0, 1/sqrt(D))."""
    rng = np.random.default_rng(seed)
    Dv = Dv or D
    q = rng.random((B, H, L, D), np.float32) * 0.5
    k = rng.random((B, K, S, D), np.float32) * 0.5
    v = rng.random((B, K, S, Dv), np.float32) / np.sqrt(D)
    arrays = [mx.array(x).astype(DTYPES[dtype]) for x in (q, k, v)]
    mx.eval(arrays)
    return arrays


def _excess(out, expected, atol, rows=None):
    """How far `out` is beyond atol * (1 + |expected|), at most; negative when it is within. Rows select (B, H, L)."""
    out = _numpy(out)
    assert out.shape == expected.shape
    assert np.isfinite(out).all()
    far = np.abs(out - expected) - atol * np.abs(expected)
    return float((far if rows is None else far[rows]).max(initial=-np.inf)) - atol


@pytest.fixture(scope="session")
def attention64():
    return _attention64


@pytest.fixture(scope="session")
def visible():
    return _visible


@pytest.fixture(scope="session")
def inputs():
    return _inputs


@pytest.fixture(scope="session")
def excess():
    return _excess


@pytest.fixture(scope="session")
def devices():
    half = ("float16", "bfloat16")
    known = {
        "cpu": DeviceFacts("cpu", "cpu", "x86_64", 16 * GIB, simulated=True),
        "m1": DeviceFacts(
            "m1",
            "metal",
            "applegpu_g13g",
            16 * GIB,
            working_set=int(10.6 * GIB),
            max_buffer=int(8.9 * 10**9),
            flops={d: 2.4e12 for d in ("float32", *half)},
            bandwidth=6e10,
            watchdog_seconds=1.0,
            simulated=True,
        ),
        "m2-ultra": DeviceFacts(
            "m2-ultra",
            "metal",
            "applegpu_g14d",
            128 * GIB,
            working_set=96 * GIB,
            max_buffer=86_586_540_032,
            flops={d: 2.2e13 for d in ("float32", *half)},
            bandwidth=8e11,
            watchdog_seconds=1.0,
            simulated=True,
        ),
        "m5-max": DeviceFacts(
            "m5-max",
            "metal",
            "applegpu_g17s",
            128 * GIB,
            working_set=96 * GIB,
            max_buffer=86_586_540_032,
            flops={d: 5e13 for d in ("float32", *half)},
            bandwidth=6e11,
            watchdog_seconds=1.0,
            nax=True,
            simulated=True,
        ),
        "h200": DeviceFacts(
            "h200",
            "cuda",
            "sm_90",
            139 * GIB,
            flops={"float32": 2.7e14, **{d: 6e14 for d in half}},
            bandwidth=4.8e12,
            simulated=True,
        ),
    }
    return known | {"m5-max-tf32": replace(known["m5-max"], tf32=True)}


@pytest.fixture(scope="session")
def backends():
    return builtin_backends()


@pytest.fixture(scope="session")
def path_of(devices, backends):
    """A path from the fields of an AttentionCall, on the CPU unless a device is named."""

    def make(*, device="cpu", pin=None, limits=None, **fields):
        fields = {"B": 1, "n_heads": 2, "n_kv_heads": 1, "dtype": "float32", **fields}
        fields.setdefault("v_head_dim", fields["head_dim"])
        call = AttentionCall(limits=limits or AttentionLimits(), **fields)
        return choose(call, devices[device], backends, pin)

    return make


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """Probed routes go to a folder of the test; settings of the user's shell stay out."""
    monkeypatch.setenv("ARCHPORT_CACHE_DIR", str(tmp_path / "cache"))
    for name in ("MLX_SDPA_CHUNK_THRESHOLD", "MLX_SDPA_CHUNK_SIZE"):
        monkeypatch.delenv(name, raising=False)
    dropin.forget()
    yield
    dropin.forget()
