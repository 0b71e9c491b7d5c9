"""archport in Haystack: pipelines of embedders and a ranker, written and read again, and run asynchronously."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.components.writers import DocumentWriter
from haystack.document_stores.in_memory import InMemoryDocumentStore

import archport  # noqa: F401
from archport import engine
from archport.integrations.haystack import ArchportDocumentEmbedder, ArchportRanker, ArchportTextEmbedder

NAME = "all-MiniLM-L6-v2"
RERANKER = str(Path(__file__).parents[1] / "goldens" / "xlm-roberta-rerank")
TEXTS = ["The cat sleeps.", "Interest rates rose.", "A violin is played."]


@pytest.fixture
def documents():
    return [Document(content=text, meta={"title": f"title {at}"}) for at, text in enumerate(TEXTS)]


def test_vectors_are_the_models(documents):
    model = engine.load(NAME)
    embedded = ArchportDocumentEmbedder(NAME).run(documents)["documents"]
    assert np.abs(np.array([each.embedding for each in embedded]) - model.encode_document(TEXTS)).max() <= 1e-6
    assert documents[0].embedding is None
    vector = ArchportTextEmbedder(NAME, options={"dimensions": 64}).run("a kitten")["embedding"]
    assert np.abs(vector - model.encode_query("a kitten", dimensions=64)[0]).max() <= 1e-6


def test_fields_of_the_metadata_go_in_front(documents):
    embedder = ArchportDocumentEmbedder(NAME, meta_fields_to_embed=["title", "none"], embedding_separator=": ")
    (first, *_) = embedder.run(documents)["documents"]
    assert np.abs(first.embedding - engine.load(NAME).encode_document("title 0: The cat sleeps.")[0]).max() <= 1e-6


def test_a_pipeline_is_written_and_read_again(documents, caplog):
    caplog.set_level("INFO", "archport")
    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    indexing = Pipeline()
    indexing.add_component("embedder", ArchportDocumentEmbedder(NAME))
    indexing.add_component("writer", DocumentWriter(store))
    indexing.connect("embedder.documents", "writer.documents")
    assert indexing.run({"embedder": {"documents": documents}})["writer"]["documents_written"] == 3

    querying = Pipeline()
    querying.add_component("embedder", ArchportTextEmbedder(NAME, options={"overflow": "truncate"}))
    querying.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=2))
    querying.add_component("ranker", ArchportRanker(RERANKER, top_k=1))
    querying.connect("embedder.embedding", "retriever.query_embedding")
    querying.connect("retriever.documents", "ranker.documents")
    asked = {"embedder": {"text": "a kitten naps"}, "ranker": {"query": "a kitten naps"}}
    first = querying.run(asked, include_outputs_from={"retriever"})
    assert first["retriever"]["documents"][0].content == "The cat sleeps."

    again = Pipeline.loads(querying.dumps(), allowed_modules=["archport.integrations.haystack"])
    again.get_component("retriever").document_store = store
    assert again.run(asked)["ranker"]["documents"] == first["ranker"]["documents"]
    assert again.dumps() == querying.dumps()
    # The embedders of three pipelines have one model.
    assert caplog.text.count("the weights are shared") >= 2


def test_a_ranker_ranks_as_the_model_does(documents):
    ranked = engine.load(RERANKER).rerank("words", TEXTS)
    kept = ArchportRanker(RERANKER).run(query="words", documents=documents)["documents"]
    assert [(each.content, each.score) for each in kept] == [(TEXTS[row.index], row.score) for row in ranked]
    middle = ranked[1].score
    strict = ArchportRanker(RERANKER, score_threshold=middle).run(query="words", documents=documents)["documents"]
    assert len(strict) == 2
    assert len(ArchportRanker(RERANKER).run(query="words", documents=documents, top_k=1)["documents"]) == 1
    assert ArchportRanker(RERANKER).run(query="words", documents=[]) == {"documents": []}


def test_asynchronous_answers_equal_the_others(documents):
    embedder, text, ranker = ArchportDocumentEmbedder(NAME), ArchportTextEmbedder(NAME), ArchportRanker(RERANKER)
    assert asyncio.run(embedder.run_async(documents)) == embedder.run(documents)
    assert asyncio.run(text.run_async("a kitten")) == text.run("a kitten")
    assert asyncio.run(ranker.run_async("words", documents)) == ranker.run("words", documents)


def test_what_belongs_to_the_other_embedder_is_refused(documents):
    with pytest.raises(TypeError, match="ArchportDocumentEmbedder"):
        ArchportTextEmbedder(NAME).run(documents)
    with pytest.raises(TypeError, match="ArchportTextEmbedder"):
        ArchportDocumentEmbedder(NAME).run("a text")
