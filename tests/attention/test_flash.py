"""Backends of archport's own CUDA kernels: which calls they take, what they price, and the tables they hand over.

The kernels themselves stand in as loops over those tables; tests/attention/test_flash_kernel.py runs the CUDA text.
"""

from __future__ import annotations

import random

import mlx.core as mx
import numpy as np
import pytest

from archport.attention import attend, builtin_backends, choose, dropin, masks
from archport.attention.backends import flash as backend_of
from archport.attention.backends.flash import Flash
from archport.attention.backends.split import Split
from archport.attention.local import local_device
from archport.attention.visibility import visibility
from archport.contract import AttentionCall, AttentionLimits
from archport.device.profiles import profile
from archport.kernels import decode, flash

H200 = profile("h200")
CUDA = pytest.mark.only_on("cuda", reason="runs a kernel that is written for CUDA")
KINDS = ("none", "causal", "window", "two_sided", "padding", "documents", "packed", "cached")


def a_call(kind, rng, D, *, most=300, dtype="bfloat16", q_len=None):
    """A random call of one kind."""
    B, L = rng.choice((1, 2, 3)), q_len or rng.randint(1, most)
    S = L + rng.randint(0, most)
    K = rng.choice((1, 2))
    fields = {"B": B, "n_heads": K * rng.choice((1, 3)), "n_kv_heads": K, "q_len": L, "kv_len": S}
    fields |= {"head_dim": D, "v_head_dim": D, "dtype": dtype, "softcap": rng.choice((None, None, 2.0))}
    reach = rng.choice(((None, None), (None, 0), (rng.randint(0, most), 0), (rng.randint(0, 40), rng.randint(0, 40))))
    keys = tuple(rng.randint(1, S) for _ in range(B))
    if kind in ("none", "causal"):
        fields |= {"mask": kind}
    elif kind == "cached":
        fields |= {"mask": "causal", "lengths": (S,) * B, "q_lengths": tuple(rng.randint(1, L) for _ in range(B))}
    elif kind == "window":
        fields |= {"mask": "window", "reach": (rng.randint(0, most), 0)}
    elif kind == "two_sided":
        fields |= {"mask": "window", "reach": (rng.randint(0, 90), rng.randint(0, 90))}
    elif kind == "padding":
        fields |= {"mask": "key_padding", "lengths": keys, "q_lengths": tuple(min(L, n) for n in keys), "reach": reach}
    elif kind == "documents":
        fields |= {"mask": "documents", "lengths": keys, "q_lengths": tuple(min(L, n) for n in keys), "reach": reach}
    else:
        lengths = tuple(rng.randint(1, most) for _ in range(rng.randint(1, 5)))
        tokens = sum(lengths) + rng.randint(0, 70)
        fields |= {"B": 1, "mask": "documents", "lengths": lengths, "q_len": tokens, "kv_len": tokens, "reach": reach}
    return AttentionCall(**fields)


