"""Inputs that are tables in files: parquet, Arrow, numpy, SQLite, and a folder whose files are the rows."""

from __future__ import annotations

import codecs
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

from archport.bulk.extras import arrow, parquet
from archport.bulk.manifest import MANIFEST
from archport.bulk.rows import MOST_BYTES, Fields, Row, made, text_row
from archport.contract import InputError
from archport.contract.errors import shown
from archport.contract.sizes import format_bytes
from archport.reading.columns import arrow_values, utf8

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".avif")
# Rows read at a time.
_BLOCK = 1024


class Parquet:
    """A parquet file, row group by row group. It is open only while it is read, as a job may have thousands."""

    def __init__(self, source: str) -> None:
        self._source, self.share = source, 0.0
        with self._opened() as file:
            self._names = file.schema_arrow.names

    def names(self) -> list[str]:
        return self._names

    def rows(self, fields: Fields) -> Iterator[Row]:
        with self._opened() as file:
            total, count = max(1, file.metadata.num_rows), 0
            batches = file.iter_batches(_BLOCK, columns=fields.named)
            while True:
                try:
                    batch = next(batches, None)
                except (arrow().ArrowException, OSError) as error:
                    raise _damaged(self._source, error, f" after row {count}") from error
                if batch is None:
                    break
                yield from _arrow_rows(self._source, batch, fields, count)
                count += batch.num_rows
                self.share = count / total

    def _opened(self) -> Any:
        try:
            # Without buffers of whole row groups.
            return parquet().ParquetFile(self._source, pre_buffer=False, buffer_size=1 << 20)
        except (arrow().ArrowException, OSError) as error:
            raise _damaged(self._source, error) from error


class Arrow:
    """An Arrow file or stream (.arrow, .feather), batch by batch. It is open only while it is read."""

    def __init__(self, source: str) -> None:
        self._source, self.share = source, 0.0
        with self._opened() as (file, _):
            self._names = file.schema.names

    def names(self) -> list[str]:
        return self._names

    def rows(self, fields: Fields) -> Iterator[Row]:
        first = 0
        for batch in self._batches():
            for begin in range(0, batch.num_rows, _BLOCK):
                some = batch.slice(begin, _BLOCK).select(fields.named)
                yield from _arrow_rows(self._source, some, fields, first + begin)
            first += batch.num_rows

    def _batches(self) -> Iterator[Any]:
        with self._opened() as (file, count):
            if count is None:
                yield from file
                return
            for number in range(count):
                yield file.get_batch(number)
                self.share = (number + 1) / count

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, int | None]]:
        """(file or stream, batches of a file)."""
        try:
            with arrow().memory_map(self._source) as mapped:
                try:
                    file = arrow().ipc.open_file(mapped)
                    opened = file, file.num_record_batches
                except arrow().ArrowInvalid:
                    mapped.seek(0)
                    opened = arrow().ipc.open_stream(mapped), None
                yield opened
        except (arrow().ArrowException, OSError) as error:
            raise _damaged(self._source, error) from error


def _arrow_rows(source: str, batch: Any, fields: Fields, first: int) -> Iterator[Row]:
    names, folder = fields.named, Path(source).parent
    columns = [arrow_values(batch.column(name)) for name in names]
    for number, values in enumerate(zip(*columns, strict=True), first + 1):
        yield made((source, "row", number), dict(zip(names, values, strict=True)), fields, folder)


def _damaged(source: str, error: Exception, where: str = "") -> InputError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
    return InputError(f"{shown(source)} can't be read{where}: damaged or cut off ({reason:.200})")


class Numpy:
    """A .npy file of one dimension of strings. It is open only while it is read."""

    def __init__(self, source: str) -> None:
        self._source, self.share = source, 0.0
        array = self._opened()
        if array.ndim != 1 or array.dtype.kind not in "US":
            raise InputError(f"{source} holds {array.dtype} {array.shape}; expected one dimension of strings")

    def names(self) -> list[str]:
        return []

    def rows(self, fields: Fields) -> Iterator[Row]:
        array = self._opened()
        for first in range(0, len(array), _BLOCK):
            for number, text in enumerate(array[first : first + _BLOCK].tolist(), first + 1):
                yield text_row((self._source, "row", number), utf8(text) if isinstance(text, bytes) else text)
            self.share = min(1.0, (first + _BLOCK) / len(array))

    def _opened(self) -> np.ndarray:
        try:
            return np.load(self._source, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError, SyntaxError) as error:
            raise _damaged(self._source, error) from error


