"""Import archport before any test module imports mlx, so that the tests run on the BLAS that users get.

Gives all tests the markers `only_on` and `needs`, and by name the modules of tests/device, such as `tolerances`.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
from pathlib import Path

import pytest

import archport  # noqa: F401

# Tests multiply before anything is loaded, and MLX reads this at its first product.
os.environ.setdefault("MLX_ENABLE_TF32", "0")
# Resizes round as this one's do where a test compares with recorded pixels; older ones are off by one step of 255.
RECORDED_PILLOW = 13
sys.path.append(str(Path(__file__).parent / "tests" / "device"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what belongs to another device, `@pytest.mark.only_on("cpu", reason="...")`, or needs what is not there."""
    from tolerances import DEVICE

    from archport.bulk.extras import OLDEST_ARROW

    for mark in item.iter_markers("only_on"):
        if DEVICE not in mark.args:
            pytest.skip(f"only on {', '.join(mark.args)}: {mark.kwargs['reason']}")
    for mark in item.iter_markers("needs"):
        for name in mark.args:
            if importlib.util.find_spec(name) is None:
                pytest.skip(f"needs {name}, which `make test` installs")
            if name == "PIL" and int(importlib.metadata.version("pillow").partition(".")[0]) < RECORDED_PILLOW:
                pytest.skip(f"needs pillow {RECORDED_PILLOW}, which `make test` installs")
            if name == "pyarrow" and int(importlib.metadata.version(name).partition(".")[0]) < OLDEST_ARROW:
                pytest.skip(f"needs pyarrow {OLDEST_ARROW}, which `make test` installs")
