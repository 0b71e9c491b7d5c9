"""Rankings, scores and labels over HTTP are those of `Model.rerank` and `classify`."""

from __future__ import annotations

import numpy as np
import pytest

QUERY, DOCUMENTS = "which word", ["one text", "another, which is longer", "third", "one text"]
RERANKERS = ["xlm-roberta-rerank", "qwen3-reranker", "colbert", "llama-bidirec-rerank"]


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
@pytest.mark.parametrize("name", RERANKERS)
def test_documents_in_the_library_s_order_with_its_scores(make, tiny, name, path):
    expected = tiny(name).rerank(QUERY, DOCUMENTS)
    answer = make(name).ask(path, {"query": QUERY, "documents": DOCUMENTS, "model": name}).json()
    assert [each["index"] for each in answer["results"]] == [each.index for each in expected]
    scores = [each["relevance_score"] for each in answer["results"]]
    np.testing.assert_allclose(scores, [each.score for each in expected], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("top", "count"), [(None, 4), (0, 4), (2, 2), (9, 4)])
def test_top_n_of_none_or_zero_is_all(make, top, count):
    body = {"query": QUERY, "documents": DOCUMENTS, "top_n": top, "return_documents": True}
    results = make("xlm-roberta-rerank").ask("/rerank", body).json()["results"]
    assert len(results) == count
    assert all(each["document"]["text"] == DOCUMENTS[each["index"]] for each in results)


def test_equal_documents_score_alike_and_keep_their_order(make):
    answer = make("qwen3-reranker").ask("/rerank", {"query": QUERY, "documents": DOCUMENTS}).json()["results"]
    same = [each for each in answer if each["index"] in (0, 3)]
    assert same[0]["relevance_score"] == same[1]["relevance_score"]
    assert [each["index"] for each in same] == [0, 3]


def test_raw_scores_and_their_kind(make, tiny):
    body = {"query": QUERY, "documents": DOCUMENTS, "raw_scores": True}
    answer = make("xlm-roberta-rerank").ask("/rerank", body).json()
    expected = {each.index: each.score for each in tiny("xlm-roberta-rerank").rerank(QUERY, DOCUMENTS, raw_scores=True)}
    assert answer["score_kind"] == "logit"
    for each in answer["results"]:
        assert each["relevance_score"] == pytest.approx(expected[each["index"]], rel=1e-4)


def test_text_embeddings_inference_s_rerank(make):
    answer = make("xlm-roberta-rerank").ask("/rerank", {"query": QUERY, "texts": DOCUMENTS, "return_text": True}).json()
    assert [set(each) for each in answer] == [{"index", "score", "text"}] * 4


@pytest.mark.parametrize("name", [*RERANKERS, "bert-plain"])
def test_scores_of_pairs_by_every_kind_of_model(make, tiny, name):
    serving = make(name)
    one = serving.ask("/score", {"queries": QUERY, "documents": DOCUMENTS}).json()
    zipped = serving.ask("/score", {"queries": [QUERY] * 4, "documents": DOCUMENTS}).json()
    np.testing.assert_allclose(
        [each["score"] for each in one["data"]], [each["score"] for each in zipped["data"]], rtol=1e-5
    )
    if name == "bert-plain":
        model = tiny(name)
        expected = model.similarity(model.encode_query([QUERY]), model.encode_document(DOCUMENTS))[0]
        assert one["score_kind"] == "cosine"
    else:
        ranked = {each.index: each.score for each in tiny(name).rerank(QUERY, DOCUMENTS)}
        expected = [ranked[index] for index in range(4)]
    np.testing.assert_allclose([each["score"] for each in one["data"]], expected, rtol=1e-4, atol=1e-6)


def test_lists_of_other_lengths_are_no_pairs(make):
    response = make("bert-plain").ask("/score", {"queries": ["a", "b"], "documents": ["a", "b", "c"]})
    assert response.status_code == 400


def test_labels_as_the_library_tells_them(make, tiny):
    expected = tiny("bert-classify").classify(DOCUMENTS)
    serving = make("bert-classify")
    answer = serving.ask("/classify", {"input": DOCUMENTS}).json()
    assert [each["label"] for each in answer["data"]] == [each.label for each in expected]
    scores = [list(each.scores.values()) for each in expected]
    np.testing.assert_allclose([each["probs"] for each in answer["data"]], scores, rtol=1e-4)
    predicted = serving.ask("/predict", {"inputs": DOCUMENTS}).json()
    assert [each[0]["label"] for each in predicted] == [each.label for each in expected]


def test_pairs_are_predicted_too(make, tiny):
    pair = ["a query", "a document"]
    expected = tiny("bert-classify").classify([tuple(pair)])[0]
    (found,) = make("bert-classify").ask("/predict", {"inputs": [pair]}).json()
    assert found[0]["label"] == expected.label
    assert found[0]["score"] == pytest.approx(expected.score, rel=1e-4)


def test_limits_that_differ_from_request_to_request_keep_few_tokenizers(make, tiny):
    serving = make("bert-classify")
    for limit in range(4, 20):
        body = {"input": "word " * 40, "truncate_prompt_tokens": limit}
        assert serving.ask("/classify", body).json()["usage"]["prompt_tokens"] == limit
    (served,) = serving.state.registry.all
    assert len(served.runtime.labels().tokeniser._cutter._made) <= 4


@pytest.mark.parametrize(
    ("name", "path", "body"),
    [
        ("bert-classify", "/classify", {"input": "a", "truncate": "start"}),
        ("bert-classify", "/predict", {"inputs": "a", "truncate": True, "truncation_direction": "Left"}),
        ("colbert", "/embed_all", {"inputs": "a", "truncate": "start"}),
        *((name, "/rerank", {"query": "a", "documents": ["b"], "truncate": "start"}) for name in RERANKERS),
    ],
)
def test_a_cut_at_the_start_is_refused_where_texts_are_cut_at_their_end_alone(make, name, path, body):
    response = make(name).ask(path, body)
    assert response.status_code == 400
    assert "start" in response.text
    (served,) = make(name).state.registry.all
    assert served.runtime.tokeniser.side == "right"
