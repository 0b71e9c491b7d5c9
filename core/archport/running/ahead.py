"""Texts tokenised window by window, the next one in a thread while the device runs. Knows nothing of models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice, repeat
from typing import Any

from archport.running.tokenise import Tokens

Tokenise = Callable[[Sequence[Any], int], Tokens]


class TokensAhead:
    """Iterates over (index of the first text, its window's tokens); close it, or use it in a `with` block.

    Only a sequence is read ahead: an iterator may take its time, and what it gave before is due first.

    Args:
        texts: read window by window.
        tokenise: (texts of a window, index of the first) -> tokens. Its errors are raised at the window's turn.
        sizes: texts of each window; the last size is that of all further ones.
    """

    def __init__(self, texts: Iterable[Any], tokenise: Tokenise, sizes: Sequence[int]) -> None:
        self._source, self._tokenise = iter(texts), tokenise
        self._sizes = chain(sizes, repeat(sizes[-1]))
        self._worker = ThreadPoolExecutor(1, "archport-tokenise") if isinstance(texts, Sequence) else None
        self._coming: Future[Tokens] | None = None

    @property
    def more(self) -> bool:
        """Whether a window behind the one in use is being tokenised, or is tokenised already."""
        return self._coming is not None

    def __enter__(self) -> TokensAhead:
        return self

    def __exit__(self, *_: object) -> None:
        if self._worker is not None:
            self._worker.shutdown(wait=True, cancel_futures=True)

    def __iter__(self) -> Iterator[tuple[int, Tokens]]:
        first, chunk = 0, self._read()
        self._coming = self._start(chunk, first)
        while chunk:
            coming = self._coming
            tokens = self._tokenise(chunk, first) if coming is None else coming.result()
            following = self._read() if coming is not None else None
            if following is not None:
                self._coming = self._start(following, first + len(chunk))
            yield first, tokens
            first += len(chunk)
            chunk = self._read() if following is None else following

    def _read(self) -> list[Any]:
        return list(islice(self._source, next(self._sizes)))

    def _start(self, chunk: list[Any], first: int) -> Future[Tokens] | None:
        if self._worker is None or not chunk:
            return None
        return self._worker.submit(self._tokenise, chunk, first)
