"""Whether what the server needs beyond the library is installed. Imports nothing of it."""

from __future__ import annotations

from importlib.util import find_spec

from archport.contract import InputError

_NEEDED = ("starlette", "uvicorn", "orjson", "pydantic", "prometheus_client")


def check_installed() -> None:
    """Say what to install where something is missing.

    Raises:
        InputError: in two lines.
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise InputError(
            f"the server needs {', '.join(missing).replace('_', '-')}, which the library alone does not\n"
            "install it with: pip install 'archport[server]'"
        )
