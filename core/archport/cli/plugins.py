"""`archport plugins`: what is installed, what it serves, and why a broken plugin is broken."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from archport.contract.plugins import PREFER, Plugin, discover, preferred

AS_OTHERS = "as others"


def plugins(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array.")] = False) -> None:
    """List installed plugins: distribution, architectures, semantics, head dims, hooks, status or load error."""
    rows = [describe(plugin) for plugin in discover()]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        typer.echo(f"{row['name']}  {row['distribution']} {row['version']}  {row['status']}")
        for key in ("architectures", "semantics", "head_dim", "hooks"):
            typer.echo(f"    {key:<14} {', '.join(map(str, row[key])) or '-'}")
        if row["claims"] != AS_OTHERS:
            typer.echo(f"    claims         {row['claims']}")
    for name in preferred():
        if name not in {row["name"] for row in rows}:
            typer.echo(f"{PREFER} names {name!r}, which is not installed", err=True)
    if not rows:
        typer.echo("no plugin is installed in the entry-point group 'archport'")


def describe(plugin: Plugin) -> dict[str, Any]:
    """One row; what a plugin serves is read off the examples it declares."""
    row: dict[str, Any] = {"name": plugin.name, "distribution": plugin.distribution, "version": plugin.version}
    specs, error = [], plugin.error
    if plugin.module is not None:
        from archport.checkpoint import normalise_config

        try:
            hooks = plugin.hooks()
            specs = [hooks.claim(normalise_config(dict(example.config))) for example in hooks.examples()]
        except Exception as fault:
            error = f"{type(fault).__name__}: {fault}"
    found = [spec for spec in specs if spec is not None]
    return {
        **row,
        "architectures": sorted({spec.arch for spec in found}),
        "semantics": sorted({spec.semantics for spec in found}),
        "head_dim": sorted({dim for spec in found for dim in spec.head_dims}),
        "claims": _claims(plugin),
        "hooks": [name.removeprefix("archport_") for name in plugin.hook_names],
        "status": error or "ok",
    }


def _claims(plugin: Plugin) -> str:
    """Whether a config that it and others claim is its own."""
    if plugin.name in preferred():
        return f"preferred, number {preferred().index(plugin.name) + 1} of {PREFER}"
    return "steps back where another plugin claims" if plugin.steps_back else AS_OTHERS
