"""The drop-in call: MLX's own cases under every backend, wrong input, windows, settings and transformations."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from tolerances import DEVICE

from archport.attention import dropin, scaled_dot_product_attention
from archport.attention.backends import chunked
from archport.contract import InputError
from archport.device.evaluation import compile_traces

BACKENDS = ("auto", "composite", "tiled", "banded", "chunked")
SCALE = 0.125


def refusal(backend, L, S, mask=None, window=None):
    """Why a backend does not take a call of L queries and S keys, "" when it does: windows are what banded is for."""
    left, right = window or (None, None)
    right = 0 if isinstance(mask, str) else right
    hidden_left = left is not None and left < S - 1
    hidden_right = right is not None and right < L - 1
    if backend == "banded" and not hidden_left and (right == 0 or not hidden_right):
        return "no window limits the reach of this call"
    return "the window hides most keys from a tile" if backend == "tiled" and hidden_left else ""


def taking(calls, L, S):
    """Every pair of a backend and one of the calls (keywords) that it takes."""
    return [(backend, call) for call in calls for backend in BACKENDS if not refusal(backend, L, S, **call)]


PLAIN = tuple(backend for backend, _ in taking([{}], 400, 400))


@pytest.fixture
def sdpa(monkeypatch):
    """The drop-in under a backend, with tiles and chunks small enough to occur; raises where the backend refuses."""

    def run(backend, q, k, v, **kwargs):
        if backend == "chunked":
            monkeypatch.setenv("MLX_SDPA_CHUNK_THRESHOLD", "1")
            monkeypatch.setenv("MLX_SDPA_CHUNK_SIZE", "48")
        else:
            monkeypatch.delenv("MLX_SDPA_CHUNK_THRESHOLD", raising=False)
            kwargs.setdefault("budget", 200_000)
        dropin.forget()
        try:
            return scaled_dot_product_attention(q, k, v, scale=SCALE, backend=backend, **kwargs)
        except InputError as refused:
            # One call of MLX goes by another name where MLX has a kernel for it.
            if backend != "composite" or "MLX runs a fused kernel" not in str(refused):
                raise
            return scaled_dot_product_attention(q, k, v, scale=SCALE, backend="fused", **kwargs)

    return run


def _limits(kwargs, L, S, visible):
    left, right = kwargs.get("window") or (None, None)
    if kwargs.get("mask") is not None and isinstance(kwargs["mask"], str):
        right = 0
    return visible(L, S, left, right)


@pytest.fixture
def check(sdpa, attention64, visible, excess):
    def compare(backend, q, k, v, *, atol=1e-5, **kwargs):
        out = sdpa(backend, q, k, v, **kwargs)
        L, S = q.shape[2], k.shape[2]
        shown, added = _limits(kwargs, L, S, visible), None
        mask = kwargs.get("mask")
        if isinstance(mask, mx.array):
            if mask.dtype == mx.bool_:
                shown = shown & np.array(mask)
            else:
                added = np.array(mask.astype(mx.float32)).astype(np.float64)
        expected = attention64(q, k, v, scale=SCALE, shown=shown, added=added, sinks=kwargs.get("sinks"))
        seen = np.broadcast_to(np.broadcast_to(shown, (*expected.shape[:2], L, S)).any(-1), expected.shape[:3])
        assert excess(out, expected, atol, seen) <= 0

    return compare


@pytest.mark.parametrize("backend", PLAIN)
@pytest.mark.parametrize(("L", "S"), [(1, 1), (1, 237), (5, 5), (63, 129), (64, 64), (129, 400), (400, 63)])
@pytest.mark.parametrize(("H", "K"), [(3, 3), (8, 2)])
@pytest.mark.parametrize("mask", [None, "causal"])
def test_lengths_and_grouped_heads_as_in_mlx(backend, L, S, H, K, mask, inputs, check):
    q, k, v = inputs(1, H, K, L, S, 64, seed=L + S)
    check(backend, q, k, v, mask=mask)


MASKS = {
    "bool": lambda r, B, H, L, S: mx.array(r.random((B, H, L, S)) > 0.4),
    "one head": lambda r, B, H, L, S: mx.array(r.random((B, 1, L, S)) > 0.4),
    "keys of a row": lambda r, B, H, L, S: mx.array(r.random((B, 1, 1, S)) > 0.4),
    "two axes": lambda r, B, H, L, S: mx.array(r.random((L, S)) > 0.4),
    "one axis": lambda r, B, H, L, S: mx.array(r.random((S,)) > 0.4),
    "one column": lambda r, B, H, L, S: mx.array(np.ones((B, 1, L, 1), dtype=bool)),
    "scalar": lambda r, B, H, L, S: mx.array(True),
    "additive": lambda r, B, H, L, S: mx.array(r.standard_normal((B, H, L, S)).astype(np.float32)),
    "additive keys": lambda r, B, H, L, S: mx.array(np.where(r.random((B, 1, 1, S)) > 0.4, 0, -1e9).astype(np.float32)),
    "transposed": lambda r, B, H, L, S: mx.array(r.standard_normal((S, L)).astype(np.float32)).T,
}


@pytest.mark.parametrize("backend", PLAIN)
@pytest.mark.parametrize("shape", MASKS)
def test_array_masks_broadcast_as_in_mlx(backend, shape, inputs, check):
    q, k, v = inputs(2, 4, 2, 70, 130, 64)
    check(backend, q, k, v, mask=MASKS[shape](np.random.default_rng(3), 2, 4, 70, 130))


WINDOWS = [(0, 0), (7, 0), (0, 5), (20, 20), (None, 3), (3, None), (None, None), (500, 500)]
WINDOWED = [{"mask": mask, "window": window} for mask in (None, "causal") for window in WINDOWS]


@pytest.mark.parametrize(("backend", "kwargs"), taking(WINDOWED, 100, 150), ids=str)
def test_a_window_limits_what_any_named_mask_shows(backend, kwargs, inputs, check):
    check(backend, *inputs(1, 4, 2, 100, 150, 64), **kwargs)


@pytest.mark.parametrize(("backend", "kwargs"), taking([{"window": window} for window in WINDOWS], 100, 150), ids=str)
def test_a_window_limits_what_an_array_mask_shows(backend, kwargs, inputs, check):
    shown = mx.array(np.random.default_rng(5).random((1, 4, 100, 150)) > 0.2)
    check(backend, *inputs(1, 4, 2, 100, 150, 64), mask=shown, **kwargs)


REFUSED = [(backend, call) for call in WINDOWED for backend in BACKENDS if refusal(backend, 100, 150, **call)]


@pytest.mark.parametrize(("backend", "kwargs"), REFUSED, ids=str)
def test_a_backend_that_is_not_for_a_window_says_so(backend, kwargs, inputs, sdpa):
    with pytest.raises(ValueError, match=refusal(backend, 100, 150, **kwargs)):
        sdpa(backend, *inputs(1, 4, 2, 100, 150, 64), **kwargs)


@pytest.mark.parametrize(("dtype", "atol"), [("float32", 1e-5), ("float16", 1e-2), ("bfloat16", 1e-2)])
@pytest.mark.parametrize(("backend", "kwargs"), taking([{}, {"mask": "causal"}, {"window": (9, 4)}], 65, 130), ids=str)
def test_sinks_join_every_softmax_once(backend, dtype, atol, kwargs, inputs, check):
    q, k, v = inputs(2, 8, 2, 65, 130, 64, dtype=dtype)
    sinks = (mx.random.normal((8,), key=mx.random.key(1)) * 2).astype(q.dtype)
    check(backend, q, k, v, sinks=sinks, atol=atol, **kwargs)


@pytest.mark.parametrize("backend", PLAIN)
def test_transposed_heads_and_slices_of_a_larger_cache_are_read_right(backend, inputs, check):
    q, k, v = inputs(2, 4, 2, 40, 256, 64)
    loud = mx.full((2, 2, 300, 64), 1e3)
    keys, values = mx.concatenate([k, loud], axis=2), mx.concatenate([v, loud], axis=2)
    flipped = mx.contiguous(q.swapaxes(1, 2)).swapaxes(1, 2)
    check(backend, flipped, keys[:, :, :256], values[:, :, :256], mask="causal")


@pytest.mark.parametrize("backend", PLAIN)
@pytest.mark.parametrize(("D", "Dv"), [(64, 32), (48, 48), (72, 72), (88, 88), (112, 112), (192, 256), (512, 512)])
def test_head_dims_without_a_kernel_and_uneven_ones_work(backend, D, Dv, inputs, check):
    q, k, v = inputs(1, 4, 2, 60, 90, D, Dv)
    check(backend, q, k, v, mask="causal")


@pytest.mark.parametrize("backend", PLAIN)
def test_mixed_types_promote_as_in_mlx(backend, inputs, sdpa):
    q, k, v = inputs(1, 4, 2, 60, 90, 64)
    q, k, v = q.astype(mx.float16), k.astype(mx.bfloat16), v.astype(mx.float16)
    out = sdpa(backend, q, k, v)
    expected = mx.fast.scaled_dot_product_attention(q, k, v, scale=SCALE)
    assert out.dtype == expected.dtype == mx.float32
    assert mx.allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize(("backend", "kwargs"), taking([{}, {"window": (5, 5)}], 70, 130), ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["bool", "-inf", "minimum"])
@pytest.mark.parametrize("sinks", [False, True])
def test_a_row_with_every_key_masked_is_finite(backend, kwargs, dtype, kind, sinks, inputs, sdpa):
    q, k, v = inputs(1, 4, 2, 70, 130, 64, dtype=dtype)
    # Negative scores are what pushes a masked float16 score over the edge.
    q = -q * 40
    shown = mx.array(np.random.default_rng(1).random((1, 1, 70, 130)) > 0.5)
    shown[:, :, 11] = False
    mask = shown
    if kind != "bool":
        low = -mx.inf if kind == "-inf" else mx.finfo(q.dtype).min
        mask = mx.where(shown, mx.array(0, q.dtype), mx.array(low, q.dtype))
    logits = mx.zeros((4,), q.dtype) if sinks else None
    assert mx.isfinite(sdpa(backend, q, k, v, mask=mask, sinks=logits, **kwargs)).all()


@pytest.mark.parametrize("backend", PLAIN)
def test_causal_rows_before_the_first_key_are_finite(backend, inputs, sdpa):
    q, k, v = inputs(1, 2, 1, 200, 20, 64)
    assert mx.isfinite(sdpa(backend, q, k, v, mask="causal")).all()


def _bad_inputs():
    q, k, v = mx.zeros((1, 4, 8, 64)), mx.zeros((1, 2, 9, 64)), mx.zeros((1, 2, 9, 64))
    half = [x.astype(mx.float16) for x in (q, k, v)]
    return {
        "rank": ((q[0], k, v), {}),
        "batch": ((q, mx.zeros((2, 2, 9, 64)), v), {}),
        "heads": ((mx.zeros((1, 3, 8, 64)), k, v), {}),
        "head_dim": ((q, mx.zeros((1, 2, 9, 32)), v), {}),
        "kv heads": ((q, k, mx.zeros((1, 1, 9, 64))), {}),
        "mask word": ((q, k, v), {"mask": "lower"}),
        "mask type": (half, {"mask": mx.zeros((8, 9))}),
        "mask shape": ((q, k, v), {"mask": mx.zeros((7, 9), mx.bool_)}),
        "sinks type": (half, {"sinks": mx.zeros((4,))}),
        "sinks shape": ((q, k, v), {"sinks": mx.zeros((3,))}),
        "integers": ([x.astype(mx.int32) for x in (q, k, v)], {}),
    }


@pytest.mark.parametrize("what", _bad_inputs())
def test_wrong_input_raises_what_mlx_raises(what):
    arrays, kwargs = _bad_inputs()[what]
    with pytest.raises(ValueError) as theirs:  # noqa: PT011 - the message is compared below
        mx.fast.scaled_dot_product_attention(*arrays, scale=1.0, **kwargs)
    with pytest.raises(ValueError) as ours:  # noqa: PT011
        scaled_dot_product_attention(*arrays, scale=1.0, **kwargs)
    assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"window": 5}, r"window=5; expected \(left, right\)"),
        ({"window": (1, -1)}, "window right=-1"),
        ({"window": (True, 0)}, "window left=True"),
        ({"budget": -1}, "budget=-1; expected bytes >= 0"),
        ({"backend": "flush"}, "'flush' does not exist; expected one of: banded, chunked, composite"),
        ({"backend": "banded"}, "'banded' refuses .* no window limits the reach of this call"),
        ({"backend": "chunked"}, "9 keys are fewer than the threshold of 65,536"),
    ],
)
def test_a_bad_option_is_named_in_the_error(kwargs, words):
    q, k = mx.zeros((1, 4, 8, 64)), mx.zeros((1, 2, 9, 64))
    with pytest.raises(ValueError, match=words):
        scaled_dot_product_attention(q, k, k, scale=1.0, **kwargs)


def test_a_kernel_that_mlx_lacks_here_is_refused_by_name():
    # float32 has none on CUDA for more than three queries, and none at all on a CPU.
    q, k = mx.zeros((1, 4, 8, 64)), mx.zeros((1, 2, 9, 64))
    why = {"cpu": "no fused attention kernel on a CPU", "cuda": "cuDNN attention takes 16-bit types only"}
    if DEVICE in why:
        with pytest.raises(ValueError, match=f"'fused' refuses .* {why[DEVICE]}"):
            scaled_dot_product_attention(q, k, k, scale=1.0, backend="fused")
    else:
        assert scaled_dot_product_attention(q, k, k, scale=1.0, backend="fused").shape == q.shape


@pytest.mark.parametrize("name", ["MLX_SDPA_CHUNK_THRESHOLD", "MLX_SDPA_CHUNK_SIZE"])
@pytest.mark.parametrize("value", ["", "0", "-5", "64k", "1.5"])
def test_an_invalid_chunk_setting_is_an_error_that_names_it(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    q = mx.zeros((1, 1, 8, 64))
    with pytest.raises(ValueError, match=f"{name}={value!r}; expected a number of keys >= 1"):
        scaled_dot_product_attention(q, q, q, scale=1.0)


@pytest.mark.parametrize(("S", "expected"), [(99, 0), (100, 4), (101, 4)])
def test_the_threshold_variable_forces_chunks_of_the_size_variable(S, expected, monkeypatch, inputs):
    monkeypatch.setenv("MLX_SDPA_CHUNK_THRESHOLD", "100")
    monkeypatch.setenv("MLX_SDPA_CHUNK_SIZE", "30")
    sizes = []
    real = chunked.stream

    def spy(seen, on, a, b, chunk, **kwargs):
        sizes.append(chunk)
        return real(seen, on, a, b, chunk, **kwargs)

    monkeypatch.setattr(chunked, "stream", spy)
    q, k, v = inputs(1, 2, 1, 16, S, 64)
    scaled_dot_product_attention(q, k, v, scale=SCALE)
    assert sizes == ([30] if expected else [])


@pytest.mark.parametrize(("backend", "kwargs"), taking([{"mask": "causal"}, {"window": (9, 4)}], 70, 90), ids=str)
def test_gradients_equal_those_of_one_mlx_call(backend, kwargs, inputs, sdpa, visible):
    q, k, v = inputs(1, 4, 2, 70, 90, 32)
    shown = mx.array(visible(70, 90, *(kwargs.get("window") or (None, 0))))

    def ours(q, k, v):
        return (sdpa(backend, q, k, v, **kwargs) ** 2).sum()

    def theirs(q, k, v):
        return (mx.fast.scaled_dot_product_attention(q, k, v, scale=SCALE, mask=shown) ** 2).sum()

    for got, expected in zip(
        mx.grad(ours, argnums=(0, 1, 2))(q, k, v), mx.grad(theirs, argnums=(0, 1, 2))(q, k, v), strict=True
    ):
        assert mx.allclose(got, expected, rtol=1e-3, atol=1e-6)


TRANSFORMED = {
    "compile": lambda f: mx.compile(f),
    "grad": lambda f: lambda *a: mx.vjp(f, list(a), [mx.ones(a[0].shape)])[0][0],
    "compiled grad": lambda f: mx.compile(lambda *a: mx.vjp(f, list(a), [mx.ones(a[0].shape)])[0][0]),
    "vmap": lambda f: lambda *a: mx.vmap(f)(*(x[None] for x in a))[0],
}


@pytest.mark.parametrize("how", TRANSFORMED)
@pytest.mark.parametrize(("backend", "kwargs"), taking([{"mask": "causal"}, {"window": (9, 4)}], 70, 90), ids=str)
def test_inside_a_transformation_nothing_is_evaluated_and_the_values_are_right(
    backend, how, kwargs, inputs, sdpa, monkeypatch
):
    if how == "compile" and not compile_traces():
        pytest.skip("mx.compile needs g++ on a CPU, and runs functions as they are without it")
    q, k, v = inputs(1, 4, 2, 70, 90, 32)
    eager = sdpa(backend, q, k, v, **kwargs)
    mx.eval(eager)
    evaluated = []
    monkeypatch.setattr(mx, "eval", lambda *a: evaluated.append(a))
    out = TRANSFORMED[how](lambda q, k, v: sdpa(backend, q, k, v, **kwargs))(q, k, v)
    monkeypatch.undo()
    assert not evaluated
    assert mx.allclose(out, eager, atol=1e-6)


@pytest.mark.parametrize("backend", PLAIN)
def test_a_traced_mask_is_never_read(backend, inputs, sdpa):
    q, k, v = inputs(1, 4, 2, 70, 90, 32)
    shown = mx.array(np.random.default_rng(2).random((1, 1, 70, 90)) > 0.3)
    compiled = mx.compile(lambda q, k, v, m: sdpa(backend, q, k, v, mask=m))
    for mask in (shown, mx.logical_not(shown)):
        assert mx.allclose(compiled(q, k, v, mask), sdpa(backend, q, k, v, mask=mask), atol=1e-6)


def test_an_empty_query_comes_back_empty():
    q, k = mx.zeros((1, 2, 0, 64)), mx.zeros((1, 2, 5, 64))
    assert scaled_dot_product_attention(q, k, k, scale=1.0).shape == (1, 2, 0, 64)
