"""A row of an input, and how values of sources become one. Knows no file format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archport.contract.errors import shown
from archport.reading.columns import Unreadable

# Bytes of one line, field or file: more is no text that a model reads.
MOST_BYTES = 64 << 20
MISSING = object()


@dataclass(frozen=True, slots=True)
class Row:
    """What one row of an input asks for.

    Args:
        place: (file, what a row is called there, its number), or (file,) alone.
        id: as the source has it; None where there is none.
        item: a text, or a mapping with a text or an image, as `Model.embed` takes them.
        error: why there is no item, None where there is one.
        request: the body of a line of an OpenAI batch, whose texts `item` lists.
    """

    place: tuple[Any, ...]
    id: Any
    item: Any
    error: str | None = None
    request: Mapping[str, Any] | None = None

    @property
    def said(self) -> str:
        """How messages call it."""
        file, *rest = self.place
        called = "standard input" if file == "-" else str(file)
        return f"{called}, {rest[0]} {rest[1]}" if rest else called

    @property
    def characters(self) -> int:
        if isinstance(self.item, str):
            return len(self.item)
        return sum(len(text) for text in self.item if isinstance(text, str)) if isinstance(self.item, list) else 0


@dataclass(frozen=True, slots=True)
class Fields:
    """Which columns or keys of an input are what.

    Args:
        text, image, id: their names; None for none. An id of None is "id" where the first input has that, and else the
            row's number, counted from 0 over all inputs.
        chosen: whether `text` was asked for, and not only the default.
    """

    text: str | None = "text"
    image: str | None = None
    id: str | None = None
    chosen: bool = False

    @property
    def named(self) -> list[str]:
        return [name for name in (self.text, self.image, self.id) if name is not None]


def made(place: tuple[Any, ...], values: Mapping[str, Any], fields: Fields, folder: Path | None) -> Row:
    """The row of named values, bad where one is missing or of another type.

    Args:
        folder: what paths of images are relative to; None for the working directory.
    """
    id = None if fields.id is None else values.get(fields.id, MISSING)
    if id is MISSING:
        return Row(place, None, None, f"there is no {fields.id!r} among {_names(values)}")
    text = None if fields.text is None else values.get(fields.text, MISSING)
    if fields.image is None:
        if text is MISSING:
            return Row(place, id, None, f"there is no {fields.text!r} among {_names(values)}")
        fault = _not_text(text, fields.text)
        return Row(place, id, None, fault) if fault else Row(place, id, text)
    image = _image(values.get(fields.image), folder)
    item: dict[str, Any] = {} if image is None else {"image": image}
    if text is not None and text is not MISSING:
        fault = _not_text(text, fields.text)
        if fault:
            return Row(place, id, None, fault)
        item["text"] = text
    return (
        Row(place, id, item) if item else Row(place, id, None, f"it has neither {fields.image!r} nor {fields.text!r}")
    )


def text_row(place: tuple[Any, ...], text: Any, id: Any = None) -> Row:
    """A row that is a text and nothing else."""
    fault = _not_text(text, "text")
    return Row(place, id, None, fault) if fault else Row(place, id, text)


def _not_text(text: Any, name: str | None) -> str | None:
    """Why a value is no text; None where it is one. What a text may hold is the model's to say."""
    if isinstance(text, str):
        return None
    if isinstance(text, Unreadable):
        return text.reason
    return f"{name!r} is {'null' if text is None else f'a {type(text).__name__} ({shown(text)})'}; expected a string"


def _image(value: Any, folder: Path | None) -> Any:
    if isinstance(value, Mapping) and ("bytes" in value or "path" in value):
        # As Hugging Face's data sets store pictures.
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str) and value and folder is not None and not value.startswith("data:"):
        return str(folder / value)
    return value or None


def _names(values: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, list(values)[:20])) or "no names at all"
