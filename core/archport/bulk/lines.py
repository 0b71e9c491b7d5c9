"""Inputs that are lines: plain text, JSON, CSV, OpenAI batches; files, gzip files and standard input."""

from __future__ import annotations

import codecs
import csv
import gzip
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any

from archport.bulk.rows import MOST_BYTES, Fields, Row, made, text_row
from archport.contract import InputError
from archport.contract.errors import shown
from archport.contract.sizes import format_bytes
from archport.reading.columns import Unreadable, decoded, json_value

# Lines among which the first good one is looked for.
_LOOKED_AT = 1000


class Lines:
    """The lines of a file, or of standard input for "-", one at a time; `.gz` is unpacked, a byte order mark left out.

    Attributes:
        share: of the file that was read, 0 to 1; None where nobody knows its size.
    """

    def __init__(self, source: str) -> None:
        self.source, self.share = source, None if source == "-" else 0.0
        if source != "-" and not Path(source).is_file():
            why = "it is no regular file; pipe it into -" if Path(source).exists() else "there is no such file"
            raise InputError(f"{shown(source)} can't be read: {why}")
        self._left = self._read()

    def first(self, good: Callable[[bytes], bool]) -> bytes | None:
        """The first good line, read before all others and given again with them."""
        lines, looked_at, found = iter(self), [], None
        for number, line in islice(lines, _LOOKED_AT):
            looked_at.append((number, line))
            if isinstance(line, bytes) and good(line):
                found = line
                break
        if self.source == "-":
            # It can't be read twice.
            self._left = chain(looked_at, lines)
        return found

    def __iter__(self) -> Iterator[tuple[int, bytes | Unreadable]]:
        """(number from 1, the line with its end), or Unreadable for one that is too long.

        Raises:
            InputError: where the file can't be read on.
        """
        return self._left if self.source == "-" else self._read()

    def _read(self) -> Iterator[tuple[int, bytes | Unreadable]]:
        size = 0 if self.source == "-" else max(1, Path(self.source).stat().st_size)
        with readable(self.source), self._opened() as (raw, file):
            number = 0
            while line := file.readline(MOST_BYTES + 1):
                number += 1
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                if self.share is not None and number % 256 == 0:
                    self.share = min(1.0, raw.tell() / size)
                if len(line) <= MOST_BYTES or line.endswith(b"\n"):
                    yield number, line
                    continue
                while line and not line.endswith(b"\n"):
                    line = file.readline(MOST_BYTES)
                yield number, Unreadable(f"a line of more than {format_bytes(MOST_BYTES)}")
        self.share = None if self.share is None else 1.0

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, Any]]:
        if self.source == "-":
            yield None, sys.stdin.buffer
            return
        with open(self.source, "rb") as raw:
            yield raw, gzip.GzipFile(fileobj=raw) if self.source.endswith(".gz") else raw


