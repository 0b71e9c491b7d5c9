"""A bar counts what is done, tells a rate and the time left, and changes nothing about how the work runs."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import pytest

from archport import engine
from archport.answering import vectors as embed
from archport.answering.vectors import TokensAhead
from archport.device import progress

GOLDENS = Path(__file__).parents[1] / "goldens"
TEXTS = [" ".join(["word"] * (1 + 7 * index % 23)) for index in range(30)]


@pytest.fixture(scope="module")
def model():
    return engine.load(GOLDENS / "bert-plain")


@pytest.fixture
def bars(monkeypatch) -> list[dict]:
    """Every bar: its total, and what was counted and when."""
    found: list[dict] = []

    class Bar(progress._Bar):
        def __init__(self, what, total):
            super().__init__(what, total)
            self.noted = {"what": what, "total": total, "counts": []}
            found.append(self.noted)

        def count(self, done, *, dropped=0, tokens=0):
            self.noted["counts"].append(done)
            super().count(done, dropped=dropped, tokens=tokens)

    monkeypatch.setattr(progress, "_Bar", Bar)
    return found


def screen(monkeypatch) -> io.StringIO:
    """Standard error as a terminal, drawn at every count."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = Terminal()
    monkeypatch.setattr("sys.stderr", shown)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(progress, "REFRESH_SECONDS", 0)
    return shown


def test_a_list_is_tokenised_ahead_with_a_bar_as_without(model, bars, monkeypatch):
    monkeypatch.setitem(embed._WINDOWS, model.device.kind, (10,))
    ahead: list[bool] = []
    following = TokensAhead.__next__

    def noting(self):
        tokens = following(self)
        ahead.append(self.more)
        return tokens

    monkeypatch.setattr(TokensAhead, "__next__", noting)
    with_bar = model.embed(TEXTS, progress=True)
    assert ahead == [True, True, False]
    assert (with_bar == model.embed(TEXTS)).all()


def test_texts_are_counted_when_their_vectors_are_there(model, bars, monkeypatch):
    monkeypatch.setattr(embed, "_WINDOW", 10)
    read: list[int] = []
    counted_at: list[tuple[int, int]] = []
    finish = embed.VectorHead.finish

    def finishing(self, rows, **options):
        counted_at.append((len(read), sum(bars[0]["counts"])))
        return finish(self, rows, **options)

    monkeypatch.setattr(embed.VectorHead, "finish", finishing)
    model.embed((read.append(1) or text for text in TEXTS), progress=True)
    (bar,) = bars
    assert bar["total"] is None
    assert sum(bar["counts"]) == len(TEXTS)
    # Ten texts are read, and none has its vector, before the first batch runs.
    assert counted_at[0] == (10, 0)


@pytest.mark.parametrize(
    ("texts", "total"), [(TEXTS, 30), (tuple(TEXTS), 30), (dict.fromkeys(TEXTS).keys(), 23), ("a", 1)]
)
def test_the_total_is_known_of_what_has_a_length(model, bars, texts, total):
    model.embed(texts, progress=True)
    (bar,) = bars
    assert bar["total"] == total == sum(bar["counts"])


@pytest.mark.parametrize("name", ["colbert", "qwen3-reranker", "xlm-roberta-rerank"])
def test_rerank_counts_documents(name, bars):
    engine.load(GOLDENS / name).rerank("which word", TEXTS[:7], progress=True)
    (bar,) = bars
    assert bar["total"] == 7 == sum(bar["counts"])


def test_vectors_of_tokens_are_counted_by_text(bars):
    engine.load(GOLDENS / "colbert").embed(TEXTS[:7], output="tokens", progress=True)
    (bar,) = bars
    assert bar["total"] == 7 == sum(bar["counts"])


def test_without_a_limit_nobody_knows_how_many_tokens_come(bars):
    made = engine.load(GOLDENS / "qwen3-yarn").generate([[5] * 250], max_tokens=None, progress=True)
    (bar,) = bars
    assert bar["total"] is None
    assert sum(bar["counts"]) == len(made[0].tokens)


def test_a_bar_tells_count_rate_and_time_left(model, monkeypatch):
    monkeypatch.setitem(embed._WINDOWS, model.device.kind, (10,))
    shown = screen(monkeypatch)
    model.embed(TEXTS, progress=True)
    assert "embedding" in shown.getvalue()
    assert "30/30" in shown.getvalue()
    assert "/s" in shown.getvalue()
    assert "0:00:0" in shown.getvalue()


def test_a_bar_of_an_unknown_total_tells_count_and_rate(model, monkeypatch):
    shown = screen(monkeypatch)
    model.embed(iter(TEXTS), progress=True)
    assert "30/?" in shown.getvalue()
    assert "/s" in shown.getvalue()


def test_a_bar_starts_no_thread(model, monkeypatch):
    started: list[str] = []
    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda self: (started.append(self.name), start(self))[1])
    model.embed(TEXTS, progress=True)
    assert [name for name in started if not name.startswith("archport_")] == []


def test_what_is_dropped_is_no_longer_part_of_the_total():
    bar = progress._Bar("generating", 20)
    bar.count(4, dropped=6)
    (task,) = bar._progress.tasks
    assert (task.completed, task.total) == (4, 14)


@pytest.mark.parametrize(
    ("per_second", "text"), [(None, "-/s"), (0.1234, "0.123/s"), (12.34, "12.3/s"), (423347.0, "423,347/s")]
)
def test_rates_are_short(per_second, text):
    assert progress.pace(per_second) == text
