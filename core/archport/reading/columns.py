"""Texts in what people hold them in: columns of pyarrow, pandas and polars, and open text files.

Imports none of those libraries: whoever hands a column over has imported its library.
"""

from __future__ import annotations

import codecs
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from archport.contract import InputError

# Values that become Python's own at a time.
_BLOCK = 1024
_JSON = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Stands in for a text that its source could not read; a call answers it with an InputError, as any bad text.

    Args:
        reason: why, without the place, which messages put in front.
    """

    reason: str


class Column(Sequence[Any]):
    """A column as a sequence whose values become Python's own block by block.

    Args:
        count: values in it.
        read: (first, number) -> those values as a list; missing ones are None.
    """

    def __init__(self, count: int, read: Callable[[int, int], list[Any]]) -> None:
        self._count, self._read = count, read

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, slice):
            at = range(self._count)[index]
            return self._read(at, 1)[0]
        first, last, step = index.indices(self._count)
        if step != 1:
            return [self[at] for at in range(first, last, step)]
        return Column(max(0, last - first), lambda at, number: self._read(first + at, number))

    def __iter__(self) -> Iterator[Any]:
        for first in range(0, self._count, _BLOCK):
            yield from self._read(first, min(_BLOCK, self._count - first))


def texts_of(given: Iterable[Any]) -> Iterable[Any]:
    """What a caller gives, as an iterable of texts: a column as a sequence, an open file's lines without their ends.

    Raises:
        InputError: for a table, of which a column is wanted.
    """
    if isinstance(given, io.IOBase):
        return _lines(given)
    library = type(given).__module__.partition(".")[0]
    if library not in ("pyarrow", "pandas", "polars"):
        return given
    module = sys.modules[library]
    tables = {"pyarrow": ("Table", "RecordBatch"), "pandas": ("DataFrame",), "polars": ("DataFrame", "LazyFrame")}
    if isinstance(given, tuple(getattr(module, name) for name in tables[library])):
        raise InputError(f"texts is a {library} {type(given).__name__}; expected one column of it, as texts['text']")
    columns = {"pyarrow": ("Array", "ChunkedArray"), "pandas": ("Series", "Index"), "polars": ("Series",)}
    if not isinstance(given, tuple(getattr(module, name) for name in columns[library])):
        return given
    column: Any = given
    if library == "pyarrow":
        return Column(len(column), lambda first, number: arrow_values(column.slice(first, number)))
    if library == "polars":
        return Column(len(column), lambda first, number: column.slice(first, number).to_list())
    series: Any = column.to_series() if isinstance(column, module.Index) else column

    def values(first: int, number: int) -> list[Any]:
        some = series.iloc[first : first + number]
        return [None if missing is True else value for value, missing in zip(some, module.isna(some), strict=True)]

    return Column(len(series), values)


def arrow_values(column: Any) -> list[Any]:
    """Values of a pyarrow column; what is not UTF-8 in a column of strings is Unreadable."""
    try:
        return column.to_pylist()
    # pyarrow does not look into the strings of a file before it has to.
    except UnicodeDecodeError:
        return [_arrow_value(value) for value in column]


def _arrow_value(value: Any) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        return Unreadable(f"not UTF-8 ({error.reason} at byte {error.start})")


def _lines(file: Any) -> Iterator[Any]:
    for number, line in enumerate(file):
        if isinstance(line, str):
            yield line.rstrip("\r\n")
            continue
        yield decoded(line if number else line.removeprefix(codecs.BOM_UTF8))


def decoded(line: bytes) -> str | Unreadable:
    """The text of a line without its end; Unreadable where it is not UTF-8."""
    return utf8(line.rstrip(b"\r\n"))


def utf8(value: bytes) -> str | Unreadable:
    """The whole text of a value; Unreadable where it is not UTF-8."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        return Unreadable(f"not UTF-8 ({error.reason} at byte {error.start})")


def json_value(line: str) -> Any:
    """The JSON value of a line; Unreadable where it is none, or none that can be read: too deep, or too many digits."""
    try:
        return _JSON.decode(line)
    except json.JSONDecodeError as error:
        return Unreadable(f"not JSON ({error.msg} at column {error.colno})")
    except RecursionError:
        return Unreadable(f"JSON that is nested too deeply to be read ({line:.20}...)")
    except ValueError:
        return Unreadable(f"JSON with a number of more digits than can be read ({line:.20}...)")
