"""Encodings one by one: what a thread that tokenises ahead may hold, and for how long."""

from __future__ import annotations

import pytest

from archport.reading import texts as tokenise
from archport.reading.texts import WORK_SECONDS, encoded


class Piece:
    alive = 0

    def __init__(self, text: str) -> None:
        self.text = text
        Piece.alive += 1

    def __del__(self) -> None:
        Piece.alive -= 1


class Pieces:
    def encode_batch_fast(self, texts, **options):
        self.options = options
        return [Piece(text) for text in texts]


@pytest.fixture
def breaths(monkeypatch):
    """The sleeps taken, where a look at the clock shows a third of what a thread may hold the interpreter for."""
    taken, clock = [], iter(range(1_000_000))
    monkeypatch.setattr(tokenise.time, "sleep", taken.append)
    monkeypatch.setattr(tokenise.time, "perf_counter", lambda: next(clock) * WORK_SECONDS / 3)
    return taken


def test_encodings_come_in_order_and_are_released_one_by_one(breaths):
    texts, tokenizer = [f"text {index}" for index in range(100)], Pieces()
    left = list(texts)
    for piece in encoded(tokenizer, texts, add_special_tokens=False):
        assert piece.text == left.pop(0)
        del piece
        assert Piece.alive == len(left)
    assert not left
    assert tokenizer.options == {"add_special_tokens": False}


def test_the_interpreter_is_let_go_between_texts_but_not_behind_the_last(breaths):
    list(encoded(Pieces(), ["text"] * 9))
    # Before the third text, and every third look at the clock from there on; a look is taken after each sleep, too.
    assert len(breaths) == 3
    breaths.clear()
    list(encoded(Pieces(), ["text"]))
    assert not breaths
