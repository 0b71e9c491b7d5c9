"""`archport similar`: the rows of a job that are nearest to a query, on standard output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from archport.cli.options import Adapter, Adapters, Dtype, MemoryBudget, Revision, Task, adapters_of, note


def similar(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder that `archport batch` wrote.")],
    query: Annotated[str, typer.Option("--query", "-c", help="What the rows should be near.")],
    top_k: Annotated[int, typer.Option("--top-k", "-k", help="Print so many.")] = 10,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Folder, hub id or alias; default: OUT's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array.")] = False,
    dtype: Dtype = None,
    revision: Revision = None,
    memory_budget: MemoryBudget = None,
    adapter: Adapter = None,
    adapters: Adapters = None,
    task: Task = None,
) -> None:
    """Print the rows of a job nearest to a query: score and id, the nearest first.

    Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 4 would not fit memory.
    """
    from archport.bulk.search import complete, model_of, search

    apart, made = adapters_of(adapters, adapter), model_of(out)
    its_own = model is None and adapter is None and apart is None

    from archport import engine

    loaded = engine.load(
        model if model is not None else made.name,
        dtype=dtype,
        revision=revision if model is not None or revision is not None else made.revision,
        memory_budget=memory_budget,
        adapter=made.adapter if its_own else adapter,
        adapters=made.adapters if its_own else apart,
    )
    found = search(out, query, loaded, top_k, task)
    if not complete(out):
        note(f"archport: the job in {out} has not come to its end; these are the nearest of the rows that are there")
    if as_json:
        typer.echo(json.dumps([{"id": each.id, "score": each.score} for each in found], ensure_ascii=False))
        return
    for each in found:
        # An id stays on its line, whatever it holds.
        typer.echo(f"{each.score:.6f}\t{' '.join(str(each.id).split())}")
