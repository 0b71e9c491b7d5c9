"""The process that uses the device is noted, and its threads are gone before the interpreter is."""

from __future__ import annotations

import _thread
import os
import threading
import time
from collections import deque

import pytest

from archport.contract import ForkedProcess
from archport.device import process


def test_another_process_than_the_first_is_refused_until_it_is_the_same(monkeypatch):
    monkeypatch.setattr(process, "_used_in", None)
    process.enter()
    process.use_device()
    process.use_device()
    monkeypatch.setattr(process, "_used_in", os.getpid() + 1)
    for call in (process.enter, process.use_device):
        with pytest.raises(ForkedProcess, match=f"process {os.getpid()} was forked from process {os.getpid() + 1}"):
            call()


def test_a_fork_behind_the_import_of_mlx_is_refused_where_that_started_a_gpu(monkeypatch):
    monkeypatch.setattr(process, "_used_in", None)
    monkeypatch.setattr(process, "_forked_from", 7)
    monkeypatch.setattr(process, "_has_gpu", lambda: False)
    process.use_device()
    monkeypatch.setattr(process, "_has_gpu", lambda: True)
    with pytest.raises(ForkedProcess, match="forked from process 7, which had imported MLX"):
        process.use_device()


def test_threads_that_use_the_device_are_noted_once_and_the_main_thread_is_not(monkeypatch):
    monkeypatch.setattr(process, "_threads", deque(maxlen=10))
    process.enter()
    found: list[int] = []

    def work() -> None:
        found.append(threading.get_native_id())
        process.enter()
        process.enter()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert list(process._threads) == found


def test_the_end_waits_for_threads_that_only_the_system_still_knows(monkeypatch):
    started, ended = threading.Event(), threading.Event()

    def work() -> None:
        process._threads.append(threading.get_native_id())
        started.set()
        time.sleep(0.1)
        ended.set()

    monkeypatch.setattr(process, "_threads", deque(maxlen=10))
    # The threading module does not list it, as it does not list a thread that is being torn down.
    _thread.start_new_thread(work, ())
    assert started.wait(60)
    began = time.monotonic()
    process._let_threads_end()
    assert ended.is_set() or time.monotonic() - began >= process.ENDING_SECONDS / 10


def test_the_end_does_not_wait_for_threads_that_run_on(monkeypatch):
    go_on = threading.Event()
    monkeypatch.setattr(process, "_threads", deque(maxlen=10))
    monkeypatch.setattr(process, "ENDING_SECONDS", 40)
    thread = threading.Thread(target=lambda: (process.enter(), go_on.wait()))
    thread.start()
    while not process._threads:
        time.sleep(0.001)
    began = time.monotonic()
    process._let_threads_end()
    took = time.monotonic() - began
    go_on.set()
    thread.join()
    assert took < process.ENDING_SECONDS / 2
