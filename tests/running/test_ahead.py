"""Windows of texts come in order, errors at their turn, and only sequences are read ahead."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from archport.answering.vectors import TokensAhead
from archport.reading.texts import Tokens


def tokens_of(chunk, first) -> Tokens:
    return Tokens(tuple(np.array([first + index, int(text)]) for index, text in enumerate(chunk)))


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 9, 10, 11])
@pytest.mark.parametrize("kind", [list, iter])
def test_every_text_comes_once_and_in_order(count: int, kind):
    with TokensAhead(kind([str(n) for n in range(count)]), tokens_of, (2, 4)) as ahead:
        windows = list(ahead)
    assert [row.tolist() for _, tokens in windows for row in tokens.ids] == [[n, n] for n in range(count)]
    assert [first for first, _ in windows] == [0, 2, 6, 10][: len(windows)]
    assert [len(tokens.ids) for _, tokens in windows] == [
        min(size, count - first) for size, first in ((2, 0), (4, 2), (4, 6), (4, 10)) if first < count
    ]


def test_an_error_is_raised_at_the_turn_of_its_window():
    with TokensAhead(["0", "1", "2", "bad", "4"], tokens_of, (2,)) as ahead:
        windows = iter(ahead)
        assert next(windows)[0] == 0
        with pytest.raises(ValueError, match="bad"):
            next(windows)


def test_the_next_window_of_a_sequence_is_tokenised_while_this_one_is_used():
    started = threading.Event()

    def tokenise(chunk, first) -> Tokens:
        if first:
            started.set()
        return tokens_of(chunk, first)

    with TokensAhead(["0", "1"], tokenise, (1,)) as ahead:
        next(iter(ahead))
        assert started.wait(60)


def test_an_iterator_is_read_no_further_than_the_window_in_use():
    read: list[str] = []

    def source() -> Iterator[str]:
        for text in "012345":
            read.append(text)
            yield text

    with TokensAhead(source(), tokens_of, (2,)) as ahead:
        next(iter(ahead))
        assert read == ["0", "1"]
