"""`archport convert`: a checkpoint written again, quantised or in another element type, and what that cost."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from archport.cli import options
from archport.contract import InputError

if TYPE_CHECKING:
    from archport.conversion import Conversion

# Models are measured in a process of their own, so that this one never holds a model.
_MEASURE = "from archport.cli.convert import measured; measured()"


def convert(
    model: options.Model,
    out: Annotated[Path, typer.Option("--out", "-o", help="A new folder; or what an interrupted conversion left.")],
    bits: Annotated[int | None, typer.Option(help="Quantise to 4, 6 or 8 bits.")] = None,
    group_size: Annotated[int | None, typer.Option(help="Columns that share a scale: 32, 64 or 128.")] = None,
    mode: Annotated[str | None, typer.Option(help="Or quantise to mxfp4, mxfp8 or nvfp4.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16, of what is not quantised.")] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Tensors that are not quantised, such as '*lm_head*'; may be repeated."),
    ] = None,
    texts: Annotated[
        str | None, typer.Option(help="File, a text per line, to measure the loss on; - is stdin.")
    ] = None,
    measure: Annotated[bool, typer.Option(help="Run both versions and print the loss.")] = True,
    revision: options.Revision = None,
    adapter: options.Adapter = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Quantise a checkpoint, or change its element type, shard by shard; archport and mlx-lm load the output.

    Every pipeline file comes along. A conversion that was interrupted goes on when the same command runs again.
    """
    from archport.conversion import convert as run
    from archport.conversion import settings_of
    from archport.device.progress import counted

    if not measure and texts is not None:
        raise typer.BadParameter("--texts is what the loss is measured on; leave --no-measure out")
    merge, kept = adapter is not None, tuple(keep or ())
    settings = settings_of(bits=bits, group_size=group_size, mode=mode, dtype=dtype, keep=kept, merge=merge)
    lines = None if texts is None else _lines(texts)
    with counted("converting", None, shown=sys.stderr.isatty()) as done:
        count = 0

        def progress(written: int, _: int) -> None:
            nonlocal count
            done(written - count)
            count = written

        made = run(model, out, settings, revision=revision, progress=progress, adapter=adapter)
    loss = _measure(model, revision, adapter, out, lines) if measure else {"reason": "--no-measure"}
    if as_json:
        typer.echo(json.dumps({**_facts(made), "loss": loss}, indent=2))
        return
    typer.echo(_summary(made))
    typer.echo(loss["line"] if "line" in loss else f"loss not measured: {loss['reason']}")


def _lines(source: str) -> list[str]:
    texts = [line for line in options.read_whole(source).splitlines() if line.strip()]
    if not texts:
        raise InputError(f"--texts: {options.called(source)} holds no text; expected one per line")
    return texts


def _facts(made: Conversion) -> dict[str, Any]:
    return {**asdict(made), "out": str(made.out), "copied": list(made.copied)}


def _summary(made: Conversion) -> str:
    from archport.contract.sizes import format_bytes

    resumed = f", {made.resumed} tensors of an interrupted run kept" if made.resumed else ""
    return (
        f"{made.out}: {made.quantised} matrices quantised, {made.dense} left dense, "
        f"{format_bytes(made.before)} -> {format_bytes(made.after)}, {len(made.copied)} other files{resumed}"
    )


def _measure(
    model: str, revision: str | None, adapter: str | None, out: Path, texts: list[str] | None
) -> dict[str, Any]:
    """The loss, or the reason why it could not be measured: the output stands either way."""
    asked = {"model": model, "revision": revision, "adapter": adapter, "out": str(out), "texts": texts}
    # Its own messages and bars are of no interest; what it found is the last line.
    run = subprocess.run(
        [sys.executable, "-c", _MEASURE], input=json.dumps(asked), capture_output=True, text=True, check=False
    )
    last = run.stdout.strip().rpartition("\n")[2]
    if run.returncode or not last.startswith("{"):
        said = run.stderr.strip().rpartition("\n")[2] or f"its process ended with {run.returncode}"
        return {"reason": said}
    return json.loads(last)


def measured() -> None:
    """The process that measures: a request as JSON on standard input, the loss or a reason on standard output."""
    from archport.cli.words import message_and_code
    from archport.conversion import measure_loss

    asked = json.loads(sys.stdin.read())
    given = {} if asked["texts"] is None else {"texts": asked["texts"]}
    try:
        version = {"revision": asked["revision"], "adapter": asked["adapter"]}
        loss = measure_loss(asked["model"], asked["out"], **version, **given)
    except Exception as error:
        print(json.dumps({"reason": message_and_code(error)[0]}))
        return
    facts = {name: value for name, value in asdict(loss).items() if value == value}
    print(json.dumps({**facts, "line": loss.line()}))
