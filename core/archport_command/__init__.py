"""The first lines of the command `archport`, apart from the package: it takes long enough to import to meet Ctrl-C.

Imports nothing of archport before an interrupt has somebody to handle it. Knows no command.
"""

from __future__ import annotations

import os
import signal

INTERRUPTED = 130


def main() -> None:
    """Run the command line of this process."""
    end_at_interrupts()
    from archport.cli import main as run

    run()


def end_at_interrupts() -> None:
    """From now on Ctrl-C ends the process at once and quietly: imports and Python's own shutdown would print an error.

    A process that was started to ignore Ctrl-C (nohup, a job in the background) goes on doing so.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def raise_interrupts() -> None:
    """From now on Ctrl-C is a KeyboardInterrupt, which a command may answer."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(*_: object) -> None:
    os._exit(INTERRUPTED)
