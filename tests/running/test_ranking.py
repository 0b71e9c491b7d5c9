"""Documents rank by the head's own scores; probabilities that are shown may round to one number."""

from __future__ import annotations

import archport  # noqa: F401

# isort: split
from pathlib import Path

import numpy as np
import pytest

from archport import engine
from archport.answering.rerank import RerankRequest, rerank

GOLDENS = Path(__file__).parents[1] / "goldens"
YES_NO = ("qwen3-reranker", "qwen35-reranker")
LABELS = ("xlm-roberta-rerank", "modernbert-rerank", "llama-bidirec-rerank")
DOCUMENTS = ["one text", "two words more", "three", "something else " * 5, "and the last of them"]


class Raised:
    """A scorer whose head answers more: what a bias would do."""

    def __init__(self, scorer, more):
        self.scorer, self.more = scorer, more

    def scores(self, *args):
        return (self.scorer.scores(*args) + self.more).astype(np.float32)

    def shown(self, scores):
        return self.scorer.shown(scores)


@pytest.mark.parametrize("name", [*YES_NO, *LABELS, "pylate", "colbert"])
@pytest.mark.parametrize("more", [-300, 60])
def test_the_order_is_that_of_the_raw_scores(name, more):
    scorer = engine.load(GOLDENS / name, dtype="float32")._runtime.scorer()
    raw = Raised(scorer, more).scores("which", DOCUMENTS, RerankRequest())
    assert len(set(raw.tolist())) == len(DOCUMENTS)
    ranked = rerank(Raised(scorer, more), "which", DOCUMENTS, RerankRequest()).results
    assert [each.index for each in ranked] == np.argsort(-raw).tolist()
    assert [each.score for each in ranked] == scorer.shown(np.sort(raw)[::-1]).tolist()
    told = rerank(Raised(scorer, more), "which", DOCUMENTS, RerankRequest(raw=True), top_k=2).results
    assert [each.score for each in told] == np.sort(raw)[::-1][:2].tolist()


@pytest.mark.parametrize("name", YES_NO)
def test_what_is_shown_of_a_yes_no_head_is_a_probability(name):
    shown = engine.load(GOLDENS / name)._runtime.scorer().shown(np.array([0, 40, -40, 1e4, -1e4], np.float32))
    np.testing.assert_allclose(shown, [0.5, 1, np.exp(-40), 1, 0], rtol=1e-5)


def test_a_cross_encoder_that_is_sure_of_all_still_tells_them_apart():
    model = engine.load(GOLDENS / "xlm-roberta-rerank", dtype="float32")
    want = [each.index for each in model.rerank("which", DOCUMENTS)]
    last = model._runtime.encoder.trunk.classifier.out_proj
    last.bias = last.bias + 60
    ranked = model.rerank("which", DOCUMENTS)
    assert [each.score for each in ranked] == [1.0] * len(DOCUMENTS)
    assert [each.index for each in ranked] == want
    assert want != sorted(want)
