"""The recipes of docs/integrations.md for FAISS, sqlite-vec and hnswlib, over 5,000 passages of the Jargon File.

The ten nearest texts by archport's vectors are those by sentence-transformers'.
"""

import gzip
import json
import re
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import sentence_transformers

import archport  # noqa: F401
from archport import engine

ROOT = Path(__file__).parents[2]
CORPUS = ROOT / "tests" / "goldens" / "minilm" / "corpus.json.gz"
COUNT, ASKED, K = 5000, 200, 10


def passages():
    """Distinct runs of ten words, in the order of the paragraphs."""
    made = {}
    for paragraph in json.loads(gzip.decompress(CORPUS.read_bytes())):
        words = paragraph.split()
        made |= {" ".join(words[at : at + 10]): None for at in range(0, len(words) - 9, 10)}
    return list(made)


@pytest.fixture(scope="module")
def both():
    """(vectors of passages, of questions) by archport and by sentence-transformers."""
    texts = passages()
    assert len(texts) >= COUNT + ASKED
    texts, questions = texts[:COUNT], texts[COUNT : COUNT + ASKED]
    model = engine.load("all-MiniLM-L6-v2")
    theirs = sentence_transformers.SentenceTransformer(str(model.checkpoint.folder), device="cpu")
    mine = model.encode_document(texts), model.encode_query(questions)
    return mine, (theirs.encode(texts), theirs.encode(questions))


def recipe(package, vectors, queries, folder):
    """The rows that a recipe of the page finds."""
    page = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")
    (code,) = re.findall(rf"<!-- skip: needs {package} -->\n```python\n(.*?)```", page, re.S)
    names = {"vectors": vectors, "queries": queries, "k": K}
    # Some builds of Python have a sqlite3 that loads no extensions; this package is the same module with it.
    if not hasattr(sqlite3.Connection, "enable_load_extension"):
        code = code.replace("import sqlite3\n", "import pysqlite3 as sqlite3\n")
    exec(code.replace("texts.db", str(folder / "texts.db")), names)
    return np.array(names["rows"])


def exact(vectors, queries):
    return np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :K]


def recall(rows, expected):
    return np.mean([len(set(a) & set(b)) / K for a, b in zip(rows.tolist(), expected.tolist(), strict=True)])


@pytest.mark.parametrize("package", ["faiss-cpu", "sqlite-vec"])
def test_exact_search_finds_what_it_finds_with_sentence_transformers(both, package, tmp_path):
    (vectors, queries), (others, asked) = both
    rows, similar = recipe(package, vectors, queries, tmp_path), asked @ others.T
    tenth = np.sort(similar, axis=1)[:, -K]
    # Which texts are there may differ only where another one is as near.
    assert (np.take_along_axis(similar, rows, axis=1) >= tenth[:, None] - 1e-6).all()
    assert recall(rows, exact(others, asked)) >= 0.999


def test_a_graph_finds_as_large_a_share(both, tmp_path):
    (vectors, queries), (others, asked) = both
    shares = []
    for texts, questions in ((vectors, queries), (others, asked)):
        shares.append(recall(recipe("hnswlib", texts, questions, tmp_path), exact(others, asked)))
    assert abs(shares[0] - shares[1]) <= 0.01
    assert shares[0] >= 0.97
