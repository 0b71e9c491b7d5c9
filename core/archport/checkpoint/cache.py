"""The hub's cache on this machine as a list: which models are in it, how large, whether whole; and removing one."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from archport.checkpoint import hub
from archport.contract.errors import InputError, ModelNotFound, shown


@dataclass(frozen=True, slots=True)
class Cached:
    """A repository in the cache.

    Args:
        name: its hub id.
        folder: where it is.
        nbytes: what it takes on disk, of all its versions.
        whole: whether its main version has every file that archport needs.
    """

    name: str
    folder: Path
    nbytes: int
    whole: bool


def cached_models() -> list[Cached]:
    """Every model repository in the cache, by name; asks no network."""
    return [_cached(name) for name in hub.cached_repositories()]


def _cached(name: str) -> Cached:
    folder = _folder(name)
    # Files of versions are links to blobs, which count once.
    paths = [Path(root) / file for root, _, files in os.walk(folder) for file in files]
    nbytes = sum(path.lstat().st_size for path in paths if not path.is_symlink())
    return Cached(name, folder, nbytes, hub.find_cached(name, None) is not None)


def _folder(name: str) -> Path:
    return hub.cache_folder() / ("models--" + name.replace("/", "--"))


def remove_cached(name: str) -> Cached:
    """Remove every version of a model from the cache; returns what was there.

    Raises:
        ModelNotFound: it is not in the cache; names like it are listed.
        InputError: its folder can't be removed, or is a link.
    """
    if name not in hub.cached_repositories():
        from archport.checkpoint.resolve import near_matches

        cached = hub.cached_repositories()
        near = [match for match in near_matches(name, ()) if match in cached]
        hint = f" Near: {', '.join(near)}." if near else ""
        raise ModelNotFound(f"{shown(name)} is not in the cache {hub.cache_folder()}.{hint}")
    found = _cached(name)
    if found.folder.is_symlink():
        raise InputError(f"{found.folder} is a link to another place; remove it, or what it leads to, by hand")
    try:
        shutil.rmtree(found.folder)
        # Locks of the client's transfers.
        shutil.rmtree(hub.cache_folder() / ".locks" / found.folder.name, ignore_errors=True)
    except OSError as error:
        raise InputError(f"{found.folder} can't be removed ({error.strerror})") from error
    return found
