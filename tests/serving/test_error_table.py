"""Each row of the table of errors, in the shape of every dialect."""

from __future__ import annotations

import asyncio
import base64
import time

import numpy as np
import pytest

from archport.contract import MemoryBudgetExceeded


def error(response, status, code):
    """The error of an answer that has this status and code."""
    assert response.status_code == status, response.text
    found = response.json()["error"]
    assert found["code"] == code
    assert found["message"]
    return found


@pytest.fixture
def bert(make):
    return make("bert-plain")


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"{", "invalid_json"),
        (b"[1]", "invalid_json"),
        (b'"text"', "invalid_json"),
        (b"\xff\xfe", "invalid_json"),
        (b'{"input": ' + b"[" * 100 + b"]" * 100 + b"}", "invalid_json"),
        (b'{"input": 5}', "invalid_type"),
        (b'{"input": [1.5]}', "invalid_type"),
        (b'{"input": [true]}', "invalid_type"),
        (b'{"input": ["a", 1]}', "invalid_type"),
        (b'{"input": "a", "encoding_format": "hex"}', "invalid_type"),
        (b'{"input": ""}', "empty_input"),
        (b'{"input": []}', "empty_input"),
        (b'{"input": ["a", ""]}', "empty_input"),
        (b'{"input": [[]]}', "empty_input"),
        (b"{}", "empty_input"),
        (b'{"input": "a", "dimensions": 0}', "invalid_dimensions"),
        (b'{"input": "a", "dimensions": 100000}', "invalid_dimensions"),
        (b'{"input": "a", "dimensions": 8}', "invalid_dimensions"),
        (b'{"input": "a", "prompt_name": "no such"}', "invalid_prompt"),
        (b'{"input": "a", "prompt": "x", "prompt_name": "y"}', "invalid_prompt"),
        (b'{"input": [1, 2]}', "token_ids_not_accepted"),
        (b'{"input": "a", "truncate": "middle"}', "invalid_value"),
        (b'{"input": "a", "truncate_prompt_tokens": 0}', "invalid_value"),
        (b'{"input": "a", "truncate_prompt_tokens": 1, "truncate": true}', "invalid_input"),
        (b'{"input": "\\ud800"}', "invalid_json"),
    ],
)
def test_what_is_wrong_with_a_request_is_400_and_names_it(bert, content, code):
    error(bert.ask("/v1/embeddings", content=content), 400, code)


def test_a_long_array_of_wrong_entries_has_few_errors():
    from pydantic import ValidationError

    from archport.serving.endpoints import ENDPOINTS

    for body in {each.body for each in ENDPOINTS if each.body is not None}:
        for name in body.model_fields:
            for entries in ([1.5] * 1000, [["a", 1.5] * 500]):
                errors = 0
                try:
                    body.model_validate({name: entries})
                except ValidationError as error:
                    errors = error.error_count()
                assert errors < 30, (body, name)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/embed", {"inputs": "a", "truncation_direction": "Middle"}, "truncation_direction"),
        ("/v2/embed", {"texts": ["a"], "images": ["aGVsbG8="]}, "images"),
        ("/v1/embeddings", {"input": "word " * 9, "truncate": False, "truncate_prompt_tokens": 4}, "limit is 4"),
    ],
)
def test_what_would_be_left_unread_is_refused(bert, path, body, param):
    response = bert.ask(path, body)
    assert response.status_code == 400
    assert param in response.text


@pytest.mark.parametrize("ids", [[-1], [10**6], [2**70]])
def test_ids_outside_the_vocabulary_are_400(make, ids):
    serving = make("bert-plain", token_ids="accept")
    assert serving.ask("/v1/embeddings", {"input": ids}).status_code == 400


def test_a_prompt_does_not_go_with_ids(make):
    serving = make("bert-plain", token_ids="accept")
    error(serving.ask("/v1/embeddings", {"input": [5], "prompt": "x"}), 400, "invalid_prompt")


def test_a_text_that_is_too_long_opens_as_litellm_reads_it(bert):
    response = bert.ask("/v1/embeddings", {"input": ["a", "word " * 600]})
    found = error(response, 400, "context_length_exceeded")
    assert found["message"].startswith(
        "This model's maximum context length is 512 tokens, however you requested 602 tokens."
    )
    assert found["param"] == "input"
    assert found["max_tokens_that_fit"] == 512


