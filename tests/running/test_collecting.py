"""Rows that fail alone: raised by name, or set aside while the others are answered as if they had not been there."""

from __future__ import annotations

import archport  # noqa: F401

# isort: split
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from archport import engine
from archport.answering.collecting import apart
from archport.contract import ContextLengthExceeded, InputError, MemoryBudgetExceeded, NonFiniteOutput

GOLDENS = Path(__file__).parents[1] / "goldens"
LONG = "word " * 900
BAD: dict[str, tuple[Any, type[Exception]]] = {
    "too long": (LONG, ContextLengthExceeded),
    "an int": (3, InputError),
    "None": (None, InputError),
    "a surrogate": ("a\ud800", InputError),
    "bytes": (b"text", InputError),
}
GOOD = [f"text number {index} " * (1 + index % 5) for index in range(12)]


@pytest.fixture(scope="module")
def models() -> Callable[[str], engine.Model]:
    kept: dict[str, engine.Model] = {}

    def of(name: str) -> engine.Model:
        if name not in kept:
            kept[name] = engine.load(GOLDENS / name)
        return kept[name]

    return of


def mixed(places: dict[int, str]) -> list[Any]:
    """The good texts with bad ones at these places."""
    rows: list[Any] = list(GOOD)
    for place, kind in sorted(places.items()):
        rows.insert(place, BAD[kind][0])
    return rows


PLACES = ({0: "too long"}, {12: "a surrogate"}, dict(enumerate(BAD)), {1: "None", 5: "an int", 13: "too long"})


@pytest.mark.parametrize("places", PLACES, ids=str)
@pytest.mark.parametrize("stream", [False, True], ids=["a list", "a stream"])
def test_texts_that_have_no_vector_are_set_aside(models, places, stream):
    model, rows = models("bert-plain"), mixed(places)
    made = model.embed(iter(rows) if stream else rows, errors="collect")
    assert set(made.errors) == set(places)
    assert made.rows == tuple(row for row in range(len(rows)) if row not in places)
    np.testing.assert_allclose(made.results, model.embed(GOOD), atol=1e-5)
    for row, kind in places.items():
        assert isinstance(made.errors[row], BAD[kind][1])
        assert f"text {row} " in str(made.errors[row])


@pytest.mark.parametrize("kind", BAD)
def test_the_first_of_them_is_raised_by_name_otherwise(models, kind):
    with pytest.raises(BAD[kind][1], match="text 7 "):
        models("bert-plain").embed(mixed({7: kind}))


@pytest.mark.parametrize("name", ["qwen3-reranker", "xlm-roberta-rerank", "colbert"])
def test_documents_that_have_no_score_are_set_aside(models, name):
    model, places = models(name), {0: "a surrogate", 4: "an int", 13: "None"}
    rows = mixed(places)
    made = model.rerank("which text", rows, errors="collect", return_documents=True)
    assert set(made.errors) == set(places)
    assert all(f"document {row} " in str(error) for row, error in made.errors.items())
    want = model.rerank("which text", GOOD, return_documents=True)
    assert [each.document for each in made.results] == [each.document for each in want]
    np.testing.assert_allclose([each.score for each in made.results], [each.score for each in want], atol=1e-5)
    assert [rows[each.index] for each in made.results] == [each.document for each in want]
    assert made.rows == tuple(each.index for each in made.results)


def test_texts_that_have_no_label_are_set_aside(models):
    model, places = models("bert-classify"), {2: "too long", 3: "an int"}
    made = model.classify(mixed(places), errors="collect")
    assert set(made.errors) == set(places)
    assert [each.label for each in made.results] == [each.label for each in model.classify(GOOD)]
    assert all(f"text {row} " in str(error) for row, error in made.errors.items())


def test_vectors_of_tokens_are_set_aside_too(models):
    made = models("colbert").embed(mixed({3: "an int"}), output="tokens", errors="collect")
    want = models("colbert").embed(GOOD, output="tokens")
    assert (set(made.errors), len(made.results)) == ({3}, 12)
    assert all(np.abs(a - b).max() < 1e-5 for a, b in zip(made.results, want, strict=True))


def test_a_text_that_exceeds_the_budget_alone_is_named_and_set_aside():
    model = engine.load(GOLDENS / "bert-plain")
    small = engine.load(GOLDENS / "bert-plain", memory_budget=model.plan([40]).minimum)
    rows = ["a b", "word " * 300, "c"]
    with pytest.raises(MemoryBudgetExceeded, match="text 1: "):
        small.embed(rows)
    made = small.embed(rows, errors="collect")
    assert made.rows == (0, 2)
    assert "text 1: " in str(made.errors[1])
    np.testing.assert_allclose(made.results, model.embed(["a b", "c"]), atol=1e-5)


def test_a_vector_that_is_not_finite_is_set_aside():
    model = engine.load(GOLDENS / "bert-plain")
    tokenizer, words = model._runtime.tokeniser.tokenizer, model._runtime.encoder.trunk.embeddings.word_embeddings
    own = set(tokenizer.encode("zebra").ids) - set(tokenizer.encode(" ".join(GOOD)).ids)
    words.weight[min(own)] = mx.nan
    made = model.embed([*GOOD[:5], "zebra", *GOOD[5:]], errors="collect")
    assert isinstance(made.errors[5], NonFiniteOutput)
    assert "the vector of text 5 holds NaN" in str(made.errors[5])
    assert set(made.errors) == {5}
    np.testing.assert_allclose(made.results, model.embed(GOOD), atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"dimensions": 10**6}, {"max_tokens": 10**6}, {"prompt_name": "none"}, {"errors": "ignore"}]
)
def test_what_is_wrong_with_the_call_is_raised(models, options):
    with pytest.raises((InputError, ContextLengthExceeded)):
        models("bert-plain").embed(GOOD, **{"errors": "collect", **options})


def test_an_error_of_the_texts_source_is_raised(models):
    def texts():
        yield "a"
        raise InputError("line 2 is no text")

    with pytest.raises(InputError, match="line 2 is no text"):
        models("bert-plain").embed(texts(), errors="collect")


def test_nothing_is_an_answer_too(models):
    made = models("bert-plain").embed([], errors="collect")
    assert (made.results.shape, made.rows, made.errors) == ((0, 48), (), {})
    made = models("bert-plain").embed([3, None], errors="collect")
    assert (made.results.shape, made.rows, set(made.errors)) == ((0, 48), (), {0, 1})
    assert models("qwen3-reranker").rerank("a", [3], errors="collect").results == []


@pytest.mark.parametrize("seed", range(5))
def test_rows_are_tried_apart_until_the_bad_ones_are_alone(seed):
    rng = np.random.default_rng(seed)
    bad = set(rng.choice(200, rng.integers(0, 40), replace=False).tolist())
    calls: list[int] = []

    def run(rows):
        calls.append(len(rows))
        if bad & set(rows):
            raise InputError(f"text {next(at for at, row in enumerate(rows) if row in bad)} is bad")
        return [row * 2 for row in rows]

    found, errors = apart(range(200), run, "text", 1000)
    assert found == {1000 + row: 2 * row for row in range(200) if row not in bad}
    assert {row: str(error) for row, error in errors.items()} == {
        1000 + row: f"text {1000 + row} is bad" for row in bad
    }
    assert len(calls) <= 1 + 2 * 8 * len(bad)
