"""Brings the backend `stream32` and pins it for every call that it accepts."""

from __future__ import annotations

from collections.abc import Sequence

from archport.contract import AttentionCall, Backend, DeviceFacts, hookimpl
from archport_sdpa_demo.backend import Stream32

STREAM = Stream32()


@hookimpl
def archport_sdpa_backends() -> Sequence[Backend]:
    return [STREAM]


@hookimpl
def archport_sdpa_backend(call: AttentionCall, device: DeviceFacts) -> str | None:
    # None leaves the choice to the planner, which runs ragged rows document by document.
    return None if STREAM.reasons_against(call, device) else STREAM.name
