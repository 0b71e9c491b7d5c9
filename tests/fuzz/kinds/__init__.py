"""One module for each kind of case, as `cases.Kind` says; a new one only has to be listed here."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

NAMES = (
    "configs",
    "json_files",
    "safetensors_files",
    "tokenizers_files",
    "pipelines",
    "templates",
    "pictures",
    "video",
    "texts",
    "arguments",
    "command_lines",
)


def kinds() -> Mapping[str, Any]:
    """Name -> module of every kind."""
    return {name: import_module(f"{__name__}.{name}") for name in NAMES}
