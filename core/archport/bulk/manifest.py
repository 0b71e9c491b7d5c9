"""What a job left on disk: its manifest, the record of every part, and files that are whole or not there.

Names that begin with an underscore are no data: pyarrow, Spark, DuckDB and Polars pass over them.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

from archport.bulk.answers import Answered
from archport.contract import InputError
from archport.contract.errors import of_file

MANIFEST, RECORDS, RANGES, TOTAL = "_manifest.json", "_parts{}.jsonl", "_ranges.json", "_total.json"
VERSION = 1


def whole(path: Path, write: Callable[[BinaryIO], object], *, replace: bool = True) -> None:
    """Write a file so that under its own name it is whole or not there, whenever the machine stops.

    Args:
        replace: whether to take the place of a file of that name, or leave it.

    Raises:
        OSError: nothing is left of it then.
    """
    temporary = path.with_name(f"_{path.name}.{os.getpid()}.tmp")
    try:
        with of_file(path), temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            temporary.replace(path)
        else:
            _named(temporary, path)
            temporary.unlink(missing_ok=True)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def _named(temporary: Path, path: Path) -> None:
    """Give a file a name that no other one has, or leave it."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    except OSError as error:
        # exFAT and some file systems of networks have no links; there another process may come in between.
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        if not path.exists():
            temporary.replace(path)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest_of(path: Path) -> str:
    """What tells a file's content from any other."""
    found = blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


@dataclass(frozen=True, slots=True)
class Record:
    """A part that was written.

    Args:
        part, first, count: its number, its first row and the rows that were read for it.
        written, failed: rows in it, and rows without a vector.
        tokens: run for it.
        input: digest of what was read.
        files: name -> (bytes, digest).
    """

    part: int
    first: int
    count: int
    written: int
    failed: int
    tokens: int
    input: str
    files: dict[str, tuple[int, str]] = field(default_factory=dict[str, tuple[int, str]])

    def holds(self, folder: Path) -> bool:
        """Whether its files are there, whole."""
        for name, (size, digest) in self.files.items():
            path = folder / name
            try:
                if path.stat().st_size != size or digest_of(path) != digest:
                    return False
            except OSError:
                return False
        return True


def record_of(part: Answered, files: dict[str, tuple[int, str]]) -> Record:
    """The record of a part in these files."""
    return Record(part.number, part.first, part.count, len(part.ids), part.failed, part.tokens, part.digest, files)


def add_record(folder: Path, label: str, record: Record) -> None:
    """Note a part for ever.

    Args:
        label: of the process that writes, as no two may append to one file.
    """
    with (folder / RECORDS.format(label)).open("ab+") as file:
        # After a line that was cut off a new one would be none either.
        file.seek(0, os.SEEK_END)
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(asdict(record)).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def records(folder: Path) -> dict[int, Record]:
    """The record of every part, by its number; a line that was cut off is none."""
    found: dict[int, Record] = {}
    for path in sorted(folder.glob(RECORDS.format("*"))):
        for line in path.read_bytes().splitlines():
            try:
                values = json.loads(line)
                files = {name: (int(size), str(digest)) for name, (size, digest) in values.pop("files").items()}
                record = Record(**values, files=files)
            except (ValueError, TypeError, KeyError, AttributeError):
                continue
            found[record.part] = record
    return found


@dataclass(frozen=True, slots=True)
class Manifest:
    """What parts depend on.

    Args:
        settings: by the names that the command line has for them.
        inputs: what was read, as `Inputs.identity` tells it.
        provenance: what else is worth knowing, and changes nothing.
    """

    settings: dict[str, Any]
    inputs: list[dict[str, Any]]
    provenance: dict[str, Any]

    def save(self, folder: Path, *, replace: bool = True) -> None:
        """Write it whole; without `replace` only where there is none."""
        save_json(folder / MANIFEST, {"schema_version": VERSION, **asdict(self)}, replace=replace)

    @classmethod
    def load(cls, folder: Path) -> Manifest | None:
        """That of a folder; None where there is none.

        Raises:
            InputError: for one that can't be read.
        """
        path = folder / MANIFEST
        try:
            content = json.loads(path.read_bytes())
            if content["schema_version"] != VERSION:
                raise InputError(
                    f"{path} has schema_version {content['schema_version']!r}; this archport writes {VERSION}"
                )
            return cls(content["settings"], content["inputs"], content["provenance"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path} can't be read ({error}); it is no manifest of a job, or damaged") from error

    def differences(self, other: Manifest) -> Iterator[str]:
        """What the other one has otherwise, in words."""
        for name in sorted({*self.settings, *other.settings}):
            was, now = self.settings.get(name), other.settings.get(name)
            if was != now:
                yield f"{name} was {was!r:.80} and is {now!r:.80}"
        if [each.get("name") for each in self.inputs] != [each.get("name") for each in other.inputs]:
            names = [", ".join(str(each.get("name")) for each in some) for some in (self.inputs, other.inputs)]
            yield f"the inputs were {names[0]} and are {names[1]}"
            return
        for was, now in zip(self.inputs, other.inputs, strict=True):
            if was != now:
                sizes = [each.get("bytes", each.get("files")) for each in (was, now)]
                changed = f"had {sizes[0]} and has {sizes[1]} {'files' if 'files' in now else 'bytes'}"
                yield f"{now['name']} {changed if sizes[0] != sizes[1] else 'holds something else'}"


def save_json(path: Path, content: Mapping[str, Any], *, replace: bool = True) -> None:
    """Write an object whole; without `replace` only where there is no file of that name."""
    text = json.dumps(content, indent=1, ensure_ascii=False).encode("utf-8", "surrogatepass")
    whole(path, lambda file: file.write(text), replace=replace)


def load_json(path: Path) -> dict[str, Any] | None:
    """An object that `save_json` wrote; None where there is none."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read ({error})") from error
