"""pyarrow, imported when it is used; without it an error of two lines."""

from __future__ import annotations

import importlib
from typing import Any

from archport.contract import InputError

# Before that, parquet holds no row without a vector among vectors of one width: 24 does not write it, 25 not read it.
OLDEST_ARROW = 26


def arrow() -> Any:
    """The module pyarrow; raises InputError where it is not installed, or too old for what is written with it."""
    found = needed("pyarrow", "bulk", "parquet and Arrow files need")
    if int(found.__version__.partition(".")[0]) < OLDEST_ARROW:
        raise InputError(
            f"pyarrow {found.__version__} is installed, which loses rows without a vector; expected {OLDEST_ARROW} or "
            "later.\nInstall it with: pip install 'archport[bulk]'"
        )
    return found


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
