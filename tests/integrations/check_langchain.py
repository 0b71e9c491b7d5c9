"""archport in LangChain: its own suite for embeddings, and a compressor."""

import asyncio
from pathlib import Path

from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_tests.integration_tests import EmbeddingsIntegrationTests

import archport  # noqa: F401
from archport import engine
from archport.integrations.langchain import ArchportEmbeddings, ArchportRerank

GOLDENS = Path(__file__).parents[1] / "goldens"


class TestArchportEmbeddings(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self):
        return ArchportEmbeddings

    @property
    def embedding_model_params(self):
        return {"model": "all-MiniLM-L6-v2"}


def test_a_store_finds_the_nearest_text():
    store = InMemoryVectorStore(ArchportEmbeddings("all-MiniLM-L6-v2"))
    store.add_texts(["The cat sleeps.", "Interest rates rose."])
    assert store.similarity_search("a kitten naps", k=1)[0].page_content == "The cat sleeps."


def test_a_compressor_ranks_as_the_model_does_and_async_equals_it():
    folder = str(GOLDENS / "xlm-roberta-rerank")
    documents = [Document(text, metadata={"at": at}) for at, text in enumerate(["one", "two words", "three"])]
    compressor = ArchportRerank(model=folder, top_n=2)
    kept = compressor.compress_documents(documents, "words")
    ranked = engine.load(folder).rerank("words", ["one", "two words", "three"], top_k=2)
    assert [(d.metadata["at"], d.metadata["relevance_score"]) for d in kept] == [(r.index, r.score) for r in ranked]
    assert asyncio.run(compressor.acompress_documents(documents, "words")) == kept
    assert compressor.compress_documents([], "words") == []
