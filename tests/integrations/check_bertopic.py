"""archport.compat in BERTopic and KeyBERT: given to either as its model, next to sentence-transformers."""

import gzip
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import sentence_transformers
from bertopic import BERTopic
from hdbscan import HDBSCAN
from keybert import KeyBERT
from umap import UMAP

import archport  # noqa: F401
from archport import engine
from archport.compat import SentenceTransformer

CORPUS = Path(__file__).parents[1] / "goldens" / "minilm" / "corpus.json.gz"
NAME = "all-MiniLM-L6-v2"


@pytest.fixture(scope="module")
def model():
    return SentenceTransformer(NAME)


@pytest.fixture(scope="module")
def texts():
    return [text[:400] for text in json.loads(gzip.decompress(CORPUS.read_bytes()))[:240]]


def topics(model):
    # Seeded, so that equal vectors give equal topics.
    reduced = UMAP(n_neighbors=10, n_components=5, min_dist=0.0, metric="cosine", random_state=0)
    return BERTopic(embedding_model=model, umap_model=reduced, hdbscan_model=HDBSCAN(min_cluster_size=6))


def test_bertopic_is_fitted_with_these_vectors(model, texts):
    fitted = topics(model)
    labels, _ = fitted.fit_transform(texts)
    assert fitted.embedding_model.embedding_model is model
    assert len(set(labels)) > 2
    given, _ = topics(None).fit_transform(texts, model.encode(texts))
    assert labels == given
    similar, scores = fitted.find_topics("a computer program", top_n=2)
    assert len(similar) == 2
    assert scores[0] > 0
    again = pickle.loads(pickle.dumps(fitted.embedding_model))
    assert np.array_equal(again.embed(texts[:2]), fitted.embedding_model.embed(texts[:2]))


def test_keybert_finds_the_words_that_it_finds_with_sentence_transformers(model, texts):
    folder = engine.describe(NAME).checkpoint.folder
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    mine, other = (KeyBERT(model=each).extract_keywords(texts[:8], top_n=5) for each in (model, theirs))
    assert [[word for word, _ in row] for row in mine] == [[word for word, _ in row] for row in other]
    assert all(
        abs(a - b) <= 1e-4
        for row, others in zip(mine, other, strict=True)
        for (_, a), (_, b) in zip(row, others, strict=True)
    )
