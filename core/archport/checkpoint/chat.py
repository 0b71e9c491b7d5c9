"""What a checkpoint's files say of generating: its chat templates, its special tokens, and the ids that end a text.

Which file wins is as transformers 5.23 has it. Reads small files only; renders nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from archport.checkpoint.checkpoint import Checkpoint
from archport.checkpoint.disk import inside, read_object, read_text
from archport.checkpoint.tokenizer import special_tokens
from archport.contract.errors import CheckpointError

# A repository whose inputs are not only text has a processor, which reads templates before the tokenizer does.
_PROCESSOR = ("processor_config.json", "preprocessor_config.json")
_FOLDER = "additional_chat_templates"
# Where the config of a model of several halves says how text ends.
_DECODERS = ("decoder", "generator", "text_config")


@dataclass(frozen=True, slots=True)
class ChatFiles:
    """Chat templates and what they and generation need to know.

    Args:
        templates: name -> Jinja source; "default" is the one without a name.
        special: `bos_token` and the like -> its text.
        stops: ids after which nothing is generated.
        files: name of a template -> the file that it is from.
    """

    templates: Mapping[str, str]
    special: Mapping[str, str]
    stops: frozenset[int]
    files: Mapping[str, str] = field(default_factory=dict[str, str])


def read_chat(checkpoint: Checkpoint) -> ChatFiles:
    """The chat files of a checkpoint; without any, no templates.

    Raises:
        CheckpointError: a template or an id that is not what it should be, or no tokenizer.
    """
    special, stated = special_tokens(checkpoint)
    found = next((templates for place in checkpoint.places if (templates := _templates(place))), {})
    return ChatFiles(
        {name: source for name, (source, _) in found.items()},
        special,
        _stops(checkpoint, special.get("eos_token"), stated="eos_token" in stated),
        {name: file for name, (_, file) in found.items()},
    )


def _templates(folder: Path) -> dict[str, tuple[str, str]]:
    """Name -> (source, file) of the templates in a folder: of the processor, else of the tokenizer."""
    older = read_object(inside(folder, "chat_template.json", "a tokenizer"))
    separate = _separate(folder)
    if any((folder / name).is_file() for name in _PROCESSOR):
        own = (read_object(inside(folder, "processor_config.json", "a tokenizer")) or {}).get("chat_template")
        if own is not None:
            return _stated(own, folder / "processor_config.json")
        if older is not None and set(separate) - {"default"}:
            raise CheckpointError(
                f"{folder}: holds chat_template.json beside {_FOLDER}, and nobody says which of them counts; put the "
                "template of chat_template.json into chat_template.jinja"
            )
        if older is not None:
            return _stated(older.get("chat_template"), folder / "chat_template.json")
    # Files of their own take the place of all that tokenizer_config.json says.
    if separate:
        return separate
    stated = (read_object(inside(folder, "tokenizer_config.json", "a tokenizer")) or {}).get("chat_template")
    if stated is not None:
        return _stated(stated, folder / "tokenizer_config.json")
    return {} if older is None else _stated(older.get("chat_template"), folder / "chat_template.json")


def _separate(folder: Path) -> dict[str, tuple[str, str]]:
    """Templates in files of their own."""
    paths = {"default": "chat_template.jinja"}
    more = folder / _FOLDER
    if more.is_dir():
        paths |= {path.stem: f"{_FOLDER}/{path.name}" for path in sorted(more.glob("*.jinja"))}
    found = {name: (read_text(inside(folder, path, "a tokenizer")), path) for name, path in paths.items()}
    return {name: (source, path) for name, (source, path) in found.items() if source is not None}


def _stated(value: Any, path: Path) -> dict[str, tuple[str, str]]:
    """Templates as a JSON file states them: one, or several by name."""
    if isinstance(value, str):
        return {"default": (value, path.name)}
    if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        value = {entry.get("name", "default"): entry.get("template") for entry in value}
    if not isinstance(value, dict) or not all(isinstance(source, str) for source in value.values()):
        raise CheckpointError(
            f"{path}: chat_template holds {value!r:.80}; expected a text, or several with a name and a template"
        )
    return {str(name): (source, path.name) for name, source in value.items()}


def _stops(checkpoint: Checkpoint, end: str | None, *, stated: bool) -> frozenset[int]:
    """Ids that any of the files names as an end of text: each family of files is incomplete somewhere.

    Args:
        end: the tokenizer's token, which a file has `stated`; its class's default counts where no file says anything.
    """
    found: set[int] = set()
    config = checkpoint.config
    halves = [half for name in _DECODERS if isinstance(half := config.get(name), dict)]
    # A half speaks where the whole says nothing.
    model = next((level for level in (config, *halves[:1]) if level.get("eos_token_id") is not None), {})
    for file, says in (
        ("generation_config.json", checkpoint.json("generation_config.json") or {}),
        ("config.json", model),
    ):
        value = says.get("eos_token_id")
        values = value if isinstance(value, list) else [] if value is None else [value]
        for each in values:
            if not isinstance(each, int) or isinstance(each, bool) or each < 0:
                raise CheckpointError(
                    f"{checkpoint.folder / file}: eos_token_id={value!r:.80}; expected a token id, or a list of them"
                )
            found.add(each)
    if end is not None and (stated or not found) and (index := checkpoint.token_id(end)) is not None:
        found.add(index)
    return frozenset(found)
