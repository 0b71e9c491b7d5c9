"""Labels of tokens over HTTP: those of transformers' pipeline, in the shape that the Hub's own client reads."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest
from huggingface_hub import TokenClassificationOutputElement

from .conftest import GOLDENS

FAMILIES = ("tags/bert", "tags/xlm-roberta")


def recorded(name):
    """(texts, per text the pipeline's [label, score, start, end])."""
    stored = json.loads((GOLDENS / name / "spans.json").read_text(encoding="utf-8"))
    return stored["texts"], stored["spans"]


@pytest.mark.parametrize("name", FAMILIES)
def test_spans_are_those_of_the_pipeline(make, name):
    texts, spans = recorded(name)
    answer = make(name).ask("/predict", {"inputs": texts, "truncate": True}).json()
    for text, got, want in zip(texts, answer, spans, strict=True):
        elements = TokenClassificationOutputElement.parse_obj_as_list(json.dumps(got))
        assert [(span.entity_group, span.start, span.end) for span in elements] == [
            (label, *at) for label, _, *at in want
        ]
        np.testing.assert_allclose([span.score for span in elements], [score for _, score, *_ in want], atol=1e-5)
        assert [span.word for span in elements] == [text[span.start : span.end] for span in elements]


def test_every_token_has_its_label_where_none_are_joined(make, tiny):
    texts, _ = recorded("tags/bert")
    serving, model = make("tags/bert"), tiny("tags/bert")
    tagger = model._runtime.tagger()
    for text in texts[:3]:
        body = {"inputs": text, "parameters": {"aggregation_strategy": "none", "ignore_labels": []}}
        answer = serving.ask("/predict", body).json()
        encoding = tagger.tokeniser.tokenizer.encode(text)
        (scores,) = tagger.scores([np.array(encoding.ids, np.int32)])
        inner = [at for at, special in enumerate(encoding.special_tokens_mask) if not special]
        assert [(span["start"], span["end"]) for span in answer] == [encoding.offsets[at] for at in inner]
        assert [span["entity"] for span in answer] == [tagger.head.labels[scores[at].argmax()] for at in inner]
        chances = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        np.testing.assert_allclose([span["score"] for span in answer], chances[inner].max(axis=1), rtol=1e-4)


def test_labels_that_are_to_be_ignored_are_left_out(make):
    texts, spans = recorded("tags/bert")
    labels = {label for label, *_ in spans[0]}
    assert labels
    serving = make("tags/bert")
    for ignored in labels:
        answer = serving.ask("/predict", {"inputs": texts[0], "parameters": {"ignore_labels": [ignored, "O"]}}).json()
        assert {span["entity_group"] for span in answer} == labels - {ignored}


def test_callers_that_ask_at_once_get_what_they_get_alone(make):
    texts, _ = recorded("tags/bert")
    serving = make("tags/bert")
    alone = [serving.ask("/predict", {"inputs": text, "truncate": True}).json() for text in texts]

    async def together():
        async with serving.client() as client:
            bodies = [{"inputs": text, "truncate": True} for text in texts]
            return [
                response.json() for response in await asyncio.gather(*(client.post("/predict", json=b) for b in bodies))
            ]

    for got, want in zip(asyncio.run(together()), alone, strict=True):
        assert [(span["entity_group"], span["start"]) for span in got] == [
            (span["entity_group"], span["start"]) for span in want
        ]


def test_a_text_that_is_cut_is_told(make):
    response = make("tags/bert").ask("/predict", {"inputs": ["a", "cat " * 100], "truncate": True})
    assert response.headers["x-archport-truncated-inputs"] == "1"
    refused = make("tags/bert").ask("/predict", {"inputs": "cat " * 100})
    assert (refused.status_code, refused.json()["error_type"]) == (400, "Validation")


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"inputs": [["a", "b"]]}, "single texts"),
        ({"inputs": "a", "raw_scores": True}, "raw_scores"),
        ({"inputs": "a", "parameters": {"aggregation_strategy": "first"}}, "none or simple"),
        ({"inputs": "a", "parameters": {"stride": 8}}, "stride"),
        ({"inputs": []}, "empty"),
    ],
)
def test_what_labels_of_tokens_can_t_be_asked_is_refused(make, body, named):
    response = make("tags/bert").ask("/predict", body)
    assert response.status_code == 400
    assert named in response.json()["error"]


def test_a_classifier_keeps_its_answers_and_takes_no_parameters_of_tokens(make):
    serving = make("tags/bert", "bert-classify")
    body = {"inputs": "a text"}
    assert serving.ask("/predict", body).json() == make("bert-classify").ask("/predict", body).json()
    response = serving.ask("/predict", {**body, "parameters": {"aggregation_strategy": "simple"}})
    assert response.status_code == 400


def test_the_server_says_that_its_model_labels_tokens(make):
    serving = make("tags/bert")
    (model,) = serving.ask("/v1/models").json()["data"]
    assert "tag" in model["capabilities"]
    labels = serving.ask("/info").json()["model_type"]["token_classifier"]["id2label"]
    assert labels["0"] == "O" or "O" in labels.values()
