"""A server on several devices: one port, a process for each, and what all of them count in one answer."""

import os
import re
import signal
import sys
import time
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter

from archport.contract import InputError
from archport.device.processes import environment_of, place_of
from archport.serving.devices import Together, run_on

from .test_process import Process

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="other systems spread no connections")


def counted(folder, index, number):
    """One device's process, in which so many requests were counted."""
    registry = CollectorRegistry()
    Counter("archport_requests", "Requests.", ["path"], registry=registry).labels("/v1/embeddings").inc(number)
    return Together(registry, folder, (index, 2))


def test_what_all_devices_count_is_told_by_any_of_them_with_the_device(tmp_path):
    first, second = counted(tmp_path, 0, 3), counted(tmp_path, 1, 4)
    alone = first.text().decode()
    assert 'archport_device_up{device="0"} 1.0' in alone
    assert 'archport_device_up{device="1"} 0.0' in alone
    second.leave()
    text = first.text().decode()
    assert 'archport_requests_total{device="0",path="/v1/embeddings"} 3.0' in text
    assert 'archport_requests_total{device="1",path="/v1/embeddings"} 4.0' in text
    assert 'archport_device_up{device="1"} 1.0' in text
    # Each family is described once, as readers of the format ask.
    assert text.count("# TYPE archport_requests_total counter") == 1


def test_a_process_is_told_its_device_and_its_place(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    given = environment_of(1, ["0", "3"], "PLACE")
    assert (given["CUDA_VISIBLE_DEVICES"], given["PLACE"]) == ("3", "1/2")
    monkeypatch.setenv("PLACE", given["PLACE"])
    assert place_of("PLACE") == (1, 2)


@LINUX
def test_devices_that_are_none_start_nothing():
    with pytest.raises(InputError, match="expected all, a number"):
        run_on("0,0", ["serve"], "127.0.0.1", 0, print)


def children(pid):
    return [int(each) for file in Path(f"/proc/{pid}/task").glob("*/children") for each in file.read_text().split()]


def devices_up(server):
    """Devices whose process is there, as any of them says; None where nobody answers."""
    try:
        text = httpx.get(f"{server.url}/metrics", timeout=5).text
    except httpx.HTTPError:
        return None
    return sorted(re.findall(r'archport_device_up\{device="(\d)"\} 1.0', text))


def until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.1)
    return true()


@LINUX
@pytest.mark.truth
def test_a_device_that_fails_leaves_the_other_serving():
    server = Process("--devices", "2")
    try:
        assert until(lambda: devices_up(server) == ["0", "1"])
        whole = server.embed("a text").json()["data"][0]["embedding"]
        # Each request is a connection of its own, so that some reach either process.
        assert all(server.embed("a text").json()["data"][0]["embedding"] == whole for _ in range(12))
        text = httpx.get(f"{server.url}/metrics").text
        assert sum(map(float, re.findall(r"archport_tokens_total\{device=\"\d\".*\} ([\d.]+)", text))) > 0
        os.kill(children(server.process.pid)[0], signal.SIGKILL)
        assert until(lambda: len(devices_up(server) or ()) == 1)
        assert all(server.embed("a text").status_code == 200 for _ in range(6))
        code, errors = server.end()
        assert "ended with -9; 1 of 2 go on" in errors
        assert code in (0, 1)
    finally:
        for pid in children(server.process.pid):
            os.kill(pid, signal.SIGKILL)
        server.process.kill()
