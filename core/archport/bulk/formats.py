"""How a part lies in files: parquet, JSON lines, numpy, answers of an OpenAI batch. Knows not when it is written."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

import numpy as np

from archport.answering.sparse_vectors import SparseVectors
from archport.bulk.answers import Answered
from archport.bulk.extras import arrow, parquet
from archport.bulk.ids import id_column

OutputFormat = Literal["parquet", "jsonl", "npy", "sqlite", "openai"]
Writes = dict[str, Callable[[BinaryIO], None]]


@dataclass(frozen=True, slots=True)
class Stored:
    """A part as it was written.

    Args:
        ids: of every row.
        vectors: of those that have one, in order, as `Answered.vectors`.
        errors: index among the ids -> why it has none.
    """

    ids: list[int | str | None]
    vectors: Any
    errors: dict[int, str] = field(default_factory=dict[int, str])

    def rows(self) -> Iterator[tuple[int | str | None, Any]]:
        """(id, vector) of the rows that have one."""
        vectors = iter(range(len(self.vectors)))
        for index, id in enumerate(self.ids):
            if index not in self.errors:
                at = next(vectors)
                yield id, self.vectors.row(at) if isinstance(self.vectors, SparseVectors) else self.vectors[at]


class Format(Protocol):
    """One kind of file."""

    def files(self, stem: str, part: Answered, id_type: type | None) -> Writes:
        """What to write under which names.

        Args:
            id_type: of every id of the job; None where no row had a good one yet.
        """
        ...

    def read(self, folder: Path, stem: str) -> Stored:
        """What was written under a stem."""
        ...


class ParquetFiles:
    """Columns id, embedding (lists of a fixed size; sparse: indices and values), error; provenance in the metadata."""

    def __init__(self, provenance: Mapping[str, Any]) -> None:
        self._provenance = provenance

    def files(self, stem: str, part: Answered, id_type: type | None) -> Writes:
        pa = arrow()
        ids = pa.array(part.ids, pa.int64() if (id_type or id_column(part.ids)) is int else pa.string())
        missing = np.zeros(len(part.ids), bool)
        missing[list(part.errors)] = True
        columns = {
            "id": ids,
            **_vector_columns(pa, part.vectors, missing, self._provenance.get("dimensions")),
            "error": pa.array([part.errors.get(index) for index in range(len(part.ids))], pa.string()),
        }
        table = pa.table(columns).replace_schema_metadata({"archport": json.dumps(dict(self._provenance))})

        def write(file: BinaryIO) -> None:
            # Floats of vectors do not repeat: a dictionary or compression would cost time and save nothing.
            parquet().write_table(table, file, use_dictionary=False, compression="none", row_group_size=1 << 14)

        return {f"{stem}.parquet": write}

    def read(self, folder: Path, stem: str) -> Stored:
        # The file alone, not a data set of the folder.
        table = parquet().ParquetFile(folder / f"{stem}.parquet").read()
        errors = {index: error for index, error in enumerate(table.column("error").to_pylist()) if error is not None}
        name = "indices" if "indices" in table.column_names else "embedding"
        column = table.column(name).combine_chunks().drop_null()
        if name == "indices":
            ends = np.concatenate([[0], np.cumsum(column.value_lengths().to_numpy())]).astype(np.int64)
            values = table.column("values").combine_chunks().drop_null().flatten()
            width = json.loads(table.schema.metadata[b"archport"])["dimensions"]
            return Stored(
                table.column("id").to_pylist(),
                SparseVectors(_numbers(column.flatten()), _numbers(values), ends, width),
                errors,
            )
        return Stored(table.column("id").to_pylist(), arrow_vectors(column), errors)


def vector_column(pa: Any, vectors: np.ndarray, missing: np.ndarray, width: int | None = None) -> Any:
    """An Arrow column of vectors (n, D), or of an object array of (tokens, D), with nulls where they are missing.

    Args:
        missing: of every row of the column, whether it has none.
        width: D of vectors of tokens, which no row may have.
    """
    if vectors.dtype == object:
        inner_width = int(vectors[0].shape[1]) if len(vectors) else width or 1
        flat = np.concatenate([*vectors, np.zeros((0, inner_width), np.float32)])
        lengths = np.zeros(len(missing), np.int32)
        lengths[~missing] = [len(vector) for vector in vectors]
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
        inner = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), inner_width)
        return pa.ListArray.from_arrays(offsets, inner, mask=pa.array(missing))
    full = vectors
    if missing.any():
        full = np.zeros((len(missing), vectors.shape[1]), vectors.dtype)
        full[~missing] = vectors
    return pa.FixedSizeListArray.from_arrays(pa.array(full.reshape(-1)), vectors.shape[1], mask=pa.array(missing))


def arrow_type(column: Any) -> Any:
    """A column that was read from parquet, of the type that `vector_column` gave it: parquet names what is in lists."""
    pa = arrow()

    def plain(kind: Any) -> Any:
        if pa.types.is_fixed_size_list(kind):
            return pa.list_(plain(kind.value_type), kind.list_size)
        return pa.list_(plain(kind.value_type)) if pa.types.is_list(kind) else kind

    return column.cast(plain(column.type))


def plain_lists(column: Any) -> Any:
    """A column with lists of any size in place of those of a fixed one."""
    pa = arrow()

    def plain(kind: Any) -> Any:
        lists = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind)
        return pa.list_(plain(kind.value_type)) if lists else kind

    return column.cast(plain(column.type))


def arrow_vectors(column: Any) -> np.ndarray:
    """Vectors (n, D), or an object array of (tokens, D), of a column without nulls that `vector_column` made."""
    pa = arrow()
    if pa.types.is_fixed_size_list(column.type):
        return _numbers(column.flatten()).reshape(len(column), column.type.list_size)
    inner = column.flatten()
    flat = _numbers(inner.flatten()).reshape(len(inner), inner.type.list_size)
    lengths = column.value_lengths().to_numpy()
    found = np.empty(len(column), dtype=object)
    for index, (end, length) in enumerate(zip(np.cumsum(lengths), lengths, strict=True)):
        found[index] = flat[end - length : end]
    return found


def _vector_columns(pa: Any, vectors: Any, missing: np.ndarray, width: int | None) -> dict[str, Any]:
    if not isinstance(vectors, SparseVectors):
        return {"embedding": vector_column(pa, vectors, missing, width)}
    lengths = np.zeros(len(missing), np.int32)
    lengths[~missing] = np.diff(vectors.indptr)
    offsets, mask = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)), pa.array(missing)
    return {
        "indices": pa.ListArray.from_arrays(offsets, pa.array(vectors.indices), mask=mask),
        "values": pa.ListArray.from_arrays(offsets, pa.array(vectors.values), mask=mask),
    }


def _numbers(array: Any) -> np.ndarray:
    return array.to_numpy(zero_copy_only=False)


class JsonLinesFiles:
    """{"id", "embedding"} or {"id", "error"} per line; sparse vectors as {"id", "indices", "values"}."""

    def __init__(self, provenance: Mapping[str, Any]) -> None:
        self._provenance = provenance

    def files(self, stem: str, part: Answered, id_type: type | None) -> Writes:
        def write(file: BinaryIO) -> None:
            for line in json_lines(part):
                file.write(line)

        return {f"{stem}.jsonl": write}

    def read(self, folder: Path, stem: str) -> Stored:
        ids: list[Any] = []
        vectors: list[Any] = []
        errors: dict[int, str] = {}
        for value in _values(folder / f"{stem}.jsonl"):
            if "error" in value:
                errors[len(ids)] = value["error"]
            else:
                vectors.append((value["indices"], value["values"]) if "indices" in value else value["embedding"])
            ids.append(value["id"])
        return Stored(ids, arrays(vectors, self._provenance), errors)


def json_lines(part: Answered) -> Iterator[bytes]:
    """A line for every row."""
    vectors = iter(range(len(part.vectors)))
    for index, id in enumerate(part.ids):
        value: dict[str, Any] = {"id": id}
        if index in part.errors:
            value["error"] = part.errors[index]
        elif isinstance(part.vectors, SparseVectors):
            value["indices"], value["values"] = (each.tolist() for each in part.vectors.row(next(vectors)))
        else:
            value["embedding"] = part.vectors[next(vectors)].tolist()
        yield json.dumps(value, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def arrays(vectors: list[Any], provenance: Mapping[str, Any]) -> Any:
    """Rows as `Answered.vectors` has them: lists or arrays, pairs for sparse ones."""
    kind = np.dtype(_TYPES.get(str(provenance.get("precision")), "float32"))
    if provenance.get("output") == "sparse":
        rows = [(np.asarray(indices), np.asarray(values)) for indices, values in vectors]
        return SparseVectors.of(rows, provenance["dimensions"])
    if provenance.get("output") != "tokens":
        return np.array(vectors, kind) if vectors else np.zeros((0, 0), kind)
    found = np.empty(len(vectors), dtype=object)
    for index, vector in enumerate(vectors):
        found[index] = np.array(vector, kind)
    return found


# numpy's type of every precision.
_TYPES = {"float32": "float32", "int8": "int8", "uint8": "uint8", "binary": "int8", "ubinary": "uint8"}


def save_array(file: BinaryIO, array: np.ndarray) -> None:
    """Write an array as `np.save` does, byte for byte, by the file's own `write`.

    numpy writes to a copy of a real file's descriptor, and what fails when it closes that, such as the last 4 KB on a
    full disk, is lost without an error.

    Raises:
        OSError: it can't be written.
    """
    whole = np.ascontiguousarray(array)
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(whole))
    file.write(whole.reshape(-1).view(np.uint8).data)


class NumpyFiles:
    """STEM.npy holds a vector for every line of STEM.ids.jsonl; one that is missing is NaN, or 0 in 8 bits.

    Per token, STEM.npy holds the vectors of all tokens and STEM.ends.npy where each row's begin and the last one ends.
    Sparse vectors are STEM.npz, which scipy.sparse.load_npz reads.
    """

    def files(self, stem: str, part: Answered, id_type: type | None) -> Writes:
        def write_ids(file: BinaryIO) -> None:
            for index, id in enumerate(part.ids):
                error = part.errors.get(index)
                value = {"id": id} if error is None else {"id": id, "error": error}
                file.write(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace") + b"\n")

        ids, kept, vectors = {f"{stem}.ids.jsonl": write_ids}, part.rows, part.vectors
        if isinstance(vectors, SparseVectors):
            return {**ids, f"{stem}.npz": lambda file: _write_csr(file, vectors, kept, len(part.ids))}
        if vectors.dtype == object:
            lengths = np.zeros(len(part.ids), np.int64)
            lengths[kept] = [len(vector) for vector in vectors]
            ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
            flat = np.concatenate(list(vectors)) if len(vectors) else np.zeros((0, 0), np.float32)
            return {
                **ids,
                f"{stem}.ends.npy": lambda file: save_array(file, ends),
                f"{stem}.npy": lambda file: save_array(file, flat),
            }
        full = vectors
        if part.errors:
            nothing = np.nan if vectors.dtype.kind == "f" else 0
            full = np.full((len(part.ids), vectors.shape[1]), nothing, vectors.dtype)
            full[kept] = vectors
        return {**ids, f"{stem}.npy": lambda file: save_array(file, full)}

    def read(self, folder: Path, stem: str) -> Stored:
        values = list(_values(folder / f"{stem}.ids.jsonl"))
        errors = {index: value["error"] for index, value in enumerate(values) if "error" in value}
        ids, kept = [value["id"] for value in values], [index for index in range(len(values)) if index not in errors]
        if (folder / f"{stem}.npz").exists():
            with np.load(folder / f"{stem}.npz") as csr:
                lengths = np.diff(csr["indptr"])[kept]
                ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
                return Stored(ids, SparseVectors(csr["indices"], csr["data"], ends, int(csr["shape"][1])), errors)
        array = np.load(folder / f"{stem}.npy", mmap_mode="r")
        if (folder / f"{stem}.ends.npy").exists():
            ends = np.load(folder / f"{stem}.ends.npy")
            found = np.empty(len(kept), dtype=object)
            for at, index in enumerate(kept):
                found[at] = array[ends[index] : ends[index + 1]]
            return Stored(ids, found, errors)
        return Stored(ids, array[kept] if errors else array, errors)


def _write_csr(file: BinaryIO, vectors: SparseVectors, kept: list[int], count: int) -> None:
    lengths = np.zeros(count, np.int64)
    lengths[kept] = np.diff(vectors.indptr)
    np.savez(
        file,
        indices=vectors.indices,
        indptr=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        format=np.array(b"csr"),
        shape=np.array([count, vectors.width]),
        data=vectors.values,
    )


class OpenAIFiles:
    """A line for every request of an OpenAI batch, in their order: {"id", "custom_id", "response", "error"}."""

    def __init__(self, provenance: Mapping[str, Any]) -> None:
        self._model = str(provenance.get("model"))

    def files(self, stem: str, part: Answered, id_type: type | None) -> Writes:
        def write(file: BinaryIO) -> None:
            assert not isinstance(part.vectors, SparseVectors), "a batch is answered with vectors of floats"
            vectors = iter(part.vectors)
            for index, (id, (request, tokens)) in enumerate(zip(part.ids, part.requests, strict=True)):
                body = (
                    _refused(part.errors[index])
                    if index in part.errors
                    else _answer(next(vectors), request or {}, tokens, self._model)
                )
                name = f"{part.number}-{index}"
                response = {
                    "status_code": 400 if index in part.errors else 200,
                    "request_id": f"req-{name}",
                    "body": body,
                }
                value = {"id": f"batch_req-{name}", "custom_id": id, "response": response, "error": None}
                file.write(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace") + b"\n")

        return {f"{stem}.jsonl": write}

    def read(self, folder: Path, stem: str) -> Stored:
        ids: list[Any] = []
        vectors: list[np.ndarray] = []
        errors: dict[int, str] = {}
        for value in _values(folder / f"{stem}.jsonl"):
            body = value["response"]["body"]
            if "error" in body:
                errors[len(ids)] = body["error"]["message"]
            else:
                vectors.append(np.array([_floats(each["embedding"]) for each in body["data"]], np.float32))
            ids.append(value["custom_id"])
        found = np.empty(len(vectors), dtype=object)
        for index, vector in enumerate(vectors):
            found[index] = vector
        return Stored(ids, found, errors)


def _answer(vectors: np.ndarray, request: Mapping[str, Any], tokens: int, model: str) -> dict[str, Any]:
    packed = request.get("encoding_format") == "base64"
    each = [base64.b64encode(row.astype("<f4").tobytes()).decode() if packed else row.tolist() for row in vectors]
    data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(each)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": request.get("model", model), "usage": usage}


def _refused(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}


def _values(path: Path) -> Iterator[Any]:
    with path.open("rb") as file:
        yield from map(json.loads, file)


def _floats(value: Any) -> Any:
    return np.frombuffer(base64.b64decode(value), "<f4") if isinstance(value, str) else value


def format_of(kind: OutputFormat, provenance: Mapping[str, Any]) -> Format:
    """The kind of file that a format has; SQLite has a store of its own."""
    makers: dict[str, Callable[[], Format]] = {
        "parquet": lambda: ParquetFiles(provenance),
        "jsonl": lambda: JsonLinesFiles(provenance),
        "npy": NumpyFiles,
        "openai": lambda: OpenAIFiles(provenance),
    }
    return makers[kind]()
