"""archport in Chroma: a collection persists, and opens again with the model it was made with."""

import subprocess
import sys

import chromadb
import numpy as np

import archport  # noqa: F401
from archport import engine
from archport.checkpoint import sharing
from archport.integrations.chroma import ArchportEmbeddingFunction

TEXTS = ["The cat sleeps.", "Interest rates rose."]
NAME = "all-MiniLM-L6-v2"


def test_a_collection_is_opened_again_by_another_process(tmp_path):
    client = chromadb.PersistentClient(str(tmp_path))
    collection = client.create_collection("texts", embedding_function=ArchportEmbeddingFunction(NAME))
    collection.add(ids=["a", "b"], documents=TEXTS)
    program = (
        "import sys, archport, chromadb\n"
        "import archport.integrations.chroma\n"
        "collection = chromadb.PersistentClient(sys.argv[1]).get_collection('texts')\n"
        "print(collection.query(query_texts=['a kitten naps'], n_results=1)['ids'])"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True)
    assert done.stdout.strip() == "[['a']]", done.stderr


def test_the_weights_are_read_once_however_often_a_collection_is_opened(tmp_path, caplog):
    client = chromadb.PersistentClient(str(tmp_path))
    client.create_collection("texts", embedding_function=(first := ArchportEmbeddingFunction(NAME)))
    caplog.set_level("INFO", "archport")
    for _ in range(3):
        collection = client.get_collection("texts")
        collection.add(ids=["a"], documents=TEXTS[:1])
    assert caplog.text.count("the weights are shared") >= 3
    assert sharing.count() == 1
    assert first(TEXTS)[0].any()


def test_stored_vectors_are_the_models(tmp_path):
    collection = chromadb.PersistentClient(str(tmp_path)).create_collection(
        "texts", embedding_function=ArchportEmbeddingFunction(NAME, dimensions=64)
    )
    collection.add(ids=["a", "b"], documents=TEXTS)
    stored = collection.get(include=["embeddings"])["embeddings"]
    assert np.abs(stored - engine.load(NAME).encode_document(TEXTS, dimensions=64)).max() <= 1e-6


def test_a_configuration_makes_an_equal_function():
    function = ArchportEmbeddingFunction(NAME, dimensions=64)
    again = ArchportEmbeddingFunction.build_from_config(function.get_config())
    assert again.get_config() == function.get_config()
    assert function.default_space() == "cosine"
