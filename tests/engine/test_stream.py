"""`Model.stream`: the vectors of `embed`, window by window, in the memory of one window."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from archport import engine
from archport.answering import streams
from archport.answering.collecting import Collected
from archport.contract import ContextLengthExceeded, InputError

GOLDENS = Path(__file__).parents[1] / "goldens"
TEXTS = [f"text number {index} " * (1 + index % 7) for index in range(50)]


@pytest.fixture(scope="module")
def model():
    return engine.load(GOLDENS / "bert-plain")


@pytest.mark.parametrize("window", [1, 7, 25, 50, 1000])
def test_the_windows_hold_the_vectors_of_embed_in_order(model, window: int):
    made = list(model.stream(iter(TEXTS), window=window))
    assert [first for first, _ in made] == list(range(0, len(TEXTS), window))
    np.testing.assert_allclose(np.concatenate([vectors for _, vectors in made]), model.embed(TEXTS), atol=1e-5)


def test_no_more_than_a_window_is_read_ahead_of_its_vectors(model):
    read: list[int] = []
    stream = model.stream((read.append(index) or text for index, text in enumerate(TEXTS)), window=10)
    assert read == []
    for first, vectors in stream:
        assert len(read) == first + len(vectors)


def test_long_texts_end_a_window_early(model, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(streams, "MOST_CHARACTERS", 100)
    sizes = [sum(map(len, some[:-1])) for some in streams.windows(TEXTS, 1000)]
    assert len(sizes) > 10
    assert max(sizes) < 100


@pytest.mark.parametrize("output", ["vectors", "tokens"])
def test_rows_set_aside_go_by_their_index_in_the_whole_stream(model, output: str):
    model = engine.load(GOLDENS / "colbert") if output == "tokens" else model
    rows = [3 if index in (0, 13, 49) else text for index, text in enumerate(TEXTS)]
    made = list(model.stream(rows, window=10, errors="collect", output=output))
    assert all(isinstance(each, Collected) for _, each in made)
    assert [row for _, each in made for row in each.rows] == [row for row in range(50) if row not in (0, 13, 49)]
    errors = {row: str(error) for _, each in made for row, error in each.errors.items()}
    assert {row for row, text in errors.items() if text.startswith(f"text {row} is a int")} == {0, 13, 49}


def test_the_first_bad_text_is_raised_by_its_index_when_its_window_is_reached(model):
    rows = [*TEXTS[:33], "word " * 900, *TEXTS[33:]]
    stream = model.stream(rows, window=10)
    done = [next(stream) for _ in range(3)]
    assert sum(len(vectors) for _, vectors in done) == 30
    with pytest.raises(ContextLengthExceeded, match="text 33 has"):
        next(stream)


@pytest.mark.parametrize(
    "wrong",
    [{"window": 0}, {"dimensions": 99}, {"prompt_name": "nope"}, {"overflow": "cut"}, {"precision": "int8"}],
    ids=str,
)
def test_wrong_options_are_refused_at_once(model, wrong: dict):
    with pytest.raises(InputError):
        model.stream(iter(TEXTS), **wrong)


def test_a_progress_function_is_told_of_texts_and_tokens(model):
    told: list[tuple[int, int]] = []
    model.embed(TEXTS, progress=lambda done, *, dropped=0, tokens=0: told.append((done, tokens)))
    assert sum(done for done, _ in told) == len(TEXTS)
    lengths = model._runtime.embedder().tokeniser(TEXTS).lengths
    assert sum(tokens for _, tokens in told) == sum(lengths)
