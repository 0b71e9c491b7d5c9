"""How much memory this process may use on a CPU: RAM, control groups and resource limits, whichever is least.

Reads the operating system only; knows nothing of MLX. On CPU, MLX answers an allocation that fails with a segmentation
fault, so the number has to be known beforehand.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

# Version 1 writes "no limit" as the largest page-aligned int64; anything near it is no limit.
NO_LIMIT = 2**62


def usable_memory(proc_cgroup: Path = Path("/proc/self/cgroup"), cgroup_root: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes this process may use."""
    ram = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [ram, *rlimits()]
    try:
        membership = proc_cgroup.read_text(encoding="utf-8", errors="replace")
    except OSError:  # no control groups: macOS, or a sandbox without /proc
        membership = ""
    group = cgroup_limit(membership, cgroup_root)
    if group is not None:
        limits.append(group)
    return min(limits)


def rlimits() -> list[int]:
    """The soft limits on address space and data that are set, in bytes."""
    soft = (resource.getrlimit(which)[0] for which in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    return [limit for limit in soft if limit != resource.RLIM_INFINITY and 0 < limit < NO_LIMIT]


def cgroup_limit(membership: str, root: Path) -> int | None:
    """The least memory limit of a process's control group and all groups above it; None if none is set.

    Args:
        membership: the text of /proc/self/cgroup.
        root: where the control groups are mounted.

    Version 2 groups (`memory.max`; `memory.high`, above which the kernel throttles the process to a crawl) and version
    1 groups (`memory.limit_in_bytes`) may both be present. Inside a container the path may not exist under the mount,
    which then shows the container's own group at its root: levels that are missing are skipped.
    """
    found = [limit for path in _limit_files(membership, root) if (limit := read_limit(path)) is not None]
    return min(found, default=None)


def _limit_files(membership: str, root: Path) -> Iterator[Path]:
    for line in membership.splitlines():
        _, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if not colon:
            continue
        if controllers == "":
            mount, names = root, ("memory.max", "memory.high")
        elif "memory" in controllers.split(","):
            mount, names = root / "memory", ("memory.limit_in_bytes",)
        else:
            continue
        # "/../x" is how a group outside the process's namespace is shown; it can't be reached under the mount.
        parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
        for depth in range(len(parts), -1, -1):
            for name in names:
                yield mount.joinpath(*parts[:depth], name)


def read_limit(path: Path) -> int | None:
    """The limit in one control file in bytes; None if it is missing, unreadable, "max" or no number."""
    try:
        text = path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() and int(text) < NO_LIMIT else None