def by_table(q, k, v, table, tiling, *, scale, softcap=None):
    """What the kernel of kernels/flash computes, from the same arguments, in float64."""
    q, k, v = (np.array(x.astype(mx.float32)).astype(np.float64) for x in (q, k, v))
    out, group = np.full(q.shape, np.nan), q.shape[1] // k.shape[1]
    for row, first, count, key, keys, position, start, stop, left, right in np.array(table).tolist():
        assert 0 < count <= tiling.queries
        assert start % tiling.keys == 0
        assert np.isnan(out[row, :, first : first + count]).all(), "two tiles write one query"
        at = np.arange(start, max(start, stop))
        apart = at[None] - position - np.arange(count)[:, None]
        shown = (at < keys) & (apart >= -left) & (apart <= right)
        for head in range(q.shape[1]):
            mine, its = k[row, head // group, key + at], v[row, head // group, key + at]
            scores = q[row, head, first : first + count] @ mine.T * scale
            scores = scores if softcap is None else softcap * np.tanh(scores / softcap)
            scores[~shown] = -np.inf
            weights = np.exp(scores - scores.max(axis=1, keepdims=True, initial=-1e30))
            total = weights.sum(axis=1, keepdims=True)
            out[row, head, first : first + count] = weights / np.where(total == 0, 1, total) @ its
    assert np.isfinite(out).all(), "a query that no tile writes, or that reads what is hidden"
    return mx.array(out.astype(np.float32)).astype(mx.bfloat16)


def by_rows(q, k, v, lengths, shares, *, scale, reach=(None, 0), softcap=None):
    """What the kernels of kernels/decode compute, from the same arguments, in float64."""
    L, lines = q.shape[2], []
    for row, length in enumerate(np.array(lengths).tolist()):
        keys = k.shape[2] if length < 0 else length
        lines.append(flash.Document(row, 0, L, 0, keys, keys - L))
    how = flash.Tiling("mma", 64, 32)
    return by_table(q, k, v, mx.array(flash.tiles(lines, how, reach)), how, scale=scale, softcap=softcap)


@pytest.fixture
def on_host(monkeypatch):
    """The loops in place of the kernels."""
    monkeypatch.setattr(flash, "attend", by_table)
    monkeypatch.setattr(decode, "attend", by_rows)


def expected(call, q, k, v, attention64):
    """Float64 attention of a call, rows of padding left at zero, and which rows are real."""
    want, real = np.zeros(q.shape), np.zeros((call.B, call.q_len), bool)
    for d in backend_pieces(call):
        row, at, keys = d[0], slice(d[1], d[1] + d[2]), slice(d[3], d[3] + d[4])
        left, right = call.visible_reach
        apart = np.arange(d[4])[None] - (d[4] - d[2] if d[5] is None else d[5]) - np.arange(d[2])[:, None]
        shown = np.ones(apart.shape, bool)
        shown &= True if left is None else apart >= -left
        shown &= True if right is None else apart <= right
        part = (x[row : row + 1] for x in (q[:, :, at], k[:, :, keys], v[:, :, keys]))
        want[row : row + 1, :, at] = capped(attention64, *part, shown, call.softcap)
        real[row, at] = True
    return want, real


def capped(attention64, q, k, v, shown, softcap):
    if softcap is None:
        return attention64(q, k, v, scale=0.3, shown=shown)
    q, k, v = (np.array(x.astype(mx.float32)).astype(np.float64) for x in (q, k, v))
    k, v = (np.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))
    scores = np.where(shown, softcap * np.tanh(q @ k.swapaxes(2, 3) * 0.3 / softcap), -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True, initial=-1e30))
    total = weights.sum(axis=-1, keepdims=True)
    return weights / np.where(total == 0, 1, total) @ v


def backend_pieces(call):
    """(row, first query, queries, first key, keys, position or None for the lower right) of all that is real."""
    queries = call.real_queries or (call.q_len,) * max(1, len(call.lengths) if call.mask == "documents" else call.B)
    if call.mask == "documents" and call.B == 1:
        starts = zip(np.cumsum((0, *queries)).tolist(), np.cumsum((0, *call.lengths)).tolist(), strict=True)
        return [(0, at, n, key, s, None) for (at, key), n, s in zip(starts, queries, call.lengths, strict=False)]
    if call.mask in ("none", "causal") or not call.lengths:
        return [(row, 0, n, 0, call.kv_len, call.kv_len - call.q_len) for row, n in enumerate(queries)]
    return [(row, 0, queries[row], 0, call.lengths[row], None) for row in range(call.B)]


def agrees(call, name, device, attention64, seed):
    rng = np.random.default_rng(seed)
    shapes = ((call.n_heads, call.q_len), (call.n_kv_heads, call.kv_len), (call.n_kv_heads, call.kv_len))
    q, k, v = (
        mx.array(rng.normal(size=(call.B, *shape, call.head_dim)).astype(np.float32)).astype(mx.bfloat16)
        for shape in shapes
    )
    path = choose(call, device, builtin_backends(), name)
    out = np.array(attend(path, q, k, v, scale=0.3).astype(mx.float32)).astype(np.float64)
    want, real = expected(call, q, k, v, attention64)
    # Half a unit in the last place of the result, and of weights against values of about one.
    np.testing.assert_allclose(np.moveaxis(out, 1, 2)[real], np.moveaxis(want, 1, 2)[real], atol=0.02, rtol=0.01)
    if call.mask == "documents":
        assert not np.moveaxis(out, 1, 2)[~real].any()
    assert np.isfinite(out).all()


