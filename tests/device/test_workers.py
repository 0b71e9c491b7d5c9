"""Threads of a request end with it or by themselves, and no error keeps alive what waited for it."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import wait

import pytest

from archport.device import workers
from archport.device.workers import Threads, spread


class Held:
    """Something that a frame holds."""


def ended(name: str) -> bool:
    """Whether all threads of this name end within a minute."""
    until = time.monotonic() + 60
    while any(each.name.startswith(name) for each in threading.enumerate()):
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_closing_waits_for_what_runs_and_forgets_what_has_not_begun():
    done: list[int] = []
    begun = threading.Event()

    def work() -> None:
        begun.set()
        time.sleep(0.05)
        done.append(1)

    with Threads("test-closed", 1) as threads:
        for _ in range(100):
            threads.start(work)
        assert begun.wait(60)
    assert 0 < len(done) < 100
    assert not [each for each in threading.enumerate() if each.name.startswith("test-closed")]


def test_closing_waits_no_longer_than_it_says(monkeypatch):
    monkeypatch.setattr(workers, "PATIENCE_SECONDS", 0.05)
    go_on = threading.Event()
    threads = Threads("test-patience", 1)
    threads.start(go_on.wait)
    waited: list[float] = []

    def noted(running, seconds):
        waited.append(seconds)
        return wait(running, seconds)

    monkeypatch.setattr(workers, "wait", noted)
    threads.close()
    assert waited == [0.05]
    go_on.set()
    assert ended("test-patience")


def test_threads_that_nobody_closed_end_by_themselves(no_collector):
    threads = Threads("test-dropped", 2)
    assert [threads.start(lambda: 1).take() for _ in range(2)] == [1, 1]
    del threads
    assert ended("test-dropped")


def test_an_error_of_a_thread_keeps_nothing_of_who_waited_for_it(no_collector):
    def fail() -> None:
        raise ValueError("in a thread")

    def wait() -> weakref.ref[Held]:
        held = Held()
        gone.append(weakref.ref(held))
        with Threads("test-error", 1) as threads:
            coming = threads.start(fail)
            coming.take()
        return gone[0]

    gone: list[weakref.ref[Held]] = []
    with pytest.raises(ValueError, match="in a thread"):
        wait()
    assert gone[0]() is None


def test_an_error_of_a_piece_is_raised_once_all_threads_have_ended_and_keeps_nothing(no_collector):
    running: set[int] = set()

    def work(piece: int) -> None:
        running.add(piece)
        time.sleep(0.01)
        running.discard(piece)
        if piece == 1:
            raise ValueError("a piece")

    def call() -> None:
        held = Held()
        gone.append(weakref.ref(held))
        spread(range(8), lambda: work, 2)

    gone: list[weakref.ref[Held]] = []
    with pytest.raises(ValueError, match="a piece"):
        call()
    assert not running
    assert gone[0]() is None


def test_an_interrupt_stops_the_pieces_before_the_caller_goes_on(monkeypatch):
    from concurrent.futures import Future

    done: list[int] = []
    begun, cleared = threading.Event(), threading.Event()

    def work(piece: int) -> None:
        begun.set()
        assert cleared.wait(60)
        done.append(piece)

    real, waits = Future.result, 0

    def interrupted(self, timeout=None):
        nonlocal waits
        waits += 1
        if waits == 1:
            assert begun.wait(60)
            raise KeyboardInterrupt
        # The caller waits for the pieces that run, and has taken the others away.
        cleared.set()
        return real(self, timeout)

    monkeypatch.setattr(Future, "result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        spread(range(100), lambda: work, 2)
    count = len(done)
    time.sleep(0.05)
    # One of each thread that had begun.
    assert 0 < count == len(done) <= 2
