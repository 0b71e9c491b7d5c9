"""The thread that owns the device: shares, failures, death. Work is made up; nothing here computes."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import numpy as np
import pytest

from archport.contract import InputError, MemoryBudgetExceeded
from archport.serving.device import CREDIT_SECONDS, Device, Shares
from archport.serving.errors import Refused
from archport.serving.scheduler import Job, Scheduler


@dataclass(frozen=True)
class Row:
    tokens: int
    value: float = 0.0


class Work:
    """Doubles each row's value; a negative one fails, NaN stays."""

    def __init__(self):
        self.windows = []

    def run(self, rows, take):
        self.windows.append(len(rows))
        if any(row.value < 0 for row in rows):
            raise InputError("text 0 is negative")
        if any(row.value == 666 for row in rows):
            raise RuntimeError("out of memory")
        if any(row.value == 999 for row in rows):
            raise SystemExit
        for index, row in enumerate(rows):
            take(index, np.array([row.value * 2]))


@pytest.fixture
def device():
    scheduler = Scheduler(10**6, 1000)
    made = Device(scheduler, most_deaths=2)
    scheduler.changed = made.wake
    yield made
    made.stop()


def ask(device, work, *values, form="a"):
    """A job under way, and what is set when it is answered."""
    done = threading.Event()
    job = Job(form, work, [Row(4, value) for value in values], time.monotonic() + 60, lambda _: done.set())
    device.scheduler.submit(job)
    return job, done


def test_jobs_are_answered(device):
    jobs = [ask(device, Work(), 1.0, 2.0) for _ in range(3)]
    device.start()
    assert all(done.wait(60) for _, done in jobs)
    assert [each.item() for each in jobs[2][0].results] == [2.0, 4.0]


def test_a_poison_row_fails_alone_and_its_neighbours_are_right(device):
    work = Work()
    good, bad, other = ask(device, work, 1.0), ask(device, work, 5.0, -1.0), ask(device, work, 3.0)
    device.start()
    assert all(done.wait(60) for _, done in (good, bad, other))
    assert str(bad[0].error) == "text 1 is negative"
    assert good[0].results[0].item() == 2.0
    assert other[0].results[0].item() == 6.0
    # All together once, then one by one.
    assert work.windows == [4, 1, 1, 1, 1]


def test_a_fault_of_the_engine_fails_the_row_that_has_it(device):
    work = Work()
    good, bad = ask(device, work, 1.0), ask(device, work, 666.0)
    device.start()
    assert good[1].wait(60)
    assert bad[1].wait(60)
    assert good[0].error is None
    assert isinstance(bad[0].error, RuntimeError)


def test_rows_that_only_together_exceed_the_memory_are_all_answered(device):
    class Crowded(Work):
        def run(self, rows, take):
            if len(rows) > 1:
                raise MemoryError("[malloc] Unable to allocate")
            super().run(rows, take)

    work = Crowded()
    jobs = [ask(device, work, 1.0, 2.0), ask(device, work, 3.0)]
    device.start()
    assert all(done.wait(60) for _, done in jobs)
    assert [each.item() for job, _ in jobs for each in job.results] == [2.0, 4.0, 6.0]


def test_nan_is_an_error_and_never_a_result(device):
    job, done = ask(device, Work(), float("nan"))
    device.start()
    assert done.wait(60)
    assert "NaN" in str(job.error)


def test_when_the_thread_dies_everybody_is_answered_and_another_takes_over(device):
    jobs = [ask(device, Work(), 999.0), *(ask(device, Work(), 1.0, form=str(form)) for form in range(5))]
    device.start()
    begin = time.monotonic()
    assert all(done.wait(60) for _, done in jobs)
    # Long before the deadline of any.
    assert time.monotonic() - begin < 30
    assert jobs[0][0].error.fault.code == "engine_unhealthy"
    again, done = ask(device, Work(), 4.0)
    assert done.wait(60)
    assert again.results[0].item() == 8.0


def test_after_too_many_deaths_nothing_is_taken_any_more(device, eventually):
    device.start()
    for _ in range(3):
        _, done = ask(device, Work(), 999.0)
        assert done.wait(60)
    eventually(lambda: not device.alive)
    assert not device.healthy
    with pytest.raises(Refused):
        device.call(lambda: 1).result(1)


def test_rows_that_generation_leaves_no_room_for_wait_for_it(device):
    class Chat:
        reserved, left, awaited = 1000, 3, False
        ready = property(lambda self: self.left > 0)

        def step(self):
            self.left -= 1
            self.reserved = 1000 if self.left else 0

        def close_all(self, error):
            return 0

    class Tight(Work):
        def run(self, rows, take):
            if device.reserved:
                raise MemoryBudgetExceeded("no room", required_bytes=2, limit_bytes=1)
            super().run(rows, take)

    device.steps.append(Chat())
    job, done = ask(device, Tight(), 1.0)
    device.start()
    assert done.wait(60)
    assert job.error is None


def test_a_call_runs_on_the_thread_and_its_error_is_handed_on(device):
    device.start()
    assert device.call(threading.current_thread).result(60).name == "archport-device"
    with pytest.raises(InputError):
        device.call(lambda: (_ for _ in ()).throw(InputError("no"))).result(60)


@pytest.mark.parametrize("awaited", [False, True])
@pytest.mark.parametrize("share", [0.5, 0.7, 0.9])
def test_while_both_want_the_device_each_has_its_share(share, awaited):
    shares, used = Shares(share), {"chat": 0.0, "rows": 0.0}
    for turn in range(3000):
        kind = shares.turn(True, True, awaited)
        seconds = (0.01, 0.03)[turn % 2] if kind == "chat" else 0.02
        used[kind] += seconds
        shares.spent(kind, seconds)
    assert used["chat"] / sum(used.values()) == pytest.approx(share, abs=0.01)


def test_a_first_token_does_not_wait_for_rows_within_its_credit():
    shares = Shares(0.7)
    shares.turn(True, True)
    shares.spent("chat", CREDIT_SECONDS / 2)
    assert shares.turn(True, True) == "rows"
    assert shares.turn(True, True, awaited=True) == "chat"
    shares.spent("chat", CREDIT_SECONDS)
    assert shares.turn(True, True, awaited=True) == "rows"


def test_who_wanted_nothing_is_owed_nothing():
    shares = Shares(0.7)
    for _ in range(1000):
        assert shares.turn(True, False) == "chat"
        shares.spent("chat", 1.0)
    turns = []
    for _ in range(10):
        turns.append(shares.turn(True, True))
        shares.spent(turns[-1], 1.0)
    assert turns.count("chat") >= 6


class Generation:
    """Texts that are always under way."""

    ready, awaited, reserved = True, False, 0

    def step(self):
        pass

    def close_all(self, error):
        return 0


@pytest.mark.parametrize(
    ("rate", "talking", "tokens"),
    [
        # A large model on a CPU: no token of a text waits for longer than it must.
        (100.0, True, 64),
        # A small one there: rows run in windows that do not waste their share.
        (2500.0, True, 248),
        # A GPU: as many as a short time is enough for.
        (100_000.0, True, 3000),
        (2500.0, False, 1248),
    ],
)
def test_windows_beside_generated_texts_are_short_and_not_wasteful(device, rate, talking, tokens):
    work = Work()
    for _ in range(1000):
        ask(device, work, *[1.0] * 4)
    device.steps = [Generation()] if talking else []
    device.scheduler.rate = rate
    while not work.windows:
        device.turn()
    assert work.windows[0] * 4 == tokens
