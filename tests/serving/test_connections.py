"""Clients over real connections that are slow, silent, or come while the server ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from archport.generating.pieces import Piece, TokenLogprob
from archport.serving.server import Server, wanted
from archport.serving.settings import Limits, Settings
from archport.serving.unread import Unread

GOLDENS = Path(__file__).parents[1] / "goldens"
TEMPLATE = "{% for m in messages %}{{ m.content }}\n{% endfor %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("connections") / "tiny"
    shutil.copytree(GOLDENS / "qwen3-windowed", made)
    (made / "chat_template.jinja").write_text(TEMPLATE)
    return made


@contextmanager
def running(*models: str, limits: dict | None = None, **settings):
    """A server that answers at `url`, in a thread; `end()` tells it to end, and returns once it has."""
    ready = threading.Event()
    server = Server(
        Settings(port=0, limits=replace(Limits(), **(limits or {})), **settings),
        [wanted(model, {"dtype": "float32"}) for model in models],
        started=lambda _: ready.set(),
    )
    listen = server._listen

    def listening():
        listener = listen()
        # The system keeps little of an answer that nobody reads.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return listener

    server._listen = listening
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert ready.wait(60)
    server.url = f"http://127.0.0.1:{server.port}"
    loop = server._server.servers[0].get_loop()
    server.tell = lambda: asyncio.run_coroutine_threadsafe(server.drain(), loop)

    def end(seconds: float = 30) -> None:
        thread.join(seconds)
        assert not thread.is_alive(), "it did not end"

    server.end = end
    try:
        yield server
    finally:
        if thread.is_alive():
            server.tell()
            end()


def opened(server, path, body, receive=4096):
    """A connection that has sent a request; the system keeps little of the answer."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
    connection.settimeout(30)
    connection.connect(("127.0.0.1", server.port))
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)
    return connection


def read_all(connection) -> bytes:
    chunks = []
    while chunk := connection.recv(1 << 20):
        chunks.append(chunk)
    return b"".join(chunks)


def until(holds, seconds=60):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def held_up(server) -> tuple[threading.Event, threading.Event]:
    """Has the device wait at its next window of rows until the second event is set; the first says that it waits."""
    work, held, go = server.state.device._window, threading.Event(), threading.Event()

    def waiting(window):
        held.set()
        go.wait(60)
        work(window)

    server.state.device._window = waiting
    return held, go


def test_while_the_server_ends_new_requests_are_refused_and_those_under_way_answered(folder):
    bert = str(GOLDENS / "bert-plain")
    with running(f"bert={bert}", f"tiny={folder}") as server, httpx.Client(base_url=server.url, timeout=30) as kept:
        assert kept.get("/health/ready").status_code == 200
        # A client has its answer before the server has ended the request.
        until(lambda: server.state.active == 0)
        answers: list = []
        held, go = held_up(server)
        chat = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 60}

        def ask(path, body):
            answers.append(httpx.post(server.url + path, json=body, timeout=30))

        asked = [("/v1/embeddings", {"model": "bert", "input": ["a", "b"]}), ("/v1/chat/completions", chat)]
        asked += [("/v1/chat/completions", {**chat, "stream": True})]
        threads = [threading.Thread(target=ask, args=each) for each in asked]
        # The embeddings first: a chat that came before them could be answered before the device waits.
        threads[0].start()
        assert held.wait(60)
        for thread in threads[1:]:
            thread.start()
        # One whose body is still being read when the server ends is refused like those that come later.
        chats = server.state.generations.of(server.state.registry.find("tiny"))
        until(lambda: chats.batch.waiting == 2)
        server.tell()
        until(lambda: server.state.draining)
        assert server.state.active == 3
        # Over a connection that was there before, and over new ones; of every kind, health included.
        refused = [
            kept.post("/v1/embeddings", json={"input": "late"}),
            httpx.post(server.url + "/v1/embeddings", json={"input": "late"}),
            httpx.post(server.url + "/v1/chat/completions", json={**chat, "stream": True}),
            httpx.get(server.url + "/v1/models"),
            httpx.get(server.url + "/health/ready"),
        ]
        assert {(each.status_code, each.json()["error"]["code"]) for each in refused} == {(503, "shutting_down")}
        assert all(each.headers["retry-after"] for each in refused)
        assert httpx.get(server.url + "/health/live").status_code == 200
        until(lambda: server.state.active == 3)
        go.set()
        for thread in threads:
            thread.join()
        assert [each.status_code for each in answers] == [200] * 3
        assert any(each.text.endswith("data: [DONE]\n\n") for each in answers)
        server.end()


