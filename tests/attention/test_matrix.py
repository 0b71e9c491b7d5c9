"""Every backend against a float64 reference over a pairwise covering set of shapes, types and masks."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import pytest

from archport.attention import attend, builtin_backends, choose
from archport.contract import AttentionCall, AttentionLimits, DeviceFacts

BACKENDS = builtin_backends()
CPU = DeviceFacts("cpu", "cpu", "x86_64", 16 * 2**30, simulated=True)
# Thresholds low enough that chunks and tiles occur at lengths that a test can afford.
LIMITS = AttentionLimits(transient_bytes=1_500_000, chunk_threshold=1024, chunk_size=512)
TOLERANCE = {"float32": 1e-5, "float16": 1e-3, "bfloat16": 5e-3}

FACTORS = {
    "dtype": ("float32", "float16", "bfloat16"),
    "dims": ((64, 64), (72, 72), (80, 80), (96, 96), (128, 128), (192, 192), (256, 256), (192, 256)),
    "heads": ((1, 1), (4, 1), (16, 1)),
    "mask": ("none", "causal", "window", "two_sided", "padding", "documents", "sinks", "windowed_sinks"),
    "q_len": (1, 8, 9, 129, 2048),
    "kv_len": (63, 64, 65, 511, 512, 513, 1023, 1024, 1025, 1537, 4095, 4096, 4097, 8191, 8192, 8193),
    "B": (1, 2, 4),
}


def _cost(row):
    return row["B"] * row["heads"][0] * row["q_len"] * row["kv_len"] * (1 + row["dims"][0] / 128)


def _covering(seed=20240611, budget=1_300_000):
    """Rows that contain every affordable pair of factor values at least once, cheapest of a few random tries."""
    rng = random.Random(seed)
    names = list(FACTORS)
    missing = {((a, x), (b, y)) for a, b in itertools.combinations(names, 2) for x in FACTORS[a] for y in FACTORS[b]}
    rows = []

    def pairs(row):
        return {((a, row[a]), (b, row[b])) for a, b in itertools.combinations(names, 2)}

    order = sorted(missing, key=repr)
    rng.shuffle(order)
    for wanted in order:
        if wanted not in missing:
            continue
        best = None
        for _ in range(40):
            row = {name: rng.choice(values) for name, values in FACTORS.items()} | dict(wanted)
            # A pair of long sides leaves no room for many heads.
            while _cost(row) > budget:
                free = [n for n in ("B", "heads", "dims", "q_len", "kv_len") if n not in dict(wanted)]
                shrink = [n for n in free if row[n] != FACTORS[n][0]]
                if not shrink:
                    break
                name = rng.choice(shrink)
                row[name] = FACTORS[name][max(0, FACTORS[name].index(row[name]) - 1)]
            score = len(pairs(row) & missing) - _cost(row) / budget
            if best is None or score > best[0]:
                best = (score, row)
        assert best is not None
        rows.append(best[1])
        missing -= pairs(best[1])
    return rows


@dataclass(frozen=True)
class Case:
    call: AttentionCall
    seed: int


def _case(row, seed):
    B, (H, K), (D, Dv), L, S = row["B"], row["heads"], row["dims"], row["q_len"], row["kv_len"]
    rng = random.Random(seed)
    fields = {"mask": "none"}
    kind = row["mask"]
    if kind in ("causal", "sinks"):
        fields = {"mask": "causal"}
    elif kind in ("window", "windowed_sinks"):
        fields = {"mask": "window", "reach": (rng.choice((0, 15, 300)), 0)}
    elif kind == "two_sided":
        fields = {"mask": "window", "reach": rng.choice(((7, 40), (128, 128), (None, 30), (30, None)))}
    elif kind in ("padding", "documents"):
        keys = tuple(rng.randint(1, S) if b else S for b in range(B))
        fields = {"mask": "key_padding", "lengths": keys, "q_lengths": (L,) * B}
        if kind == "documents":
            reach = rng.choice(((None, None), (None, 0), (20, 0)))
            queries = tuple(min(L, n) for n in keys)
            fields = {"mask": "documents", "lengths": keys, "q_lengths": queries, "reach": reach}
    return Case(
        AttentionCall(
            B=B,
            n_heads=H,
            n_kv_heads=K,
            q_len=L,
            kv_len=S,
            head_dim=D,
            v_head_dim=Dv,
            dtype=row["dtype"],
            sinks="sinks" in kind,
            limits=LIMITS,
            **fields,
        ),
        seed,
    )


def _cases():
    found = []
    for seed, row in enumerate(_covering()):
        case = _case(row, seed)
        for backend in BACKENDS:
            if not backend.reasons_against(case.call, CPU):
                found.append(pytest.param(case, backend.name, id=f"{seed}-{backend.name}"))
    return found


CASES = _cases()
_REFERENCE: dict[int, tuple] = {}


def _prepared(case, inputs, attention64, visible):
    """Inputs and reference of a case, computed once for all its backends."""
    if case.seed not in _REFERENCE:
        _REFERENCE.clear()
        call = case.call
        q, k, v = inputs(
            call.B,
            call.n_heads,
            call.n_kv_heads,
            call.q_len,
            call.kv_len,
            call.head_dim,
            call.v_head_dim,
            call.dtype,
            case.seed,
        )
        sinks = mx.random.normal((call.n_heads,), key=mx.random.key(case.seed)).astype(q.dtype) if call.sinks else None
        L, S = call.q_len, call.kv_len
        left, right = call.visible_reach
        keys = call.lengths or (S,) * call.B
        queries = call.q_lengths if call.mask == "documents" else (L,) * call.B
        shown = np.stack(
            [
                visible(L, S, left, right, n - m if call.lengths else None) & (np.arange(S) < n)
                for m, n in zip(queries, keys, strict=True)
            ]
        )[:, None]
        expected = attention64(q, k, v, scale=call.head_dim**-0.5, shown=shown, sinks=sinks)
        real = np.stack([np.arange(L) < m for m in queries])[:, None]
        # Rows without any key have no value to compare; they only have to be finite.
        seen = np.broadcast_to(real & shown.any(-1), expected.shape[:3])
        _REFERENCE[case.seed] = (q, k, v, sinks, expected, seen, np.broadcast_to(real, expected.shape[:3]))
    return _REFERENCE[case.seed]


@pytest.mark.parametrize(("case", "name"), CASES)
def test_a_backend_agrees_with_float64(case, name, inputs, attention64, visible, excess):
    q, k, v, sinks, expected, seen, real = _prepared(case, inputs, attention64, visible)
    path = choose(case.call, CPU, BACKENDS, name)
    out = attend(path, q, k, v, scale=case.call.head_dim**-0.5, sinks=sinks)
    atol = 1e-2 if case.call.sinks and case.call.dtype == "float16" else TOLERANCE[case.call.dtype]
    assert out.dtype == q.dtype
    assert excess(out, expected, atol, seen) <= 0
    assert not np.array(out.astype(mx.float32))[~real].any()


def test_the_matrix_holds_at_least_300_cases_and_every_backend():
    names = [case.values[1] for case in CASES]
    assert len(names) >= 300
    assert {"composite", "tiled", "banded", "chunked", "documents"} <= set(names)


LONG = [
    (65_535, "float32"),
    (65_536, "bfloat16"),
    (65_537, "float32"),
    (65_537, "float16"),
    (131_072, "float32"),
    (262_144, "bfloat16"),
]


@pytest.mark.parametrize(("S", "dtype"), LONG)
def test_long_keys_agree_with_float64_whole_tiled_and_chunked(S, dtype, inputs, attention64, visible, excess):
    q, k, v = inputs(1, 2, 1, 16, S, 64, dtype=dtype, seed=S)
    expected = attention64(q, k, v, scale=0.125, shown=visible(16, S, None, 0))
    call = AttentionCall(1, 2, 1, 16, S, 64, 64, dtype, "causal", limits=AttentionLimits(transient_bytes=2**25))
    for name in ("composite", "tiled", "chunked"):
        backend = next(b for b in BACKENDS if b.name == name)
        if backend.reasons_against(call, CPU):
            assert (name, S) == ("chunked", 65_535)
            continue
        out = attend(choose(call, CPU, BACKENDS, name), q, k, v, scale=0.125)
        assert excess(out, expected, TOLERANCE[dtype]) <= 0, name
