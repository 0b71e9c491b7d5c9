"""Progress bars on standard error: over a stream of inputs, or over work that says itself how much of it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")


def nothing_shown(count: int) -> None:
    """Take note of so much done, and show it nowhere."""


def track(items: Iterable[T], what: str) -> Iterator[T]:
    """Yield the items while a bar shows how many were read."""
    with _bar(what) as progress:
        yield from progress.track(items, total=len(items) if isinstance(items, Sized) else None)


@contextmanager
def counted(what: str, total: int, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """A function that is told how much more is done, while a bar shows it; no bar unless `shown`."""
    if not shown:
        yield nothing_shown
        return
    with _bar(what) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)


def _bar(what: str) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)
