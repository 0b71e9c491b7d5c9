"""The command line. One file per command; each turns arguments into one engine call and prints its result.

Data goes to standard output, everything else to standard error. However a command ends, it ends with one of the exit
codes below and, where it failed, one message: no traceback, unless ARCHPORT_TRACEBACK asks for it.

This page imports nothing heavy, so that an interrupt during the imports finds somebody to handle it.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from contextlib import suppress

# Exit codes, as docs/command-line.md lists them.
DONE, FAILED, USAGE, SOME_FAILED, NO_MEMORY, INTERRUPTED = 0, 1, 2, 3, 4, 130


def main() -> None:
    """Run the command line of this process and leave with its exit code."""
    end_at_interrupts()
    try:
        open_missing_descriptors()
        code = run()
    except KeyboardInterrupt:
        code = INTERRUPTED
    end_at_interrupts()
    raise SystemExit(finished(code))


def run() -> int:
    """Run the command that `sys.argv` names, print what went wrong in one message, and return the exit code."""
    try:
        from archport.cli.commands import app, quietly

        with quietly():
            raise_interrupts()
            app()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else DONE if end.code is None else FAILED
    except BaseException as error:
        return explained(error)
    return DONE


def explained(error: BaseException) -> int:
    """Print why a command failed, on standard error; returns its exit code."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, OSError) and error.filename is None and error.errno == errno.EPIPE:
        # The reader left (`archport embed ... | head`), and needs no explanation.
        return FAILED
    if os.environ.get("ARCHPORT_TRACEBACK"):
        import traceback

        with suppress(Exception):
            traceback.print_exception(error)
    try:
        from archport.cli.words import message_and_code

        message, code = message_and_code(error)
    except Exception:
        message, code = f"{type(error).__name__}: {error}", FAILED
    with suppress(Exception):
        print(f"archport: {message}", file=sys.stderr, flush=True)
    return code


def finished(code: int) -> int:
    """Write out what is still buffered; returns the exit code, which is another one where that fails.

    What can't be written is dropped, or Python would try again after the last line of this module and say so.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError) as error:
            code = explained(error) if code == DONE else code
            with suppress(OSError, ValueError):
                sink = os.open(os.devnull, os.O_WRONLY)
                os.dup2(sink, stream.fileno())
                os.close(sink)
    return code


def open_missing_descriptors() -> None:
    """Open descriptors 0 to 2 on the null device where the process began without them.

    Whatever is opened next would get their numbers: weights would be read from where a library expects standard input,
    and messages written into them.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", errors="replace", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        # What the terminal's encoding lacks is shown in another way rather than not at all.
        with suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]


def end_at_interrupts() -> None:
    """From now on Ctrl-C ends the process at once and quietly: imports and Python's own shutdown would print an error.

    A process that was started to ignore Ctrl-C (nohup, a job in the background) goes on doing so.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))


def raise_interrupts() -> None:
    """From now on Ctrl-C is a KeyboardInterrupt, which a command may answer."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def __getattr__(name: str) -> object:
    if name == "app":
        from archport.cli.commands import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
