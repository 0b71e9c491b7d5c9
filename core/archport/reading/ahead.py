"""Texts tokenised window by window, the next one in a thread while the device runs. Knows nothing of models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, islice, repeat
from typing import Any

from archport.device.workers import Coming, Threads
from archport.reading.texts import Tokens

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
        self._whole = isinstance(texts, Sequence)
        self._threads: Threads | None = None
        self._coming: Coming[tuple[int, Tokens]] | None = None
        self._read = 0

    @property
    def more(self) -> bool:
        """Whether a window after the one in use is being tokenised, or is tokenised already."""
        return self._coming is not None

    def __enter__(self) -> TokensAhead:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[tuple[int, Tokens]]:
        return self

    def __next__(self) -> tuple[int, Tokens]:
        coming, self._coming = self._coming, None
        if coming is not None:
            tokens = coming.take()
        else:
            # Nothing runs yet while the first window is tokenised.
            window = self._window()
            if window is None:
                raise StopIteration
            tokens = window()
        following = self._window() if self._whole else None
        if following is not None:
            self._threads = self._threads or Threads("archport-tokenise", 1)
            self._coming = self._threads.start(following)
        return tokens

    def close(self) -> None:
        """End the thread; the window that it is at is forgotten."""
        self._coming = None
        if self._threads is not None:
            self._threads.close()

    def _window(self) -> Callable[[], tuple[int, Tokens]] | None:
        """What tokenises the next window; None after the last text."""
        texts = list(islice(self._source, next(self._sizes)))
        first, self._read = self._read, self._read + len(texts)
        return partial(_tokenised, self._tokenise, texts, first) if texts else None


def _tokenised(tokenise: Tokenise, texts: list[Any], first: int) -> tuple[int, Tokens]:
    return first, tokenise(texts, first)
