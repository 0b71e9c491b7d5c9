"""`archport serve` as a process: signals, vanished clients, half-sent bodies, kill and restart, no extra installed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import httpx
import numpy as np
import pytest

from archport import engine

BERT = str(Path(__file__).parents[1] / "goldens" / "bert-plain")
COMMAND = [sys.executable, "-c", "from archport.cli import main; main()", "serve", "-m", f"bert={BERT}"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Process:
    def __init__(self, *arguments: str, port: int | None = None, env: dict[str, str] | None = None) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = subprocess.Popen(
            [*COMMAND, "--port", str(self.port), *arguments], stderr=subprocess.PIPE, env={**os.environ, **(env or {})}
        )
        until = time.monotonic() + 60
        while time.monotonic() < until and self.process.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/health/ready").status_code == 200:
                    return
            time.sleep(0.05)

    def embed(self, *texts: str, **options) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/embeddings", json={"input": list(texts)}, timeout=30, **options)

    def end(self) -> tuple[int, str]:
        self.process.send_signal(signal.SIGTERM)
        _, errors = self.process.communicate(timeout=300)
        return self.process.returncode, errors.decode()


def test_requests_choose_among_adapters_of_the_command_line():
    folder = Path(BERT).parent / "adapters" / "bert-patterns"
    made = Process("--adapters", f"one={folder}", env={"ARCHPORT_SERVE_QUIET": "1"})
    try:
        model = engine.load(BERT, adapters={"one": folder})
        for task in ("one", None):
            answer = httpx.post(f"{made.url}/v1/embeddings", json={"input": "a cat", "task": task}, timeout=30).json()
            wanted = model.embed("a cat", task=task)[0]
            np.testing.assert_allclose(answer["data"][0]["embedding"], wanted, atol=1e-5)
    finally:
        made.end()


@pytest.fixture
def served() -> Iterator[Process]:
    made = Process()
    yield made
    if made.process.poll() is None:
        made.process.kill()
        made.process.communicate()


@pytest.mark.truth
def test_what_clients_do_wrong_leaves_the_server_ready(served):
    # Half a head, half a body, a client that leaves before its answer, and one that reads nothing.
    kept = []
    for content in (
        b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\n",
        b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{",
        b'POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: 14\r\n\r\n{"input": "a"}',
        b"\x00\xff garbage\r\n\r\n",
    ):
        for keep in (False, True):
            connection = socket.create_connection(("127.0.0.1", served.port))
            connection.sendall(content)
            if keep:
                kept.append(connection)
            else:
                connection.close()
    assert served.embed("a", "b").status_code == 200
    assert httpx.get(f"{served.url}/health/ready").status_code == 200
    code, errors = served.end()
    assert code == 0
    assert "Traceback" not in errors


@pytest.mark.truth
def test_at_the_signal_requests_under_way_are_answered_and_new_ones_refused(served):
    answers: list[int | str] = []

    def ask() -> None:
        try:
            answers.append(served.embed(*["some words " * 100] * 200).status_code)
        except httpx.HTTPError as error:
            answers.append(type(error).__name__)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 20
    # All of them wait for the device, or are under way there.
    while "archport_queue_requests 4.0" not in httpx.get(f"{served.url}/metrics").text and time.monotonic() < until:
        time.sleep(0.005)
    served.process.send_signal(signal.SIGTERM)
    late: list[int] = []
    with contextlib.suppress(httpx.HTTPError), httpx.Client(base_url=served.url, timeout=30) as client:
        while served.process.poll() is None:
            late.append(client.post("/v1/embeddings", json={"input": "late"}).status_code)
            time.sleep(0.02)
    errors = served.process.communicate(timeout=300)[1].decode()
    for thread in threads:
        thread.join()
    assert served.process.returncode == 0, errors
    assert answers == [200] * 4
    # One that came before the signal did is answered, too.
    assert set(late[1:]) == {503}


# Callers that keep the queue full, in a process of their own.
CROWD = """
import sys, threading, httpx
def ask():
    with httpx.Client(timeout=120) as client:
        while True:
            client.post(sys.argv[1], json={"input": ["some words " * 100] * 400})
for _ in range(4):
    threading.Thread(target=ask).start()
