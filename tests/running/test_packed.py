"""Texts behind one another in one row: the same vectors as each alone, planned for CUDA and run here."""

from __future__ import annotations

import archport  # noqa: F401

# isort: split
import dataclasses
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from tolerances import tolerance

from archport import engine
from archport.attention import Chooser, attend, builtin_backends
from archport.attention.backends.varlen import Varlen
from archport.contract import AttentionCall
from archport.device.profiles import profile
from archport.kernels import varlen as varlen_kernel
from archport.kernels.rotate import turn
from archport.layers import Rotary
from archport.running.pool import PackedPooling, Pooling, packed_positions

GOLDENS = Path(__file__).parents[1] / "goldens"
MODELS = ["bert-plain", "xlm-roberta", "modernbert", "qwen3-bidirectional", "qwen3-embed", "llama-bidirec"]


class OnHost(Varlen):
    """The backend with another way to run: document by document."""

    def reasons_against(self, call, device):
        # Heads of these small models are narrower than tensor cores take.
        return [reason for reason in super().reasons_against(call, device) if not reason.startswith("head dims")]

    def run(self, call, price, q, k, v, *, scale, mask=None, sinks=None):
        left, right = call.reach
        out, start = [], 0
        for length in (*call.lengths, call.q_len - sum(call.lengths)):
            here = slice(start, start + length)
            apart = mx.arange(length)[None] - mx.arange(length)[:, None]
            shown = (apart >= (-length if left is None else -left)) & (apart <= (length if right is None else right))
            if length:
                one = [x[:, :, here] for x in (q, k, v)]
                out.append(mx.fast.scaled_dot_product_attention(*one, scale=scale, mask=shown))
            start += length
        return mx.concatenate(out, axis=2)


class Recording:
    """A planner that keeps its plans."""

    def __init__(self, planner):
        self._planner, self.plans = planner, []

    def __getattr__(self, name):
        return getattr(self._planner, name)

    def __call__(self, request):
        self.plans.append(self._planner(request))
        return self.plans[-1]


def packs(name):
    """(model, its planner), which plans for an H200 in 16 bits; the model computes here, in float32."""
    model = engine.load(GOLDENS / name)
    backends = tuple(OnHost() if isinstance(each, Varlen) else each for each in builtin_backends())
    device = profile("h200")
    planner = dataclasses.replace(
        model._runtime.encoder.plan, device=device, dtype="bfloat16", budget=10**11, choose=Chooser(backends)
    )
    recording = Recording(planner)
    object.__setattr__(model._runtime.encoder, "plan", recording)
    return model, recording


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(["a", "b", "of", "the", "text"], count)) for count in rng.integers(1, 60, 40)]


@pytest.mark.parametrize("name", MODELS)
def test_packed_texts_have_the_vectors_that_each_has_alone(name, texts):
    model, planner = packs(name)
    together = model.embed(texts)
    batches = [batch for plan in planner.plans for batch in plan.batches]
    assert all(batch.packed and batch.shape.B == 1 for batch in batches)
    alone = np.concatenate([model.embed([text]) for text in texts])
    assert not planner.plans[-1].batches[0].packed
    np.testing.assert_allclose(together, alone, atol=max(2e-6, tolerance("rows")))


def test_texts_that_leave_a_row_unfilled_join_the_next_ones(monkeypatch, texts):
    from archport.answering import vectors as embed
    from archport.planning import batches

    monkeypatch.setattr(batches, "batch_tokens", lambda model, request: 300)
    monkeypatch.setitem(embed._WINDOWS, "cuda", (8, 8, 8))
    model, recording = packs("bert-plain")
    together = model.embed(texts)
    *plans, last = recording.plans
    assert len(plans) == 4
    ran = sum(len(batch.rows) for plan in plans for batch in plan.batches[:-1])
    assert 0 < ran < len(texts)
    assert ran + sum(len(batch.rows) for batch in last.batches) == len(texts)
    alone = np.concatenate([model.embed([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=max(2e-6, tolerance("rows")))


def test_positions_begin_anew_with_each_row():
    assert packed_positions([3, 1, 2], 8).tolist() == [0, 1, 2, 0, 0, 1, 0, 0]


@pytest.mark.parametrize("mode", ["cls", "last", "mean", "max", "sum", "mean_sqrt_len", "weighted_mean"])
@pytest.mark.parametrize("skip", [0, 3])
def test_packed_rows_are_pooled_as_padded_ones(mode, skip):
    rng, lengths = np.random.default_rng(0), [5, 1, 9]
    rows = [rng.normal(size=(length, 8)).astype(np.float32) for length in lengths]
    padded = np.zeros((3, 9, 8), np.float32)
    for row, values in zip(padded, rows, strict=True):
        row[: len(values)] = values
    packed, plain = PackedPooling(lengths, (mode, "cls"), skip), Pooling(lengths, (mode, "cls"), skip)
    packed.add(mx.array(np.concatenate([*rows, np.full((2, 8), np.nan, np.float32)]))[None])
    plain.add(mx.array(padded))
    np.testing.assert_allclose(np.array(packed.rows()), np.array(plain.rows()), rtol=tolerance("rows"))


class Mixing:
    """A trunk that adds to each token the one before it in its document, as `ctx.documents` tells."""

    def __init__(self, inner) -> None:
        self.inner, self.weighs = inner, inner.parameters

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __call__(self, ids, ctx):
        x, age = self.inner(ids, ctx), ctx.documents.age
        before = mx.concatenate([mx.zeros_like(x[:, :1]), x[:, :-1]], axis=1)
        return x + (before if age is None else mx.where((age > 0)[..., None], before, 0))


def test_a_trunk_that_asks_where_documents_begin_is_told(texts):
    model, planner = packs("bert-plain")
    encoder = model._runtime.encoder
    object.__setattr__(encoder, "trunk", Mixing(encoder.trunk))
    together = model.embed(texts)
    assert planner.plans[-1].batches[0].packed
    np.testing.assert_allclose(
        together, np.concatenate([model.embed([text]) for text in texts]), atol=max(2e-6, tolerance("rows"))
    )


def test_a_rope_that_knows_tables_of_rows_is_asked_for_positions(texts, monkeypatch):
    def along(self, offset, tokens, known):
        cos, sin = self.tables(offset, tokens, known)
        return lambda x: turn(x, cos[:, None], sin[:, None])

    want = packs("modernbert")[0].embed(texts)
    monkeypatch.setattr(Rotary, "along", along, raising=False)
    np.testing.assert_allclose(packs("modernbert")[0].embed(texts), want, atol=max(2e-6, tolerance("rows")))


def test_the_kernel_is_given_one_type_and_what_lies_behind_its_documents_is_zero(monkeypatch):
    given = []

    def attend_(q, k, v, table, *, scale, reach):
        given.extend(each.dtype for each in (q, k, v))
        return mx.ones_like(q)

    monkeypatch.setattr(varlen_kernel, "attend", attend_)
    call = AttentionCall(1, 2, 2, 10, 10, 16, 16, "bfloat16", mask="documents", lengths=(5, 3))
    path = Chooser(builtin_backends())(call, profile("h200"), "varlen")
    q = mx.ones((1, 2, 10, 16))
    out = attend(path, q, q.astype(mx.bfloat16), q, scale=0.25)
    assert set(given) == {mx.bfloat16}
    assert mx.array_equal(out[0, 0, :, 0], mx.array([1.0] * 8 + [0.0] * 2))
