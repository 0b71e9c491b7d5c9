"""`archport batch`: files to files of vectors, for more rows than memory holds, resumable at any time."""

from __future__ import annotations

import inspect
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from archport.cli import INTERRUPTED, SOME_FAILED
from archport.cli.batch_watch import BatchWatch
from archport.cli.embed import DEFAULT_MODEL, Output, Outputs, Overflow, Precision, TopK
from archport.cli.options import Adapter, Adapters, Dtype, MaxContext, MemoryBudget, Revision, Task, adapters_of, note
from archport.cli.words import in_flags

Inputs = Annotated[list[str], typer.Argument(metavar="IN...", help="Files, folders, or - for standard input.")]


class OnError(StrEnum):
    fail = "fail"
    skip = "skip"
    record = "record"


class InputFormat(StrEnum):
    text = "text"
    jsonl = "jsonl"
    csv = "csv"
    tsv = "tsv"
    parquet = "parquet"
    arrow = "arrow"
    npy = "npy"
    sqlite = "sqlite"
    folder = "folder"
    openai = "openai"


class OutputFormat(StrEnum):
    parquet = "parquet"
    jsonl = "jsonl"
    npy = "npy"
    sqlite = "sqlite"
    openai = "openai"


def batch(
    inputs: Inputs,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="The folder for the vectors.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Folder, hub id or alias.")] = DEFAULT_MODEL,
    text_field: Annotated[str | None, typer.Option(help="Column or key of the text; default: text.")] = None,
    id_field: Annotated[str | None, typer.Option(help="The same of the id; default: id, or the row's number.")] = None,
    image_field: Annotated[str | None, typer.Option(help="The same of a picture: a path, or its bytes.")] = None,
    input_format: Annotated[InputFormat | None, typer.Option(help="Of all inputs; default: by their names.")] = None,
    table: Annotated[str | None, typer.Option(help="Of SQLite databases with several.")] = None,
    pattern: Annotated[str | None, typer.Option(metavar="GLOB", help="Which files of folders, as '*.md'.")] = None,
    output_format: Annotated[
        OutputFormat | None, typer.Option(help="Default: parquet; openai for such a batch.")
    ] = None,
    output: Outputs = Output.vectors,
    top_k: TopK = None,
    prompt: Annotated[str | None, typer.Option(help="Text put in front of every input.")] = None,
    prompt_name: Annotated[str | None, typer.Option(help="A prompt stored with the model, such as 'query'.")] = None,
    dimensions: Annotated[int | None, typer.Option(help="Keep this many leading dimensions.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Tokens per text, below the model's own limit.")] = None,
    overflow: Annotated[Overflow, typer.Option(help="What to do with a text over the limit.")] = Overflow.error,
    precision: Annotated[Precision, typer.Option(help="Element type of the vectors.")] = Precision.float32,
    calibrate: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Texts, or _ranges.json of a job, for int8; default: the first 10,000 rows."),
    ] = None,
    on_error: Annotated[OnError, typer.Option(help="End at a bad row, skip it, or record why.")] = OnError.fail,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the job that is in OUT.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove the job in OUT and begin anew.")] = False,
    part_rows: Annotated[
        int | None, typer.Option(help="Rows written together, which a crash may lose; default: 16,384, on a CPU 2,048.")
    ] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Make every N-th part only, from the I-th on.")
    ] = None,
    devices: Annotated[
        str | None, typer.Option(metavar="all|N|IDS", help="One process for each: all, a number, or ids as 0,2,3.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Open everything, embed and write nothing.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but what went wrong.")] = False,
    dtype: Dtype = None,
    revision: Revision = None,
    memory_budget: MemoryBudget = None,
    max_context: MaxContext = None,
    adapter: Adapter = None,
    adapters: Adapters = None,
    task: Task = None,
) -> None:
    """Embed the rows of files into a folder, part by part; what ends it in between costs one part.

    Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 some rows have no vector, 4 would not fit memory, 130
    interrupted.
    """
    if resume and overwrite:
        raise typer.BadParameter("--resume and --overwrite contradict each other")
    piece, apart = _piece(shard), adapters_of(adapters, adapter)
    if devices is not None and "-" in inputs:
        raise typer.BadParameter("--devices reads every input once per process, and standard input can be read once")

    from archport.bulk.devices import run_on, this_one
    from archport.bulk.inputs import Inputs as Opened
    from archport.bulk.job import Job, run
    from archport.bulk.rows import Fields

    fields = Fields(text_field or "text", image_field, id_field, text_field is not None)
    kinds: Any = input_format.value if input_format else None
    opened = Opened(inputs, fields, input_format=kinds, table=table, pattern=pattern)
    kind: Any = output_format.value if output_format else "openai" if opened.openai else "parquet"
    job = Job(
        out=out, output_format=kind, output=output.value, top_k=top_k, prompt=prompt, prompt_name=prompt_name,
        dimensions=dimensions, max_tokens=max_tokens, overflow=overflow.value, precision=precision.value,
        calibrate=calibrate, part_rows=part_rows, on_error=on_error.value, resume=resume, overwrite=overwrite,
        shard=piece, device=this_one(), task=task,
    )  # fmt: skip
    if kind == "parquet":
        from archport.bulk.extras import parquet

        # Before the model is loaded.
        parquet()

    # What is wrong with inputs or settings was found before, once and not by each process.
    if devices is not None and not dry_run:
        resume = resume or not job.alone
        raise typer.Exit(run_on(devices, sys.argv[1:], out, resume=resume, overwrite=overwrite, quiet=quiet, told=note))

    from archport import engine

    loaded = engine.load(
        model,
        dtype=dtype,
        revision=revision,
        memory_budget=memory_budget,
        max_context=max_context,
        adapter=adapter,
        adapters=apart,
    )
    names = list(inspect.signature(batch).parameters)
    watch = BatchWatch(opened, quiet=quiet, said=lambda message: in_flags(message, names))
    if dry_run:
        watch.would_begin(loaded, job)
        return
    with _stoppable() as stop:
        summary = run(loaded, opened, job, watch, stop)
    watch.ended(summary)
    if summary.stopped:
        raise typer.Exit(INTERRUPTED)
    if summary.failed:
        raise typer.Exit(SOME_FAILED)


def _piece(text: str | None) -> tuple[int, int]:
    """(index from 0, number) of `I/N`, counted from 1."""
    if text is None:
        return 0, 1
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise typer.BadParameter(f"--shard {text!r}; expected I/N, from 1/N to N/N")
    return int(index) - 1, int(count)


@contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """Ctrl-C ends a job at its next part, and at once the second time."""
    asked: list[int] = []

    def ask(number: int, frame: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        note("archport: stopping when this part is written; Ctrl-C again stops at once, and --resume makes it anew")

    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        yield lambda: False
        return
    signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)
