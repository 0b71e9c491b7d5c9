"""Pieces of a generation that its caller has not taken yet, in the memory of their text however slowly it reads."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import replace

from archport.generating.pieces import Piece

# Pieces that wait one by one; later ones are joined, as one takes ten times the memory of its text.
APART = 64
# Tokens of a piece that more are joined to.
LONGEST = 256


class Unread:
    """One caller's pieces. Used in the event loop alone."""

    def __init__(self) -> None:
        self._pieces: deque[Piece | Exception] = deque()
        self._come = asyncio.Event()

    def __len__(self) -> int:
        return len(self._pieces)

    def put(self, piece: Piece | Exception) -> None:
        """Add a piece, or what ends them; it never waits, because the device does not wait for who reads."""
        pieces = self._pieces
        if isinstance(piece, Piece) and len(pieces) >= APART:
            # Answers of one caller step together: each one's latest piece is among the last.
            for at in range(len(pieces) - 1, len(pieces) - 1 - APART, -1):
                last = pieces[at]
                if isinstance(last, Piece) and last.answer == piece.answer:
                    if len(last.tokens) < LONGEST:
                        pieces[at] = joined(last, piece)
                        return
                    break
        pieces.append(piece)
        self._come.set()

    async def take(self) -> Piece | Exception:
        """The next piece, once there is one."""
        while not self._pieces:
            self._come.clear()
            await self._come.wait()
        return self._pieces.popleft()


def joined(first: Piece, second: Piece) -> Piece:
    """Two pieces of one answer as one."""
    return replace(
        second,
        text=first.text + second.text,
        tokens=first.tokens + second.tokens,
        logprobs=first.logprobs + second.logprobs,
    )
