"""All commands in one application."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
import typer.core

from archport.cli import models as models_page
from archport.cli.batch import batch
from archport.cli.bench_serve import bench_serve
from archport.cli.chat import chat
from archport.cli.check import check
from archport.cli.convert import convert
from archport.cli.doctor import doctor
from archport.cli.embed import embed
from archport.cli.eval import evaluate
from archport.cli.generate import generate
from archport.cli.info import info
from archport.cli.new import new
from archport.cli.plan import plan
from archport.cli.plugins import plugins
from archport.cli.record import record
from archport.cli.rerank import rerank
from archport.cli.serve import serve
from archport.cli.similar import similar
from archport.cli.words import spoken


class Whole(typer.core.TyperGroup):
    """A group whose help says of each command the whole sentence, where the library cuts it at the line's end."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, _sentence(command)) for name, command in commands if command is not None])


def _sentence(command: Any) -> str:
    """What a command does: the first paragraph of its help."""
    return " ".join((command.help or "").partition("\n\n")[0].split())


app = typer.Typer(
    name="archport",
    cls=Whole,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # Help drawn by rich takes a tenth of a second of imports, a third of `archport --help`.
    rich_markup_mode=None,
)
for command in (
    embed,
    batch,
    similar,
    rerank,
    generate,
    chat,
    serve,
    bench_serve,
    info,
    plan,
    plugins,
    check,
    record,
    convert,
    doctor,
    new,
):
    app.command()(spoken(command))
# Its name is Python's.
app.command("eval")(spoken(evaluate))
models_page.app.callback()(spoken(models_page.models))
for command in (models_page.pull, models_page.rm):
    models_page.app.command()(spoken(command))
app.add_typer(models_page.app, name="models")


def _version(asked: bool) -> None:
    if asked:
        from archport import __version__

        typer.echo(f"archport {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Embed, rerank and generate on MLX, with memory-safe attention picked per architecture and device."""


@contextmanager
def quietly() -> Iterator[None]:
    """No traceback of what nobody can answer: a log that can't be written, an error while something is released."""
    hook, raises = sys.unraisablehook, logging.raiseExceptions
    sys.unraisablehook, logging.raiseExceptions = lambda _: None, False
    try:
        yield
    finally:
        sys.unraisablehook, logging.raiseExceptions = hook, raises
