"""Progress bars on standard error, told by the work itself how much of it is done.

A bar has no thread of its own: it is drawn when something is counted, and changes nothing about how the work runs.
"""

from __future__ import annotations

import inspect
import time
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol

from archport.contract import InputError
from archport.contract.errors import shown as repr_of

if TYPE_CHECKING:
    from rich.progress import Progress, Task
    from rich.text import Text

# Seconds between two drawings of a bar.
REFRESH_SECONDS = 0.1


class Counter(Protocol):
    """Told how much more is done."""

    def __call__(self, done: int, /, *, dropped: int = 0, tokens: int = 0) -> None:
        """`dropped` of the total will not be done after all; `tokens` are those of what is done, if known."""
        ...


def nothing_shown(done: int, *, dropped: int = 0, tokens: int = 0) -> None:
    """Take note of so much done, and show it nowhere."""


def counted(what: str, total: int | None, *, shown: bool | Counter) -> AbstractContextManager[Counter]:
    """Counts the work of a block; with `shown` a bar tells count and rate, and of a known total the time left.

    Args:
        what: is being done ("embedding").
        total: of it; None where nobody knows.
        shown: whether to show a bar, or who is told instead.

    Raises:
        InputError: for a function that can't be told.
    """
    if not isinstance(shown, bool):
        try:
            inspect.signature(shown).bind(1, tokens=1)
        # Python's own functions may tell no signature.
        except (TypeError, ValueError) as error:
            raise InputError(
                f"progress={repr_of(shown)}; expected True, False, or a function of (texts, *, tokens)"
            ) from error
        return nullcontext(shown)
    return _Bar(what, total) if shown else nullcontext(nothing_shown)


class _Bar:
    def __init__(self, what: str, total: int | None) -> None:
        self._progress, self._total = _progress(what, known=total is not None), total
        self._task = self._progress.add_task(what, total=total)
        self._drawn = time.monotonic()

    def __enter__(self) -> Counter:
        try:
            self._progress.start()
        except BaseException:
            # An interrupt would leave the cursor hidden.
            self._progress.stop()
            raise
        return self.count

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def count(self, done: int, *, dropped: int = 0, tokens: int = 0) -> None:
        if self._total is not None and dropped:
            self._total -= dropped
            self._progress.update(self._task, total=self._total)
        self._progress.update(self._task, advance=done)
        now = time.monotonic()
        if now - self._drawn >= REFRESH_SECONDS:
            self._drawn = now
            self._progress.refresh()


def _progress(what: str, *, known: bool) -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(pace(task.finished_speed or task.speed))

    time_column = TimeRemainingColumn() if known else TimeElapsedColumn()
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), Rate(), time_column)
    return Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False)


def pace(per_second: float | None) -> str:
    """So many per second in at most four digits, or a dash before anybody knows."""
    if per_second is None:
        return "-/s"
    return f"{per_second:,.0f}/s" if per_second >= 100 else f"{per_second:.3g}/s"
