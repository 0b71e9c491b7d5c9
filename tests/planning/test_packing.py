"""Rows behind one another in one: when, how many, and what it costs."""

from __future__ import annotations

import dataclasses
import random

import pytest

from archport.attention import Chooser, builtin_backends
from archport.contract import ArchSpec, AttentionLayer, AttentionLimits, AttentionPath, MaskPolicy
from archport.device.profiles import profile
from archport.planning import NoPins, Planner, Request
from archport.planning.batches import packed_width
from archport.testing.plans import plan_of

H200 = profile("h200")
LAYERS = {
    "plain": AttentionLayer("bidirectional", 12, 12, 64),
    "windowed": AttentionLayer("bidirectional", 12, 12, 64, reach=(64, 64)),
    "causal": AttentionLayer("causal", 16, 8, 128),
}


def texts(seed: int, count: int = 1000) -> list[int]:
    generator = random.Random(seed)
    return [min(512, max(8, int(generator.lognormvariate(5.0, 0.9)))) for _ in range(count)]


def spec_of(*layers: AttentionLayer, **more) -> ArchSpec:
    return ArchSpec(
        arch="trunk",
        tasks=("embed",),
        layers=layers * 6,
        vocab_size=30000,
        hidden_size=768,
        intermediate_size=3072,
        max_positions=8192,
        dtype="bfloat16",
        **more,
    )


def planned(spec: ArchSpec, lengths, *, device=H200, **options):
    options = {"dtype": "bfloat16", "pack": True, "weight_bytes": 10**8} | options
    return plan_of(spec, lengths, device=device, choose=Chooser(builtin_backends()), **options)


@pytest.mark.parametrize("name", LAYERS)
def test_texts_of_many_lengths_are_packed_in_the_caller_s_order_with_hardly_any_padding(name):
    lengths = texts(0)
    plan = planned(spec_of(LAYERS[name]), lengths)
    assert all(batch.packed and batch.shape.B == 1 for batch in plan.batches)
    assert [row for batch in plan.batches for row in batch.rows] == list(range(len(lengths)))
    assert sum(batch.shape.L for batch in plan.batches) <= 1.03 * sum(lengths)
    for batch in plan.batches:
        assert batch.shape.L == packed_width(sum(batch.lengths))
        for path in batch.steps[0].paths:
            assert isinstance(path, AttentionPath)
            assert path.backend.name == "varlen"
            assert (path.call.mask, path.call.lengths) == ("documents", batch.lengths)
            # Priced by these documents and not by those that stood for them.
            assert path.price == path.backend.price(path.call, H200)


@pytest.mark.parametrize(
    ("lengths", "options"),
    [
        (texts(0), {"pack": False}),
        ([512] * 64, {}),
        ([300], {}),
        (texts(0), {"dtype": "float32"}),
        (texts(0), {"device": profile("m2-ultra-128gb")}),
        (texts(0), {"device": profile("cpu"), "dtype": "float32"}),
        (texts(0), {"backend": "tiled"}),
        (texts(0), {"chunk": 64}),
        (texts(0), {"visible": [1] * 1000}),
        (texts(0), {"cached": 5}),
        (texts(0), {"mode": "generate"}),
    ],
)
def test_nothing_is_packed_where_that_gains_nothing_or_is_not_possible(lengths, options):
    assert not any(batch.packed for batch in planned(spec_of(LAYERS["plain"]), lengths, **options).batches)


@pytest.mark.parametrize(
    "wide", [AttentionLayer("bidirectional", 3, 3, 512), AttentionLayer("bidirectional", 12, 12, 72)]
)
def test_one_layer_that_the_kernel_does_not_take_leaves_all_rows_padded(wide):
    spec = spec_of(LAYERS["plain"], wide)
    assert not any(batch.packed for batch in planned(spec, texts(0)).batches)


LONG = [8192 - 37 * index for index in range(32)]


@pytest.mark.parametrize("lengths", [texts(0), [512] * 64, [128] * 500, [8192] * 32, LONG, [8000, *texts(1, 40)]])
@pytest.mark.parametrize("name", LAYERS)
def test_packing_is_never_the_dearer_way_by_its_own_prices(name, lengths):
    spec = spec_of(LAYERS[name])
    free, padded = planned(spec, lengths), planned(spec, lengths, pack=False)
    assert sum(batch.seconds for batch in free.batches) <= 1.05 * sum(batch.seconds for batch in padded.batches)


def test_attention_decides_where_padding_does_not():
    """Rows of equal length gain where windows are read as they are, and lose where cuDNN is faster."""
    assert planned(spec_of(LAYERS["windowed"]), [8192] * 32).batches[0].packed
    assert not planned(spec_of(LAYERS["plain"]), [8192] * 32).batches[0].packed
    assert not planned(spec_of(LAYERS["causal"]), LONG).batches[0].packed


