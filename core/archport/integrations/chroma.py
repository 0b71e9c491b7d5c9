"""Chroma: an embedding function that a collection stores by name and options, and finds again. Needs `chromadb`.

from archport.integrations.chroma import ArchportEmbeddingFunction
collection = client.create_collection("texts", embedding_function=ArchportEmbeddingFunction("all-MiniLM-L6-v2"))
"""

from __future__ import annotations

from typing import Any

from chromadb import Documents, EmbeddingFunction, Embeddings  # pyright: ignore[reportMissingImports]
from chromadb.utils.embedding_functions import (  # pyright: ignore[reportMissingImports]
    register_embedding_function,
)

from archport.engine import load

SPACES = {"cosine": "cosine", "dot": "ip", "euclidean": "l2"}


@register_embedding_function
class ArchportEmbeddingFunction(EmbeddingFunction[Documents]):
    """Vectors of one model, documents and queries with the prompts that its files state.

    A collection that is opened again finds it by its configuration once this module was imported; loads of equal files
    share their weights.

    Args:
        model: a name for `engine.load`.
        options: of `Model.embed`, JSON-ready.
    """

    def __init__(self, model: str, **options: Any) -> None:
        self._name, self._options = model, options
        self._model = load(model)

    def __call__(self, input: Documents) -> Embeddings:
        """A vector per document; raises as `Model.embed` does."""
        return list(self._model.encode_document(list(input), **self._options))

    def embed_query(self, input: Documents) -> Embeddings:
        """A vector per query; raises as `Model.embed` does."""
        return list(self._model.encode_query(list(input), **self._options))

    @staticmethod
    def name() -> str:
        """The word under which Chroma stores it."""
        return "archport"

    def default_space(self) -> Any:
        """The distance that the model's vectors are compared by."""
        head: Any = self._model.head
        return SPACES.get(head.similarity, "cosine")

    def supported_spaces(self) -> Any:
        """Distances that a collection may choose."""
        return ["cosine", "l2", "ip"]

    def get_config(self) -> dict[str, Any]:
        """What Chroma stores with a collection."""
        return {"model": self._name, "options": self._options}

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> ArchportEmbeddingFunction:
        """The function that `get_config` described."""
        return ArchportEmbeddingFunction(config["model"], **config["options"])

    def validate_config_update(self, old_config: dict[str, Any], new_config: dict[str, Any]) -> None:
        """Raise ValueError where stored vectors would be another model's than new ones."""
        if old_config != new_config:
            raise ValueError(f"a collection's vectors are those of {old_config}; expected the same, not {new_config}")

    @staticmethod
    def validate_config(config: dict[str, Any]) -> None:
        """Raise ValueError for a configuration without a model."""
        if not isinstance(config.get("model"), str):
            raise ValueError(f"config {config!r}; expected a 'model', a name for archport.engine.load")