def calls_of(name, count, seed, **options):
    """Calls that a backend takes, of every kind in turn."""
    rng, taken = random.Random(seed), []
    backend = {"flash": Flash(), "split": Split()}[name]
    while len(taken) < count:
        q_len = rng.randint(1, 4) if name == "split" else None
        call = a_call(KINDS[len(taken) % len(KINDS)], rng, rng.choice((192, 256)), q_len=q_len, **options)
        if call.mask == "documents" and name == "split":
            call = a_call("causal", rng, 256, q_len=q_len, **options)
        if not backend.reasons_against(call, H200):
            taken.append(call)
    return taken


@pytest.mark.parametrize("name", ["flash", "split"])
def test_a_kernel_is_told_what_the_call_makes_visible(name, on_host, attention64):
    for seed, call in enumerate(calls_of(name, 8, 0, most=60)):
        agrees(call, name, H200, attention64, seed)


@pytest.mark.truth
@pytest.mark.parametrize("name", ["flash", "split"])
def test_a_kernel_is_told_what_many_calls_make_visible(name, on_host, attention64):
    for seed, call in enumerate(calls_of(name, 200, 1, most=200)):
        agrees(call, name, H200, attention64, seed)


@CUDA
@pytest.mark.parametrize("name", ["flash", "split"])
def test_the_kernels_agree_with_float64_on_the_device(name, attention64):
    for seed, call in enumerate(calls_of(name, 48, 2)):
        agrees(call, name, local_device(), attention64, seed)


@pytest.mark.parametrize("D", [192, 256])
@pytest.mark.parametrize("L", [4096, 32_768])
def test_wide_heads_run_in_one_launch_whose_scratch_does_not_grow_with_the_scores(D, L):
    call = AttentionCall(1, 16, 8, L, L, D, D, "bfloat16", mask="causal")
    path = choose(call, H200, builtin_backends())
    price = path.price
    assert (path.backend.name, price.route, price.evaluations, price.parts) == ("flash", "wgmma", 0, ())
    assert price.transient <= 2**19 + 40 * (L // price.q_tile)
    assert price.largest_buffer == call.output_bytes
    # The lower triangle, and half a tile of keys and of queries beyond it on average.
    exact = 4.0 * 16 * D * L * (L + 1) / 2
    assert exact <= price.flops <= exact * (1 + (price.q_tile + 2 * price.k_chunk) / L)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"dtype": "float32"}, "16 bits"),
        ({"head_dim": 128, "v_head_dim": 128}, "head dims 128/128"),
        ({"head_dim": 192, "v_head_dim": 128}, "head dims 192/128"),
        ({"sinks": True}, "sinks"),
        ({"mask": "dense", "mask_shape": (1, 1, 64, 64)}, "an array mask"),
        ({"mask": "documents", "lengths": (60, 60)}, "do not fit"),
    ],
)
def test_what_the_kernel_does_not_take_is_refused_with_its_reason(fields, why):
    call = AttentionCall(**{"B": 1, "n_heads": 2, "n_kv_heads": 1, "q_len": 64, "kv_len": 64, "head_dim": 256,
                            "v_head_dim": 256, "dtype": "bfloat16"} | fields)  # fmt: skip
    assert why in "; ".join(Flash().reasons_against(call, H200))


@pytest.mark.parametrize("name", ["t4-16gb", "m2-ultra-128gb", "cpu"])
def test_devices_without_the_instructions_are_refused(name):
    call = AttentionCall(1, 2, 1, 1, 4096, 256, 256, "bfloat16")
    for backend in (Flash(), Split()):
        assert "compute capability 8.0" in backend.reasons_against(call, profile(name))[0]


@pytest.mark.parametrize(
    ("name", "shared"), [("h200", 227), ("a100-40gb", 163), ("rtx-4090-24gb", 99), ("rtx-5090-32gb", 99)]
)
@pytest.mark.parametrize("D", [192, 256])
def test_a_block_fits_the_shared_memory_of_its_device(name, shared, D):
    how = backend_of.tiling(D, profile(name))
    assert how.shared(D) <= shared * 1024
    assert how.queries % 16 == 0
    assert how.keys % 16 == 0
    # A group of four warps multiplies 64 rows at once.
    assert how.units == "mma" or how.queries % 64 == 0


