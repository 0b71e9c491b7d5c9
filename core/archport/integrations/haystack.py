"""Haystack: embedders of texts and documents, and a ranker. Needs `haystack-ai`.

from archport.integrations.haystack import ArchportTextEmbedder
pipeline.add_component("embedder", ArchportTextEmbedder("all-MiniLM-L6-v2"))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from haystack import Document, component, default_from_dict, default_to_dict  # pyright: ignore[reportMissingImports]

from archport.engine import Model, load


class _Component:
    """What the three share: a model by name, loaded when the pipeline is warmed up, and a pipeline's YAML."""

    def __init__(
        self,
        model: str,
        *,
        options: dict[str, Any] | None = None,
        load_options: dict[str, Any] | None = None,
        **fields: Any,
    ) -> None:
        self.model, self.options, self.load_options = model, options or {}, load_options or {}
        self._fields = fields
        self._loaded: Model | None = None

    def warm_up(self) -> None:
        """Load the model; equal models of a process share their weights."""
        if self._loaded is None:
            self._loaded = load(self.model, **self.load_options)

    def to_dict(self) -> dict[str, Any]:
        """The component in values that a pipeline is written in."""
        named = {"model": self.model, "options": self.options, "load_options": self.load_options}
        return default_to_dict(self, **named, **self._fields)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Any:
        """The component that `to_dict` described."""
        return default_from_dict(cls, data)

    @property
    def _ready(self) -> Model:
        self.warm_up()
        assert self._loaded is not None
        return self._loaded


@component
class ArchportTextEmbedder(_Component):
    """The vector of a query, with the prompt for queries that the model's files state.

    Args:
        model: a name for `engine.load`.
        options: of `Model.embed`, for every call; `{"overflow": "truncate"}` cuts texts over the model's limit.
        load_options: of `engine.load`.
    """

    def __init__(
        self, model: str, *, options: dict[str, Any] | None = None, load_options: dict[str, Any] | None = None
    ) -> None:
        _Component.__init__(self, model, options=options, load_options=load_options)

    @component.output_types(embedding=list[float], meta=dict[str, Any])
    def run(self, text: str) -> dict[str, Any]:
        """`embedding`, the vector, and `meta`; raises TypeError for what is no text, else as `Model.embed` does."""
        return self._answer(self._ready.encode_query(_text(text), **self.options))

    @component.output_types(embedding=list[float], meta=dict[str, Any])
    async def run_async(self, text: str) -> dict[str, Any]:
        """`run`, while the event loop runs on."""
        return self._answer(await self._ready.aencode_query(_text(text), **self.options))

    def _answer(self, vectors: Any) -> dict[str, Any]:
        return {"embedding": vectors[0].tolist(), "meta": {"model": self.model}}


@component
class ArchportDocumentEmbedder(_Component):
    """Documents with their vectors, with the prompt for documents that the model's files state.

    Args:
        model, options, load_options: as of `ArchportTextEmbedder`.
        meta_fields_to_embed: fields of the metadata put in front of a document's text.
        embedding_separator: what stands between them.
    """

    def __init__(
        self,
        model: str,
        *,
        options: dict[str, Any] | None = None,
        load_options: dict[str, Any] | None = None,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
    ) -> None:
        fields: dict[str, Any] = {
            "meta_fields_to_embed": meta_fields_to_embed or [],
            "embedding_separator": embedding_separator,
        }
        _Component.__init__(self, model, options=options, load_options=load_options, **fields)
        self.meta_fields_to_embed, self.embedding_separator = fields["meta_fields_to_embed"], embedding_separator

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """`documents`, copies with `embedding`, and `meta`; raises TypeError for others, else as `Model.embed` does."""
        return self._answer(documents, self._ready.encode_document(self._texts(documents), **self.options))

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    async def run_async(self, documents: list[Document]) -> dict[str, Any]:
        """`run`, while the event loop runs on."""
        return self._answer(documents, await self._ready.aencode_document(self._texts(documents), **self.options))

    def _texts(self, documents: list[Document]) -> list[str]:
        return _joined(documents, self.meta_fields_to_embed, self.embedding_separator)

    def _answer(self, documents: list[Document], vectors: Any) -> dict[str, Any]:
        embedded = [
            replace(document, embedding=vector.tolist()) for document, vector in zip(documents, vectors, strict=True)
        ]
        return {"documents": embedded, "meta": {"model": self.model}}


@component
class ArchportRanker(_Component):
    """Documents by how well they answer a query, the best first, each with its score.

    Args:
        model, load_options: as of `ArchportTextEmbedder`.
        options: of `Model.rerank`, for every call.
        top_k: documents to keep.
        score_threshold: the lowest score that is kept; None keeps all.
        meta_fields_to_embed, embedding_separator: as of `ArchportDocumentEmbedder`.
    """

    def __init__(
        self,
        model: str,
        *,
        top_k: int = 10,
        score_threshold: float | None = None,
        options: dict[str, Any] | None = None,
        load_options: dict[str, Any] | None = None,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
    ) -> None:
        fields: dict[str, Any] = {
            "top_k": top_k,
            "score_threshold": score_threshold,
            "meta_fields_to_embed": meta_fields_to_embed or [],
            "embedding_separator": embedding_separator,
        }
        _Component.__init__(self, model, options=options, load_options=load_options, **fields)
        self.top_k, self.score_threshold = top_k, score_threshold
        self.meta_fields_to_embed, self.embedding_separator = fields["meta_fields_to_embed"], embedding_separator

    @component.output_types(documents=list[Document])
    def run(self, query: str, documents: list[Document], top_k: int | None = None) -> dict[str, list[Document]]:
        """`documents`, copies with `score`, the best first; raises as `Model.rerank` does."""
        if not documents:
            return {"documents": []}
        ranked = self._ready.rerank(_text(query), self._texts(documents), top_k=top_k or self.top_k, **self.options)
        return self._answer(documents, ranked)

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query: str, documents: list[Document], top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """`run`, while the event loop runs on."""
        if not documents:
            return {"documents": []}
        texts = self._texts(documents)
        ranked = await self._ready.arerank(_text(query), texts, top_k=top_k or self.top_k, **self.options)
        return self._answer(documents, ranked)

    def _texts(self, documents: list[Document]) -> list[str]:
        return _joined(documents, self.meta_fields_to_embed, self.embedding_separator)

    def _answer(self, documents: list[Document], ranked: Any) -> dict[str, list[Document]]:
        lowest = self.score_threshold
        kept = [row for row in ranked if lowest is None or row.score >= lowest]
        return {"documents": [replace(documents[row.index], score=row.score) for row in kept]}


def _text(text: object) -> str:
    if not isinstance(text, str):
        raise TypeError(f"text is a {type(text).__name__}; expected a str (documents go to ArchportDocumentEmbedder)")
    return text


def _joined(documents: Sequence[Document], fields: Sequence[str], separator: str) -> list[str]:
    """The text of every document, after the fields of its metadata that are there."""
    if isinstance(documents, str) or not all(isinstance(document, Document) for document in documents):
        raise TypeError("documents are no list of haystack's Document (a text goes to ArchportTextEmbedder)")
    return [
        separator.join(
            [
                *(str(document.meta[name]) for name in fields if document.meta.get(name) is not None),
                document.content or "",
            ]
        )
        for document in documents
    ]
