"""What a checkpoint's files say of generating: its chat templates, its special tokens, and the ids that end a text.

Reads small files only; renders nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archport.checkpoint.checkpoint import Checkpoint
from archport.contract.errors import CheckpointError

_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")


@dataclass(frozen=True, slots=True)
class ChatFiles:
    """Chat templates and what they and generation need to know.

    Args:
        templates: name -> Jinja source; "default" is the one without a name.
        special: `bos_token` and the like -> its text.
        stops: ids after which nothing is generated.
    """

    templates: Mapping[str, str]
    special: Mapping[str, str]
    stops: frozenset[int]


def read_chat(checkpoint: Checkpoint) -> ChatFiles:
    """The chat files of a checkpoint; without any, no templates.

    Raises:
        CheckpointError: a template or an id that is not what it should be.
    """
    settings = checkpoint.json("tokenizer_config.json") or {}
    special = {name: text for name in _SPECIAL if (text := _text(settings.get(name))) is not None}
    return ChatFiles(_templates(checkpoint, settings), special, _stops(checkpoint, special))


def _text(value: Any) -> str | None:
    """A special token's text: files spell it as a string or as an object with `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _templates(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> dict[str, str]:
    stored = settings.get("chat_template")
    found: dict[str, str] = {}
    if isinstance(stored, str):
        found["default"] = stored
    elif isinstance(stored, list):
        for entry in stored:
            if not isinstance(entry, dict) or not isinstance(entry.get("template"), str):
                raise CheckpointError(
                    f"{checkpoint.folder}: chat_template in tokenizer_config.json holds {entry!r:.80}"
                )
            found[str(entry.get("name", "default"))] = entry["template"]
    # Newer repositories keep templates in files of their own, which win.
    if (source := _read(checkpoint.body_path / "chat_template.jinja")) is not None:
        found["default"] = source
    elif (older := checkpoint.json("chat_template.json")) is not None and isinstance(older.get("chat_template"), str):
        found.setdefault("default", older["chat_template"])
    folder = checkpoint.body_path / "additional_chat_templates"
    for path in sorted(folder.glob("*.jinja")) if folder.is_dir() else ():
        source = _read(path)
        if source is not None:
            found[path.stem] = source
    return found


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else None
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: not UTF-8 text ({error}). Fetch the file again.") from error


def _stops(checkpoint: Checkpoint, special: Mapping[str, str]) -> frozenset[int]:
    """Ids that any of the files names as an end of text: each family of files is incomplete somewhere."""
    found: set[int] = set()
    for stated in (checkpoint.json("generation_config.json") or {}, checkpoint.config):
        value = stated.get("eos_token_id")
        values = value if isinstance(value, list) else [] if value is None else [value]
        for each in values:
            if not isinstance(each, int) or isinstance(each, bool) or each < 0:
                raise CheckpointError(f"{checkpoint.folder}: eos_token_id={value!r}; expected token ids")
            found.add(each)
    if "eos_token" in special and (end := checkpoint.token_id(special["eos_token"])) is not None:
        found.add(end)
    return frozenset(found)