"""


@pytest.mark.truth
def test_an_overloaded_server_says_so_within_50_ms():
    crowded = Process("--queue-requests", "4", "--quiet")
    crowd = subprocess.Popen([sys.executable, "-c", CROWD, f"{crowded.url}/v1/embeddings"], stderr=subprocess.DEVNULL)
    took, until = [], time.monotonic() + 120
    try:
        client = HTTPConnection("127.0.0.1", crowded.port, timeout=30)
        while len(took) < 1000 and time.monotonic() < until:
            begin = time.perf_counter()
            client.request("POST", "/v1/embeddings", b'{"input": "a"}')
            response = client.getresponse()
            response.read()
            if response.status == 429:
                took.append(time.perf_counter() - begin)
                assert response.headers["retry-after"]
            else:
                # There is room between one request's end and the next one's beginning.
                assert response.status == 200
            time.sleep(0.002)
        assert len(took) == 1000
        assert sorted(took)[989] <= 0.05, [round(1e3 * sorted(took)[at], 1) for at in (499, 899, 989, 999)]
    finally:
        crowd.kill()
        crowd.wait()
    assert crowded.embed("a").status_code == 200
    assert crowded.end()[0] == 0


@pytest.mark.truth
def test_after_kill_it_starts_again_at_the_same_port(served):
    first = served.embed("a").json()["data"][0]["embedding"]
    served.process.kill()
    served.process.communicate()
    again = Process(port=served.port)
    try:
        assert again.embed("a").json()["data"][0]["embedding"] == pytest.approx(first, abs=1e-6)
    finally:
        assert again.end()[0] == 0


def test_a_port_that_is_taken_a_model_that_is_none_and_an_open_bind_are_told_in_one_message():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = subprocess.run([*COMMAND, "--port", port], capture_output=True, text=True)
    assert (done.returncode, "can't be listened at" in done.stderr) == (1, True)
    done = subprocess.run([*COMMAND, "--host", "0.0.0.0", "--port", "0"], capture_output=True, text=True)
    assert (done.returncode, "--insecure" in done.stderr) == (2, True)
    assert "Traceback" not in done.stderr


def test_without_the_extra_two_lines_say_what_to_install():
    script = (
        "import importlib.util as util\nfind = util.find_spec\n"
        "util.find_spec = lambda name, *a: None if name in ('starlette', 'orjson') else find(name, *a)\n"
        "from archport.cli import main\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "serve", "-m", BERT], capture_output=True, text=True, cwd=os.getcwd()
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "archport: the server needs starlette, orjson, which the library alone does not",
        "install it with: pip install 'archport[server]'",
    ]


@pytest.mark.truth
def test_the_log_is_json_without_contents_and_the_table_says_what_is_served(served):
    served.embed("very secret words", headers={"x-request-id": "mine"})
    _, errors = served.end()
    assert "secret" not in errors
    assert "bert: embed+rerank, 512 tokens" in errors
    records = [json.loads(line) for line in errors.splitlines() if line.startswith("{")]
    assert any(each["id"] == "mine" and each["status"] == 200 for each in records)


@pytest.mark.truth
def test_a_running_server_is_driven_step_by_step(served):
    command = [*COMMAND[:3], "bench-serve", served.url, "--seconds", "0.3"]
    done = subprocess.run([*command, "--concurrency", "1,4"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[0] for row in rows[1:3]] == ["1", "4"]
    assert "tokens a second" in done.stdout
    done = subprocess.run([*command, "--rate", "20", "--json"], capture_output=True, text=True)
    row = json.loads(done.stdout)
    assert row["statuses"].keys() == {"200"}
    assert row["latency"]["50"] <= row["latency"]["99"]


@pytest.mark.truth
def test_a_terminal_has_a_line_that_follows_the_server():
    told, terminal = os.openpty()
    port = free_port()
    command = [*COMMAND, "--port", str(port)]
    process = subprocess.Popen(command, stderr=terminal)
    os.close(terminal)
    written = b""
    try:
        until = time.monotonic() + 60
        while b"tokens/s" not in written and time.monotonic() < until:
            if select.select([told], [], [], 0.1)[0]:
                written += os.read(told, 1 << 16)
        answer = httpx.post(f"http://127.0.0.1:{port}/v1/embeddings", json={"input": ["some words"] * 200}, timeout=30)
        assert answer.status_code == 200
        before = len(written)
        while not re.search(rb"[1-9][\d,]* tokens/s", written[before:]) and time.monotonic() < until:
            if select.select([told], [], [], 0.1)[0]:
                written += os.read(told, 1 << 16)
        # One line, which each second replaces.
        assert re.search(rb"\r\x1b\[2K\d+ requests, [\d,]+ tokens wait, [1-9][\d,]* tokens/s", written[before:])
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        os.close(told)
