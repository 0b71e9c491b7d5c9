"""The one door to mlx-lm: every symbol that archport reuses from it, imported when first asked for.

Importing any of its modules lowers this process's limit of open files, for good, and loads transformers. The door keeps
the limit; the seconds are spent only by models and calls that need a symbol. Its inner modules promise nothing, so each
symbol has a test of its own and the version is pinned. Models without experts need none of them, on a Mac those without
the delta rule, and run where mlx-lm was left out.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from archport.contract.errors import BackendMissing

_LOCK = threading.RLock()


def reused(name: str) -> Any:
    """A symbol of mlx-lm by its dotted name after the package, such as "models.switch_layers.SwitchGLU".

    Raises:
        BackendMissing: mlx-lm, or a package that it needs, is not installed.
    """
    module, _, symbol = f"mlx_lm.{name}".rpartition(".")
    with _LOCK, _limits_kept():
        try:
            return getattr(importlib.import_module(module), symbol)
        except ModuleNotFoundError as error:
            raise BackendMissing(
                f"this model runs a part of mlx-lm ({symbol}), and {(error.name or 'mlx_lm').partition('.')[0]} is "
                f"not installed, which a plain install of archport brings.\nInstall it with: pip install mlx-lm"
            ) from error


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
