"""`archport plugins`: what is installed, what it serves, and why a broken plugin is broken."""

from __future__ import annotations

import copy
import json
from typing import Annotated, Any

import typer

from archport.contract import ArchportError
from archport.contract.hooks import Hooks
from archport.contract.plugins import PREFER, Plugin, discover, preferred

AS_OTHERS = "as others"
# Widths of a head that published models have.
HEAD_DIMS = (32, 48, 64, 72, 80, 96, 112, 128, 160, 192, 256, 512)


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
    """One row; what a plugin serves is read off the examples it declares, and off what it claims of their variants."""
    row: dict[str, Any] = {"name": plugin.name, "distribution": plugin.distribution, "version": plugin.version}
    specs, dims, error = [], set[int](), plugin.error
    if plugin.module is not None:
        from archport.checkpoint import normalise_config

        try:
            hooks = plugin.hooks()
            configs = [dict(example.config) for example in hooks.examples()]
            specs = [hooks.claim(normalise_config(config)) for config in configs]
            dims = {dim for config in configs for dim in HEAD_DIMS if _claims_head_dim(hooks, config, dim)}
        except Exception as fault:
            error = f"{type(fault).__name__}: {fault}"
    found = [spec for spec in specs if spec is not None]
    return {
        **row,
        "architectures": sorted({spec.arch for spec in found}),
        "semantics": sorted({spec.semantics for spec in found}),
        # Where no other width can be asked for, the plugin's own examples say what it serves.
        "head_dim": sorted(dims or {dim for spec in found for dim in spec.head_dims}),
        "claims": _claims(plugin),
        "hooks": [name.removeprefix("archport_") for name in plugin.hook_names],
        "status": error or "ok",
    }


def _claims_head_dim(hooks: Hooks, config: dict[str, Any], dim: int) -> bool:
    """Whether the plugin claims this config with heads of another width, and gives them to a layer of its spec."""
    from archport.checkpoint import normalise_config

    wider = copy.deepcopy(config)
    body = wider.get("text_config", wider)
    heads = body.get("num_attention_heads")
    if "head_dim" in body:
        body["head_dim"] = dim
    elif isinstance(heads, int):
        body["hidden_size"] = dim * heads
    try:
        spec = hooks.claim(normalise_config(wider))
    except ArchportError:
        return False
    return spec is not None and dim in spec.head_dims


def _claims(plugin: Plugin) -> str:
    """Whether a config that it and others claim is its own."""
    if plugin.name in preferred():
        return f"preferred, number {preferred().index(plugin.name) + 1} of {PREFER}"
    return "steps back where another plugin claims" if plugin.steps_back else AS_OTHERS