class Sqlite:
    """A table of an SQLite database, in the order of its rows.

    Args:
        table: None for the only one.
    """

    def __init__(self, source: str, table: str | None) -> None:
        self._source, self.share = source, 0.0
        if not Path(source).is_file():
            raise InputError(f"{shown(source)} can't be read: there is no such file")
        with closing(self._opened()) as database:
            # SQLite's own tables, as that of AUTOINCREMENT, are nobody's rows.
            wanted = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT GLOB 'sqlite_*'"
            tables = [name for (name,) in self._asked(database, wanted)]
            if table is None and len(tables) != 1:
                raise InputError(f"{source} has tables {', '.join(tables) or 'none at all'}; name one with table=")
            if table is not None and table not in tables:
                raise InputError(f"{source} has no table={table!r}; it has {', '.join(tables) or 'none at all'}")
            self._table = _quoted(table or tables[0])
            self._names = [str(row[1]) for row in self._asked(database, f"PRAGMA table_info({self._table})")]
            self._count = max(1, next(iter(self._asked(database, f"SELECT count(*) FROM {self._table}")))[0])

    def names(self) -> list[str]:
        return self._names

    def rows(self, fields: Fields) -> Iterator[Row]:
        wanted = f"SELECT {', '.join(map(_quoted, fields.named))} FROM {self._table}"
        with closing(self._opened()) as database:
            try:
                database.execute(f"SELECT rowid FROM {self._table} LIMIT 1")
                wanted += " ORDER BY rowid"
            except sqlite3.OperationalError:
                # A table without row ids lies in the order of its key.
                pass
            # Of texts alone, not of blobs. Python's own would end the reading at a value that is not UTF-8.
            database.text_factory = utf8
            for number, values in enumerate(self._asked(database, wanted), 1):
                named = {
                    name: utf8(value) if isinstance(value, bytes) and name != fields.image else value
                    for name, value in zip(fields.named, values, strict=True)
                }
                yield made((self._source, "row", number), named, fields, Path(self._source).parent)
                self.share = number / self._count

    def _opened(self) -> sqlite3.Connection:
        return sqlite3.connect(f"{Path(self._source).resolve().as_uri()}?mode=ro", uri=True)

    def _asked(self, database: sqlite3.Connection, query: str) -> Iterator[tuple[Any, ...]]:
        try:
            yield from database.execute(query)
        except sqlite3.Error as error:
            raise InputError(f"{self._source} can't be read as an SQLite database: {error}") from error


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def files_below(source: str) -> Iterator[Path]:
    """Files of a folder and of those in it, but for hidden ones and for what a job wrote: a job may write there."""
    for folder, folders, files in os.walk(source):
        if MANIFEST in files and folder != source:
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder) / name for name in sorted(files) if not name.startswith("."))


class Folder:
    """The files below a folder, in the order of their paths, which are their ids.

    Pictures are pictures, and all others texts.

    Args:
        pattern: which of the relative paths count, as "*.md"; None for all.
    """

    def __init__(self, source: str, pattern: str | None) -> None:
        self._source, self._pattern, self.share = source, pattern, 0.0

    def names(self) -> list[str]:
        return ["id"]

    def files(self) -> Iterator[Path]:
        for path in files_below(self._source):
            if self._pattern is None or fnmatch(path.relative_to(self._source).as_posix(), self._pattern):
                yield path

    def rows(self, fields: Fields) -> Iterator[Row]:
        total = max(1, sum(1 for _ in self.files()))
        for number, path in enumerate(self.files(), 1):
            yield self._row(path)
            self.share = number / total

    def _row(self, path: Path) -> Row:
        id, place = path.relative_to(self._source).as_posix(), (str(path),)
        try:
            # A pipe or a device would wait for somebody.
            if not path.is_file():
                return Row(place, id, None, "no regular file")
            if path.suffix.lower() in PICTURES:
                return Row(place, id, {"image": str(path)})
            if path.stat().st_size > MOST_BYTES:
                return Row(place, id, None, f"a file of more than {format_bytes(MOST_BYTES)}")
            return text_row(place, utf8(path.read_bytes().removeprefix(codecs.BOM_UTF8)), id)
        except OSError as error:
            return Row(place, id, None, f"can't be read: {error.strerror}")
