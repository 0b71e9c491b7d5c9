"""What a job reads: files, folders and standard input, by what they hold, one after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, Protocol

from archport.bulk.columns import Arrow, Folder, Numpy, Parquet, Sqlite, files_below
from archport.bulk.lines import JsonLines, OpenAILines, Table, TextLines
from archport.bulk.rows import Fields, Row
from archport.contract import InputError
from archport.contract.errors import shown

InputFormat = Literal["text", "jsonl", "csv", "tsv", "parquet", "arrow", "npy", "sqlite", "folder", "openai"]
_SUFFIXES: dict[str, InputFormat] = {
    ".txt": "text", ".text": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv",
    ".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow", ".npy": "npy", ".db": "sqlite",
    ".sqlite": "sqlite", ".sqlite3": "sqlite",
}  # fmt: skip
# Bytes at either end of a file by which it is known again.
_ENDS = 1 << 16
_NO_COLUMNS = ("text", "npy", "folder", "openai")


class Reader(Protocol):
    """One input, read as a stream.

    Attributes:
        share: of it that was read, 0 to 1; None where nobody knows.
    """

    @property
    def share(self) -> float | None: ...

    def names(self) -> list[str]:
        """Of its columns, or of the keys of its first row."""
        ...

    def rows(self, fields: Fields) -> Iterator[Row]: ...


class Inputs:
    """Every row of some inputs, in order.

    Args:
        sources: files, folders, or "-" for standard input.
        fields: what is what in them.
        input_format: of all of them, and of the files in folders; None goes by names, and by the first line of JSON.
        table: of SQLite databases.
        pattern: of the files in folders.

    Attributes:
        fields: those found, with the id that the first input has.
        openai: whether rows are requests of an OpenAI batch.

    Raises:
        InputError: for an input that can't be opened, or lacks a column.
    """

    def __init__(
        self,
        sources: Sequence[str],
        fields: Fields = Fields(),  # noqa: B008
        *,
        input_format: InputFormat | None = None,
        table: str | None = None,
        pattern: str | None = None,
    ) -> None:
        if not sources:
            raise InputError("there is no input; expected files, folders, or - for standard input")
        self.sources = [file for source in sources for file in _files(str(source), input_format)]
        self._sizes = [_size(source) for source in self.sources]
        self._how: dict[str, Any] = {"input_format": input_format, "table": table, "pattern": pattern}
        opened = [_opened(source, input_format, table, pattern) for source in self.sources]
        self._readers = [reader for _, reader in opened]
        kinds: list[InputFormat] = [kind for kind, _ in opened]
        self.openai = kinds[0] == "openai"
        if self.openai and set(kinds) != {"openai"}:
            raise InputError("requests of an OpenAI batch and other rows can't be one job; give them apart")
        self.fields = self._found(fields, kinds)
        for source, kind, reader in zip(self.sources, kinds, self._readers, strict=True):
            _check_columns(source, kind, reader, self.fields)

    def again(self) -> Inputs:
        """The same inputs, to be read once more.

        Raises:
            InputError: for standard input, which can't be.
        """
        if "-" in self.sources:
            raise InputError("standard input can't be read twice, as ranges for 8 bits want; give them with calibrate=")
        return Inputs(self.sources, self.fields, **self._how)

    @property
    def numbered(self) -> bool:
        """Whether rows have no ids but their number."""
        return self.fields.id is None

    def rows(self) -> Iterator[Row]:
        """Every row; can be read once.

        Raises:
            InputError: where an input can't be read on.
        """
        for reader in self._readers:
            yield from reader.rows(self.fields)

    def share(self) -> float | None:
        """How much of all inputs was read, 0 to 1, each counting alike by its bytes; None where nobody knows."""
        sizes = self._sizes
        shares = [reader.share for reader in self._readers]
        if any(share is None for share in shares):
            return None
        return sum(size * (share or 0.0) for size, share in zip(sizes, shares, strict=True)) / max(1, sum(sizes))

    def identity(self) -> list[dict[str, Any]]:
        """What tells these inputs from others, for a job that goes on."""
        return [
            {"name": source, **_identity(source, reader)}
            for source, reader in zip(self.sources, self._readers, strict=True)
        ]

    def _found(self, fields: Fields, kinds: list[InputFormat]) -> Fields:
        if kinds[0] == "openai":
            return replace(fields, text=None, image=None, id="custom_id")
        names = self._readers[0].names()
        id = fields.id if fields.id is not None or "id" not in names else "id"
        text = fields.text
        # Next to pictures a text is welcome, and missed by nobody.
        if fields.image is not None and not fields.chosen and text not in names and names:
            text = None
        return replace(fields, id=id, text=text)


def _files(source: str, format: InputFormat | None) -> list[str]:
    """The files of a folder that are of a format which was asked for; else the source itself."""
    if format in (None, "folder") or source == "-" or not Path(source).is_dir():
        return [source]
    found = sorted(path for path in files_below(source) if not path.name.startswith("_"))
    kinds = {"openai": "jsonl"}
    files = [str(path) for path in found if path.is_file() and _suffix(path) == kinds.get(format, format)]
    if not files:
        raise InputError(f"{shown(source)} is a folder without files of input_format={format!r}")
    return files


def _suffix(path: Path) -> InputFormat | None:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return _SUFFIXES.get(suffixes[-1] if suffixes else "")


def _opened(
    source: str, format: InputFormat | None, table: str | None, pattern: str | None
) -> tuple[InputFormat, Reader]:
    kind = format or _kind(source)
    if kind == "jsonl":
        lines = JsonLines(source)
        if format is not None or not lines.is_openai:
            return kind, lines
        # Standard input can't be looked at twice.
        if source == "-":
            raise InputError("standard input holds an OpenAI batch; say so with input_format='openai'")
        kind = "openai"
    if source == "-" and kind in ("parquet", "arrow", "npy", "sqlite", "folder"):
        raise InputError(f"standard input can't be read as {kind}; expected lines of text, jsonl, csv, tsv or openai")
    if kind == "folder":
        if not Path(source).is_dir():
            raise InputError(f"{shown(source)} is no folder")
        return kind, Folder(source, pattern)
    readers: dict[str, Any] = {
        "text": TextLines, "openai": OpenAILines, "parquet": Parquet, "arrow": Arrow, "npy": Numpy,
        "csv": lambda source: Table(source, ","), "tsv": lambda source: Table(source, "\t"),
        "sqlite": lambda source: Sqlite(source, table),
    }  # fmt: skip
    return kind, readers[kind](source)


def _kind(source: str) -> InputFormat:
    """What an input is by its name, a folder, or lines of text on standard input."""
    if source == "-":
        return "text"
    try:
        if Path(source).is_dir():
            return "folder"
    except (OSError, ValueError) as error:
        raise InputError(f"{shown(source)} can't be read: {error}") from error
    kind = _suffix(Path(source))
    if kind is None:
        raise InputError(
            f"{shown(source)} does not say by its name what it holds; expected {', '.join(_SUFFIXES)} (those of lines "
            "with .gz too), a folder, or input_format="
        )
    return kind


def _check_columns(source: str, kind: InputFormat, reader: Reader, fields: Fields) -> None:
    """Refuse a table without the columns; of JSON every row says so for itself, but for the first."""
    if kind in _NO_COLUMNS:
        lacking = [fields.id] if fields.id is not None and fields.id not in reader.names() else []
    else:
        names = reader.names()
        lacking = [name for name in fields.named if name not in names] if names or kind != "jsonl" else []
        # A picture may have no text, and a text no picture.
        if kind == "jsonl" and fields.image is not None:
            lacking = [name for name in lacking if name == fields.id]
    twice = [name for name in fields.named if reader.names().count(name) > 1]
    if twice:
        raise InputError(f"{'standard input' if source == '-' else source} has {twice[0]!r} twice; rename one of them")
    if lacking:
        raise InputError(
            f"{'standard input' if source == '-' else source} has no {lacking[0]!r}; it has "
            f"{', '.join(map(repr, reader.names()[:30])) or 'no columns'}"
        )


def _size(source: str) -> int:
    path = Path(source)
    return path.stat().st_size if source != "-" and path.is_file() else 1


def _identity(source: str, reader: Reader) -> dict[str, Any]:
    if source == "-":
        return {}
    found, path = blake2b(digest_size=16), Path(source)
    if isinstance(reader, Folder):
        count = 0
        for count, file in enumerate(reader.files(), 1):  # noqa: B007
            size = file.stat().st_size if file.is_file() else -1
            found.update(repr((str(file), size)).encode("utf-8", "surrogatepass"))
        return {"files": count, "digest": found.hexdigest()}
    size = path.stat().st_size
    if isinstance(reader, Sqlite):
        # Whoever reads or tidies a database changes its file; its rows are compared part by part.
        return {}
    with path.open("rb") as file:
        found.update(file.read(_ENDS))
        file.seek(max(0, size - _ENDS))
        found.update(file.read(_ENDS))
    return {"bytes": size, "digest": found.hexdigest()}
