"""Who may ask and from where: hosts, origins, keys; and what a request can't make the server read."""

from __future__ import annotations

import asyncio

import pytest

from archport.contract import InputError
from archport.serving.security import keys_of
from archport.serving.settings import Settings


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil", ""])
def test_a_page_whose_name_leads_here_is_refused(make, host):
    response = make("bert-plain").ask("/v1/models", headers={"host": host})
    assert (response.status_code, response.json()["error"]["code"]) == (403, "forbidden_host")


@pytest.mark.parametrize("host", ["localhost", "localhost:8080", "127.0.0.1:9", "[::1]:8080", "models.internal"])
def test_the_server_s_own_names_are_let_in(make, host):
    serving = make("bert-plain", hosts=("models.internal",))
    assert serving.ask("/v1/models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost.evil", "http://[", "http://localhost:1"]
)
def test_pages_elsewhere_are_refused(make, origin):
    response = make("bert-plain").ask("/v1/embeddings", {"input": "a"}, headers={"origin": origin, "host": "localhost"})
    assert (response.status_code, response.json()["error"]["code"]) == (403, "forbidden_origin")
    assert "access-control-allow-origin" not in response.headers


def test_an_origin_that_was_let_in_may_ask_and_read(make):
    serving = make("bert-plain", origins=("https://app.example",))
    headers = {"origin": "https://app.example"}
    answer = serving.ask("/v1/embeddings", {"input": "a"}, headers=headers)
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    asked = {**headers, "access-control-request-method": "POST"}
    preflight = serving.ask("/v1/embeddings", method="OPTIONS", headers=asked)
    assert preflight.status_code == 204
    assert "POST" in preflight.headers["access-control-allow-methods"]


@pytest.mark.parametrize(
    "path", ["/v1/models", "/metrics", "/info", "/openapi.json", "/nothing", "/health", "/v1/embeddings"]
)
def test_with_keys_everything_but_health_asks_for_one(make, path):
    serving = make("bert-plain", keys=keys_of(["first", "second", "# no key", ""]))
    assert serving.ask(path).status_code == 401
    for headers in ({"authorization": "Bearer second"}, {"x-api-key": "first"}):
        assert serving.ask(path, headers=headers).status_code != 401
    assert serving.ask("/health/live").status_code == 200
    assert serving.ask("/health/ready").status_code == 200


def test_a_key_has_as_many_requests_under_way_as_it_may_and_leaves_the_others_theirs(make):
    serving = make("bert-plain", keys=keys_of(["first", "second"]), key_requests=2, start=False)

    async def run():
        async with serving.client() as client:

            def ask(key):
                return client.post("/v1/embeddings", json={"input": "a"}, headers={"authorization": f"Bearer {key}"})

            under_way = [asyncio.ensure_future(ask("first")) for _ in range(2)]
            while serving.state.scheduler.jobs < 2:
                await asyncio.sleep(0.001)
            over = await ask("first")
            other = asyncio.ensure_future(ask("second"))
            watched = await client.get("/metrics", headers={"authorization": "Bearer first"})
            serving.state.device.start()
            answered = await asyncio.gather(*under_way, other)
            return over, watched, [*answered, await ask("first")]

    over, watched, answered = asyncio.run(run())
    assert (over.status_code, over.json()["error"]["code"]) == (429, "overloaded")
    assert over.headers["retry-after"]
    assert watched.status_code == 200
    assert [each.status_code for each in answered] == [200] * 4


@pytest.mark.parametrize("body", [b"{", b'{"input": "a", "model": "none"}', b'{"input": ""}'])
def test_a_request_that_is_refused_is_under_way_no_more(make, body):
    serving = make("bert-plain", keys=keys_of(["key"]), key_requests=1)
    headers = {"authorization": "Bearer key"}
    for _ in range(3):
        assert serving.ask("/v1/embeddings", content=body, headers=headers).status_code in (400, 404)
    assert serving.ask("/v1/embeddings", {"input": "a"}, headers=headers).status_code == 200


@pytest.mark.parametrize(("keys", "most"), [([], 3), (["key"], 0), (["key"], -1)])
def test_a_limit_of_keys_needs_keys_and_lets_one_request_in(keys, most):
    with pytest.raises(InputError, match="key_requests"):
        Settings(keys=keys_of(keys), key_requests=most)


def test_the_path_that_needs_no_key_is_the_one_that_is_answered(make, monkeypatch):
    from starlette.datastructures import URL
    from starlette.requests import Request

    # As Starlette 0.41 reads `Host: x/health/live?`.
    monkeypatch.setattr(Request, "url", property(lambda self: URL("http://x/health/live?/v1/models")))
    assert make("bert-plain", keys=keys_of(["key"])).ask("/v1/models").status_code == 401


def test_an_address_beyond_loopback_needs_keys_or_insecure():
    with pytest.raises(InputError, match="--insecure"):
        Settings(host="0.0.0.0")
    assert Settings(host="0.0.0.0", keys=keys_of(["key"])).keys
    assert Settings(host="0.0.0.0", insecure=True).insecure


def test_keys_are_kept_as_digests_alone():
    assert b"secret" not in b"".join(keys_of(["secret"]))


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v2/embed", "/rerank"])
def test_a_path_or_address_in_a_request_is_never_read(make, path, monkeypatch):
    import builtins
    from pathlib import Path

    serving = make("qwen3-vl")
    opened = []
    monkeypatch.setattr(Path, "open", lambda self, *_, **__: opened.append(self))
    monkeypatch.setattr(builtins, "open", lambda name, *_, **__: opened.append(name))
    for value in ("/etc/passwd", "file:///etc/passwd", "http://169.254.169.254/latest", "//host/share", "\\\\host\\x"):
        image = {"image": value}
        part = {"content": [{"type": "image_url", "image_url": {"url": value}}]}
        body = {"input": [image], "inputs": [part], "query": "a", "documents": [image]}
        assert serving.ask(path, body).status_code in (400, 422)
    assert opened == []


def test_no_message_tells_where_a_model_is_from(make, tiny):
    serving = make("qwen3-embed", "xlm-roberta-rerank")
    asks = [
        ("/v1/embeddings", {"input": "x " * 9000}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
        ("/v1/completions", {"prompt": "x " * 9000}),
        ("/rerank", {"query": "a", "documents": ["x " * 9000], "model": "xlm-roberta-rerank"}),
        ("/rerank", {"query": "a", "documents": ["b"], "model": "xlm-roberta-rerank", "instruction": "c"}),
    ]
    for path, body in asks:
        response = serving.ask(path, body)
        assert response.status_code == 400
        assert str(tiny("qwen3-embed").name).rpartition("/")[0] not in response.text
