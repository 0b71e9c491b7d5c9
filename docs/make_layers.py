"""Write docs/layers.md: every name of `archport.layers` with its arguments and what they mean.

python docs/make_layers.py           # rewrite the page; a test fails while it is not current
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

# First: it loads the BLAS that MLX uses on a CPU.
import archport  # noqa: F401
from archport import layers

# The folder of this file, whoever loads it.
sys.path.insert(0, str(Path(__file__).parent))

from make_hooks import prose, signature

PAGE = Path(__file__).with_name("layers.md")
HEAD = """# Blocks

Written by `docs/make_layers.py` from `core/archport/layers`; edit that, not this page.

What a plugin composes into its module, all from `archport.layers`. A block builds no mask, owns no cache and keeps no
state; `x` is (B, L, D) and `ctx` the layer context ([hooks.md](hooks.md#layercontext)). None of it has to be used: a
module of your own works as well, and declares what it holds where that differs
([write-a-plugin.md](write-a-plugin.md#6-go-further)).
"""


def entry(name: str, value: Any) -> str:
    """One name: its arguments, what they mean, and how it is called."""
    parts = [f"\n## {name}\n\n`{name}{_plain(signature(value))}`\n\n{prose(value.__doc__)}\n"]
    call = vars(value).get("__call__") if inspect.isclass(value) else None
    if call is not None and call.__doc__:
        parts.append(f"\nCalled as `{_plain(signature(call))}`\n\n{prose(call.__doc__)}\n")
    return "".join(parts)


def _plain(text: str) -> str:
    """A signature with the names of its defaults, and nothing of where they lie."""
    return re.sub(r"<(?:function|class) (?:\w+\.)*(\w+)(?: at 0x\w+)?>", r"\1", text)


def page() -> str:
    """The whole page."""
    return "".join([HEAD, *(entry(name, getattr(layers, name)) for name in sorted(layers.__all__, key=str.lower))])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
