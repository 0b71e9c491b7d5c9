"""Labelled spans against transformers' token-classification pipeline, recorded by tests/goldens/golden_tags.py."""

import json
import time
from pathlib import Path

import numpy as np
import pytest

from archport import engine
from archport.answering.tags import Places, spans
from archport.contract import ContextLengthExceeded, InputError

TAGS = Path(__file__).parents[3] / "tests" / "goldens" / "tags"
FAMILIES = ("bert", "xlm-roberta")


@pytest.fixture(scope="module", params=FAMILIES)
def tagged(request):
    """(model, texts, recorded spans) of one family."""
    recorded = json.loads((TAGS / request.param / "spans.json").read_text(encoding="utf-8"))
    return engine.load(TAGS / request.param), recorded["texts"], recorded["spans"]


def test_spans_are_those_of_the_pipeline_with_their_characters(tagged):
    model, texts, recorded = tagged
    for text, got, want in zip(texts, model.tag(texts, overflow="truncate"), recorded, strict=True):
        assert [(span.label, span.start, span.end) for span in got] == [(label, *at) for label, _, *at in want]
        assert np.allclose([span.score for span in got], [score for _, score, *_ in want], rtol=0, atol=1e-5)
        assert [span.text for span in got] == [text[span.start : span.end] for span in got]


def test_a_text_has_the_same_spans_alone_and_among_others(tagged):
    model, texts, _ = tagged
    together = model.tag(texts, overflow="truncate")
    for text, want in zip(texts, together, strict=True):
        (alone,) = model.tag(text, overflow="truncate")
        assert [(span.label, span.start, span.end) for span in alone] == [(s.label, s.start, s.end) for s in want]
        assert np.allclose([span.score for span in alone], [span.score for span in want], rtol=0, atol=1e-5)


def test_a_text_over_the_limit_is_refused_by_its_place_unless_it_may_be_cut(tagged):
    model, _, _ = tagged
    with pytest.raises(ContextLengthExceeded, match="text 1 "):
        model.tag(["a", "cat " * 100])
    assert model.tag(["a", "cat " * 100], overflow="truncate")[1][-1].end <= 4 * 64


def test_a_long_text_that_may_be_cut_is_not_encoded_whole(tagged, monkeypatch):
    model, texts, _ = tagged
    text = " ".join(texts) + " cat" * 500_000
    # The same tokens of it as of a text that is encoded whole.
    expected = model.tag(text[:20_000], overflow="truncate")
    read: list[int] = []
    real = type(model._runtime.tagger().tokeniser.long).beginnings

    def beginnings(*arguments, **options):
        found = real(*arguments, **options)
        read.extend(len(beginning) for beginning, _ in found)
        return found

    monkeypatch.setattr(type(model._runtime.tagger().tokeniser.long), "beginnings", beginnings)
    start = time.process_time()
    assert model.tag(text, overflow="truncate") == expected
    assert time.process_time() - start < 0.5
    assert max(read) < 100_000


@pytest.mark.parametrize("overflow", ["error", "truncate"])
def test_a_text_is_encoded_once(tagged, monkeypatch, overflow):
    model, texts, _ = tagged
    short = [text for text in texts if model.count_tokens(text)[0] < 32]
    tokeniser, encoded = model._runtime.tokeniser, []

    class Counting:
        def __getattr__(self, name):
            real = getattr(tokenizer, name)
            if name not in ("encode", "encode_batch", "encode_batch_fast"):
                return real

            def counting(given, **options):
                encoded.extend([given] if isinstance(given, str) else given)
                return real(given, **options)

            return counting

    tokenizer = tokeniser.tokenizer
    monkeypatch.setattr(tokeniser, "tokenizer", Counting())
    model.tag(short, overflow=overflow)
    assert encoded == short != []


def test_spans_after_a_repetition_stand_where_they_stand_in_the_text(tagged):
    model, texts, _ = tagged
    words = " ".join(texts)
    short, long = (model.tag("a" + " " * spaces + words, overflow="truncate")[0] for spaces in (1, 60_000))
    assert len(short) > 2
    more = [59_999 * (span.start > 1) for span in short]
    assert [(span.label, span.start, span.text) for span in long if span.start] == [
        (span.label, span.start + shift, span.text) for span, shift in zip(short, more, strict=True) if span.start
    ]


def test_a_model_that_labels_no_tokens_says_what_to_load_and_a_tagger_makes_no_vectors(tagged):
    model, _, _ = tagged
    with pytest.raises(InputError, match=r"Model\.tag"):
        model.embed("a cat")
    with pytest.raises(InputError, match="token classification"):
        engine.load(TAGS.parent / "bert-plain").tag("a cat")


@pytest.mark.parametrize(
    ("chosen", "want"),
    [
        ("B-A I-A I-A", [("A", 0, 3)]),
        ("B-A B-A", [("A", 0, 1), ("A", 1, 2)]),
        ("I-A A B-B O I-B", [("A", 0, 2), ("B", 2, 3), ("B", 4, 5)]),
        ("X-A A", [("A", 0, 1), ("A", 1, 2)]),
        ("O B-O", []),
    ],
)
def test_neighbours_join_by_label_and_prefix(chosen, want):
    labels = ["O", "B-A", "I-A", "A", "X-A", "B-B", "I-B", "B-O"]
    scores = np.stack([4.0 * np.eye(len(labels), dtype=np.float32)[labels.index(name)] for name in chosen.split()])
    places = Places([(at, at + 1) for at in range(len(scores))], [0] * len(scores))
    assert [(span.label, span.start, span.end) for span in spans("abcdefgh", scores, places, labels)] == want
