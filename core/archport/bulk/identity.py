"""What tells a model from another one, so that no job goes on with other weights, and what else is worth knowing."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import archport
from archport.checkpoint.resolve import resolve_adapter
from archport.contract import EmbeddingHead, SparseHead
from archport.contract.plugins import discover, known_models

if TYPE_CHECKING:
    from archport.engine import Model, Recipe

# Files of up to so many bytes are read whole, and larger ones in places.
_WHOLE, _PIECE, _PIECES = 1 << 20, 1 << 16, 16
_READ = (".json", ".txt", ".model", ".jinja", ".safetensors")


def model_settings(model: Model, task: str | None = None) -> dict[str, Any]:
    """What vectors depend on, of the model.

    Args:
        task: the adapter that runs, of those that are kept apart.
    """
    checkpoint = model.checkpoint
    # Of the model's own tasks the checkpoint's files are all that there is.
    place = (cast("Recipe", model.recipe).options["adapters"] or {}).get(task)
    own = [] if place is None else [resolve_adapter(place, models=known_models(discover())).folder]
    return {
        "model": model.name,
        "revision": checkpoint.revision,
        **({} if checkpoint.adapter is None else {"adapter": checkpoint.adapter}),
        **({} if task is None else {"task": task}),
        **({} if place is None else {"adapters": {task: str(place)}}),
        "weights": weights_digest(*checkpoint.folders, *own),
        "dtype": model.dtype.dtype,
    }


def provenance(model: Model, prompt: str, dimensions: int) -> dict[str, Any]:
    """What else is known of the vectors."""
    head = model.head
    about: dict[str, Any] = {
        "archport": archport.__version__,
        "plugin": model.plugin.label,
        "architecture": model.spec.arch,
        "device": model.device.name,
        "prompt_text": prompt,
        "dimensions": dimensions,
        "model_max_tokens": model.max_tokens,
    }
    if isinstance(head, EmbeddingHead):
        about |= {"pooling": "+".join(head.pooling), "normalized": head.normalize, "similarity": head.similarity}
    if isinstance(head, SparseHead):
        about |= {"pooling": head.pooling, "similarity": head.similarity}
    return about


def weights_digest(*folders: Path) -> str:
    """Of a checkpoint's files: names and sizes, small ones whole, and of large ones sixteen places."""
    found = blake2b(digest_size=16)
    for folder in folders:
        for path in sorted(path for path in folder.rglob("*") if path.suffix in _READ and path.is_file()):
            size = path.stat().st_size
            found.update(repr((path.relative_to(folder).as_posix(), size)).encode("utf-8", "surrogatepass"))
            with path.open("rb") as file:
                if size <= _WHOLE:
                    found.update(file.read())
                    continue
                for piece in range(_PIECES):
                    file.seek((size - _PIECE) * piece // (_PIECES - 1))
                    found.update(file.read(_PIECE))
    return found.hexdigest()
