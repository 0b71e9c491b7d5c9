"""Reranking with pictures: the published bytes, two rows of the head, one batch or many, and what is cut."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

import archport  # noqa: F401  (before mlx)
from archport import engine
from archport.contract import Asked, ContextLengthExceeded, InputError

DICE = np.random.default_rng(6)
RED = DICE.integers(0, 256, (24, 40, 3), dtype=np.uint8)
BLUE = DICE.integers(0, 256, (61, 50, 3), dtype=np.uint8)
DOCUMENTS: list[Any] = [
    "a text",
    {"image": RED},
    {"text": "both", "image": [BLUE, RED]},
    {"text": ""},
    "a longer text" * 9,
]
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
HEAD = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n<Instruct>: '
)
DEFAULT = "Given a search query, retrieve relevant candidates that answer the query."
END = "<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> engine.Model:
    folder = tmp_path_factory.mktemp("models") / "Tiny-VL-Reranker"
    golden = Path(__file__).parents[3] / "tests" / "goldens" / "qwen3-vl"
    shutil.copytree(golden, folder, ignore=shutil.ignore_patterns("golden*"))
    return engine.load(folder, dtype="float32")


def measured(model: engine.Model, query: object, document: object, **asked: Any) -> Any:
    tokeniser = model._runtime.tokeniser
    reader: Any = tokeniser.inputs.reader
    wanted = Asked("document 0", asked.pop("prompt", None), asked.pop("limit", 10_000), **asked)
    return reader.measure_pair(query, document, tokeniser.encode, wanted)


def text_of(model: engine.Model, ids: np.ndarray) -> str:
    text = model._runtime.tokeniser.tokenizer.decode(ids.tolist(), skip_special_tokens=False)
    while "<|image_pad|>" * 2 in text:
        text = text.replace("<|image_pad|>" * 2, "<|image_pad|>")
    return text


@pytest.mark.parametrize(
    ("query", "document", "body"),
    [
        ("q", "d", "<Query>:q\n<Document>:d"),
        ({"text": "q", "image": RED}, {"image": BLUE}, f"<Query>:{IMAGE}q\n<Document>:{IMAGE}"),
        ("", {}, "<Query>:NULL\n<Document>:NULL"),
    ],
)
def test_a_pair_is_rendered_as_published(query: object, document: object, body: str, reranker: engine.Model):
    assert text_of(reranker, measured(reranker, query, document).ids) == HEAD + DEFAULT + body + END
    asked = measured(reranker, query, document, prompt="Find cats")
    assert text_of(reranker, asked.ids) == HEAD + "Find cats" + body + END


def test_a_score_is_the_probability_of_yes_over_no(reranker: engine.Model, run: Callable):
    ranked = {each.index: each.score for each in reranker.rerank({"text": "q", "image": RED}, DOCUMENTS)}
    raw = {e.index: e.score for e in reranker.rerank({"text": "q", "image": RED}, DOCUMENTS, raw_scores=True)}
    tokenizer = reranker._runtime.tokeniser.tokenizer
    yes, no = tokenizer.token_to_id("yes"), tokenizer.token_to_id("no")
    trunk: Any = reranker._runtime.encoder.trunk
    for index, document in enumerate(DOCUMENTS):
        hidden, _ = run(reranker, measured(reranker, {"text": "q", "image": RED}, document))
        logits = np.array(trunk.logits(mx.array(hidden[None, -1:])))[0, 0]
        assert raw[index] == pytest.approx(logits[yes] - logits[no], rel=1e-4, abs=1e-5)
        assert ranked[index] == pytest.approx(1 / (1 + np.exp(-raw[index])), abs=1e-6)


def test_documents_together_score_as_alone(reranker: engine.Model):
    together = {each.index: each.score for each in reranker.rerank("q", DOCUMENTS, raw_scores=True)}
    alone = [reranker.rerank("q", [document], raw_scores=True)[0].score for document in DOCUMENTS]
    assert max(abs(together[index] - score) for index, score in enumerate(alone)) < 1e-4


def test_truncation_keeps_pictures_and_the_last_five_tokens(reranker: engine.Model):
    long = {"image": RED, "text": "words " * 200}
    with pytest.raises(ContextLengthExceeded, match="the limit is 200"):
        measured(reranker, "q", long, limit=200)
    cut = measured(reranker, "q", long, limit=200, overflow="truncate")
    assert len(cut.ids) == 200
    assert text_of(reranker, cut.ids).endswith(END)
    assert (cut.pictures[0].tokens, cut.truncated) == (15, True)
    assert len(reranker._runtime.tokeniser.encode(END)) >= 5


def test_a_reranker_makes_no_vectors_and_a_conversation_is_no_document(reranker: engine.Model):
    with pytest.raises(InputError, match="makes no vectors"):
        reranker.embed("a")
    with pytest.raises(InputError, match="its document is a conversation"):
        reranker.rerank("q", [{"messages": [{"role": "user", "content": "x"}]}])


def test_documents_of_which_the_model_is_sure_rank_by_the_head_s_own_scores(
    reranker: engine.Model, monkeypatch: pytest.MonkeyPatch
):
    want = [each.index for each in reranker.rerank("a query", DOCUMENTS)]
    kind: Any = type(reranker._runtime.scorer())
    scores = kind.scores
    monkeypatch.setattr(kind, "scores", lambda self, *rest: scores(self, *rest) + np.float32(60))
    ranked = reranker.rerank("a query", DOCUMENTS)
    assert [each.score for each in ranked] == [1.0] * len(DOCUMENTS)
    assert [each.index for each in ranked] == want != sorted(want)


def test_damaged_pictures_are_set_aside_and_other_documents_rank_as_without_them(reranker: engine.Model):
    file = io.BytesIO()
    Image.fromarray(BLUE).save(file, "PNG")
    rows: list[Any] = [*DOCUMENTS[:2], {"image": file.getvalue()[:400]}, *DOCUMENTS[2:], 3]
    made = reranker.rerank("red", rows, errors="collect")
    assert set(made.errors) == {2, 6}
    assert all(f"document {row}" in str(error) for row, error in made.errors.items())
    want = reranker.rerank("red", DOCUMENTS)
    assert [each.index - (each.index > 2) for each in made.results] == [each.index for each in want]
    np.testing.assert_allclose([each.score for each in made.results], [each.score for each in want], atol=1e-5)
