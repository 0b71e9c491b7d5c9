"""Which modules of a pipeline answer which role: sentence-transformers' Router, and Asym before it.

A router lists modules by route in router_config.json (config.json of older ones), and rules that lead from a role to a
route. The modules of one route stand in the router's place, each route a pipeline of its own; one may be a table of
weights alone. Source of the rules: sentence-transformers 6.2. Reads JSON, and no module's own files.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from archport.contract.errors import CheckpointError

ROUTERS = ("Router", "Asym")
# Weights of words, looked up by the tokens of a text.
STATIC = "SparseStaticEmbedding"
Role = Literal["query", "document"] | None
ROLES: tuple[Role, ...] = ("document", None, "query")

Entry = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Routes:
    """Who answers whom.

    Args:
        where: the file that says so, for messages.
        modules: route -> its modules in order, as modules.json lists them.
        roles: role -> its route; None where it has none. The role None is that of a text without one.
        main: the route whose modules are the pipeline.
    """

    where: str
    modules: Mapping[str, tuple[Entry, ...]]
    roles: Mapping[Role, str | None]
    main: str

    @property
    def others(self) -> tuple[str, ...]:
        """The routes besides the main one that some role takes."""
        return tuple(sorted({route for route in self.roles.values() if route is not None and route != self.main}))

    @property
    def static(self) -> Mapping[str, str]:
        """Route -> the folder of its SparseStaticEmbedding, of the other routes that are such a table alone."""
        return {
            route: str(self.modules[route][0]["path"])
            for route in self.others
            if [_kind(entry) for entry in self.modules[route]] == [STATIC]
        }


def read_routes(entries: Sequence[Entry] | None, read: Callable[[str], Any]) -> Routes | None:
    """The routes of a pipeline that begins with a router; None of any other.

    Args:
        entries: of modules.json.
        read: gives the parsed JSON of a file of the checkpoint, None when absent.

    Raises:
        CheckpointError: a file that says something else than the reference writes, or routes that archport can't run.
    """
    if not entries or _kind(entries[0]) not in ROUTERS:
        return None
    folder = _folder(str(entries[0].get("path", "")))
    names = [_below(folder, name) for name in ("router_config.json", "config.json")]
    where, stated = next(((name, value) for name in names if (value := read(name)) is not None), (names[0], None))
    if not isinstance(stated, dict):
        raise CheckpointError(f"{where}: is absent or no object; expected the router's types, structure and parameters")
    modules = _modules(where, stated, folder)
    parameters = stated.get("parameters") or {}
    rules = {_rule(where, key): str(route) for key, route in (parameters.get("route_mappings") or {}).items()}
    default = parameters.get("default_route")
    if default is None and parameters.get("allow_empty_key", True) is not False:
        default = next(iter(modules))
    roles: dict[Role, str | None] = {role: _route(role, rules, modules, default) for role in ROLES}
    unknown = sorted({route for route in (*roles.values(), *rules.values()) if route is not None} - set(modules))
    if unknown:
        raise CheckpointError(f"{where}: leads to {', '.join(unknown)}; its routes are {', '.join(modules)}")
    taken = dict.fromkeys(route for role in ROLES if (route := roles[role]) is not None)
    if not taken:
        raise CheckpointError(
            f"{where}: texts, queries and documents have no route; its routes are {', '.join(modules)}. Use "
            "sentence-transformers for this model."
        )
    main = next((route for route in taken if _kind(modules[route][0]) != STATIC), next(iter(taken)))
    # Routes of the same modules are one.
    same = {route for route in taken if modules[route] == modules[main]}
    led: dict[Role, str | None] = {role: main if route in same else route for role, route in roles.items()}
    return Routes(where, modules, led, main)


def expanded(
    entries: list[dict[str, Any]] | None, read: Callable[[str], Any], route: str | None = None
) -> list[dict[str, Any]] | None:
    """The entries with a route's modules in a router's place; arguments and errors as `read_routes`.

    Args:
        route: None for the main one.
    """
    routes = read_routes(entries, read)
    if routes is None or entries is None:
        return entries
    return [*(dict(entry) for entry in routes.modules[route or routes.main]), *entries[1:]]


def _modules(where: str, stated: Mapping[str, Any], folder: str) -> dict[str, tuple[Entry, ...]]:
    types, structure = stated.get("types"), stated.get("structure")
    if not isinstance(types, dict) or not isinstance(structure, dict) or not structure:
        raise CheckpointError(f"{where}: lacks `types` or `structure`; expected names of modules, and routes of them")
    found: dict[str, tuple[Entry, ...]] = {}
    for route, names in structure.items():
        strange = [name for name in names if not isinstance(types.get(name), str)] if isinstance(names, list) else names
        if strange or not names:
            raise CheckpointError(f"{where}: the route {route!r} is {names!r:.80}; expected names among {list(types)}")
        found[route] = tuple({"type": types[name], "path": _below(folder, name)} for name in names)
    return found


def _rule(where: str, key: str) -> tuple[Any, Any]:
    """(task, modality) of a rule, which files spell as Python does."""
    try:
        task, modality = ast.literal_eval(key)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise CheckpointError(f"{where}: route_mappings has the key {key!r:.80}; expected (task, modality)") from error
    return task, modality


def _route(role: Role, rules: Mapping[Any, str], modules: Mapping[str, Any], default: str | None) -> str | None:
    """The route of texts in a role; None where the reference raises."""
    for rule in ((role, "text"), (role, None), (None, "text"), (None, None)):
        if rule in rules:
            return rules[rule]
    for name in (role, "text"):
        if name in modules:
            return name
    return default if role is None else None


def _kind(entry: Entry) -> str:
    return str(entry["type"]).rsplit(".", 1)[-1]


def _folder(path: str) -> str:
    return "" if path.strip("/") == "." else path.strip("/")


def _below(folder: str, name: str) -> str:
    return "/".join(part for part in (folder, name) if part)