def test_an_answer_that_is_being_read_slowly_is_whole_though_the_server_ends(folder):
    texts = ["a text"] * 1500
    with running(f"bert={GOLDENS / 'bert-plain'}", f"tiny={folder}") as server:
        body = {"model": "tiny", "input": texts, "encoding_format": "float"}
        connection = opened(server, "/v1/embeddings", body)
        until(lambda: server._unsent() > 100_000)
        server.tell()
        until(lambda: server.state.draining)
        time.sleep(0.5)
        answer = read_all(connection)
        headers, _, content = answer.partition(b"\r\n\r\n")
        (length,) = re.findall(rb"content-length: (\d+)", headers.lower())
        assert len(content) == int(length)
        assert len(json.loads(content)["data"]) == len(texts)
        server.end()


def test_a_client_that_reads_nothing_loses_its_connection(folder):
    with running(f"tiny={folder}", limits={"stalled_seconds": 2}) as server:
        connection = opened(server, "/v1/embeddings", {"input": ["a text"] * 1500, "encoding_format": "float"})
        until(lambda: server._unsent() > 100_000)
        until(lambda: not server._unsent())
        with pytest.raises((ConnectionError, AssertionError)):
            assert read_all(connection).endswith(b"}")
        assert httpx.get(server.url + "/health/ready").status_code == 200


def test_a_head_that_does_not_come_closes_the_connection_and_a_whole_one_keeps_it(folder):
    # Long enough for three connections and a request of a machine with other work.
    with running(f"tiny={folder}", limits={"header_seconds": 2}) as server:
        silent, half, again = (socket.create_connection(("127.0.0.1", server.port), 60) for _ in range(3))
        half.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: lo")
        live = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
        # Between requests keep-alive has its own, longer, time.
        for wait in (0, 4):
            time.sleep(wait)
            again.sendall(live)
            answer = b""
            while not answer.endswith(b"}") and (more := again.recv(1 << 16)):
                answer += more
            assert answer.startswith(b"HTTP/1.1 200")
        again.sendall(live[:20])
        for connection in (silent, half, again):
            with connection, contextlib.suppress(ConnectionResetError):
                assert connection.recv(1 << 16) == b""


def test_a_stream_that_nobody_reads_holds_no_device_and_is_whole_when_it_is_read(folder):
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 500, "temperature": 0}
    with running(f"tiny={folder}", limits={"rows": 2}) as server:
        expected = httpx.post(server.url + "/v1/chat/completions", json=chat, timeout=60).json()["choices"][0]
        slow = [opened(server, "/v1/chat/completions", {**chat, "stream": True}) for _ in range(2)]
        until(lambda: server.state.device.reserved)
        # Both rows that there are run to their end, though nobody reads them.
        until(lambda: not server.state.device.reserved)
        assert server.state.active == 2
        assert httpx.post(server.url + "/v1/chat/completions", json={**chat, "max_tokens": 3}).status_code == 200
        assert httpx.post(server.url + "/v1/embeddings", json={"input": "a"}).status_code == 200
        for connection in slow:
            events = [each for each in read_all(connection).split(b"\n\n") if b"data: {" in each]
            # Of chunked bodies the last line of an event is its JSON.
            deltas = [json.loads(each.splitlines()[-1].removeprefix(b"data: ")) for each in events]
            text = "".join(each["choices"][0]["delta"].get("content") or "" for each in deltas)
            assert (text, deltas[-1]["choices"][0]["finish_reason"]) == (
                expected["message"]["content"],
                expected["finish_reason"],
            )
            # Those that waited came together.
            assert len(events) < 450, len(events)


def test_pieces_that_nobody_takes_are_kept_in_the_memory_of_their_text():
    unread, pieces = Unread(), []
    for step in range(2000):
        for answer in range(3):
            final = "length" if step == 1999 else None
            pieces.append(Piece(f"{step},", (step,), answer=answer, finish_reason=final,
                                logprobs=(TokenLogprob(step, -1.0),)))  # fmt: skip
            unread.put(pieces[-1])
    unread.put(ValueError("the end"))
    assert len(unread) < 100
    taken = []
    while not isinstance(piece := asyncio.run(unread.take()), ValueError):
        taken.append(piece)
    for answer in range(3):
        given, got = ([each for each in some if each.answer == answer] for some in (pieces, taken))
        assert "".join(each.text for each in got) == "".join(each.text for each in given)
        assert [token for each in got for token in each.tokens] == list(range(2000))
        assert [told.token for each in got for told in each.logprobs] == list(range(2000))
        assert got[-1].finish_reason == "length"
