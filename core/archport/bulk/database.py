"""Parts as transactions of an SQLite database with llm's tables `collections` and `embeddings`."""

from __future__ import annotations

import errno
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from archport.answering.sparse_vectors import SparseVectors
from archport.bulk.answers import Answered
from archport.bulk.formats import Stored, arrays
from archport.bulk.manifest import Record, record_of
from archport.contract import InputError

DATABASE = "embeddings.db"
# Seconds for which one process waits until another one has written.
_PATIENCE = 120.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS collections (id INTEGER PRIMARY KEY, name TEXT, model TEXT);
CREATE UNIQUE INDEX IF NOT EXISTS idx_collections_name ON collections (name);
CREATE TABLE IF NOT EXISTS embeddings (
    collection_id INTEGER REFERENCES collections (id), id TEXT, embedding BLOB, content TEXT, content_blob BLOB,
    content_hash BLOB, metadata TEXT, updated INTEGER, PRIMARY KEY (collection_id, id)
);
CREATE TABLE IF NOT EXISTS archport_errors (part INTEGER, row INTEGER, id TEXT, error TEXT, PRIMARY KEY (part, row));
CREATE TABLE IF NOT EXISTS archport_parts (part INTEGER PRIMARY KEY, first INTEGER, last INTEGER, record TEXT);
"""


class Database:
    """Parts in one database, of which several processes may write.

    A vector is its numbers as they lie in memory, little-endian; per token one row after another; a sparse one is its
    dimensions as int32, and then their weights. Ids are text. Rows without a vector are in `archport_errors`.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self._path, self._about = folder / DATABASE, about

    def recorded(self) -> dict[int, Record]:
        if not self._path.exists():
            return {}
        with self._opened() as database:
            texts = [text for (text,) in database.execute("SELECT record FROM archport_parts")]
        return {record.part: record for record in map(_record, texts)}

    def records(self) -> dict[int, Record]:
        if not self._path.exists():
            return {}
        found: dict[int, Record] = {}
        with self._opened() as database:
            fault = next(iter(database.execute("PRAGMA quick_check(1)")))[0]
            if fault != "ok":
                raise InputError(f"{self._path} is damaged ({fault}); begin anew with overwrite=True, or from a copy")
            for first, last, text in list(database.execute("SELECT first, last, record FROM archport_parts")):
                record = _record(text)
                rows = database.execute(
                    "SELECT id, embedding FROM embeddings WHERE rowid BETWEEN ? AND ? ORDER BY rowid", (first, last)
                )
                if _digest(rows) == record.files[DATABASE]:
                    found[record.part] = record
        return found

    def write(self, part: Answered, id_type: type | None) -> Record:
        blobs, now = list(_blobs(part.vectors)), int(time.time())
        rows = [(str(part.ids[index]), blob) for index, blob in zip(part.rows, blobs, strict=True)]
        faults = [(part.number, index, _text(part.ids[index]), error) for index, error in part.errors.items()]
        record = record_of(part, {DATABASE: _digest(rows)})
        with self._opened() as database:
            database.execute("BEGIN IMMEDIATE")
            first = (next(iter(database.execute("SELECT max(rowid) FROM embeddings")))[0] or 0) + 1
            database.executemany(
                "INSERT OR REPLACE INTO embeddings (rowid, collection_id, id, embedding, updated)"
                " VALUES (?, 1, ?, ?, ?)",
                [(first + at, id, blob, now) for at, (id, blob) in enumerate(rows)],
            )
            database.execute("DELETE FROM archport_errors WHERE part = ?", (part.number,))
            database.executemany("INSERT INTO archport_errors VALUES (?, ?, ?, ?)", faults)
            database.execute(
                "INSERT OR REPLACE INTO archport_parts VALUES (?, ?, ?, ?)",
                (part.number, first, first + len(rows) - 1, json.dumps(asdict(record))),
            )
            database.execute("COMMIT")
        return record

    def read(self, record: Record) -> Stored:
        with self._opened() as database:
            first, last = next(
                iter(database.execute("SELECT first, last FROM archport_parts WHERE part = ?", (record.part,)))
            )
            rows = list(
                database.execute(
                    "SELECT id, embedding FROM embeddings WHERE rowid BETWEEN ? AND ? ORDER BY rowid", (first, last)
                )
            )
            faults = list(
                database.execute("SELECT id, error FROM archport_errors WHERE part = ? ORDER BY row", (record.part,))
            )
        errors = {len(rows) + at: error for at, (_, error) in enumerate(faults)}
        ids = [id for id, _ in rows] + [id for id, _ in faults]
        return Stored(ids, _vectors([blob for _, blob in rows], self._about), errors)

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """The database with its tables; an error of it names the file, and leaves what was there."""
        try:
            database = sqlite3.connect(self._path, timeout=_PATIENCE, isolation_level=None)
            try:
                database.execute("PRAGMA synchronous = FULL")
                database.executescript(_SCHEMA)
                name = str(self._about.get("model"))
                database.execute("INSERT OR IGNORE INTO collections VALUES (1, 'archport', ?)", (name,))
                yield database
            finally:
                database.close()
        except sqlite3.OperationalError as error:
            raise OSError(errno.EIO, str(error), str(self._path)) from error
        except sqlite3.DatabaseError as error:
            raise InputError(f"{self._path} is no database, or damaged ({error})") from error


def _record(text: str) -> Record:
    values = json.loads(text)
    rows, digest = values["files"][DATABASE]
    return Record(**{**values, "files": {DATABASE: (rows, digest)}})


def _text(id: int | str | None) -> str | None:
    return None if id is None else str(id)


def _digest(rows: Any) -> tuple[int, str]:
    """(rows, what tells them from others)."""
    found, count = blake2b(digest_size=16), 0
    for count, (id, blob) in enumerate(rows, 1):  # noqa: B007
        found.update(id.encode() + b"\0" + blob)
    return count, found.hexdigest()


def _blobs(vectors: Any) -> Iterator[bytes]:
    for index in range(len(vectors)):
        if isinstance(vectors, SparseVectors):
            indices, values = vectors.row(index)
            yield indices.astype("<i4").tobytes() + values.astype("<f4").tobytes()
        else:
            yield np.ascontiguousarray(vectors[index]).tobytes()


def _vectors(blobs: list[bytes], about: Mapping[str, Any]) -> Any:
    """What `_blobs` made bytes of."""
    if about.get("output") == "sparse":
        halves = [(blob[: len(blob) // 2], blob[len(blob) // 2 :]) for blob in blobs]
        return arrays(
            [(np.frombuffer(indices, "<i4"), np.frombuffer(values, "<f4")) for indices, values in halves], about
        )
    kind = {"binary": "int8", "ubinary": "uint8"}.get(str(about.get("precision")), str(about.get("precision")))
    rows = [np.frombuffer(blob, kind) for blob in blobs]
    if about.get("output") == "tokens":
        rows = [row.reshape(-1, about["dimensions"]) for row in rows]
    return arrays(rows, about)
