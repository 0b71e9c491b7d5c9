"""archport's embedding models in the llm command: those that were registered, and all-MiniLM-L6-v2.

Imports archport when something is embedded. Which models were registered stands in archport.json in llm's folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import click
import llm

DEFAULT: dict[str, Any] = {"name": "all-MiniLM-L6-v2", "aliases": [], "options": {}}
# Texts that llm hands over at a time; archport plans their batches.
WINDOW = 1024


class ArchportEmbeddings(llm.EmbeddingModel):
    """One model of archport.

    Args:
        name: a name or folder that archport loads.
        options: of `Model.embed`.
    """

    batch_size = WINDOW

    def __init__(self, name: str, options: dict[str, Any]) -> None:
        self.model_id = f"archport/{name}"
        self._name, self._options = name, options
        self._model: Any = None

    def embed_batch(self, items: Iterable[str | bytes], *, key: str | None = None) -> Iterator[list[float]]:
        """A vector per text, in order; raises llm's ModelError with archport's words."""
        # Before anything else that may import MLX.
        import archport
        from archport import engine

        try:
            if self._model is None:
                self._model = engine.load(self._name)
            vectors = self._model.embed(list(items), **self._options)
        except archport.ArchportError as error:
            raise llm.ModelError(_advice(str(error))) from error
        yield from vectors.tolist()


@llm.hookimpl
def register_embedding_models(register: Callable[..., None]) -> None:
    """The models that were registered, after the one that always is."""
    entries = _entries()
    if all(entry["name"] != DEFAULT["name"] for entry in entries):
        entries = [DEFAULT, *entries]
    for entry in entries:
        register(ArchportEmbeddings(entry["name"], entry["options"]), aliases=entry["aliases"])


@llm.hookimpl
def register_commands(cli: click.Group) -> None:
    """`llm archport register`, `models` and `remove`."""

    @cli.group()
    def archport() -> None:
        """Embedding models that archport runs"""

    @archport.command()
    @click.argument("name")
    @click.option("aliases", "-a", "--alias", multiple=True, help="Another name for it")
    @click.option("--truncate", is_flag=True, help="Cut texts over the model's limit instead of refusing them")
    @click.option("--prompt-name", help="Stored prompt that goes in front of every text")
    @click.option("--dimensions", type=click.IntRange(1), help="Leading dimensions to keep")
    def register(
        name: str, aliases: tuple[str, ...], truncate: bool, prompt_name: str | None, dimensions: int | None
    ) -> None:
        """Add a model by a name or folder that archport loads, or change how it is used"""
        import archport
        from archport import engine

        if Path(name).is_dir():
            name = str(Path(name).resolve())
        try:
            engine.describe(name)
        except archport.ArchportError as error:
            raise click.ClickException(str(error)) from error
        options: dict[str, Any] = {"prompt_name": prompt_name, "dimensions": dimensions}
        options = {key: value for key, value in options.items() if value is not None}
        if truncate:
            options["overflow"] = "truncate"
        kept = [entry for entry in _entries() if entry["name"] != name]
        _write([*kept, {"name": name, "aliases": list(aliases), "options": options}])
        click.echo(f"archport/{name}")

    @archport.command()
    def models() -> None:
        """Show the models that were registered, a JSON a line"""
        for entry in _entries():
            click.echo(json.dumps(entry))

    @archport.command()
    @click.argument("name")
    def remove(name: str) -> None:
        """Forget a model, by its name or an alias"""
        entries = _entries()
        kept = [
            entry for entry in entries if name not in (entry["name"], f"archport/{entry['name']}", *entry["aliases"])
        ]
        if len(kept) == len(entries):
            raise click.ClickException(f"{name} is not registered; `llm archport models` shows what is")
        _write(kept)


def _file() -> Path:
    return llm.user_dir() / "archport.json"


def _entries() -> list[dict[str, Any]]:
    return json.loads(_file().read_text(encoding="utf-8")) if _file().exists() else []


def _write(entries: list[dict[str, Any]]) -> None:
    _file().write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")


def _advice(message: str) -> str:
    """archport's message in the words of this command."""
    return message.replace("Pass overflow='truncate' to cut it", "Register the model with --truncate to cut it")
