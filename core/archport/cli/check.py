"""`archport check`: run the conformance checks on plugins, installed or named by their module."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from archport.contract.plugins import discover


def check(
    plugins: Annotated[
        list[str] | None, typer.Argument(help="Entry-point names or modules; every installed plugin when left out.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Real weights for the golden tier: folder, hub id or alias.")
    ] = None,
    vectors: Annotated[
        Path | None, typer.Option(help="Stored vectors of that model: an .npz with `texts` and `vectors`.")
    ] = None,
    golden: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What `archport record` wrote, of that model or of the plugin's examples."),
    ] = None,
    tier: Annotated[
        str | None, typer.Option(help="contract (no model), tiny (random weights), golden, or ranks (two processes).")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Run this check alone; may be given again.")
    ] = None,
    recorded: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Record of what ran, kept with a plugin: fewer than last time is a failure."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print one table of all plugins.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="List every check with its figure.")] = False,
) -> None:
    """Check that plugins keep their promises. Exit code 1 when one does not, when a known failure passes, or when fewer
    checks ran than are recorded."""
    from archport.testing import BAD, floor, run_checks
    from archport.testing.check import TIERS, Outcome
    from archport.testing.report import as_dict, as_markdown, as_text

    if tier is not None and tier not in TIERS:
        raise typer.BadParameter(f"{tier!r}; expected one of {', '.join(TIERS)}", param_hint="--tier")
    if recorded is not None and (only or tier or len(plugins or ()) != 1):
        raise typer.BadParameter("a record is of one plugin and of all checks; name one, without --only and --tier")
    if golden is not None and model is None and len(plugins or ()) != 1:
        raise typer.BadParameter("it is of one plugin's examples, or of a model; name either", param_hint="--golden")
    # A module that is not installed lies where the author works.
    sys.path.insert(0, "")
    runs: dict[str, list[Outcome]] = {}
    for name in plugins or _all(model):
        runs[name] = run_checks(name, tier=tier, model=model, vectors=vectors, golden=golden, only=only)  # pyright: ignore[reportArgumentType]
        if not (as_json or markdown):
            typer.echo(as_text(runs[name], verbose=verbose))
    if as_json:
        typer.echo(json.dumps([as_dict(outcome) for outcomes in runs.values() for outcome in outcomes], indent=2))
    if markdown:
        typer.echo(as_markdown(runs), nl=False)
    if not runs:
        typer.echo("no plugin is installed in the entry-point group 'archport'", err=True)
    bad = any(outcome.status in BAD for outcomes in runs.values() for outcome in outcomes)
    if recorded is not None:
        (outcomes,) = runs.values()
        fewer = floor.compare(outcomes, recorded)
        for line in fewer:
            typer.echo(f"FEWER  {line}", err=True)
        if fewer:
            typer.echo(f"less of the kit ran than {recorded} says; where that is meant, delete the file", err=True)
        elif not bad:
            floor.record(outcomes, recorded)
        bad = bad or bool(fewer)
    raise typer.Exit(1 if bad or not runs else 0)


def _all(model: str | None) -> list[str]:
    """Every installed plugin, or the one that claims the model."""
    if model is None:
        return [plugin.name for plugin in discover()]
    from archport.loading import describe

    return [describe(model).plugin.name]
