"""The command line. One file per command; each turns arguments into one engine call and prints its result.

Data goes to standard output, everything else to standard error. Exit codes: 0 done, 1 refused or failed (one message,
no traceback), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import os
import sys

import typer

from archport.cli.chat import chat
from archport.cli.check import check
from archport.cli.doctor import doctor
from archport.cli.embed import embed
from archport.cli.generate import generate
from archport.cli.info import info
from archport.cli.new import new
from archport.cli.plan import plan
from archport.cli.plugins import plugins
from archport.cli.rerank import rerank
from archport.contract import ArchportError

app = typer.Typer(
    name="archport",
    help="Embed, rerank and generate on MLX, with memory-safe attention picked per architecture and device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (embed, rerank, generate, chat, info, plan, plugins, check, doctor, new):
    app.command()(command)


def main() -> None:
    """Run the command line; user errors end in one message on standard error and exit code 1."""
    try:
        app()
    except ArchportError as error:
        notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", ()))
        print(f"archport: {error}{notes}", file=sys.stderr)
        raise SystemExit(1) from error
    except KeyboardInterrupt as error:
        raise SystemExit(130) from error
    except BrokenPipeError as error:
        # The reader left (`archport embed ... | head`). Point stdout elsewhere so that its flush at exit stays quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from error