def test_blocks_start_with_those_that_see_most_keys():
    how = flash.Tiling("wgmma", 128, 64)
    table = flash.tiles([flash.Document(0, 0, 4096, 0, 4096, 0)], how, (None, 0))
    seen = table[:, 7] - table[:, 6]
    assert (np.diff(seen) <= 0).all()
    assert len(table) == 32
    assert sorted(table[:, 1].tolist()) == list(range(0, 4096, 128))


@pytest.mark.parametrize(
    ("B", "K", "L", "S", "D"), [(1, 8, 1, 65_536, 128), (8, 2, 1, 65_536, 256), (1, 1, 8, 300, 64)]
)
def test_shares_fill_the_device_and_leave_every_warp_keys(B, K, L, S, D):
    shares = decode.most_shares(B, 16, K, L, S, D)
    blocks = B * K * decode.row_tiles(16, K, L) * shares
    assert shares == 1 or (decode.BLOCKS / 2 <= blocks <= 2 * decode.BLOCKS and S / shares >= decode.WARPS * 16)
    price = Split().price(AttentionCall(B, 16, K, L, S, D, D, "bfloat16"), H200)
    assert price.transient - 2**19 == 4 * 8 * blocks * (D + 2)
    assert -(-S // price.k_chunk) <= shares


def test_the_gradient_and_vmap_of_a_kernel_are_those_of_mlx(monkeypatch, on_host):
    monkeypatch.setattr(dropin, "local_device", lambda: H200)
    monkeypatch.setattr(dropin, "_chooser", None)
    monkeypatch.setattr(dropin, "_known", {})
    ran = []

    def kernel(q, k, v, table, tiling, *, scale, softcap=None):
        ran.append(q.shape)
        return mx.stop_gradient(mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask="causal"))

    monkeypatch.setattr(flash, "attend", kernel)
    q, k = (mx.random.normal((1, 2, 40, 256)).astype(mx.bfloat16) for _ in range(2))

    def ours(q, k):
        return dropin.scaled_dot_product_attention(q, k, k, scale=0.1, mask="causal", backend="flash")

    def theirs(q, k):
        return mx.fast.scaled_dot_product_attention(q, k, k, scale=0.1, mask="causal")

    for f in (lambda a: lambda q, k: mx.grad(lambda *x: a(*x).astype(mx.float32).sum(), argnums=(0, 1))(q, k),
              lambda a: lambda q, k: [mx.vmap(a)(q[None], k[None])]):  # fmt: skip
        for got, want in zip(f(ours)(q, k), f(theirs)(q, k), strict=True):
            assert mx.allclose(got.astype(mx.float32), want.astype(mx.float32), atol=0.02, rtol=0.02)
    assert ran


def test_what_a_shape_runs_is_decided_once_for_its_settings(monkeypatch):
    monkeypatch.setattr(dropin, "_known", {})
    decided = []
    real = dropin._decided
    monkeypatch.setattr(dropin, "_decided", lambda *a: decided.append(a) or real(*a))
    q, short = mx.zeros((1, 2, 40, 64)), mx.zeros((1, 2, 39, 64))
    for options in ({}, {"mask": "causal"}, {"window": (3, 0)}, {"window": (4, 0)}, {"budget": 10**9}):
        for _ in range(3):
            dropin.scaled_dot_product_attention(q, q, q, scale=0.1, **options)
    assert len(decided) == 5
    dropin.scaled_dot_product_attention(short, q, q, scale=0.1)
    dropin.scaled_dot_product_attention(q.astype(mx.float16), q, q, scale=0.1)
    # The environment is read once.
    monkeypatch.setenv(dropin.SIZE_VARIABLE, "7")
    dropin.scaled_dot_product_attention(q, q, q, scale=0.5)
    assert len(decided) == 7
    dropin.forget()
    dropin.scaled_dot_product_attention(q, q, q, scale=0.5)
    assert len(decided) == 8
    for _ in range(2):
        with pytest.raises(ValueError, match="budget=True"):
            dropin.scaled_dot_product_attention(q, q, q, scale=0.1, budget=True)


