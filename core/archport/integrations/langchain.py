"""LangChain: embeddings and a compressor that reranks. Needs `langchain-core`.

from archport.integrations.langchain import ArchportEmbeddings
vectors = InMemoryVectorStore(ArchportEmbeddings("all-MiniLM-L6-v2"))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.callbacks import Callbacks  # pyright: ignore[reportMissingImports]
from langchain_core.documents import BaseDocumentCompressor, Document  # pyright: ignore[reportMissingImports]
from langchain_core.embeddings import Embeddings  # pyright: ignore[reportMissingImports]
from pydantic import ConfigDict, Field, PrivateAttr

from archport.engine import Model, load


class ArchportEmbeddings(Embeddings):
    """Vectors of one model: queries and documents with the prompts that its files state.

    Args:
        model: a name for `engine.load`, or a loaded model.
        options: of `Model.embed`, for every call; `overflow="truncate"` cuts texts over the model's limit.
        load_options: of `engine.load`.
    """

    def __init__(self, model: str | Model, *, load_options: dict[str, Any] | None = None, **options: Any) -> None:
        self.model = model if isinstance(model, Model) else load(model, **(load_options or {}))
        self.options = options

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One vector per text; raises as `Model.embed` does."""
        return self.model.encode_document(texts, **self.options).tolist()

    def embed_query(self, text: str) -> list[float]:
        """The vector of a query; raises as `Model.embed` does."""
        return self.model.encode_query(text, **self.options)[0].tolist()

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """`embed_documents`, while the event loop runs on."""
        return (await self.model.aencode_document(texts, **self.options)).tolist()

    async def aembed_query(self, text: str) -> list[float]:
        """`embed_query`, while the event loop runs on."""
        return (await self.model.aencode_query(text, **self.options))[0].tolist()


class ArchportRerank(BaseDocumentCompressor):
    """Keeps the documents that answer a query best, with their score in `metadata["relevance_score"]`.

    Args:
        model: a name for `engine.load`, or a loaded reranker.
        top_n: documents to keep, as LangChain's other compressors call it; None keeps all, in their new order.
        options: of `Model.rerank`, for every call.
    """

    model: Any
    top_n: int | None = 3
    options: dict[str, Any] = Field(default_factory=dict)
    model_config = ConfigDict(arbitrary_types_allowed=True)
    _loaded: Model = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        self._loaded = self.model if isinstance(self.model, Model) else load(self.model)

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """The best documents, the best first; raises as `Model.rerank` does."""
        texts = [document.page_content for document in documents]
        if not texts:
            return []
        ranked = self._loaded.rerank(query, texts, top_k=self.top_n, **self.options)
        return [_scored(documents[row.index], row.score) for row in ranked]

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """`compress_documents`, while the event loop runs on."""
        texts = [document.page_content for document in documents]
        if not texts:
            return []
        ranked = await self._loaded.arerank(query, texts, top_k=self.top_n, **self.options)
        return [_scored(documents[row.index], row.score) for row in ranked]


def _scored(document: Document, score: float) -> Document:
    return document.model_copy(update={"metadata": {**document.metadata, "relevance_score": score}})
