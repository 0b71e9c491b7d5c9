"""Brings the backend `stream32`; pins nothing. `archport_sdpa_demo.pinned` also takes it wherever it can run."""

from __future__ import annotations

from collections.abc import Sequence

from archport.contract import Backend, hookimpl
from archport_sdpa_demo.backend import Stream32


@hookimpl
def archport_sdpa_backends() -> Sequence[Backend]:
    return [Stream32()]