def test_a_small_budget_makes_shorter_rows():
    spec, lengths = spec_of(LAYERS["plain"]), texts(0)
    free = planned(spec, lengths)
    before = longest = max(batch.shape.L for batch in free.batches)
    for share in (0.5, 0.2, 0.1, 0.05):
        budget = 10**8 + int(share * (free.peak - 10**8))
        plan = planned(spec, lengths, budget=budget)
        assert plan.peak <= budget
        assert max(batch.shape.L for batch in plan.batches) <= longest
        longest = max(batch.shape.L for batch in plan.batches if batch.packed)
    assert max(lengths) <= longest <= before / 2
    least = planned(spec, [4000, 1000, 30, 31, 90], pack=False).minimum
    assert planned(spec, [4000, 1000, 30, 31, 90], budget=least).peak <= least


def test_fresh_texts_in_rows_of_known_widths_ask_for_few_paths():
    asked, chooser = set(), Chooser(builtin_backends())

    def choose(call, device, pin=None):
        asked.add(call)
        return chooser(call, device, pin)

    planner = Planner.of(spec_of(LAYERS["plain"]), H200, choose, dtype="bfloat16", weight_bytes=0)
    counts = []
    for seed in range(12):
        planner(Request(lengths=texts(seed), pack=True))
        counts.append(len(asked))
    # One plan has seven batches, the last of them of any width.
    assert counts[-1] - counts[-6] <= 5 * 4


def test_a_hook_that_wishes_for_something_else_is_heard(pins):
    spec = spec_of(LAYERS["plain"])
    assert not any(batch.packed for batch in planned(spec, texts(0), pins=pins(backend="tiled")).batches)
    assert not any(batch.packed for batch in planned(spec, texts(0), pins=pins(chunk=64)).batches)


@pytest.fixture
def pins():
    from archport.planning import NoPins

    class Wishing(NoPins):
        def __init__(self, backend=None, chunk=None):
            self.backend, self.chunk = backend, chunk

        def sdpa_backend(self, *_):
            return self.backend

        def prefill_chunk(self, *_):
            return self.chunk

        def answered_by(self, hook):
            return "a test"

    return Wishing


def test_widths_are_few_and_wide_enough():
    widths = {packed_width(tokens) for tokens in range(1, 40_000)}
    assert all(tokens <= packed_width(tokens) <= 1.04 * tokens + 1 for tokens in range(1, 40_000, 7))
    assert len([each for each in widths if 16_384 <= each < 32_768]) <= 33


def test_the_report_says_how_many_rows_share_one():
    plan = planned(dataclasses.replace(spec_of(LAYERS["plain"])), texts(0))
    assert "rows in one of" in plan.explain()
    assert plan.to_dict()["batches"][0]["packed"]


@pytest.mark.parametrize("tokens", [(1, 4), (6, 14), (20001, 20003)])
def test_no_budget_is_refused_that_padded_rows_fit(tokens):
    draw = random.Random(0)
    layer = LAYERS["plain"] if tokens[1] < 100 else AttentionLayer("causal", 16, 8, 128, reach=(512, 0))
    spec = dataclasses.replace(spec_of(layer), max_positions=32768)
    lengths = [draw.randint(*tokens) for _ in range(4096 if tokens[1] < 100 else 12)]
    padded, free = planned(spec, lengths, pack=False), planned(spec, lengths)
    for share in range(9):
        budget = int(padded.minimum + share / 8 * 1.1 * (free.peak - padded.minimum))
        if budget >= padded.minimum:
            assert planned(spec, lengths, budget=budget).peak <= budget


class Wishes(NoPins):
    """Hooks whose answers depend on the shape that they are asked about."""

    def __init__(self, **answers) -> None:
        self.answers = answers

    def sdpa_backend(self, spec, layer, call, device):
        return self.answers.get("backend") if call.q_len >= 4096 else None

    def mask_policy(self, spec, layer, shape):
        return self.answers.get("mask") if shape.L >= 4096 else None

    def prefill_chunk(self, spec, shape, device):
        return self.answers.get("chunk") if shape.L >= 4096 else None


@pytest.mark.parametrize(
    ("wish", "name"),
    [
        ({"backend": "fused"}, "plain"),
        ({"backend": "tiled"}, "plain"),
        ({"mask": MaskPolicy("key_padding")}, "plain"),
        ({"mask": MaskPolicy("causal")}, "causal"),
        ({"chunk": 2048}, "causal"),
    ],
)
@pytest.mark.parametrize("more", [[], [6000, 5000]])
def test_a_wish_for_long_rows_alone_leaves_rows_padded(wish, name, more):
    spec, lengths = spec_of(LAYERS[name]), [*texts(0), *more]
    found = planned(spec, lengths, pins=Wishes(**wish))
    assert found.batches == planned(spec, lengths, pins=Wishes(**wish), pack=False).batches
    assert not any(batch.packed for batch in found.batches)


def test_chunks_that_a_user_forces_are_taken():
    limits = AttentionLimits(chunk_threshold=256, chunk_size=128, force_chunk=True)
    assert not any(batch.packed for batch in planned(spec_of(LAYERS["plain"]), texts(0), limits=limits).batches)
