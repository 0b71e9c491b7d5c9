"""`archport models`: families, what each does, ids to try, and which models are in the cache; `pull` and `rm`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from archport.cli import options
from archport.contract import InputError
from archport.contract.plugins import Plugin, discover

app = typer.Typer(
    invoke_without_command=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)

# Ids that are printed of a plugin; --json has them all.
_SHOWN = 6


def models(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List families by plugin: tasks, ids to try, and what is in the hub's cache. Asks no network."""
    if context.invoked_subcommand is not None:
        return
    found = gather(discover())
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for row in found["plugins"]:
        typer.echo(f"{row['name']}  {row['distribution']} {row['version']}")
        if row["error"]:
            typer.echo(f"    {'broken':<20} {row['error']}")
        for family, tasks in row["families"].items():
            typer.echo(f"    {family:<20} {', '.join(tasks)}")
        if row["ids"]:
            more = f" and {len(row['ids']) - _SHOWN} more" if len(row["ids"]) > _SHOWN else ""
            typer.echo(f"    {'try':<20} {', '.join(row['ids'][:_SHOWN])}{more}")
        for cached in row["cached"]:
            typer.echo(f"    {'in the cache':<20} {_line(cached)}")
    for cached in found["others"]:
        typer.echo(f"in the cache, of no plugin: {_line(cached)}")


def pull(
    model: Annotated[str, typer.Argument(help="Hub id or alias.")],
    revision: options.Revision = None,
) -> None:
    """Fetch into the hub's cache what a model needs; goes on where an interrupted one stopped."""
    from archport.contract.sizes import format_bytes
    from archport.loading import describe

    # What no plugin claims is refused from its small files, before its weights are fetched.
    describe(model, revision=revision)
    checkpoint = describe(model, revision=revision, weights=True).checkpoint
    size = format_bytes(checkpoint.weight_bytes)
    typer.echo(f"{checkpoint.name}  {size} of weights  {checkpoint.source}: {checkpoint.folder}")


def rm(model: Annotated[list[str], typer.Argument(help="Hub ids or aliases of models in the cache.")]) -> None:
    """Remove models from the hub's cache, all their versions."""
    from archport.checkpoint.cache import remove_cached
    from archport.contract.plugins import known_models
    from archport.contract.sizes import format_bytes

    targets = known_models(discover())
    for name in model:
        target = _target(name, targets)
        if ":" in target:
            raise InputError(f"{name} comes in an installed package ({target}), not in the hub's cache; pip removes it")
        gone = remove_cached(target)
        typer.echo(f"{gone.name}  {format_bytes(gone.nbytes)} removed")


def _target(name: str, targets: dict[str, str]) -> str:
    """The hub id that an alias leads to."""
    seen = {name}
    while (target := targets.get(name)) is not None and target not in seen:
        seen.add(target)
        name = target
    return name


def gather(plugins: tuple[Plugin, ...]) -> dict[str, Any]:
    """Families and cached models, ready to print.

    Returns:
        `plugins`, each with `families` ({family: tasks}), `ids` and `cached`; and `others`, cached models of none.
    """
    from archport.checkpoint.cache import cached_models

    rows = {plugin.name: _row(plugin) for plugin in plugins if plugin.module is not None}
    others: list[dict[str, Any]] = []
    for cached in cached_models():
        entry = {"id": cached.name, "bytes": cached.nbytes, "whole": cached.whole, "folder": str(cached.folder)}
        plugin, family = _claimed(cached.name, plugins)
        (rows[plugin]["cached"] if plugin else others).append({**entry, "family": family})
    return {"plugins": list(rows.values()), "others": others}


def _row(plugin: Plugin) -> dict[str, Any]:
    from archport.checkpoint import normalise_config

    families: dict[str, set[str]] = {}
    ids: list[str] = []
    error = None
    try:
        hooks = plugin.hooks()
        ids = sorted(hooks.models())
        for example in hooks.examples():
            spec = hooks.claim(normalise_config(dict(example.config)))
            if spec is not None:
                families.setdefault(spec.arch, set()).update(spec.tasks)
    # One plugin's fault hides no other's families.
    except Exception as fault:
        error = f"{type(fault).__name__}: {fault}"
    return {
        "name": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "families": {family: sorted(tasks) for family, tasks in sorted(families.items())},
        "ids": ids,
        "error": error,
        "cached": [],
    }


def _claimed(name: str, plugins: tuple[Plugin, ...]) -> tuple[str | None, str | None]:
    """(plugin, family) of a cached model, by its config; None where nobody claims it or it holds none."""
    from archport.checkpoint import hub, normalise_config
    from archport.checkpoint.files import body_folder
    from archport.contract import ArchportError
    from archport.contract.plugins import claim

    snapshot = hub.find_cached(name, None)
    if snapshot is None:
        return None, None
    try:
        path = snapshot.folder / body_folder(snapshot.folder) / "config.json"
        plugin, spec = claim(normalise_config(json.loads(path.read_text())), plugins)
    # A list shows what is there, whatever its state.
    except (ArchportError, OSError, ValueError):
        return None, None
    return plugin.name, spec.arch


def _line(cached: dict[str, Any]) -> str:
    from archport.contract.sizes import format_bytes

    family = f", {cached['family']}" if cached["family"] else ""
    return f"{cached['id']} ({format_bytes(cached['bytes'])}{family}{'' if cached['whole'] else ', incomplete'})"
