"""Answers leave at once: connections of the server do not wait for acknowledgements."""

from __future__ import annotations

import socket

from archport.serving.server import Server
from archport.serving.settings import Settings


def test_connections_are_accepted_without_nagle_s_algorithm_in_the_way():
    server = Server(Settings(port=0), [])
    listener = server._listen()
    try:
        # What asyncio asks before it turns the algorithm off.
        assert (listener.type, listener.proto) == (socket.SOCK_STREAM, socket.IPPROTO_TCP)
    finally:
        listener.close()
        server.state.answers.close()