def test_tables_are_made_once_per_shape_and_once_per_step_of_ragged_rows():
    how = flash.Tiling("mma", 64, 32)
    plain = AttentionCall(1, 2, 1, 90, 90, 256, 256, "bfloat16", mask="causal")
    assert backend_of.table_of(plain, how) is backend_of.table_of(plain, how)
    ragged = AttentionCall(2, 2, 1, 90, 90, 256, 256, "bfloat16", mask="key_padding", lengths=(90, 4))
    with masks.sharing({}):
        assert backend_of.table_of(ragged, how) is backend_of.table_of(ragged, how)


def test_limits_do_not_change_what_is_visible():
    call = AttentionCall(
        1, 2, 1, 90, 90, 256, 256, "bfloat16", mask="window", reach=(7, 3), limits=AttentionLimits(transient_bytes=0)
    )
    assert visibility(call).left == 7
    assert Flash().price(call, H200).excess(call, H200)


@pytest.fixture
def launches(monkeypatch):
    """What kernels are asked to run, one entry per launch; their outputs are zeros."""
    asked = []

    def kernel(name):
        def launch(**options):
            asked.append({"name": name} | options)
            pairs = zip(options["output_shapes"], options["output_dtypes"], strict=True)
            return [mx.zeros(shape, kind) for shape, kind in pairs]

        return launch

    monkeypatch.setattr(flash, "_kernel", lambda head_dim, how: kernel(how))
    monkeypatch.setattr(decode, "_kernels", lambda head_dim: (kernel("shares"), kernel("merge")))
    return asked


@pytest.mark.parametrize(("L", "S", "reach"), [(1000, 1000, (None, 0)), (77, 5000, (200, 0)), (300, 300, (None, None))])
def test_prefill_is_one_launch_of_a_block_per_tile_and_head(L, S, reach, launches):
    call = AttentionCall(2, 6, 2, L, S, 256, 256, "bfloat16", mask="window", reach=reach)
    path = choose(call, H200, builtin_backends(), "flash")
    q, k = mx.zeros((2, 6, L, 256), mx.bfloat16), mx.zeros((2, 2, S, 256), mx.bfloat16)
    assert attend(path, q, k, k, scale=0.1).shape == q.shape
    (launch,) = launches
    how = launch["name"]
    assert (how.queries, how.keys, how.units) == (path.price.q_tile, path.price.k_chunk, path.price.route)
    assert launch["grid"] == (2 * -(-L // how.queries) * 6 * how.threads, 1, 1)
    assert launch["threadgroup"] == (how.threads, 1, 1)
    assert launch["output_shapes"] == [(2, L, 6, 256)]
    assert launch["inputs"][3].nbytes == path.price.transient - 2**19


@pytest.mark.parametrize(("B", "L", "S"), [(1, 1, 65_536), (3, 2, 900), (2, 8, 40)])
def test_decoding_is_two_launches_whose_sums_are_the_scratch_of_the_plan(B, L, S, launches):
    call = AttentionCall(B, 8, 2, L, S, 192, 192, "bfloat16", mask="causal")
    path = choose(call, H200, builtin_backends(), "split")
    q, k = mx.zeros((B, 8, L, 192), mx.bfloat16), mx.zeros((B, 2, S, 192), mx.bfloat16)
    assert attend(path, q, k, k, scale=0.1).shape == q.shape
    first, second = launches
    shares = first["output_shapes"][0][3]
    assert first["grid"] == (B * 2 * decode.row_tiles(8, 2, L) * shares * decode.WARPS * 32, 1, 1)
    assert np.array(first["inputs"][4]).tolist() == [shares, flash.UNLIMITED, 0]
    scratch = sum(4 * int(np.prod(shape)) for shape in first["output_shapes"])
    assert scratch <= path.price.transient - 2**19
    assert second["grid"] == (B * L * 8 * 192, 1, 1)
    assert second["threadgroup"] == (192, 1, 1)
