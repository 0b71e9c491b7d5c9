"""archport in txtai: an index that is built, saved, and opened by another process."""

import subprocess
import sys

import numpy as np
import pytest
from txtai import Embeddings

import archport
from archport import engine
from archport.integrations.txtai import ArchportVectors, transform

TEXTS = ["The cat sleeps.", "Interest rates rose.", "A violin is played."]
NAME = "all-MiniLM-L6-v2"
METHOD = f"{ArchportVectors.__module__}.{ArchportVectors.__name__}"


def test_an_index_is_opened_again_by_another_process(tmp_path):
    embeddings = Embeddings(method=METHOD, path=NAME, content=True)
    embeddings.index(TEXTS)
    assert embeddings.search("a kitten naps", 1)[0]["text"] == TEXTS[0]
    embeddings.save(str(tmp_path / "index"))
    program = (
        "import sys, archport\n"
        "from txtai import Embeddings\n"
        "embeddings = Embeddings()\n"
        "embeddings.load(sys.argv[1])\n"
        "print(embeddings.search('a kitten naps', 1)[0]['text'])"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "index"], capture_output=True, text=True)
    assert done.stdout.strip() == TEXTS[0], done.stderr


def test_queries_and_documents_have_their_own_prompts():
    model = engine.load(NAME)
    plain = Embeddings(method=METHOD, path=NAME)
    assert np.abs(plain.batchtransform(TEXTS, "data") - model.encode_document(TEXTS)).max() <= 1e-6
    assert np.abs(plain.batchtransform(TEXTS) - model.encode_query(TEXTS)).max() <= 1e-6
    told = Embeddings(method=METHOD, path=NAME, instructions={"query": "find: ", "data": "text: "})
    assert np.abs(told.batchtransform(TEXTS) - model.embed(TEXTS, prompt="find: ")).max() <= 1e-6
    assert np.abs(told.batchtransform(TEXTS, "data") - model.embed(TEXTS, prompt="text: ")).max() <= 1e-6


def test_options_of_the_configuration_are_the_models():
    long = ["word " * 600]
    with pytest.raises(archport.ArchportError, match="overflow"):
        Embeddings(method=METHOD, path=NAME).batchtransform(long)
    cut = Embeddings(method=METHOD, path=NAME, vectors={"overflow": "truncate", "load": {"max_context": 128}})
    expected = engine.load(NAME).embed(long, overflow="truncate", max_tokens=128)
    assert np.abs(cut.batchtransform(long) - expected).max() <= 1e-6


def test_a_function_serves_as_an_external_method():
    embeddings = Embeddings(method="external", transform=transform(NAME))
    embeddings.index(TEXTS)
    assert embeddings.search("a kitten naps", 1)[0][0] == 0
