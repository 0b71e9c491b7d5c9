"""pyarrow, imported when it is used; without it an error of two lines."""

from __future__ import annotations

import importlib
from typing import Any

from archport.contract import InputError


def arrow() -> Any:
    """The module pyarrow; raises InputError where it is not installed."""
    return needed("pyarrow", "bulk", "parquet and Arrow files need")


def parquet() -> Any:
    """The module pyarrow.parquet; raises InputError where it is not installed."""
    arrow()
    return importlib.import_module("pyarrow.parquet")


def needed(name: str, extra: str, what: str) -> Any:
    """A module of an extra.

    Raises:
        InputError: two lines: what needs it, and what to install.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"{what} {name}, which is not installed.\nInstall it with: pip install 'archport[{extra}]'"
        ) from error
