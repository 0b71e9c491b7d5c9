"""Which rows run next: turns, windows, order, room in the queue; every job answered once. No device, no HTTP."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

import pytest

from archport.serving.errors import Refused, refused
from archport.serving.scheduler import Job, Scheduler


@dataclass(frozen=True)
class Row:
    tokens: int


def job(lengths, answers=None, form="a", deadline=1e12):
    told = answers if answers is not None else []
    return Job(form, None, [Row(each) for each in lengths], deadline, told.append)


def run(scheduler, tokens=64):
    """Take windows until nothing waits; returns them."""
    windows = []
    while (window := scheduler.take(tokens)) is not None:
        windows.append(window)
        for each, row in window.entries:
            scheduler.answer(each, row, row)
    return windows


def test_rows_of_several_callers_share_a_window():
    scheduler = Scheduler(10_000, 100)
    for _ in range(5):
        scheduler.submit(job([3]))
    assert len(scheduler.take(64).entries) == 5


def test_results_come_in_the_callers_own_order():
    scheduler, answers = Scheduler(10_000, 100), []
    scheduler.submit(job([30, 1, 20, 4], answers))
    run(scheduler, 25)
    assert answers[0].results == [0, 1, 2, 3]


def test_a_single_row_does_not_wait_for_a_caller_with_thousands():
    scheduler = Scheduler(10**6, 100)
    bulk, single = job([10] * 2000), job([10])
    scheduler.submit(bulk)
    scheduler.take(100)
    scheduler.submit(single)
    assert any(each is single for each, _ in scheduler.take(100).entries)


def test_callers_with_many_rows_share_a_window_evenly():
    scheduler = Scheduler(10**6, 100)
    one, other = job([10] * 500), job([10] * 500)
    scheduler.submit(one)
    scheduler.submit(other)
    entries = scheduler.take(400).entries
    assert sum(each is one for each, _ in entries) == sum(each is other for each, _ in entries) == 20


def test_forms_take_turns_and_never_mix():
    scheduler = Scheduler(10**6, 100)
    for form in "abab":
        scheduler.submit(job([10] * 8, form=form))
    forms = [window.form for window in run(scheduler, 40)]
    assert forms == ["a", "b"] * 4


def test_a_window_holds_a_row_that_is_longer_than_a_window():
    scheduler = Scheduler(10**6, 100)
    scheduler.submit(job([5000]))
    assert scheduler.take(64).tokens == 5000


def test_a_window_stays_within_its_tokens_where_rows_fit():
    scheduler = Scheduler(10**6, 100)
    scheduler.submit(job([7, 13, 29, 31, 2, 60]))
    assert all(window.tokens <= 64 for window in run(scheduler))


def test_a_full_queue_refuses_and_says_when_to_come_back():
    scheduler = Scheduler(100, 100)
    scheduler.submit(job([90]))
    with pytest.raises(Refused) as refusal:
        scheduler.admit(20)
    assert refusal.value.fault.status == 429
    assert int(refusal.value.fault.headers["retry-after"]) >= 1


def test_a_request_larger_than_the_queue_enters_when_nothing_waits():
    scheduler = Scheduler(100, 100)
    assert scheduler.admit(10_000).open


def test_room_comes_back_when_a_job_is_answered_closed_or_given_up():
    scheduler = Scheduler(100, 100)
    first, second = job([50]), job([20])
    ticket = scheduler.admit(30)
    scheduler.release(ticket)
    scheduler.submit(first)
    scheduler.submit(second)
    scheduler.close(second, refused("left"))
    run(scheduler)
    assert scheduler.waiting_tokens == 0


def test_a_job_that_was_closed_runs_no_more():
    scheduler, answers = Scheduler(10_000, 100), []
    gone = job([5, 5], answers)
    scheduler.submit(gone)
    scheduler.close(gone, refused("left"))
    assert scheduler.take(64) is None
    assert [each.error.fault.message for each in answers] == ["left"]


def test_an_expired_job_is_answered_with_504_and_does_not_run():
    scheduler, answers = Scheduler(10_000, 100), []
    scheduler.submit(job([5], answers, deadline=time.monotonic() - 1))
    assert scheduler.take(64) is None
    assert answers[0].error.fault.status == 504


def test_rows_that_were_given_back_run_again_unless_they_are_held():
    scheduler = Scheduler(10_000, 100)
    scheduler.submit(job([5, 6]))
    window = scheduler.take(64)
    scheduler.give_back(window, hold=True)
    assert scheduler.take(64) is None
    scheduler.resume()
    assert sorted(row for _, row in scheduler.take(64).entries) == [0, 1]


def random_traffic(seed):
    """Jobs of random sizes, forms and ends; returns those that were not answered exactly once."""
    chance, answers = random.Random(seed), []
    scheduler, jobs = Scheduler(10**9, 10**9), []
    for _ in range(chance.randint(1, 60)):
        act = chance.random()
        if act < 0.5:
            jobs.append(
                job([chance.randint(1, 90) for _ in range(chance.randint(0, 20))], answers, chance.choice("ab"))
            )
            scheduler.submit(jobs[-1])
        elif act < 0.7 and jobs:
            scheduler.close(chance.choice(jobs), refused("left"))
        elif (window := scheduler.take(chance.randint(1, 200))) is not None:
            if chance.random() < 0.2:
                scheduler.give_back(window)
                continue
            for each, row in window.entries:
                scheduler.answer(each, row, row)
    run(scheduler, 128)
    assert scheduler.waiting_tokens == 0
    return [each for each in jobs if answers.count(each) != 1 or (each.error is None and None in each.results)]


@pytest.mark.parametrize("seed", range(30))
def test_every_job_is_answered_exactly_once(seed):
    assert random_traffic(seed) == []


@pytest.mark.truth
def test_every_job_of_much_traffic_is_answered_exactly_once():
    assert [seed for seed in range(3000) if random_traffic(seed)] == []
