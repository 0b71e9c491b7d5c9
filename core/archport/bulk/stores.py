"""Where the parts of a job go. A part is there whole, and known to be, or not there."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from archport.answering.precision import Ranges
from archport.bulk.answers import Answered
from archport.bulk.database import DATABASE, Database
from archport.bulk.formats import OutputFormat, Stored, format_of
from archport.bulk.manifest import (
    MANIFEST,
    RANGES,
    RECORDS,
    TOTAL,
    Manifest,
    Record,
    add_record,
    digest_of,
    load_json,
    record_of,
    records,
    save_json,
    whole,
)
from archport.contract import InputError
from archport.contract.errors import shown


class Store(Protocol):
    """Where the parts of a job go."""

    def recorded(self) -> dict[int, Record]:
        """Of every part that was written, by its number, whatever became of it."""
        ...

    def records(self) -> dict[int, Record]:
        """Of every part that is there, whole, by its number."""
        ...

    def write(self, part: Answered, id_type: type | None) -> Record:
        """Write a part; it is there for good when this returns."""
        ...

    def read(self, record: Record) -> Stored:
        """A part that is there."""
        ...


class Files:
    """Parts as files of a folder.

    Args:
        label: of this process among those that write there.
    """

    def __init__(self, folder: Path, kind: OutputFormat, provenance: Mapping[str, Any], label: str = "") -> None:
        self._folder, self._format, self._label = folder, format_of(kind, provenance), label

    def recorded(self) -> dict[int, Record]:
        return records(self._folder)

    def records(self) -> dict[int, Record]:
        return {number: each for number, each in self.recorded().items() if each.holds(self._folder)}

    def write(self, part: Answered, id_type: type | None) -> Record:
        found: dict[str, tuple[int, str]] = {}
        for name, write in self._format.files(_stem(part.number), part, id_type).items():
            path = self._folder / name
            whole(path, write)
            found[name] = path.stat().st_size, digest_of(path)
        record = record_of(part, found)
        add_record(self._folder, self._label, record)
        return record

    def read(self, record: Record) -> Stored:
        return self._format.read(self._folder, _stem(record.part))


def _stem(number: int) -> str:
    return f"part-{number:05d}"


def store_of(folder: Path, kind: OutputFormat, provenance: Mapping[str, Any], label: str = "") -> Store:
    """The store of an output format in a folder.

    Args:
        label: of this process among those that write there.
    """
    return Database(folder, provenance) if kind == "sqlite" else Files(folder, kind, provenance, label)


@contextmanager
def writing(folder: Path, *, alone: bool) -> Iterator[None]:
    """Make a folder, and keep out those who would write or remove the same files for as long as this one writes.

    Args:
        alone: keeps out everybody, and not only those who want to be alone.

    Raises:
        InputError: another process writes there, or it is a file.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{shown(str(folder))} is a file; the parts of a job go into a folder") from error
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"another process writes into {folder} now; wait for its end, or stop it") from error
        except OSError:
            # A file system of a network may have no locks.
            pass
        yield
    finally:
        os.close(descriptor)


def begun(folder: Path, manifest: Manifest, *, resume: bool, overwrite: bool) -> Manifest:
    """Make an empty folder the place of a job, or find it to be so already; returns the manifest that is there then.

    Raises:
        InputError: it holds another job, or something else.
    """
    there = Manifest.load(folder)
    if there is None:
        others = [path.name for path in folder.iterdir() if not path.name.endswith(".tmp")]
        # Another process of the job may have been first, since.
        if others and MANIFEST not in others:
            raise InputError(
                f"{folder} holds {shown(sorted(others)[0])} and no job; expected an empty folder or a new name"
            )
    elif overwrite:
        clear(folder)
        there = None
    elif not resume:
        raise InputError(f"{folder} holds a job already; resume=True goes on with it, overwrite=True begins anew")
    if there is None:
        manifest.save(folder, replace=False)
        there = Manifest.load(folder) or manifest
    differences = list(there.differences(manifest))
    if differences:
        raise InputError(
            f"{folder} holds a job of other settings: {'; '.join(differences)}. Give those it was begun with, another "
            "folder, or overwrite=True"
        )
    return there


def remove_leftovers(folder: Path) -> None:
    """Remove files that an earlier process did not finish; only where no other one writes."""
    for path in folder.glob("_*.tmp"):
        path.unlink(missing_ok=True)


def clear(folder: Path) -> None:
    """Remove what a job left, its manifest last, so that whoever is stopped in between may do it again."""
    names = [RECORDS.format("*"), RANGES, TOTAL, "_*.tmp", "part-*", f"{DATABASE}*", MANIFEST]
    for path in [path for name in names for path in sorted(folder.glob(name))]:
        path.unlink(missing_ok=True)


def save_ranges(folder: Path, ranges: Ranges) -> Ranges:
    """Keep what 8-bit vectors are measured by; returns what is kept, which another process may have been first with."""
    save_json(folder / RANGES, {"low": ranges.low.tolist(), "high": ranges.high.tolist()}, replace=False)
    return load_ranges(folder / RANGES) or ranges


def load_ranges(path: Path) -> Ranges | None:
    """Those of a file that `save_ranges` wrote; None where there is none."""
    content = load_json(path)
    if content is None:
        return None
    try:
        return Ranges(np.array(content["low"], np.float32), np.array(content["high"], np.float32))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} holds no ranges ({error}); expected the {RANGES} of a job") from error


def opened(folder: Path | str) -> tuple[Manifest, Store]:
    """The job in a folder.

    Raises:
        InputError: where there is none.
    """
    folder = Path(folder)
    manifest = Manifest.load(folder) if folder.is_dir() else None
    if manifest is None:
        raise InputError(f"{shown(str(folder))} holds no job; expected the folder that `archport batch` wrote")
    about = {**manifest.settings, **manifest.provenance}
    return manifest, store_of(folder, manifest.settings["output_format"], about)


def read(folder: Path | str) -> Iterator[Stored]:
    """Every part that a job wrote, in order, one at a time: ids, vectors as they are stored, errors.

    Raises:
        InputError: where there is no job.
    """
    _, store = opened(folder)
    for _, record in sorted(store.records().items()):
        yield store.read(record)