def test_what_can_never_fit_is_400_with_its_numbers_and_is_not_retried(bert, monkeypatch):
    (served,) = bert.state.registry.all

    def refuse(*_, **__):
        raise MemoryBudgetExceeded(
            "too large", required_bytes=9, limit_bytes=5, breakdown={"weights": 4}, max_tokens_that_fit=7,
            largest_buffer=("scores", 3, None),
        )  # fmt: skip

    monkeypatch.setattr(served, "alone", refuse)
    response = bert.ask("/v1/embeddings", {"input": "a"})
    found = error(response, 400, "input_exceeds_memory_budget")
    assert response.headers["x-should-retry"] == "false"
    names = ("estimated_bytes", "limit_bytes", "largest_buffer_bytes", "components", "max_tokens_that_fit")
    assert [found[name] for name in names] == [9, 5, 3, {"weights": 4}, 7]


def test_a_budget_that_a_row_exceeds_refuses_it_before_it_runs(make, tiny):
    from dataclasses import replace

    serving = make("bert-plain")
    (served,) = serving.state.registry.all
    served.alone = replace(served.alone, budget=served.alone.weights.total + 100_000)
    found = error(serving.ask("/v1/embeddings", {"input": "word " * 400}), 400, "input_exceeds_memory_budget")
    assert found["estimated_bytes"] > found["limit_bytes"]
    assert serving.ask("/v1/embeddings", {"input": "word"}).status_code in (200, 400)


@pytest.mark.parametrize("path", ["/rerank", "/classify", "/score"])
def test_a_capability_that_a_model_lacks_is_400(make, path):
    serving = make("bert-classify")
    if path == "/classify":
        serving = make("bert-plain")
    body = {"query": "a", "documents": ["b"], "queries": "a", "input": "a"}
    error(serving.ask(path, {**body, "model": serving.state.registry.all[0].id}), 400, "unsupported_operation")


@pytest.mark.parametrize(
    "headers", [{}, {"authorization": "Bearer no"}, {"authorization": "Basic a2V5"}, {"authorization": "Bearer kéy"}]
)
def test_without_the_key_it_is_401(make, headers):
    from archport.serving.security import keys_of

    serving = make("bert-plain", keys=keys_of(["secret"]))
    raw = {name: value.encode("utf-8") for name, value in headers.items()}
    response = serving.ask("/v1/embeddings", {"input": "a"}, headers=raw)
    error(response, 401, "invalid_api_key")
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("model", ["no such", "../bert-plain", "/etc/passwd", "bert-plain/.", ""])
def test_a_model_that_is_not_served_is_404(bert, model):
    error(bert.ask("/v1/embeddings", {"input": "a", "model": model}), 404, "model_not_found")


def test_an_address_that_is_none_is_404_and_a_wrong_method_405(bert):
    error(bert.ask("/v1/nothing", {}), 404, "not_found")
    response = bert.ask("/v1/embeddings")
    error(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("limits", "body"),
    [
        ({"body_bytes": 20}, {"input": "a" * 30}),
        ({"inputs": 2}, {"input": ["a"] * 3}),
        ({"characters": 10}, {"input": "a" * 11}),
        ({"tokens": 5}, {"input": ["a b c", "a b c"]}),
    ],
)
def test_what_is_over_a_limit_is_413(make, limits, body):
    error(make("bert-plain", limits=limits).ask("/v1/embeddings", body), 413, "request_too_large")


@pytest.mark.parametrize(("limits", "status"), [({"tokens": 5}, 413), ({"queue_requests": 1}, 429)])
def test_texts_that_are_only_tokenised_have_the_bounds_of_the_others(make, limits, status):
    serving = make("bert-plain", limits=limits)
    with serving.state.answers.admitted(["another request"], "inputs"):
        assert serving.ask("/tokenize", {"inputs": ["a b c", "a b c"]}).status_code == status


def test_a_body_without_a_length_is_cut_off_where_it_is_too_long(make):
    serving = make("bert-plain", limits={"body_bytes": 1000})
    sent = []

    async def body():
        for _ in range(1000):
            sent.append(1)
            yield b"a" * 100

    error(serving.ask("/v1/embeddings", content=body()), 413, "request_too_large")


def test_a_body_that_stops_half_way_is_408(make):
    serving = make("bert-plain", limits={"header_seconds": 0.05})

    async def half():
        yield b'{"input": '
        await asyncio.sleep(30)

    begin = time.monotonic()
    error(serving.ask("/v1/embeddings", content=half()), 408, "request_timeout")
    # Before the body would have gone on.
    assert time.monotonic() - begin < 25


