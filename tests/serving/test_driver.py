"""The client of `bench-serve` reads every answer whole, however the network cuts it."""

from __future__ import annotations

import asyncio
import socket

import pytest

from archport.cli.bench_serve import bench_serve
from archport.contract import InputError
from archport.serving.driver import Answered, Connection, Target

BODY = b"HTTP/1.1 200 OK\r\nx-compute-tokens: 7\r\ncontent-length: 5\r\n\r\nhello"
EVENTS = (b'data: {"delta":{"content":""}}\n\n', b'data: {"delta":{"content":"a"}}\n\n', b"data: [DONE]\n\n")
STREAM = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"".join(b"%x\r\n%s\r\n" % (len(event), event) for event in EVENTS)
    + b"0\r\n\r\n"
)


class Wire(asyncio.Transport):
    """A transport that goes nowhere."""

    def write(self, data) -> None:
        self.sent = bytes(data)

    def close(self) -> None:
        pass


async def answered(*pieces: bytes) -> Answered:
    connection = Connection(Target("127.0.0.1", 1))
    connection.connection_made(Wire())
    asking = asyncio.ensure_future(connection.ask("/", {}))
    await asyncio.sleep(0)
    for piece in pieces:
        connection.data_received(piece)
    return await asking


@pytest.mark.parametrize(("data", "tokens", "made"), [(BODY, 7, 0), (STREAM, 0, 1)], ids=["body", "stream"])
def test_an_answer_is_read_whole_wherever_it_is_cut(data, tokens, made):
    async def all_cuts() -> list[Answered]:
        return [await answered(data[:at], data[at:]) for at in range(1, len(data))]

    assert {(each.status, each.tokens, each.made) for each in asyncio.run(all_cuts())} == {(200, tokens, made)}


def test_an_answer_of_many_small_pieces_is_one_answer():
    async def bytewise() -> Answered:
        return await answered(*(STREAM[at : at + 1] for at in range(len(STREAM))))

    assert asyncio.run(bytewise()).made == 1


def test_a_connection_that_breaks_is_an_answer_without_a_status():
    async def broken() -> Answered:
        connection = Connection(Target("127.0.0.1", 1))
        connection.connection_made(Wire())
        asking = asyncio.ensure_future(connection.ask("/", {}))
        await asyncio.sleep(0)
        connection.data_received(BODY[:20])
        connection.connection_lost(None)
        return await asking

    assert asyncio.run(broken()).status == 0


def asked(monkeypatch, url: str, **options) -> tuple[int, str]:
    """How many requests `bench-serve` sends, and what it says in the end."""
    sent: list[str] = []
    ask = Connection.ask

    async def counted(self, path, body):
        sent.append(path)
        return await ask(self, path, body)

    monkeypatch.setattr(Connection, "ask", counted)
    with pytest.raises(InputError) as fault:
        bench_serve(url, seconds=0.2, concurrency="1", words="1,2", **options)
    return len(sent), str(fault.value)


@pytest.mark.parametrize("rate", [None, 500.0])
def test_a_port_where_nothing_listens_is_told_by_the_first_requests(monkeypatch, rate):
    with socket.socket() as bound:
        # A port that is taken, and that nobody listens on.
        bound.bind(("127.0.0.1", 0))
        count, message = asked(monkeypatch, f"http://127.0.0.1:{bound.getsockname()[1]}", rate=rate)
    assert count <= 2
    assert "nothing answers there" in message


@pytest.mark.parametrize("status", [401, 404])
def test_a_server_that_refuses_is_told_by_the_first_requests(monkeypatch, status):
    async def refused(self, path, body):
        return Answered(0.0, 0.001, 0.0, status, 0)

    monkeypatch.setattr(Connection, "ask", refused)
    count, message = asked(monkeypatch, "http://127.0.0.1:1")
    assert count <= 2
    assert str({status: count}) in message


def test_a_server_with_too_much_to_do_is_driven(monkeypatch):
    async def busy(self, path, body):
        await asyncio.sleep(0.01)
        return Answered(0.0, 0.001, 0.0, 429, 0)

    monkeypatch.setattr(Connection, "ask", busy)
    assert asked(monkeypatch, "http://127.0.0.1:1")[0] > 2
