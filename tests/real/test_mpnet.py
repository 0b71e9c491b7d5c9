"""all-mpnet-base-v2 with its real weights against sentence-transformers on real paragraphs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from archport import engine
from real import packages

PARAGRAPHS = Path(__file__).parents[1] / "goldens" / "minilm" / "paragraphs.json"
REFERENCE = """
import json, sys
import numpy as np
from sentence_transformers import SentenceTransformer
folder, texts, target = sys.argv[1:]
model = SentenceTransformer(folder, device="cpu")
np.save(target, model.encode(json.load(open(texts)), batch_size=16))
"""

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def folder() -> Path:
    return packages.mpnet()


@pytest.fixture(scope="module")
def expected(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    target = tmp_path_factory.mktemp("mpnet") / "vectors.npy"
    packages.refer(REFERENCE, folder, PARAGRAPHS, target)
    return np.load(target)


def test_256_paragraphs_have_the_vectors_of_sentence_transformers(folder: Path, expected: np.ndarray):
    texts = json.loads(PARAGRAPHS.read_text(encoding="utf-8"))
    assert len(texts) == len(expected) == 256
    vectors = engine.load(folder).embed(texts, overflow="truncate")
    cosine = (vectors * expected).sum(axis=1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(expected, axis=1)
    print(f"least cosine {cosine.min():.9f}, largest difference {np.abs(vectors - expected).max():.2e}")
    assert cosine.min() >= 0.99999
