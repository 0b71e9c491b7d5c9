"""The page at / without a browser: who may see what, what it tells, and that it lets nothing else in."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re

import pytest

from archport.serving.security import keys_of


def test_the_page_runs_its_own_scripts_and_asks_its_own_server_alone(make):
    answer = make("bert-plain").ask("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert answer.headers["x-frame-options"] == "DENY"
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        texts = re.findall(rf"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
        hashes = {f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in texts}
        assert set(policy[rule].split()) == hashes
    # What a policy of hashes does not let run: attributes, and files of others.
    page = answer.text.replace("http://www.w3.org/", "")
    body = re.sub(r"<(script|style)>.*?</\1>", "", page, flags=re.DOTALL)
    assert re.findall(r"""\s(?:style|on\w+)=|(?:src|action)=|href="(?!data:|/|#)""", body) == []
    assert "Copyright (c) 2022 Leon Sorokin" in page


def test_the_page_is_the_same_for_everybody_and_its_numbers_ask_for_a_key(make):
    serving = make("bert-plain", keys=keys_of(["secret-key"]))
    page = serving.ask("/")
    assert page.status_code == 200
    assert page.content == make("qwen3-embed").ask("/").content
    assert "bert-plain" not in page.text
    assert serving.ask("/page.json").status_code == 401
    told = serving.ask("/page.json", headers={"authorization": "Bearer secret-key"})
    assert told.status_code == 200
    assert "secret-key" not in told.text


def test_numbers_are_those_of_metrics(make):
    serving = make("bert-plain", "qwen3-windowed")
    for _ in range(3):
        serving.ask("/v1/embeddings", {"input": ["a", "b c"], "model": "bert-plain"})
    serving.ask("/v1/completions", {"prompt": "a", "max_tokens": 3, "model": "qwen3-windowed"})
    serving.ask("/v1/embeddings", {"input": []})
    told = serving.ask("/page.json").json()["metrics"]
    text = serving.ask("/metrics").text
    lines = [line for line in text.splitlines() if not line.startswith("#") and "_created" not in line]
    shown = {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}
    # What the two requests themselves, and the process meanwhile, change.
    own = re.compile(r'path="/(page\.json|metrics)"|archport_(host|device|pool)_bytes')
    assert {name for name in shown if not own.search(name)} == {name for name in told if not own.search(name)}
    assert {name: value for name, value in shown.items() if not own.search(name)} == {
        name: value for name, value in told.items() if not own.search(name)
    }
    assert told['archport_tokens_total{model="bert-plain"}'] > 0
    assert told["archport_weights_bytes"] > 0
    assert told["archport_budget_bytes"] > told["archport_planned_bytes"] > 0
    assert told["archport_budget_bytes"] > told["archport_host_bytes"] > told["archport_device_bytes"]


def test_models_are_told_as_their_plugins_declare_them(make, tiny):
    serving = make("bert-plain", "xlm-roberta-rerank", "qwen3-windowed")
    serving.ask("/v1/embeddings", {"input": "a", "model": "bert-plain"})
    models = {each["id"]: each for each in serving.ask("/page.json").json()["models"]}
    for name, model in models.items():
        spec = tiny(name).spec
        assert (model["architecture"], model["hidden_size"]) == (spec.arch, spec.hidden_size)
        assert sum(int(layer.split(" x ")[0]) for layer in model["layers"]) == len(spec.layers)
    assert models["bert-plain"]["dimensions"] == tiny("bert-plain").dimensions
    assert models["bert-plain"]["plan"]["peak"] == sum(models["bert-plain"]["plan"]["bytes"].values())
    assert "plan" not in models["qwen3-windowed"] or models["qwen3-windowed"]["plan"]["peak"] > 0
    assert "bidirectional" in models["bert-plain"]["plugin"]


def test_refusals_are_told_with_their_numbers_and_without_what_was_asked(make):
    serving = make("bert-plain", limits={"inputs": 2, "queue_requests": 1}, start=False)
    private = "very private words " * 400
    serving.ask("/v1/embeddings", {"input": private})
    serving.ask("/v1/embeddings", {"input": ["private"] * 3})
    serving.ask("/v1/embeddings", {"input": "a", "prompt_name": "private"})
    serving.ask("/v1/nothing-private", {"input": "a"})

    async def crowded():
        async with serving.client() as client:
            first = asyncio.ensure_future(client.post("/v1/embeddings", json={"input": "a"}))
            while not serving.state.scheduler.jobs:
                await asyncio.sleep(0.005)
            full = await client.post("/v1/embeddings", json={"input": "b"})
            first.cancel()
            await asyncio.wait((first,))
            return full

    assert asyncio.run(crowded()).status_code == 429
    text = serving.ask("/page.json").text
    full, address, prompt, many, long = json.loads(text)["refusals"]
    assert "private" not in text
    assert (long["code"], long["numbers"]["limit_tokens"]) == ("context_length_exceeded", 512)
    assert long["numbers"]["requested_tokens"] > 1000
    assert (many["status"], many["numbers"]) == (413, {"requested_inputs": 3, "limit_inputs": 2})
    assert (prompt["code"], prompt["path"]) == ("invalid_prompt", "/v1/embeddings")
    assert (address["status"], address["path"]) == (404, "other")
    assert full["status"] == 429
    assert full["numbers"].keys() == {"waiting_tokens", "retry_after_ms"}


def test_the_last_refusals_are_few_and_health_is_none_of_them(make):
    serving = make("bert-plain")
    for _ in range(30):
        serving.ask("/v1/embeddings", {"input": []})
    serving.state.draining = True
    serving.ask("/health/ready")
    told = serving.ask("/page.json").json()
    assert len(told["refusals"]) == 20
    assert {each["code"] for each in told["refusals"]} == {"empty_input"}
    assert told["state"] == "ending"


@pytest.mark.parametrize(("flag", "state"), [("loading", "loading"), ("draining", "ending")])
def test_it_answers_while_requests_are_refused(make, flag, state):
    serving = make("bert-plain")
    setattr(serving.state, flag, True)
    assert serving.ask("/").status_code == 200
    assert serving.ask("/page.json").json()["state"] == state


def test_texts_that_are_written_reserve_kv_and_give_it_back(make):
    serving = make("qwen3-windowed")

    async def run():
        async with serving.client() as client:
            body = {"prompt": "a", "max_tokens": 200}
            asked = asyncio.ensure_future(client.post("/v1/completions", json=body))
            while not serving.state.generations.plan(serving.state.registry.find(None)):
                # A loop that never ends would say less.
                assert not asked.done()
                await asyncio.sleep(0.002)
            told = (await client.get("/page.json")).json()
            asked.cancel()
            await asyncio.wait((asked,))
            return told

    told = asyncio.run(run())
    assert 0 < told["metrics"]["archport_kv_bytes"] <= told["metrics"]["archport_reserved_bytes"]
    assert told["models"][0]["plan"]["bytes"]["kv"] == told["metrics"]["archport_kv_bytes"]
