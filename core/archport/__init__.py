"""archport: per-architecture model adapters on MLX, behind one memory-safe engine.

    from archport import engine
    model = engine.load("all-MiniLM-L6-v2")
    vectors = model.embed(["a text", "a much longer text"])

Importing this package does one thing: on a Linux CPU it loads an optimised BLAS before MLX can load its slow one
(`ARCHPORT_BLAS=off` prevents it). Everything else waits until it is used.
"""

from __future__ import annotations

import os
import sys

# The process is the command, which Ctrl-C ends quietly from its first lines on (see archport.cli). The module behind
# `signal` is there already; the names that `signal` gives its numbers take longer to import than all the rest.
if os.path.basename((sys.argv or [""])[0]) == "archport":
    import _signal  # pyright: ignore[reportMissingImports]

    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, lambda *_: os._exit(130))

from typing import TYPE_CHECKING

from archport.device.blas import preload

if TYPE_CHECKING:
    from archport.contract import ArchportError, hookimpl

__version__ = "0.2.0"
__all__ = ["ArchportError", "__version__", "hookimpl"]

preload()


def __getattr__(name: str) -> object:
    # The contract takes ten times as long to import as the rest, and a command that Ctrl-C stops meanwhile has no
    # way yet to end quietly.
    if name in ("ArchportError", "hookimpl"):
        from archport import contract

        return getattr(contract, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
