"""Which plugin is meant: an entry-point name, a module that is not packaged yet, or what discovery found.

Keeps the subject of each plugin for the life of the process, because checks share its tiny models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType

from archport.contract import PluginError, SpecError
from archport.contract.plugins import Plugin, discover, find_fault
from archport.testing.subject import Subject


def find(plugin: str | ModuleType | Plugin) -> Plugin:
    """The plugin of this entry-point name or module, installed or not.

    Raises:
        SpecError: neither an installed plugin nor an importable module has this name.
        PluginError: the module fails when it is imported.
    """
    installed = discover()
    if isinstance(plugin, Plugin):
        return plugin
    if isinstance(plugin, str):
        for row in installed:
            if row.name == plugin:
                return row
        module = _imported(plugin, [row.name for row in installed])
    else:
        module = plugin
        for row in installed:
            if row.module is module:
                return row
    fault = find_fault(module)
    row = Plugin(module.__name__.split(".")[-1], "not installed", "0", module.__name__, module)
    return replace(row, module=None, error=fault) if fault else row


def _imported(name: str, installed: Sequence[str]) -> ModuleType:
    from importlib import import_module

    try:
        return import_module(name)
    except Exception as error:
        # Relative and empty names are no modules either.
        missing = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
        if isinstance(error, ModuleNotFoundError) and missing is not None and not name.startswith(missing):
            raise PluginError(f"plugin {name!r} imports {missing!r}, which is not installed; install it") from error
        if not isinstance(error, ModuleNotFoundError | TypeError | ValueError):
            raise PluginError(f"plugin {name!r} can't be imported: {type(error).__name__}: {error}") from error
        raise SpecError(
            f"plugin {name!r} is neither installed nor an importable module; installed: "
            f"{', '.join(installed) or 'none'}. Install it (`pip install -e .` in its folder), or name its module"
        ) from error


_SUBJECTS: dict[int, Subject] = {}


def subject_of(plugin: Plugin) -> Subject:
    """The subject of a plugin, kept for the life of the process, because checks share its tiny models."""
    key = id(plugin.module)
    if key not in _SUBJECTS:
        others = [row for row in discover() if row.module is not None and row.module is not plugin.module]
        _SUBJECTS[key] = Subject(plugin, others)
    return _SUBJECTS[key]


def release(plugin: Plugin) -> None:
    """Forget a plugin's tiny models and their folders."""
    _SUBJECTS.pop(id(plugin.module), None)
