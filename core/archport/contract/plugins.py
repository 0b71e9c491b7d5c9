"""Which plugins are installed, whether each is sound, and which one claims a config.

Plugins come only from the entry-point group `archport`, ours like a stranger's. Each is imported and checked by itself,
so a broken one becomes a row with its reason and never stops another. Knows nothing of what the answers mean.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pluggy

from archport.contract import hookspecs
from archport.contract.deprecation import contract_fault
from archport.contract.errors import ArchportError, CheckpointError, ClaimError, InputError, PluginError, SpecError
from archport.contract.hooks import Hooks, Speaker
from archport.contract.spec import ArchSpec

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "archport"
# What a plugin's module states, True or False, to leave a config to any other plugin that claims it as well.
STEPS_BACK = "ARCHPORT_STEPS_BACK"
# Names of plugins, best first: who gets a config that several claim (docs/adr/0013).
PREFER = "ARCHPORT_PREFER"


@dataclass(frozen=True, slots=True)
class Plugin:
    """One installed plugin: a row of `archport plugins`.

    Args:
        name: the entry point's name.
        distribution, version: who ships it.
        target: the module the entry point names.
        module: the imported module; None when it did not load.
        error: why it did not load; None when it did.
    """

    name: str
    distribution: str
    version: str
    target: str
    module: ModuleType | None = None
    error: str | None = None

    @property
    def label(self) -> str:
        return f"{self.name} ({self.distribution} {self.version})"

    @property
    def steps_back(self) -> bool:
        """Whether it leaves a config to any other plugin that claims it too; see `STEPS_BACK`."""
        return bool(self.module is not None and vars(self.module).get(STEPS_BACK))

    @property
    def hook_names(self) -> tuple[str, ...]:
        """Hooks the plugin implements, sorted."""
        return tuple(sorted(name for name, _ in _marked(self.module))) if self.module else ()

    def hooks(self) -> Hooks:
        """The collecting hooks (`models`, `claim`, `examples`) of this plugin alone."""
        assert self.module is not None, f"{self.label} did not load"
        return Hooks([Speaker(self.label, self.module)])


def discover() -> tuple[Plugin, ...]:
    """Every installed plugin, loaded or with its error; found once per process and setting of the environment.

    `ARCHPORT_PLUGINS=a,b` limits it to those names (empty: none). `ARCHPORT_STRICT=1` raises the first load error.
    """
    return _discover(os.environ.get("ARCHPORT_PLUGINS"), os.environ.get("ARCHPORT_STRICT") == "1")


@functools.lru_cache(maxsize=8)
def _discover(allowed: str | None, strict: bool) -> tuple[Plugin, ...]:
    # Here, because it imports what reads mail, which a command that only prints its help can do without.
    from importlib.metadata import entry_points

    found = entry_points(group=GROUP)
    names = None if allowed is None else {name.strip() for name in allowed.split(",") if name.strip()}
    return load_plugins([point for point in found if names is None or point.name in names], strict=strict)


def load_plugins(points: list[EntryPoint], *, strict: bool = False) -> tuple[Plugin, ...]:
    """Load each entry point by itself, in the order of (name, distribution).

    Raises:
        PluginError: with `strict`, for the first plugin that is not sound.
    """
    rows: list[Plugin] = []
    holders: dict[str, Plugin] = {}
    for point in sorted(points, key=lambda point: (point.name, _distribution(point)[0])):
        row = _load(point, holders.get(point.name))
        if row.error and strict:
            raise PluginError(f"plugin {row.label}, entry point {row.target!r}, did not load: {row.error}")
        if row.error is None:
            holders[row.name] = row
        rows.append(row)
    return tuple(rows)


def _distribution(point: EntryPoint) -> tuple[str, str]:
    return (point.dist.name, point.dist.version) if point.dist else ("unknown distribution", "?")


def _load(point: EntryPoint, holder: Plugin | None) -> Plugin:
    distribution, version = _distribution(point)
    row = functools.partial(Plugin, point.name, distribution, version, point.value)
    if holder is not None:
        return row(error=f"the name {point.name!r} is taken by {holder.label}; uninstall one of the two")
    try:
        module = point.load()
    # SystemExit too: a plugin that exits at import must not end the program that merely lists it.
    except (Exception, SystemExit) as error:
        return row(error=f"{type(error).__name__}: {error}")
    fault = find_fault(module)
    return row(error=fault) if fault else row(module=module)


def _marked(module: object) -> Iterator[tuple[str, Callable[..., Any]]]:
    for name, value in vars(module).items():
        if inspect.isfunction(value) and hasattr(value, "archport_impl"):
            yield name, value


def _options(function: object) -> dict[str, Any]:
    return vars(function)["archport_impl"]


def find_fault(module: object) -> str | None:
    """What makes this module unusable as a plugin, or None.

    Catches what pluggy lets through: a forgotten `@hookimpl`, defaults and keyword-only parameters (which pluggy does
    not pass reliably), `specname=`; and what it reports late: an unknown hook, an unknown argument.
    """
    if not isinstance(module, ModuleType):
        return f"the entry point names a {type(module).__name__}; expected a module"
    for name, value in vars(module).items():
        unmarked = inspect.isfunction(value) and not hasattr(value, "archport_impl")
        if unmarked and name.startswith("archport_") and not hasattr(value, "archport_spec"):
            return f"{name} is not marked: put @hookimpl above it (from archport.contract import hookimpl)"
    if "ARCHPORT_CONTRACT" in vars(module):
        fault = contract_fault(vars(module)["ARCHPORT_CONTRACT"])
        if fault is not None:
            return fault
    if not isinstance(vars(module).get(STEPS_BACK, False), bool):
        return f"{STEPS_BACK} is {vars(module)[STEPS_BACK]!r}; expected True or False"
    marked = list(_marked(module))
    if not marked:
        return "no function is marked with @hookimpl (from archport.contract import hookimpl)"
    for name, function in marked:
        if _options(function).get("specname"):
            return f"{name} uses specname=; name the function after its hook instead"
        for parameter in inspect.signature(function).parameters.values():
            if parameter.default is not parameter.empty:
                return f"{name}: parameter {parameter.name!r} has a default; hook arguments take none"
            if parameter.kind is not parameter.POSITIONAL_OR_KEYWORD:
                return f"{name}: parameter {parameter.name!r} is {parameter.kind.description}; expected a plain one"
    scratch = pluggy.PluginManager(GROUP)
    scratch.add_hookspecs(hookspecs)
    try:
        scratch.register(module)
        scratch.check_pending()
    except pluggy.PluginValidationError as error:
        known = ", ".join(sorted(name for name in vars(hookspecs) if name.startswith("archport_")))
        return f"{' '.join(str(error).split())}; hooks are: {known}"
    return None


def known_models(plugins: tuple[Plugin, ...]) -> dict[str, str]:
    """The names every sound plugin knows models by: name -> hub id or `package:folder`; the first plugin wins."""
    names: dict[str, str] = {}
    for plugin in plugins:
        if plugin.module is not None:
            for name, target in plugin.hooks().models().items():
                names.setdefault(name, target)
    return names


def preferred() -> tuple[str, ...]:
    """Names in `ARCHPORT_PREFER`, best first."""
    return tuple(name.strip() for name in os.environ.get(PREFER, "").split(",") if name.strip())


def chosen(claims: Sequence[tuple[Plugin, ArchSpec]]) -> list[tuple[Plugin, ArchSpec]]:
    """Of several claims the user's preferred plugin's, else those of plugins that do not step back."""
    for name in preferred():
        own = [each for each in claims if each[0].name == name]
        if own:
            return own
    return [each for each in claims if not each[0].steps_back] or list(claims)


def named(name: str, plugins: Sequence[Plugin]) -> Plugin:
    """The plugin of this name.

    Raises:
        InputError: there is none.
        PluginError: it did not load.
    """
    for row in plugins:
        if row.name == name and row.module is not None:
            return row
    broken = next((row for row in plugins if row.name == name), None)
    if broken is not None:
        raise PluginError(f"plugin {broken.label} did not load: {broken.error}")
    installed = ", ".join(row.name for row in plugins) or "none"
    raise InputError(f"plugin={name!r:.200} is not installed; installed: {installed}")


def claim(config: Mapping[str, Any], plugins: tuple[Plugin, ...]) -> tuple[Plugin, ArchSpec]:
    """The one plugin that claims a normalised config, and the spec it declares.

    Of several that claim it, one that `ARCHPORT_PREFER` names wins, else the only one that does not step back.

    Raises:
        ClaimError: when nobody claims it (naming what is installed and repeating load errors), or when two do.
    """
    claims: list[tuple[Plugin, ArchSpec]] = []
    faults: list[str] = []
    refusals: list[ArchportError] = []
    failure: PluginError | None = None
    for plugin in plugins:
        if plugin.module is None:
            faults.append(f"  {plugin.label} did not load: {plugin.error}")
            continue
        try:
            spec = plugin.hooks().claim(config)
        # What stops one plugin must not hide another's claim; it is repeated when nobody claims.
        except (SpecError, CheckpointError) as error:
            refusals.append(error)
            continue
        except ArchportError as error:
            failure = failure or (error if isinstance(error, PluginError) else None)
            faults.append(f"  {plugin.label} failed while looking at this config: {error}")
            continue
        if spec is not None:
            claims.append((plugin, spec))
    what = f"model_type {config.get('model_type')!r}, architectures {config.get('architectures')!r}"
    claims = chosen(claims)
    if len(claims) > 1:
        both = ", ".join(plugin.label for plugin, _ in claims)
        first = claims[0][0].name
        raise ClaimError(
            f"{what} is claimed by {len(claims)} plugins: {both}. Choose one: engine.load(..., plugin={first!r}), or "
            f"{PREFER}={first} in the environment; or uninstall the other"
        )
    if not claims and refusals:
        # A plugin knows the architecture, and not this config: that is no fault of the plugin's.
        raise ClaimError("; ".join(str(error) for error in refusals)) from refusals[0]
    if not claims:
        installed = ", ".join(plugin.name for plugin in plugins) or "none"
        hint = "\nARCHPORT_PLUGINS limits which plugins are used." if "ARCHPORT_PLUGINS" in os.environ else ""
        nobody = ClaimError("\n".join([f"no plugin claims {what}; installed: {installed}.", *faults]) + hint)
        raise nobody from failure
    return claims[0]
