"""`archport rerank`: documents by how well they answer a query, on standard output."""

from __future__ import annotations

import json
import sys
import time
from typing import Annotated, Any

import typer

from archport.cli.embed import OnError, OnErrors, Overflow, TextFile
from archport.cli.options import (
    Adapter,
    Adapters,
    Dtype,
    MaxContext,
    MemoryBudget,
    Model,
    Revision,
    Task,
    adapters_of,
    end_with,
    note,
)
from archport.cli.words import rows_called, skipped
from archport.contract import ArchportError


def rerank(
    query: Annotated[str, typer.Option("--query", "-q", help="What the documents should answer.")],
    documents: Annotated[list[str] | None, typer.Argument(metavar="DOCUMENT", help="Documents.")] = None,
    model: Model = "Qwen/Qwen3-Reranker",
    input: Annotated[
        str | None,
        typer.Option(
            "--input",
            "-i",
            metavar="FILE|-",
            help="One document per line; .jsonl: a string or an object with 'text' per line; - is standard input.",
        ),
    ] = None,
    instruction: Annotated[str | None, typer.Option(help="What counts as an answer; default: the model's own.")] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", "-k", help="Print so many; default: all.")] = None,
    raw_scores: Annotated[bool, typer.Option("--raw-scores", help="The head's own number, not a probability.")] = False,
    max_tokens: Annotated[int | None, typer.Option(help="Tokens of query and document together.")] = None,
    overflow: Annotated[Overflow, typer.Option(help="What to do with a pair over the limit.")] = Overflow.error,
    on_error: OnErrors = OnError.fail,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array.")] = False,
    dtype: Dtype = None,
    revision: Revision = None,
    memory_budget: MemoryBudget = None,
    max_context: MaxContext = None,
    adapter: Adapter = None,
    adapters: Adapters = None,
    task: Task = None,
) -> None:
    """Rank documents by how well they answer a query; score, index and document, best first.

    Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 some documents were skipped, 4 would not fit memory.
    """
    if bool(documents) == (input is not None):
        raise typer.BadParameter("give documents as arguments or with --input FILE (- for standard input), not both")
    apart = adapters_of(adapters, adapter)
    file = None if input is None else TextFile(input)
    texts = documents or list(file or ())

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
    started = time.perf_counter()

    def name(index: int) -> str:
        return file.called(index) if file else f"DOCUMENT {index + 1}"

    options: dict[str, Any] = {
        "instruction": instruction,
        "top_k": top_k,
        "return_documents": True,
        "raw_scores": raw_scores,
        "max_tokens": max_tokens,
        "overflow": overflow.value,
        "progress": sys.stderr.isatty(),
        "task": task,
    }
    errors: dict[int, ArchportError] = {}
    with rows_called(name):
        if on_error is OnError.fail:
            ranked = loaded.rerank(query, texts, **options)
        else:
            made = loaded.rerank(query, texts, errors="collect", **options)
            ranked, errors = made.results, made.errors
    seconds = time.perf_counter() - started
    if as_json:
        found = [{"index": each.index, "score": each.score, "document": each.document} for each in ranked]
        typer.echo(json.dumps(found, ensure_ascii=False))
    else:
        for each in ranked:
            # A document stays on its line, whatever it holds.
            typer.echo(f"{each.score:.6f}\t{each.index}\t{' '.join((each.document or '').split())}")
    sys.stdout.flush()
    tokeniser = loaded._runtime.tokeniser
    # What was cut off a long one was not read.
    read = [str(text) for index, text in enumerate(texts) if index not in errors]
    begun = [text for text, _ in tokeniser.long.beginnings(read, tokeniser.max_tokens, exact=False)]
    tokens = sum(map(len, tokeniser.tokenizer.encode_batch_fast(begun, add_special_tokens=False)))
    note(f"{len(read)} documents of {tokens:,} tokens in {seconds:.2f} s, {tokens / max(seconds, 1e-9):,.0f} tokens/s")
    end_with(skipped(rerank, errors, name))
