"""LlamaIndex: an embedding and a postprocessor that reranks. Needs `llama-index-core`.

from archport.integrations.llama_index import ArchportEmbedding
Settings.embed_model = ArchportEmbedding(model_name="all-MiniLM-L6-v2")
"""

from __future__ import annotations

from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding  # pyright: ignore[reportMissingImports]
from llama_index.core.postprocessor.types import BaseNodePostprocessor  # pyright: ignore[reportMissingImports]
from llama_index.core.schema import (  # pyright: ignore[reportMissingImports]
    MetadataMode,
    NodeWithScore,
    QueryBundle,
)
from pydantic import Field, PrivateAttr

from archport.engine import Model, load


class ArchportEmbedding(BaseEmbedding):
    """Vectors of one model; deep copies share its weights.

    Args:
        model_name: a name for `engine.load`.
        options: of `Model.embed`, for every call.
    """

    options: dict[str, Any] = Field(default_factory=dict)
    _model: Model = PrivateAttr()

    def __init__(self, model_name: str, **fields: Any) -> None:
        super().__init__(model_name=model_name, **fields)
        self._model = load(model_name)

    @classmethod
    def class_name(cls) -> str:
        """The word under which LlamaIndex stores it."""
        return "ArchportEmbedding"

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._model.encode_query(query, **self.options)[0].tolist()

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._model.encode_document(texts, **self.options).tolist()

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return (await self._model.aencode_query(query, **self.options))[0].tolist()

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return (await self._aget_text_embeddings([text]))[0]

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return (await self._model.aencode_document(texts, **self.options)).tolist()


class ArchportRerank(BaseNodePostprocessor):
    """Keeps the nodes that answer a query best, with the reranker's score.

    Args:
        model: a name for `engine.load`.
        top_n: nodes to keep, as LlamaIndex's other rerankers call it.
        options: of `Model.rerank`, for every call.
    """

    model: str
    top_n: int = 3
    options: dict[str, Any] = Field(default_factory=dict)
    _loaded: Model = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        super().model_post_init(context)
        self._loaded = load(self.model)

    @classmethod
    def class_name(cls) -> str:
        """The word under which LlamaIndex stores it."""
        return "ArchportRerank"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise ValueError("no query was given; expected a query_str or query_bundle to rank the nodes by")
        if not nodes:
            return []
        texts = [node.node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes]
        ranked = self._loaded.rerank(query_bundle.query_str, texts, top_k=self.top_n, **self.options)
        return [NodeWithScore(node=nodes[row.index].node, score=row.score) for row in ranked]
