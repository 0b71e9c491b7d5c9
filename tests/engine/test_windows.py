"""Texts that are tokenised while others run: what has not run joins them, and nothing is lost, doubled or misplaced."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from archport import engine
from archport.answering import vectors as embed
from archport.contract import InputError
from archport.planning import Planner, shapes

GOLDENS = Path(__file__).parents[1] / "goldens"
TEXTS = [" ".join(["word"] * (1 + 7 * index % 23)) for index in range(30)]


@pytest.fixture(scope="module")
def model():
    return engine.load(GOLDENS / "bert-plain")


@pytest.fixture
def planned(monkeypatch) -> list[int]:
    """Batches of a few rows; answers how many rows each plan had."""
    counts: list[int] = []
    plan = Planner.__call__

    def counting(self, request):
        counts.append(len(request.lengths))
        return plan(self, request)

    monkeypatch.setattr(Planner, "__call__", counting)
    monkeypatch.setitem(shapes.TOKENS_PER_BATCH, "cpu", 32)
    return counts


@pytest.mark.parametrize("sizes", [(2, 3, 4, 40), (10, 10, 8, 4), (1, 1, 1, 1, 3), (3, 100), (7,), (100,)])
def test_vectors_do_not_depend_on_the_windows(model, planned, monkeypatch, sizes):
    expected = model.embed(TEXTS)
    monkeypatch.setitem(embed._WINDOWS, model.device.kind, sizes)
    found = model.embed(TEXTS)
    # Rows are summed in other orders in other batches.
    assert np.abs(found - expected).max() <= 2e-6 * np.abs(expected).max()


def test_rows_that_have_not_run_are_planned_again_with_those_of_the_next_window(model, planned, monkeypatch):
    monkeypatch.setitem(embed._WINDOWS, model.device.kind, (10, 10, 8, 4))
    model.embed(TEXTS)
    first, second, third, last = planned
    assert first == 10
    assert 10 < second < 20
    assert 8 < third < second + 8
    assert last == 2


def test_a_text_that_can_not_be_embedded_is_named_whatever_window_it_is_in(model, planned, monkeypatch):
    monkeypatch.setitem(embed._WINDOWS, model.device.kind, (10, 10, 8, 4))
    with pytest.raises(InputError, match="text 25"):
        model.embed([*TEXTS[:25], None, *TEXTS[26:]])
