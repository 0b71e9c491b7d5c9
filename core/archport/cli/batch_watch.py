"""What `archport batch` tells about a job on standard error: how it begins, how far it is, how it ended."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from archport.cli.options import note

if TYPE_CHECKING:
    from archport.bulk.inputs import Inputs
    from archport.bulk.job import Job, Summary
    from archport.bulk.manifest import Manifest, Record
    from archport.bulk.parts import Part
    from archport.engine import Model

# Seconds between two lines where nobody watches a terminal, and where somebody does.
_LINE, _DRAWN = 30.0, 0.5
_TOLD = ("model", "revision", "architecture", "dtype", "device", "output", "dimensions", "pooling", "normalized",
         "prompt_text", "max_tokens", "overflow", "precision", "output_format", "part_rows")  # fmt: skip


class BatchWatch:
    """Prints what a job says of itself.

    Args:
        said: makes a message of the library one of the command line.
    """

    def __init__(self, inputs: Inputs, *, quiet: bool, said: Callable[[str], str]) -> None:
        self._inputs, self._quiet, self._said = inputs, quiet, said
        self._terminal = sys.stderr.isatty()
        self._drawn = self._begin = time.monotonic()
        # Rows and tokens of this run; the share of the input that earlier runs had done.
        self._rows = self._tokens = 0
        self._before = 0.0

    def would_begin(self, model: Model, job: Job) -> None:
        """What a dry run prints: the settings, and which of the first rows are bad."""
        from itertools import islice

        about = {"model": model.name, "device": model.device.name, "output_format": job.output_format}
        rows = list(islice(self._inputs.rows(), 1000))
        bad = [row for row in rows if row.error is not None]
        for name, value in about.items():
            note(f"{name:<16} {value}")
        note(f"first rows       {len(rows)} read, {len(bad)} bad")
        for row in bad[:5]:
            note(f"  {row.said}: {row.error}")

    def began(self, manifest: Manifest, records: dict[int, Record]) -> None:
        """What vectors are made with, and what is there."""
        if self._quiet:
            return
        known: dict[str, Any] = {**manifest.settings, **manifest.provenance}
        told = (f"{name} {known[name]!r}" for name in _TOLD if known.get(name) not in (None, ""))
        note(f"archport: {', '.join(told)}")
        if records:
            rows = sum(record.count for record in records.values())
            note(f"archport: going on after {rows:,} rows, whose parts are whole")

    def __call__(self, done: int, *, dropped: int = 0, tokens: int = 0) -> None:
        """Draw the state, where a terminal shows it."""
        self._rows, self._tokens = self._rows + done, self._tokens + tokens
        self._draw()

    def part(self, part: Part, record: Record, *, before: bool) -> None:
        """A part is there."""
        if before:
            self._before, self._begin = part.share or 0.0, time.monotonic()
        self._draw()

    def skipped(self, message: str) -> None:
        """Why a row has no vector."""
        note(f"archport: no vector: {self._said(message)}")

    def ended(self, summary: Summary) -> None:
        """How it went."""
        if self._terminal and not self._quiet:
            print("\r\033[K", end="", file=sys.stderr)
        if not self._quiet:
            seconds = max(time.monotonic() - self._begin, 1e-9)
            failed = f", {summary.failed:,} without a vector" if summary.failed else ""
            rate = f", {self._tokens / seconds:,.0f} tokens/s" if self._tokens else ""
            ended = "stopped after" if summary.stopped else "done:"
            parts = f"{summary.parts:,} part{'s' * (summary.parts != 1)}"
            made = "" if summary.made == summary.parts else f", {summary.made:,} of them made now"
            note(f"archport: {ended} {summary.rows:,} rows in {parts}{made}{failed}{rate}")

    def _draw(self) -> None:
        now = time.monotonic()
        if self._quiet or now - self._drawn < (_DRAWN if self._terminal else _LINE):
            return
        self._drawn = now
        rate = self._tokens / max(now - self._begin, 1e-9)
        line = f"archport: {self._rows:,} rows, {self._tokens:,} tokens, {rate:,.0f} tokens/s"
        share = self._inputs.share()
        if share is not None and share > self._before:
            # Tokens are as many in a byte as so far; what is read but not run yet is done soon.
            left = self._tokens * (1 - share) / (share - self._before)
            seconds = left * (now - self._begin) / max(1, self._tokens)
            line += f", {share:.0%} read, {duration(seconds)} left"
        if self._terminal:
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
        else:
            note(line)


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
