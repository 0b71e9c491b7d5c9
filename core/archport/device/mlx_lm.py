"""The one door to mlx-lm: every symbol that archport reuses from it, imported when first asked for.

Importing any of its modules lowers this process's limit of open files, for good, and loads transformers. The door keeps
the limit; the seconds are spent only by models and calls that need a symbol. Its inner modules promise nothing, so each
symbol has a test of its own and the version is pinned.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_LOCK = threading.RLock()


def reused(name: str) -> Any:
    """A symbol of mlx-lm by its dotted name behind the package, such as "models.switch_layers.SwitchGLU"."""
    module, _, symbol = f"mlx_lm.{name}".rpartition(".")
    with _LOCK, _limits_kept():
        return getattr(importlib.import_module(module), symbol)


@contextmanager
def _limits_kept() -> Iterator[None]:
    """Ignore changes of this process's resource limits inside the block."""
    try:
        import resource
    except ImportError:  # no such limits on this system
        yield
        return
    kept = resource.setrlimit
    try:
        resource.setrlimit = lambda *_: None
        yield
    finally:
        resource.setrlimit = kept
