"""archport in LlamaIndex: embeddings, deep copies, an index, a reranker."""

import asyncio
import copy
import pickle
from pathlib import Path

import numpy as np
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.schema import NodeWithScore, TextNode

import archport  # noqa: F401
from archport import engine
from archport.integrations.llama_index import ArchportEmbedding, ArchportRerank

GOLDENS = Path(__file__).parents[1] / "goldens"
NAME = "all-MiniLM-L6-v2"


def test_vectors_are_the_models_and_async_ones_equal_them():
    embedding, model = ArchportEmbedding(model_name=NAME), engine.load(NAME)
    texts = ["The cat sleeps.", "Interest rates rose."]
    assert np.abs(embedding.get_text_embedding_batch(texts) - model.encode_document(texts)).max() <= 1e-6
    assert np.abs(embedding.get_query_embedding("a kitten") - model.encode_query("a kitten")[0]).max() <= 1e-6
    assert asyncio.run(embedding.aget_query_embedding("a kitten")) == embedding.get_query_embedding("a kitten")


def test_deep_copies_and_pickles_answer_alike():
    embedding = ArchportEmbedding(model_name=NAME)
    expected = embedding.get_text_embedding("The cat sleeps.")
    for other in (copy.deepcopy(embedding), pickle.loads(pickle.dumps(embedding))):
        assert other.get_text_embedding("The cat sleeps.") == expected


def test_an_index_finds_the_nearest_text():
    documents = [Document(text="The cat sleeps."), Document(text="Interest rates rose.")]
    index = VectorStoreIndex.from_documents(documents, embed_model=ArchportEmbedding(model_name=NAME))
    (hit,) = index.as_retriever(similarity_top_k=1).retrieve("a kitten naps")
    assert hit.node.get_content() == "The cat sleeps."


def test_a_reranker_ranks_as_the_model_does():
    folder, texts = str(GOLDENS / "xlm-roberta-rerank"), ["one", "two words", "three"]
    nodes = [NodeWithScore(node=TextNode(text=text), score=0.0) for text in texts]
    kept = ArchportRerank(model=folder, top_n=2).postprocess_nodes(nodes, query_str="words")
    ranked = engine.load(folder).rerank("words", texts, top_k=2)
    assert [(node.node.get_content(), node.score) for node in kept] == [(texts[r.index], r.score) for r in ranked]
