"""ARCHPORT_VERIFY_MEMORY=1 over every family's examples and every way to ask: what is measured is within the plan."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from tolerances import PLANNED_BESIDE

from archport import engine
from archport.contract import InputError
from archport.contract.plugins import discover
from archport.running.encode import MemoryReading
from archport.testing.measure import host_ahead
from archport.testing.subject import Subject, Tiny

GOLDENS = Path(__file__).parents[1] / "goldens"
IMAGE = pytest.importorskip("PIL.Image")


@pytest.fixture
def readings(monkeypatch) -> Iterator[list[MemoryReading]]:
    """Readings of what runs from now on."""
    monkeypatch.setenv("ARCHPORT_VERIFY_MEMORY", "1")
    found: list[MemoryReading] = []

    class Reader(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if hasattr(record, "reading"):
                found.append(record.reading)

    reader = Reader()
    logging.getLogger("archport").addHandler(reader)
    yield found
    logging.getLogger("archport").removeHandler(reader)


@pytest.fixture(scope="module", autouse=True)
def _released() -> Iterator[None]:
    """Give the models back, so that later tests find the memory of the process as it was."""
    yield
    examples.cache_clear()
    wide.cache_clear()
    gc.collect()


@cache
def examples() -> dict[str, Tiny]:
    """All examples of the shipped plugins by name, each loaded once."""
    tinies = [tiny for plugin in discover() for tiny in Subject(plugin).tinies]
    return {f"{tiny.subject.plugin.name}: {tiny.example.name}": tiny for tiny in tinies}


def architectures() -> list[str]:
    """One example of each architecture, and one of each that sees."""
    first: dict[tuple[str, bool], str] = {}
    for name, tiny in examples().items():
        first.setdefault((tiny.spec.arch, tiny.spec.vision is not None), name)
    return list(first.values())


def ask_everything(tiny: Tiny, lengths: tuple[int, ...]) -> set[str]:
    """Every method that the model has, on rows of these lengths; says which stages have to be told."""
    model, tasks = tiny.model, tiny.spec.tasks
    lengths = tuple(min(length, model.max_tokens - 12) for length in lengths)
    texts, stages = ["a" * length for length in lengths], {"batch"}
    if "classify" in tasks:
        # More labels than two are no order of documents.
        if len(model.classify(texts)[0].scores) <= 2:
            model.rerank("aaa", texts)
    elif "tag" in tasks:
        model.tag(texts)
    else:
        model.embed(texts)
        model.embed(texts, output="tokens")
    if "fill_mask" in tasks:
        mask = model._runtime.tokeniser.tokenizer.id_to_token(model._runtime.mask)
        model.fill_mask([f"a {mask} a" for _ in texts], top_k=3)
    if "generate" in tasks:
        ids = [[1 + at % 90 for at in range(length)] for length in lengths]
        model.generate(ids, max_tokens=5)
        with model.generate(ids, max_tokens=4, stream=True, temperature=0.7, top_p=0.9, logprobs=2) as pieces:
            assert len(list(pieces)) >= len(ids)
        model.generate(ids, max_tokens=4, n=3, temperature=0.7, frequency_penalty=0.5, min_tokens=2)
        stages |= {"prefill", "decode"}
    if tiny.spec.vision is not None:
        pictures = [picture(width, height) for width, height in ((32, 32), (64, 48), (20, 90))]
        model.embed([{"image": each} for each in pictures])
        if "generate" in tasks:
            content = [{"type": "image", "image": pictures[1]}, {"type": "text", "text": "a"}]
            model.generate([{"role": "user", "content": content}], max_tokens=4)
    return stages


def picture(width: int, height: int) -> Any:
    return IMAGE.fromarray(np.random.default_rng(width).integers(0, 255, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", architectures())
def test_everything_that_a_family_answers_stays_within_its_plans(name, readings):
    stages = ask_everything(examples()[name], (30, 1, 1))
    assert {reading.stage for reading in readings} == stages
    assert [reading for reading in readings if not reading.holds] == []


@pytest.mark.truth
@pytest.mark.parametrize("ahead", [False, True], ids=["as it comes", "the host far ahead"])
@pytest.mark.parametrize("name", list(examples()))
def test_every_example_stays_within_its_plans_at_every_shape(name, ahead, readings):
    if ahead and mx.default_device().type != mx.DeviceType.cpu:
        pytest.skip("a GPU has no stream that a product holds up")
    for lengths in ((1,), (5, 30, 30), (60, 20, 3), (1,) * 9, (9, 8, 7, 3, 2, 1), (100,) * 20):
        with host_ahead() if ahead else nullcontext():
            ask_everything(examples()[name], lengths)
    assert [reading for reading in readings if not reading.holds] == []


DRAWN = (
    {},
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 0.7, "top_p": 0.9, "min_p": 0.1, "top_k": 5, "logprobs": 3, "repetition_penalty": 1.1},
    {"presence_penalty": 0.5},
    {"frequency_penalty": 0.5, "presence_penalty": 0.5, "min_tokens": 4, "stop_token_ids": [1], "logit_bias": {5: 1.0}},
    {"temperature": [0.7, 0] * 4, "top_k": [5, 9] * 4, "frequency_penalty": 0.5, "logit_bias": [{5: 1.0}, None] * 4},
)


@cache
def wide(dtype: str) -> engine.Model:
    """A model whose vocabulary outweighs everything else of a step."""
    tiny = next(tiny for tiny in examples().values() if "generate" in tiny.spec.tasks)
    example = replace(tiny.example, config={**tiny.example.config, "vocab_size": 30_000})
    wide = Tiny(tiny.subject, example)
    return wide.load(wide.folder, dtype=dtype)


@pytest.mark.parametrize("options", DRAWN, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_drawing_from_a_large_vocabulary_stays_within_the_plan(dtype, options, readings):
    rows = [[1 + at for at in range(20)]] * 8
    wide(dtype).generate(rows, max_tokens=4, **options)
    *_, decode = readings
    assert decode.stage == "decode"
    assert decode.holds
    # And close: nothing else is large here but the keys, which are counted twice, as rows that leave copy the rest.
    weights = wide(dtype)._runtime.encoder.plan.weights.total
    assert decode.planned - weights - PLANNED_BESIDE <= 2 * (decode.measured - weights)


def test_rows_that_leave_one_by_one_stay_within_the_plan(readings):
    model = engine.load(GOLDENS / "qwen3-windowed", prefix_cache=0)
    model.generate([[5 + row, 6, 7] for row in range(48)], max_tokens=[60 - row for row in range(48)])
    assert [reading for reading in readings if not reading.holds] == []


@pytest.mark.parametrize("lengths", [(300,), (300, 40)], ids=str)
@pytest.mark.parametrize("name", ["qwen3-windowed", "qwen35-text"])
def test_copies_of_caches_for_several_answers_are_in_the_plan(name, lengths, readings):
    model = engine.load(GOLDENS / name, prefix_cache=0)
    rows = [[1 + at % 90 for at in range(length)] for length in lengths]
    model.generate(rows, max_tokens=30, n=24, temperature=0.7, seed=1)
    assert [reading for reading in readings if not reading.holds] == []
    *_, decode = readings
    weights = model._runtime.encoder.plan.weights.total
    # And close, because the copies outweigh everything else.
    assert decode.planned - weights - PLANNED_BESIDE <= 1.5 * (decode.measured - weights)


def test_batches_are_read_one_by_one(readings):
    tiny = next(iter(examples().values()))
    texts = ["a" * 290] * 20
    plan = tiny.model.plan(tiny.model._runtime.tokeniser(texts).lengths)
    tiny.model.embed(texts)
    assert len(plan.batches) > 1
    told = [(each.rows, each.tokens, each.planned) for each in readings]
    assert told == [(batch.shape.B, batch.shape.L, batch.peak) for batch in plan.batches]


def test_a_generation_that_is_closed_early_measures_its_prompt_and_goes_on(readings):
    tiny = next(tiny for tiny in examples().values() if "generate" in tiny.spec.tasks)
    with tiny.model.generate([1, 2, 3], max_tokens=20, stream=True) as pieces:
        next(pieces)
    tiny.model.generate([1, 2, 3], max_tokens=2)
    assert [each.stage for each in readings] == ["prefill", "prefill", "decode"]


READING = MemoryReading("batch", 1, 8, measured=90, planned=100, left=50, resident=60, pool=30, pool_limit=30)


@pytest.mark.parametrize(
    ("change", "holds"),
    [({}, True), ({"measured": 101}, False), ({"left": 70}, False), ({"pool": 41}, False), ({"pool": 40}, True)],
)
def test_a_reading_tells_a_peak_or_a_rest_above_the_plan(change, holds, caplog):
    reading = replace(READING, **change)
    assert reading.holds is holds
    reading.log()
    assert ("please report it" in caplog.text) is not holds


def test_a_batch_that_takes_more_than_its_plan_says_is_told(readings, monkeypatch):
    tiny = next(iter(examples().values()))
    from archport.answering import vectors as embed

    start = embed.Embedder._start

    def wasteful(self, task, *arguments):
        rows = start(self, task, *arguments)
        ballast = mx.zeros((task.plan.peak // 4,))
        mx.eval(ballast)
        return rows

    monkeypatch.setattr(embed.Embedder, "_start", wasteful)
    tiny.model.embed(["a text"])
    (reading,) = readings
    assert reading.measured > reading.planned
    assert not reading.holds


def test_a_request_that_is_refused_leaves_no_reading(readings):
    tiny = next(iter(examples().values()))
    with pytest.raises(InputError):
        tiny.model.embed([3])
    assert readings == []