@contextmanager
def readable(source: str) -> Iterator[None]:
    """A file that ends too early, is damaged or can't be read is an InputError that names it."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{source}: damaged or cut off ({error})") from error
    except OSError as error:
        raise InputError(f"{shown(source)} can't be read: {error.strerror or error}") from error


class _PerLine:
    """Rows that lines hold."""

    def __init__(self, source: str) -> None:
        self._source, self._lines = source, Lines(source)

    @property
    def share(self) -> float | None:
        return self._lines.share


class TextLines(_PerLine):
    """A text per line."""

    def names(self) -> list[str]:
        return []

    def rows(self, fields: Fields) -> Iterator[Row]:
        for number, line in self._lines:
            yield text_row((self._source, "line", number), decoded(line) if isinstance(line, bytes) else line)


class JsonLines(_PerLine):
    """JSON per line: a string, or an object with the fields. Empty lines hold nothing."""

    def __init__(self, source: str) -> None:
        super().__init__(source)
        self._folder = None if source == "-" else Path(source).parent
        # A bad line says nothing of the others.
        line = self._lines.first(lambda line: not isinstance(_value(line), Unreadable))
        self._first = None if line is None else _value(line)

    @property
    def is_openai(self) -> bool:
        """Whether the first line is one of an OpenAI batch."""
        first = self._first
        return isinstance(first, Mapping) and {"custom_id", "body"} <= set(first)

    def names(self) -> list[str]:
        """Keys of the first line that is JSON; a later one may have others, which is a fault of that row."""
        return list(self._first) if isinstance(self._first, Mapping) else []

    def rows(self, fields: Fields) -> Iterator[Row]:
        for number, line in self._lines:
            place = (self._source, "line", number)
            if isinstance(line, bytes) and not line.strip():
                continue
            value = _value(line)
            if isinstance(value, Mapping):
                yield made(place, value, fields, self._folder)
            elif isinstance(value, str | Unreadable) and fields.id is None:
                yield text_row(place, value)
            elif isinstance(value, Unreadable):
                yield Row(place, None, None, value.reason)
            else:
                yield Row(place, None, None, f"expected a string or an object, found {shown(value)}")


class OpenAILines(_PerLine):
    """Requests of an OpenAI batch: {"custom_id", "method", "url", "body"} per line."""

    def names(self) -> list[str]:
        return ["custom_id"]

    def rows(self, fields: Fields) -> Iterator[Row]:
        for number, line in self._lines:
            if isinstance(line, bytes) and not line.strip():
                continue
            yield _request((self._source, "line", number), _value(line))


def _request(place: tuple[Any, ...], value: Any) -> Row:
    """One request, bad where it is none that this answers."""
    if isinstance(value, Unreadable):
        return Row(place, None, None, value.reason)
    if not isinstance(value, Mapping) or not isinstance(value.get("custom_id"), str):
        return Row(place, None, None, f"expected an object with a custom_id, found {shown(value)}")
    id, body, url = value["custom_id"], value.get("body"), value.get("url", "/v1/embeddings")
    if not isinstance(body, Mapping):
        return Row(place, id, None, f"body is {shown(body)}; expected an object")
    if not isinstance(url, str) or not url.rstrip("/").endswith("/embeddings"):
        return Row(place, id, None, f"url is {shown(url)}; this answers /v1/embeddings", body)
    texts = body.get("input")
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        return Row(place, id, None, f"input is {shown(texts)}; expected a string, or a list of strings", body)
    width, format = body.get("dimensions"), body.get("encoding_format", "float")
    if width is not None and (isinstance(width, bool) or not isinstance(width, int)):
        return Row(place, id, None, f"dimensions is {shown(width)}; expected an integer", body)
    if format not in ("float", "base64"):
        return Row(place, id, None, f"encoding_format is {shown(format)}; expected float or base64", body)
    return Row(place, id, texts, None, body)


def _value(line: bytes | Unreadable) -> Any:
    text = decoded(line) if isinstance(line, bytes) else line
    return text if isinstance(text, Unreadable) else json_value(text)


class Table(_PerLine):
    """Rows of comma or tab separated values under a header."""

    def __init__(self, source: str, delimiter: str) -> None:
        super().__init__(source)
        self._delimiter = delimiter
        self._folder = None if source == "-" else Path(source).parent
        if source == "-":
            line = self._lines.first(lambda _: True) or b""
            self._header = next(self._read([line.decode("utf-8", "surrogateescape")]), [])
        else:
            self._header = next(self._read(self._texts()), [])

    def names(self) -> list[str]:
        return self._header

    def rows(self, fields: Fields) -> Iterator[Row]:
        texts = self._texts()
        reader = self._read(texts)
        next(reader, None)
        for number, values in enumerate(reader, 1):
            place = (self._source, "row", number)
            if len(values) != len(self._header):
                if values:
                    yield Row(place, None, None, f"{len(values)} fields; the header has {len(self._header)}")
                continue
            named = {
                name: value if value.isascii() else _encoded(value)
                for name, value in zip(self._header, values, strict=True)
            }
            yield made(place, named, fields, self._folder)

    def _texts(self) -> Iterator[str]:
        for number, line in self._lines:
            if isinstance(line, Unreadable):
                raise InputError(f"{self._source}, line {number}: {line.reason}")
            # What is not UTF-8 spoils its own field, and no other row.
            yield line.decode("utf-8", "surrogateescape")

    def _read(self, texts: Any) -> Iterator[list[str]]:
        csv.field_size_limit(max(csv.field_size_limit(), MOST_BYTES))
        reader = csv.reader(texts, delimiter=self._delimiter, strict=True)
        while True:
            begin = reader.line_num + 1
            try:
                yield next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise InputError(
                    f"{self._source}: the row that begins in line {begin} is no CSV ({error}); a quote may be open"
                ) from error


def _encoded(value: str) -> str | Unreadable:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        return Unreadable(f"not UTF-8 (at character {error.start})")
    return value
