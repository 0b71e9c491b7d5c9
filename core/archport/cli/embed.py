"""`archport embed`: texts to vectors on standard output."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from archport.cli.options import Adapter, Adapters, MaxContext, Task, adapters_of, called, end_with, read_lines
from archport.cli.words import rows_called, skipped
from archport.contract import ArchportError
from archport.reading.columns import Unreadable, json_value

if TYPE_CHECKING:
    from archport.engine import Model

# Texts whose vectors are printed together.
WINDOW = 1024
DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"


class Format(StrEnum):
    json = "json"
    jsonl = "jsonl"
    npy = "npy"


class Output(StrEnum):
    vectors = "vectors"
    tokens = "tokens"
    sparse = "sparse"


Outputs = Annotated[Output, typer.Option(help="One vector per text, one per token, or weights of words (SPLADE).")]
TopK = Annotated[int | None, typer.Option(help="Largest weights that a sparse vector keeps.")]


class Overflow(StrEnum):
    error = "error"
    truncate = "truncate"


class OnError(StrEnum):
    fail = "fail"
    skip = "skip"


OnErrors = Annotated[
    OnError, typer.Option(help="fail at the first bad input, or skip such ones: say why, and end with exit code 3.")
]


class Precision(StrEnum):
    float32 = "float32"
    int8 = "int8"
    uint8 = "uint8"
    binary = "binary"
    ubinary = "ubinary"


def embed(
    texts: Annotated[list[str] | None, typer.Argument(metavar="TEXT", help="Texts to embed.")] = None,
    model: Annotated[str, typer.Option("--model", "-m", help="Folder, hub id or alias.")] = DEFAULT_MODEL,
    input: Annotated[
        str | None,
        typer.Option(
            "--input",
            "-i",
            metavar="FILE|-",
            help="One text per line; .jsonl: a string or an object with 'text' per line; - is standard input.",
        ),
    ] = None,
    image: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="An image, for models that see; may be repeated. One vector each, or one for all beside one text.",
        ),
    ] = None,
    format: Annotated[
        Format, typer.Option(help="jsonl: one object per text, as they are done; json: one array; npy: float array.")
    ] = Format.jsonl,
    output: Outputs = Output.vectors,
    top_k: TopK = None,
    prompt: Annotated[str | None, typer.Option(help="Text put in front of every input.")] = None,
    prompt_name: Annotated[str | None, typer.Option(help="A prompt stored with the model, such as 'query'.")] = None,
    dimensions: Annotated[int | None, typer.Option(help="Keep this many leading dimensions.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Tokens per text, below the model's own limit.")] = None,
    overflow: Annotated[Overflow, typer.Option(help="What to do with a text over the limit.")] = Overflow.error,
    on_error: OnErrors = OnError.fail,
    precision: Annotated[Precision, typer.Option(help="Element type of the vectors.")] = Precision.float32,
    dtype: Annotated[str | None, typer.Option(help="float32, float16, bfloat16 or checkpoint.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    memory_budget: Annotated[str | None, typer.Option(metavar="BYTES", help="For example 16GB.")] = None,
    max_context: MaxContext = None,
    adapter: Adapter = None,
    adapters: Adapters = None,
    task: Task = None,
) -> None:
    """Embed texts and print their vectors; sparse ones with the tokens that they weigh.

    Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 some inputs were skipped, 4 would not fit memory.
    """
    if texts and input is not None:
        raise typer.BadParameter("give texts as arguments or with --input, not both")
    if not texts and input is None and not image:
        raise typer.BadParameter("nothing to embed: give texts as arguments, or --input FILE (- for standard input)")
    if image and (input is not None or len(texts or ()) > 1):
        raise typer.BadParameter("--image goes alone or beside one text; use the library for other combinations")
    if format is Format.npy and sys.stdout.isatty():
        raise typer.BadParameter("npy is binary: send it to a file or another program, for example > vectors.npy")
    if format is Format.npy and output is not Output.vectors:
        raise typer.BadParameter(f"--format npy holds one vector per text; --output {output} goes with jsonl or json")
    apart = adapters_of(adapters, adapter)
    file = None if input is None else TextFile(input)
    source: Iterable[Any] = seen(texts, image) if image else file if file else texts or ()

    from archport import engine
    from archport.answering.collecting import Collected

    loaded = engine.load(
        model,
        dtype=dtype,
        revision=revision,
        memory_budget=memory_budget,
        max_context=max_context,
        adapter=adapter,
        adapters=apart,
    )
    options: dict[str, Any] = {
        "prompt": prompt,
        "prompt_name": prompt_name,
        "dimensions": dimensions,
        "max_tokens": max_tokens,
        "overflow": overflow.value,
        "precision": precision.value,
        "output": output.value,
        "top_k": top_k,
        "progress": sys.stderr.isatty(),
        "task": task,
    }

    def name(index: int) -> str:
        return file.called(index) if file else _argument(texts, image, index)

    with rows_called(name):
        if format is Format.jsonl and precision not in (Precision.int8, Precision.uint8):
            options["errors"] = "raise" if on_error is OnError.fail else "collect"
            refused: dict[int, ArchportError] = {}
            for first, made in loaded.stream(source, window=WINDOW, **options):
                if isinstance(made, Collected):
                    _write(_plain(loaded, made.results), made.rows, format)
                    refused |= made.errors
                else:
                    rows = _plain(loaded, made)
                    _write(rows, range(first, first + len(rows)), format)
            end_with(skipped(embed, refused, name))
            return
        if on_error is OnError.fail:
            vectors = _plain(loaded, loaded.embed(source, **options))
            _write(vectors, range(len(vectors)), format)
            return
        made = loaded.embed(source, errors="collect", **options)
    _write(_plain(loaded, made.results), made.rows, format)
    end_with(skipped(embed, made.errors, name))


def _argument(texts: list[str] | None, images: list[str] | None, index: int) -> str:
    """How messages call an input that was given as an argument."""
    return f"TEXT {index + 1}" if texts or not images else f"--image {images[index]}"


def seen(texts: list[str] | None, images: list[str]) -> list[dict[str, Any]]:
    """Inputs that hold images: one with the text and all of them, or one for each."""
    if texts:
        return [{"text": texts[0], "image": images}]
    return [{"image": each} for each in images]


class TextFile(Iterable["str | Unreadable"]):
    """Texts of a file, one per line; `-` is standard input, `.jsonl` holds JSON, whose empty lines hold nothing.

    A line that is not what it should be is Unreadable, which a call refuses as any bad text. Iterating raises
    InputError for a file that can't be read.
    """

    def __init__(self, source: str) -> None:
        self._source, self._json = source, source.endswith(".jsonl")
        # Of every text its line, where that is not its own number.
        self._lines: list[int] = []

    def __iter__(self) -> Iterator[str | Unreadable]:
        for number, line in read_lines(self._source):
            if not self._json:
                yield line
            elif isinstance(line, Unreadable) or line.strip():
                self._lines.append(number)
                yield line if isinstance(line, Unreadable) else _json_text(line)

    def called(self, index: int) -> str:
        """How messages call the text that has this index."""
        return f"{called(self._source)}, line {self._lines[index] if self._json else index + 1}"


def _json_text(line: str) -> str | Unreadable:
    value = json_value(line)
    text = value.get("text") if isinstance(value, dict) else value
    if isinstance(text, str | Unreadable):
        return text
    return Unreadable(f"expected a string or an object with a 'text' string, found {line:.60}")


def _plain(model: Model, vectors: Any) -> Any:
    """Vectors as they are written: arrays, lists for one per token, and of sparse ones weights with their tokens."""
    from archport.answering.sparse_vectors import is_sparse, taken_in

    if not is_sparse(vectors):
        return vectors if vectors.dtype != object else [vector.tolist() for vector in vectors]
    given, name = taken_in(vectors, "vectors"), model.tokenizer.id_to_token
    rows = [given.row(at) for at in range(len(given))]
    return [
        {"indices": ids.tolist(), "values": weights.tolist(), "tokens": [name(id) for id in ids.tolist()]}
        for ids, weights in rows
    ]


def _write(vectors: Any, rows: Sequence[int], format: Format) -> None:
    if format is Format.npy:
        from archport.bulk.formats import save_array

        save_array(sys.stdout.buffer, vectors)
    elif format is Format.jsonl:
        for index, row in zip(rows, _lists(vectors), strict=True):
            shown = row if isinstance(row, dict) else {"embedding": row}
            sys.stdout.write(json.dumps({"index": index, **shown}) + "\n")
    else:
        json.dump(_lists(vectors), sys.stdout)
        sys.stdout.write("\n")
    sys.stdout.flush()


def _lists(vectors: Any) -> list[Any]:
    return vectors if isinstance(vectors, list) else vectors.tolist()
