"""How the C library treats memory that arrays give back: kept for the next array, or returned to the system at once.

MLX's CPU build takes every array from malloc. glibc gives large ones back to the system when they are freed, so the
temporaries of each layer are mapped, zeroed and faulted in again page by page, on one thread: a tenth of an encoder's
time. Knows nothing of MLX, and changes nothing where the user has set glibc's own variables.
"""

from __future__ import annotations

import ctypes
import os
import platform
from contextlib import suppress

# Of malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
# The most that glibc takes for the second; larger arrays are mapped as ever.
LARGEST_KEPT = 32 << 20
# Freed memory at the end of a heap that is kept. A plan's temporaries on a CPU are some hundred megabytes.
KEPT = 512 << 20


def keep_freed_memory() -> bool:
    """Let freed arrays of up to 32 MiB serve the next ones, 512 MiB of them at most; says whether that is so now.

    Only with glibc, and not when MALLOC_TRIM_THRESHOLD_, MALLOC_MMAP_THRESHOLD_ or GLIBC_TUNABLES is set.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _VARIABLES):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # Both: setting one ends glibc's own adjustment of the other.
    return bool(mallopt(_MMAP_THRESHOLD, LARGEST_KEPT)) and bool(mallopt(_TRIM_THRESHOLD, KEPT))


def give_back_freed_memory() -> None:
    """Return what was freed and is kept to the system: for work of many pieces, whose heap else grows for a while."""
    if platform.libc_ver()[0] != "glibc":
        return
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