@pytest.mark.parametrize(
    "image",
    [
        "http://127.0.0.1/cat.png",
        "file:///etc/passwd",
        "/etc/passwd",
        "data:image/png;base64,%%%",
        "data:image/png;base64,",
        "data:image/png;base64," + base64.b64encode(b"no image").decode(),
    ],
)
def test_media_that_is_refused_or_damaged_is_422(make, image):
    error(make("qwen3-vl").ask("/v1/embeddings", {"input": [{"image": image}]}), 422, "invalid_media")


def test_a_full_queue_is_429_at_once_and_says_when_to_come_back(make):
    serving = make("bert-plain", limits={"queue_requests": 2}, start=False)

    async def run():
        async with serving.client() as client:
            asks = [asyncio.ensure_future(client.post("/v1/embeddings", json={"input": "a"})) for _ in range(2)]
            while serving.state.scheduler.jobs < 2:
                await asyncio.sleep(0.001)
            begin = time.monotonic()
            refused = await client.post("/v1/embeddings", json={"input": "a"})
            took = time.monotonic() - begin
            serving.state.device.start()
            return refused, took, await asyncio.gather(*asks)

    refused, took, answered = asyncio.run(run())
    found = error(refused, 429, "overloaded")
    assert found["type"] == "rate_limit_error"
    assert int(refused.headers["retry-after"]) >= 1
    assert int(refused.headers["retry-after-ms"]) >= 1
    # Nothing was answered meanwhile, so it waited for none; how fast it is test_process.py holds.
    assert took < 10
    assert [each.status_code for each in answered] == [200, 200]


@pytest.mark.parametrize(("flag", "code"), [("loading", "model_loading"), ("draining", "shutting_down")])
def test_while_it_loads_or_ends_it_is_503(bert, flag, code):
    setattr(bert.state, flag, True)
    for response in (bert.ask("/v1/embeddings", {"input": "a"}), bert.ask("/health/ready")):
        error(response, 503, code)
        assert response.headers["retry-after"]
    assert bert.ask("/health/live").status_code == 200


def test_an_engine_that_died_too_often_is_503(bert):
    bert.state.device.deaths = 99
    error(bert.ask("/v1/embeddings", {"input": "a"}), 503, "engine_unhealthy")
    error(bert.ask("/health/ready"), 503, "engine_unhealthy")


def test_a_deadline_that_passes_is_504(make):
    serving = make("bert-plain", limits={"seconds": 0.05}, start=False)
    error(serving.ask("/v1/embeddings", {"input": "a"}), 504, "timeout")
    assert serving.state.scheduler.waiting_tokens == 0


def test_a_fault_of_the_engine_is_500_with_the_request_s_id_and_nothing_else(bert, monkeypatch):
    from archport.answering.callers import VectorWork

    def fail(*_):
        raise RuntimeError("secret at 0x7fff")

    monkeypatch.setattr(VectorWork, "run", fail)
    response = bert.ask("/v1/embeddings", {"input": "a"}, headers={"x-request-id": "mine"})
    found = error(response, 500, "internal_error")
    assert "mine" in found["message"]
    assert "secret" not in response.text
    assert response.headers["x-request-id"] == "mine"


def test_nan_is_500_and_never_null(bert, monkeypatch):
    from archport.answering.callers import VectorWork

    monkeypatch.setattr(VectorWork, "run", lambda self, rows, take: take(0, np.array([1.0, np.nan])))
    response = bert.ask("/v1/embeddings", {"input": "a"})
    error(response, 500, "non_finite_output")
    assert "null" not in response.text.replace('"param":null', "")


@pytest.mark.parametrize(
    ("path", "body", "keys"),
    [
        ("/embed", {"inputs": ""}, {"error", "error_type"}),
        ("/api/embed", {"input": "a", "model": "no"}, {"error", "code"}),
        ("/v2/embed", {"texts": []}, {"id", "message", "code"}),
        ("/v2/rerank", {"query": "a", "documents": [], "model": "bert-plain"}, {"id", "message", "code"}),
    ],
)
def test_each_interface_speaks_errors_in_its_own_shape(bert, path, body, keys):
    response = bert.ask(path, body)
    assert response.status_code in (400, 404)
    assert set(response.json()) == keys
