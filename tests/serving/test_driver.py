"""The client of `bench-serve` reads every answer whole, however the network cuts it."""

from __future__ import annotations

import asyncio

import pytest

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
