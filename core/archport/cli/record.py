"""`archport record`: what transformers computes from a checkpoint or a plugin's examples, in one golden file."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from archport.contract import InputError


def record(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The .npz to write.")],
    plugin: Annotated[
        str | None, typer.Argument(help="Entry-point name or module; may be left out with a model that one claims.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="A checkpoint: folder, hub id or alias; else its examples.")
    ] = None,
    python: Annotated[
        str | None, typer.Option(metavar="PATH", help="A Python that has torch and transformers; else this one.")
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(help="A text to record; may be given again. Else a few of ours.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens to decode after each text, of models that generate.")] = 16,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the code that the checkpoint brings.")
    ] = False,
) -> None:
    """Record what transformers computes, as the golden file that `archport check --golden` compares with."""
    from archport.testing.recorded import write_golden
    from archport.testing.recording import TEXTS
    from archport.testing.recording import record as recorded

    # A module that is not installed lies where the author works.
    sys.path.insert(0, "")
    if output.suffix != ".npz" or output.is_dir():
        raise InputError(f"--output {output}; expected a file that ends in .npz")
    golden = recorded(
        plugin,
        model=model,
        python=python or sys.executable,
        texts=text or TEXTS,
        new_tokens=tokens,
        trust_remote_code=trust_remote_code,
        command=shlex.join(["archport", *sys.argv[1:]]),
    )
    write_golden(output, golden)
    for case in golden.cases:
        arrays = ("ids", "hidden", "vectors", "scores", "logits", "greedy")
        held = ", ".join(name for name in arrays if getattr(case, name) is not None)
        typer.echo(f"{case.name or golden.provenance['of']}: {len(case.texts)} texts: {held}")
    for name, reason in golden.left_out.items():
        typer.echo(f"left out: {name}: {reason}", err=True)
    versions = golden.provenance["versions"]
    typer.echo(f"wrote {output}: transformers {versions['transformers']}, torch {versions['torch']}")
