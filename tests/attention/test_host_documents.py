"""Documents of one row on the host: each as if it were alone, whatever lies beside it, and priced as it runs."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from archport.attention import attend, builtin_backends, choose
from archport.attention.backends.host import Host
from archport.attention.backends.host_documents import HostDocuments
from archport.contract.attention import AttentionCall, AttentionLimits, AttentionPath
from archport.device import vectormath
from archport.device.profiles import profile

CPU = profile("cpu")
pytestmark = pytest.mark.skipif(not vectormath.available(), reason="MKL is not loaded here")
LENGTHS = (5, 40, 1, 300, 17)


def call_of(lengths: tuple[int, ...] = LENGTHS, left: int = 9, **changes: object) -> AttentionCall:
    """Documents of 4 heads on 2, and a row that is a little longer than they are."""
    tokens = sum(lengths) + left
    base = AttentionCall(
        B=1, n_heads=4, n_kv_heads=2, q_len=tokens, kv_len=tokens, head_dim=16, v_head_dim=8, dtype="float32",
        mask="documents", lengths=lengths,
    )  # fmt: skip
    return replace(base, **changes)  # pyright: ignore[reportArgumentType]


def arrays(call: AttentionCall) -> list[mx.array]:
    random = np.random.default_rng(0)
    shapes = [(call.n_heads, call.head_dim), (call.n_kv_heads, call.head_dim), (call.n_kv_heads, call.v_head_dim)]
    return [
        mx.array(random.standard_normal((1, call.q_len, *shape)).astype(np.float32)).transpose(0, 2, 1, 3)
        for shape in shapes
    ]


def path_of(call: AttentionCall) -> AttentionPath:
    return AttentionPath(call, HostDocuments(), HostDocuments().price(call, CPU))


def one_by_one(call: AttentionCall, q: mx.array, k: mx.array, v: mx.array, **options) -> np.ndarray:
    """Every document as a call of its own."""
    found, start = [], 0
    kind = {(None, None): "none", (None, 0): "causal"}.get(call.reach, "window")
    for length in call.lengths:
        alone = replace(call, q_len=length, kv_len=length, lengths=(), mask=kind)
        own = [array[:, :, start : start + length] for array in (q, k, v)]
        found.append(np.array(attend(AttentionPath(alone, Host(), Host().price(alone, CPU)), *own, **options)))
        start += length
    return np.concatenate(found, axis=2)


@pytest.mark.parametrize("reach", [(None, None), (None, 0), (6, 6), (20, 0)])
def test_documents_of_a_row_equal_each_by_itself(reach):
    call = call_of(reach=reach)
    q, k, v = arrays(call)
    out = np.array(attend(path_of(call), q, k, v, scale=0.25))
    np.testing.assert_allclose(out[:, :, : sum(LENGTHS)], one_by_one(call, q, k, v, scale=0.25), rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [{"sinks": True}, {"softcap": 3.0}])
def test_sinks_and_caps_count_in_every_document(options):
    call = call_of(**options)
    q, k, v = arrays(call)
    more = {"sinks": mx.array([0.5, -1.0, 2.0, 0.0])} if "sinks" in options else {}
    out = np.array(attend(path_of(call), q, k, v, scale=0.25, **more))
    np.testing.assert_allclose(
        out[:, :, : sum(LENGTHS)], one_by_one(call, q, k, v, scale=0.25, **more), rtol=0, atol=1e-6
    )


def test_a_document_is_the_same_to_the_bit_whatever_lies_beside_it():
    call = call_of()
    q, k, v = arrays(call)
    whole = np.array(attend(path_of(call), q, k, v, scale=0.25))
    first = call_of((5, 40), left=0)
    own = [array[:, :, :45] for array in (q, k, v)]
    assert np.array_equal(np.array(attend(path_of(first), *own, scale=0.25)), whole[:, :, :45])


@pytest.mark.parametrize("limit", [60_000, 200_000])
def test_a_small_limit_cuts_documents_and_changes_nothing(limit):
    call = call_of()
    tight = replace(call, limits=AttentionLimits(transient_bytes=limit))
    q, k, v = arrays(call)
    assert path_of(tight).price.transient <= limit < path_of(call).price.transient
    np.testing.assert_allclose(
        np.array(attend(path_of(tight), q, k, v, scale=0.25)),
        np.array(attend(path_of(call), q, k, v, scale=0.25)),
        rtol=0, atol=1e-6,
    )  # fmt: skip


def test_inside_a_transformation_it_stays_lazy_and_right():
    call = call_of((5, 40, 17))
    q, k, v = arrays(call)
    run = mx.compile(lambda q, k, v: attend(path_of(call), q, k, v, scale=0.25))
    whole = np.array(attend(path_of(call), q, k, v, scale=0.25))
    np.testing.assert_allclose(np.array(run(q, k, v)), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mask": "none", "lengths": ()}, "not one row of documents"),
        ({"dtype": "bfloat16"}, "float32"),
        ({"kv_len": 500}, "cached keys"),
        ({"lengths": (300, 300), "q_len": 500, "kv_len": 500}, "do not fit"),
    ],
)
def test_it_says_why_it_refuses(changes, reason):
    assert reason in " ".join(HostDocuments().reasons_against(call_of(**changes), CPU))


def test_a_row_of_documents_on_a_cpu_takes_it():
    call = call_of((40, 80, 64, 30), n_heads=12, n_kv_heads=12, head_dim=64, v_head_dim=64)
    assert choose(call, CPU, builtin_backends()).backend.name == "host_documents"
