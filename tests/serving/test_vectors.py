"""Vectors over HTTP are those of `Model.embed`, in every interface's shape."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest

from archport import engine

GOLDENS = Path(__file__).parents[1] / "goldens"

TEXTS = ["one", "two words", "a third text that is a little longer than the others", "one"]


@pytest.fixture(scope="session")
def expected(tiny):
    return tiny("bert-plain").embed(TEXTS)


def vectors(response):
    assert response.status_code == 200, response.text
    return np.array([each["embedding"] for each in response.json()["data"]], np.float32)


def test_four_shapes_of_input(make, tiny, expected):
    serving, tokenizer = make("bert-plain", token_ids="accept"), tiny("bert-plain")._runtime.tokeniser.tokenizer
    ids = [tokenizer.encode(text).ids for text in TEXTS]
    for given, rows in ((TEXTS[1], expected[1:2]), (TEXTS, expected), (ids[1], expected[1:2]), (ids, expected)):
        np.testing.assert_allclose(vectors(serving.ask("/v1/embeddings", {"input": given})), rows, atol=2e-6)


def test_base64_is_little_endian_float32(make, expected):
    response = make("bert-plain").ask("/v1/embeddings", {"input": TEXTS, "encoding_format": "base64"})
    found = [np.frombuffer(base64.b64decode(each["embedding"]), "<f4") for each in response.json()["data"]]
    np.testing.assert_allclose(np.stack(found), expected, atol=2e-6)


def test_dimensions_cut_and_scale(make, tiny):
    found = vectors(make("bert-plain", any_dimensions=True).ask("/v1/embeddings", {"input": TEXTS, "dimensions": 8}))
    np.testing.assert_allclose(found, tiny("bert-plain").embed(TEXTS, dimensions=8), atol=2e-6)


def test_usage_counts_tokens_and_indices_are_in_order(make, tiny):
    answer = make("bert-plain").ask("/v1/embeddings", {"input": TEXTS}).json()
    tokenizer = tiny("bert-plain")._runtime.tokeniser.tokenizer
    count = sum(len(tokenizer.encode(text).ids) for text in TEXTS)
    assert answer["usage"] == {"prompt_tokens": count, "total_tokens": count}
    assert [each["index"] for each in answer["data"]] == [0, 1, 2, 3]
    assert answer["model"] == "bert-plain"


@pytest.mark.parametrize("side", ["start", "end"])
def test_a_text_that_is_cut_is_told_and_counted_as_it_ran(make, tiny, side):
    text = " ".join(f"word{number}" for number in range(600))
    response = make("bert-plain").ask("/v1/embeddings", {"input": ["a", text], "truncate": side})
    answer = response.json()
    assert answer["usage"]["truncated_inputs"] == [1]
    assert answer["usage"]["prompt_tokens"] == 512 + 3
    assert response.headers["x-archport-truncated-inputs"] == "1"
    if side == "end":
        same = tiny("bert-plain").embed([text], overflow="truncate")[0]
        np.testing.assert_allclose(answer["data"][1]["embedding"], same, atol=2e-6)


def test_a_cut_at_the_start_keeps_the_end(make):
    serving = make("bert-plain")
    end = {"input": "x " * 600 + "the end", "truncate": "start"}
    other = {"input": "y " * 600 + "the end", "truncate": "start", "truncate_prompt_tokens": 4}
    first = {**end, "truncate_prompt_tokens": 4}
    np.testing.assert_allclose(*(vectors(serving.ask("/v1/embeddings", body)) for body in (first, other)), atol=2e-6)


def test_prompts_by_name_role_and_word(make, tiny):
    serving, model = make("qwen3-embed"), tiny("qwen3-embed")
    names = sorted(model.inputs.prompts)
    assert names, "this golden stores prompts"
    for body, expected in (
        ({"prompt_name": names[0]}, model.embed(TEXTS, prompt_name=names[0])),
        ({"input_type": "search_query"}, model.encode_query(TEXTS)),
        ({"task": "retrieval.passage"}, model.encode_document(TEXTS)),
        ({"prompt": "Say: "}, model.embed(TEXTS, prompt="Say: ")),
    ):
        response = serving.ask("/v1/embeddings", {"input": TEXTS, **body})
        np.testing.assert_allclose(vectors(response), expected, atol=1e-5)
    assert (
        serving.ask("/v1/embeddings", {"input": "a", "prompt_name": names[0]}).headers["x-archport-prompt"] == names[0]
    )


def test_a_task_of_the_model_runs_with_its_adapter(make):
    folder = GOLDENS / "adapters" / "bert-patterns"
    from archport.serving.models import served_model

    model = engine.load(GOLDENS / "bert-plain", adapters={"retrieval.query": folder, "other": folder}, dtype="float32")
    serving = make()
    held = lambda: serving.state.device.reserved  # noqa: E731
    serving.state.registry.add(served_model("bert", model, {}, held=held))
    for task in ("retrieval.query", "other", None):
        response = serving.ask("/v1/embeddings", {"input": TEXTS, **({} if task is None else {"task": task})})
        np.testing.assert_allclose(vectors(response), model.embed(TEXTS, task=task), atol=1e-5)
    error = serving.ask("/v1/embeddings", {"input": TEXTS, "task": "another"}).json()["error"]
    assert (error["param"], error["message"]) == (
        "task", "task is 'another'; this model stores: retrieval.query, other."
    )  # fmt: skip


def test_cohere_s_types(make, expected):
    types = ["float", "int8", "uint8", "binary", "ubinary", "base64"]
    body = {"texts": TEXTS, "input_type": "search_document", "embedding_types": types, "model": "bert-plain"}
    answer = make("bert-plain").ask("/v2/embed", body).json()
    assert set(answer["embeddings"]) == set(types)
    np.testing.assert_allclose(answer["embeddings"]["float"], expected, atol=2e-6)
    signs = np.unpackbits(np.array(answer["embeddings"]["ubinary"], np.uint8), axis=1)[:, : expected.shape[1]]
    assert (signs.astype(bool) == (expected > 0)).all()


def test_text_embeddings_inference_s_bare_arrays(make, tiny, expected):
    serving = make("bert-plain")
    found = np.array(serving.ask("/embed", {"inputs": TEXTS, "normalize": False}).json(), np.float32)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    unit = np.array(serving.ask("/embed", {"inputs": TEXTS[0]}).json(), np.float32)
    assert np.linalg.norm(unit) == pytest.approx(1, abs=1e-5)
    tokens = serving.ask("/embed_all", {"inputs": TEXTS}).json()
    for mine, theirs in zip(tokens, tiny("bert-plain").embed(TEXTS, output="tokens"), strict=True):
        np.testing.assert_allclose(np.array(mine, np.float32), theirs, atol=1e-5)


def test_a_role_that_other_modules_answer_is_refused_by_their_file(make, tiny):
    serving, model = make("routed"), tiny("routed")
    (row,) = serving.ask("/embed_sparse", {"inputs": "a cat", "prompt_name": "document"}).json()
    want = model.encode_document("a cat", output="sparse").toarray()[0]
    np.testing.assert_allclose([entry["value"] for entry in row], want[want > 0], rtol=1e-5)
    answer = serving.ask("/embed_sparse", {"inputs": "a cat", "prompt_name": "query"})
    assert answer.status_code == 400
    assert "answers query by modules of their own (router_config.json)" in answer.json()["error"]


def test_text_embeddings_inference_s_sparse_vectors(make, tiny):
    texts = ["a cat", "the software", "a"]
    serving, model = make("splade"), tiny("splade")
    answer = serving.ask("/embed_sparse", {"inputs": texts}).json()
    expected = model.embed(texts, output="sparse").toarray()
    for row, want in zip(answer, expected, strict=True):
        assert [entry["index"] for entry in row] == np.flatnonzero(want).tolist()
        np.testing.assert_allclose([entry["value"] for entry in row], want[want > 0], rtol=1e-5)
    (prompted,) = serving.ask("/embed_sparse", {"inputs": "software", "prompt_name": "query"}).json()
    want = model.encode_query("software", output="sparse").toarray()[0]
    np.testing.assert_allclose([entry["value"] for entry in prompted], want[want > 0], rtol=1e-5)
    assert serving.ask("/embed_sparse", {"inputs": "x " * 99}).status_code == 400
    assert len(serving.ask("/embed_sparse", {"inputs": "x " * 99, "truncate": True}).json()) == 1
    assert make("bert-plain").ask("/embed_sparse", {"inputs": "a"}).json()["error_type"] == "Validation"
    assert serving.ask("/embed", {"inputs": "a"}).status_code == 400


def test_ollama_s_vectors_have_unit_length(make):
    answer = make("bert-plain").ask("/api/embed", {"model": "bert-plain:latest", "input": TEXTS}).json()
    np.testing.assert_allclose(np.linalg.norm(answer["embeddings"], axis=1), 1, atol=1e-5)


def test_tokens_say_where_they_stand(make):
    (tokens,) = make("bert-plain").ask("/tokenize", {"inputs": "two words"}).json()
    assert tokens[0]["special"]
    assert tokens[0]["start"] is None
    assert all("two words"[each["start"] : each["stop"]] for each in tokens if not each["special"])


def test_a_picture_as_data_uri_is_embedded_as_the_library_does(make, tiny):
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 80, 3), np.uint8)).save(buffer, "PNG")
    uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    expected = tiny("qwen3-vl").embed([{"text": "a cat", "image": buffer.getvalue()}])
    shapes = [
        ("/v1/embeddings", {"input": [{"text": "a cat", "image": uri}]}),
        (
            "/v1/embeddings",
            {"messages": [{"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": "a cat"}]}]},
        ),
    ]  # fmt: skip
    serving = make("qwen3-vl")
    for path, body in shapes:
        np.testing.assert_allclose(vectors(serving.ask(path, body)), expected, atol=2e-4)
    inputs = [{"content": [{"type": "text", "text": "a cat"}, {"type": "image_url", "image_url": {"url": uri}}]}]
    cohere = serving.ask("/v2/embed", {"inputs": inputs}).json()["embeddings"]["float"]
    np.testing.assert_allclose(cohere, expected, atol=2e-4)


def test_callers_at_once_share_windows_and_get_their_own_vectors(make, tiny):
    serving, rng = make("bert-plain"), np.random.default_rng(1)
    texts = [" ".join(f"w{n}" for n in rng.integers(0, 50, rng.integers(1, 40))) for _ in range(60)]
    expected = tiny("bert-plain").embed(texts)

    async def run():
        async with serving.client() as client:
            return await asyncio.gather(*(client.post("/v1/embeddings", json={"input": text}) for text in texts))

    found = np.concatenate([vectors(each) for each in asyncio.run(run())])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    windows = sum(s.value for s in serving.state.metrics.windows.collect()[0].samples if s.name.endswith("_total"))
    assert windows < 30


def test_models_are_listed_and_named_with_slashes(make):
    serving = make("bert-plain")
    (served,) = serving.state.registry.all
    served.id = "acme/bert"
    serving.state.registry._models = {"acme/bert": served}
    assert serving.ask("/v1/models").json()["data"][0]["id"] == "acme/bert"
    found = serving.ask("/v1/models/acme/bert").json()
    assert found["dimensions"] == served.model.dimensions
    assert found["max_model_len"] == 512
    assert serving.ask("/v1/models/acme/other").status_code == 404


def test_headers_tell_where_the_time_went(make):
    headers = make("bert-plain").ask("/v1/embeddings", {"input": "one two"}).headers
    names = ("x-total-time", "x-tokenization-time", "x-queue-time", "x-inference-time", "x-compute-tokens")
    assert all(headers[name].isdigit() for name in names)


def test_the_access_log_has_numbers_and_no_contents(make, caplog):
    import logging

    with caplog.at_level(logging.INFO, "archport.access"):
        make("bert-plain").ask("/v1/embeddings", {"input": "very secret words"}, headers={"x-request-id": "abc"})
    record = json.loads(caplog.records[-1].getMessage())
    assert (record["id"], record["status"], record["path"]) == ("abc", 200, "/v1/embeddings")
    assert "secret" not in caplog.text


def test_metrics_count_requests_and_refusals(make):
    serving = make("bert-plain")
    serving.ask("/v1/embeddings", {"input": "a"})
    serving.ask("/v1/embeddings", {"input": ""})
    text = serving.ask("/metrics").text
    assert 'archport_requests_total{path="/v1/embeddings",status="200"} 1.0' in text
    assert 'archport_rejected_total{code="empty_input"} 1.0' in text
    assert "archport_device_bytes" in text


def test_the_document_lists_every_address_that_answers(make):
    serving = make("bert-plain")
    paths = serving.ask("/openapi.json").json()["paths"]
    assert set(paths) == {each.path.replace(":path}", "}") for each in serving.app.endpoints}


def test_the_record_of_random_requests_is_of_this_document(make):
    """`make test-openapi` records it: every address was asked, and answered as the document says that it may be."""
    record = json.loads((GOLDENS.parent / "clients" / "openapi.json").read_text(encoding="utf-8"))
    statuses = {path.replace(":path}", "}"): set(codes) for path, codes in record["statuses"].items()}
    paths = make("bert-plain").ask("/openapi.json").json()["paths"]
    told = {path: {code for each in methods.values() for code in each["responses"]} for path, methods in paths.items()}
    assert set(statuses) == {path for path in told if not path.startswith(("/health", "/metrics"))}
    assert {path: codes - told[path] for path, codes in statuses.items() if not codes <= told[path]} == {}
