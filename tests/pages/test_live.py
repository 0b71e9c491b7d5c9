"""The page of a running server in Chromium: its numbers under load, its boxes, keys, keyboard, and what axe says."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from archport.cli.plan import plan
from pages.browser import AXE, CHROMIUM, Page, browser, violations

GOLDENS = Path(__file__).parents[1] / "goldens"
TEMPLATE = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
SIZES = ((390, 844), (1440, 900))
app = typer.Typer()
app.command()(plan)
pytestmark = [pytest.mark.truth, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]


@contextmanager
def running(*models: str, **env: str) -> Iterator[str]:
    """The address of a server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", "from archport.cli import main; main()", "serve", "--quiet", "--port", str(port)]
    command += [part for model in models for part in ("-m", model)]
    process, url = subprocess.Popen(command, env={**os.environ, **env}), f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 120
        while time.monotonic() < until and process.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{url}/health/ready").status_code == 200:
                    break
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.communicate(timeout=60)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("live") / "tiny"
    shutil.copytree(GOLDENS / "qwen3-windowed", folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    models = f"bert={GOLDENS / 'bert-plain'}", f"<b>rank</b>={GOLDENS / 'xlm-roberta-rerank'}", f"tiny={folder}"
    with running(*models) as address:
        yield address


@pytest.fixture
def folders() -> dict[str, Path]:
    """Where the models' files are; a chat template changes no plan."""
    return {"bert": GOLDENS / "bert-plain", "tiny": GOLDENS / "qwen3-windowed"}


@pytest.fixture(scope="module")
def shared() -> Iterator[Page]:
    with browser() as made:
        yield made


@pytest.fixture
def page(shared: Page, url: str) -> Page:
    shared.asked.clear()
    shared.go(f"{url}/")
    shared.until("document.querySelectorAll('#tiles dd').length")
    return shared


def samples(url: str) -> dict[str, float]:
    lines = [line for line in httpx.get(f"{url}/metrics").text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def of(metrics: dict[str, float], family: str) -> dict[str, float]:
    """A family's samples, those of requests for the server's health left out."""
    own = re.compile(r'path="(/|other|/metrics|/page\.json|/plans\.json|/openapi\.json|/health[^"]*)"')
    return {
        name: value for name, value in metrics.items() if re.match(rf"{family}(\{{|$)", name) and not own.search(name)
    }


def quantile(share: float, family: str, before: dict[str, float], now: dict[str, float]) -> float:
    """As Prometheus has it, written apart from the page."""
    counts: dict[float, float] = {}
    for name, value in of(now, f"{family}_bucket").items():
        match = re.search(r'le="([^"]+)"', name)
        assert match is not None
        counts[float(match[1])] = counts.get(float(match[1]), 0.0) + value - before.get(name, 0.0)
    bounds = sorted(counts)
    wanted = share * counts[float("inf")]
    at = next(index for index, bound in enumerate(bounds) if counts[bound] >= wanted)
    low, fewer = (bounds[at - 1], counts[bounds[at - 1]]) if at else (0.0, 0.0)
    return (
        low
        if bounds[at] == float("inf")
        else low + (bounds[at] - low) * (wanted - fewer) / (counts[bounds[at]] - fewer)
    )


def size(value: float) -> str:
    for unit, whole in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= whole:
            return f"{float(f'{value / whole:.3g}'):#.3g} {unit}".replace(". ", " ")
    return f"{value:.0f} B"


def load(url: str, stop: threading.Event, requests: int) -> None:
    with httpx.Client(base_url=url, timeout=60) as client:
        for number in range(requests):
            if stop.is_set():
                return
            client.post("/v1/embeddings", json={"input": ["some words here"] * (1 + number % 20), "model": "bert"})
            body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 12, "model": "tiny"}
            client.post("/v1/chat/completions", json={**body, "stream": number % 2 == 0})
            if number % 5 == 0:
                client.post("/v1/rerank", json={"query": "a", "documents": ["b", "c d"], "model": "<b>rank</b>"})
                client.post("/v1/embeddings", json={"input": "word " * 2000, "model": "bert"})


def test_its_numbers_are_those_of_metrics_under_load_and_after_it(page: Page, url: str):
    before, stop = samples(url), threading.Event()
    threads = [threading.Thread(target=load, args=(url, stop, 12)) for _ in range(6)]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    busy = "Number(document.querySelector('[data-metric=archport_queue_requests]').dataset.value)"
    rates = set()
    while any(thread.is_alive() for thread in threads):
        assert page.run(f"{busy} >= 0")
        rates.add(page.run("document.querySelector('[data-metric=archport_tokens_total]').firstChild.data"))
        time.sleep(0.2)
    assert len(rates) >= 2, "it did not follow the load"
    # Two more looks of the page, at a server that rests.
    page.run("new Promise((done) => setTimeout(done, 2600))")
    shown = page.run(
        "[...document.querySelectorAll('[data-metric]')]"
        ".map((each) => [each.dataset.metric, each.dataset.value, each.firstChild.data])"
    )
    now = samples(url)
    assert time.monotonic() - begun < 50, "the machine is too busy: what is drawn is of the last minute"
    assert len({metric for metric, _, _ in shown}) >= 15
    for metric, value, text in shown:
        if metric.endswith("_seconds"):
            assert float(value) == pytest.approx(quantile(0.5, metric, before, now), rel=1e-9), metric
        elif metric in ("archport_host_bytes", "archport_device_bytes", "archport_pool_bytes"):
            assert float(value) == pytest.approx(now[metric], rel=0.05), metric
        else:
            assert float(value) == sum(of(now, metric).values()), metric
        if metric.endswith("_bytes"):
            assert text == size(float(value)), metric
    assert page.run("document.querySelector('#state').textContent") == "ready"
    assert page.run("document.querySelectorAll('#refusals tbody tr').length") == 18
    assert "limit tokens 512" in page.run("document.querySelector('#refusals tbody tr').textContent")
    assert page.messages == []
    assert {address.startswith(url) for address in page.asked} == {True}


def test_models_have_cards_and_a_name_is_text(page: Page):
    assert page.run("[...document.querySelectorAll('#models h3')].map((e) => e.textContent)") == [
        "bert",
        "<b>rank</b>",
        "tiny",
    ]
    assert page.run("document.querySelectorAll('#models b').length") == 0
    card = page.run("document.querySelector('#models article').textContent")
    assert "2 x bidirectional" in card
    assert "bidirectional (archport" in card


def fill(page: Page, form: str, **values: str) -> None:
    for name, value in values.items():
        page.run(f"document.querySelector('#{form}').elements[{json.dumps(name)}].value = {json.dumps(value)}; 0")


def submit(page: Page, form: str) -> str:
    """What a box says once it has answered."""
    page.run(f"document.querySelector('#{form} [type=submit]').click()")
    page.until(f"!document.querySelector('#{form} [type=submit]').disabled")
    return page.run(f"document.querySelector('#{form} .answer').innerText")


def test_the_box_of_embeddings_says_what_the_interface_says(page: Page, url: str):
    texts = ["one text", "another one", "<i>third</i>"]
    fill(page, "embed", texts="\n".join(texts))
    said = submit(page, "embed")
    data = httpx.post(f"{url}/v1/embeddings", json={"input": texts, "model": "bert"}).json()["data"]
    first, second = (np.array(each["embedding"]) for each in data[:2])
    cosine = first @ second / np.sqrt(first @ first * (second @ second))
    assert f"{cosine:.3f}" in said
    assert f"3 vectors of {len(first)} numbers" in said
    assert page.run("document.querySelectorAll('#embed .answer i').length") == 0
    fill(page, "embed", texts="word " * 3000)
    assert "400" in submit(page, "embed")
    assert page.run("document.querySelector('#embed .wrong').textContent.includes('maximum context length')")


def test_the_box_of_rankings_says_what_the_interface_says(page: Page, url: str):
    documents = ["first document", "a second", "the third of them"]
    fill(page, "rerank", query="second", documents="\n".join(documents), model="<b>rank</b>")
    submit(page, "rerank")
    body = {"query": "second", "documents": documents, "model": "<b>rank</b>"}
    results = httpx.post(f"{url}/v1/rerank", json=body).json()["results"]
    rows = page.run(
        "[...document.querySelectorAll('#rerank tbody tr')].map((e) => [...e.children].map((c) => c.innerText))"
    )
    assert rows == [[documents[each["index"]], f"{each['relevance_score']:.4f}"] for each in results]


def test_the_box_of_chats_streams_and_stops(page: Page, url: str):
    page.run(
        "{ const real = fetch; window.fetch = async (...given) => { const answer = await real(...given);"
        " if (String(given[0]).includes('chat')) window.raw = answer.clone().text(); return answer; }; 0 }"
    )
    fill(page, "chat", message="hello there", most="40")
    said = submit(page, "chat")
    raw: str = page.run("window.raw")
    pieces = [json.loads(line[6:]) for line in raw.splitlines() if line.startswith("data: {")]
    text = "".join(choice["delta"].get("content") or "" for piece in pieces for choice in piece["choices"])
    assert page.run("document.querySelector('#chat .said').textContent") == text
    assert f"{pieces[-1]['usage']['completion_tokens']} tokens in" in said
    fill(page, "chat", message="hello", most="450")
    page.run("document.querySelector('#chat [type=submit]').click()")
    page.until("document.querySelector('#chat .said')?.textContent.length > 3")
    page.run("document.querySelector('#chat').stop.click()")
    page.until("document.querySelector('#chat .answer').innerText.includes('Stopped')")
    until = time.monotonic() + 20
    while samples(url)["archport_reserved_bytes"]:
        assert time.monotonic() < until, "a chat that was stopped goes on"
        time.sleep(0.1)


def test_a_key_is_asked_for_used_and_kept_nowhere(shared: Page):
    with running(f"bert={GOLDENS / 'bert-plain'}", ARCHPORT_API_KEYS="right-key") as url:
        page = shared
        page.go(f"{url}/")
        page.until("!document.querySelector('#key-form').hidden")
        assert page.run("document.querySelectorAll('#tiles dd').length") == 0

        def give(key: str) -> None:
            page.run(f"document.querySelector('#key').value = {json.dumps(key)}; 0")
            page.run("document.querySelector('#key-form [type=submit]').click()")

        give("wrong-key")
        page.run("new Promise((done) => setTimeout(done, 800))")
        assert not page.run("document.querySelector('#key-form').hidden")
        give("right-key")
        page.until("document.querySelector('#key-form').hidden && document.querySelectorAll('#tiles dd').length")
        assert "3 vectors" in submit(page, "embed")
        places = "localStorage, sessionStorage, document.cookie, location.href, document.documentElement.outerHTML"
        assert "right-key" not in page.run(f"JSON.stringify([{places}])")
        assert page.run("document.querySelector('#key').value") == ""
        if AXE.exists():
            assert violations(page) == []


def test_everything_can_be_reached_and_used_by_keys_alone(page: Page):
    reached: list[str] = []
    for _ in range(40):
        page.press("Tab")
        reached.append(
            page.run("((e) => e.id || [e.closest('form')?.id, e.name || e.type].join(' ') )(document.activeElement)")
        )
    for wanted in (
        "theme",
        "embed texts",
        "embed submit",
        "rerank query",
        "rerank submit",
        "chat message",
        "chat submit",
    ):
        assert wanted in reached, reached
    page.run("document.querySelector('#rerank').query.focus()")
    page.press("Enter", "\r")
    page.until("document.querySelector('#rerank tbody tr')")
    page.run("document.querySelector('#theme').focus()")
    before = page.run("getComputedStyle(document.body).backgroundColor")
    page.press("Enter", "\r")
    assert page.run("getComputedStyle(document.body).backgroundColor") != before
    # Where the focus is can be seen.
    assert page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def open_plans(page: Page, model: str) -> None:
    """Go to the view of what fits where, of a model that is served."""
    page.run("document.querySelector('#to-plans').click()")
    page.until("document.querySelector('#model').options.length")
    choose(page, "model", model)
    page.until(f"new URLSearchParams(location.hash.slice(1)).get('model') === {json.dumps(model)}", 240)


def choose(page: Page, id: str, value: str) -> None:
    page.run(
        f"((e) => {{ e.value = {json.dumps(value)}; e.dispatchEvent(new Event('change')); }})"
        f"(document.querySelector('#{id}'))"
    )


def shown_point(page: Page) -> dict[str, Any]:
    """What is chosen, and what the page says of it."""
    link = "Object.fromEntries(new URLSearchParams(location.hash.slice(1)))"
    texts = {"verdict": "#verdict", "context": "#context-value", "batch": "#batch-value", "time": "#time-text"}
    read = ", ".join(f"{name}: document.querySelector('{id}').firstChild.data" for name, id in texts.items())
    return page.run(f"({{ link: {link}, {read} }})")


@pytest.mark.parametrize(("model", "new"), [("bert", 0), ("tiny", 256)])
def test_what_fits_where_is_what_plan_json_says_under_load(page: Page, url: str, folders: Any, model: str, new: int):
    stop = threading.Event()
    threads = [threading.Thread(target=load, args=(url, stop, 1000)) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        open_plans(page, model)
        data = page.run(f"fetch('/plans.json?model={model}').then((answer) => answer.json())")
        assert data["new_tokens"] == new
        draw = random.Random(0)
        for device in (*data["devices"], "m1-8gb", "h200"):
            choose(page, "device", device)
            page.until(f"new URLSearchParams(location.hash.slice(1)).get('device') === {json.dumps(device)}", 240)
            for _ in range(4):
                at, column = draw.randrange(len(data["contexts"])), draw.randrange(len(data["batches"]))
                for id, value in (("context", at), ("batch", column)):
                    page.run(
                        f"((e) => {{ e.value = {value}; e.dispatchEvent(new Event('input')); }})"
                        f"(document.querySelector('#{id}'))"
                    )
                context, rows = data["contexts"][at], data["batches"][column]
                decoded = min(new, context - 1)
                arguments = ["-m", folders[model], "--tokens", context - decoded, "--new", decoded, "--batch", rows]
                where = [] if device in data["devices"] else ["--device", device]
                told = json.loads(
                    CliRunner().invoke(app, [str(each) for each in (*arguments, *where, "--json")]).output
                )
                shown = shown_point(page)
                assert shown["context"].replace(",", "") == f"{context} tokens"
                assert shown["verdict"] == f"✓ Fits: {size(told['peak'])} at the peak, of {size(told['budget'])}"
        # Requests went on meanwhile, and are what the other view says of them.
        page.run("document.querySelector('#to-now').click()")
        counted = "Number(document.querySelector('[data-metric=archport_requests_total]').dataset.value)"
        before = page.run(counted)
        page.until(f"{counted} > {before}")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    page.run("new Promise((done) => setTimeout(done, 2600))")
    assert page.run(counted) == sum(of(samples(url), "archport_requests_total").values())
    assert page.messages == []
    assert {address.startswith(url) for address in page.asked} == {True}


def test_sliders_stop_at_planned_points_alone_by_keys_alone(page: Page):
    open_plans(page, "tiny")
    contexts = page.run("fetch('/plans.json?model=tiny').then((answer) => answer.json()).then((data) => data.contexts)")
    page.run("document.querySelector('#context').focus()")
    page.press("Home")
    stops = [shown_point(page)["context"]]
    for _ in range(len(contexts) + 2):
        page.press("ArrowRight")
        stops.append(shown_point(page)["context"])
    assert list(dict.fromkeys(stops)) == [f"{context:,} tokens" for context in contexts]
    assert page.run("document.querySelector('#context').getAttribute('aria-valuetext')") == stops[-1]
    page.run("document.querySelector('#grid button').focus()")
    page.press("Enter", "\r")
    assert shown_point(page)["context"] == f"{contexts[0]} tokens"
    assert page.run("document.activeElement.dataset.point") == "0,0"
    # A link brings the same point back.
    link = page.run("location.href")
    page.go("about:blank")
    page.go(link)
    page.until(f"location.href === {json.dumps(link)} && document.querySelector('#chart canvas')", 240)
    assert shown_point(page)["context"] == f"{contexts[0]} tokens"


@pytest.fixture(scope="module")
def explorer(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("explorer") / "plans.html"
    command = [sys.executable, "-c", "from archport.cli import main; main()", "plan", "-m", str(GOLDENS / "bert-plain")]
    subprocess.run([*command, "--device", "h200,m1-8gb", "--html", str(path)], check=True, capture_output=True)
    return path.as_uri()


@pytest.mark.parametrize("which", ["live", "plans", "explorer"])
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_pages_fit_their_readers(shared: Page, url: str, explorer: str, which: str, dark: bool, size: Any):
    if not AXE.exists():
        pytest.skip("needs axe-core: make axe")
    page = shared
    page.go(explorer if which == "explorer" else f"{url}/", *size, dark=dark)
    page.until("document.querySelector('canvas')")
    if which == "plans":
        open_plans(page, "tiny")
    if which == "live":
        # With answers, a table of refusals and an error on the page.
        httpx.post(f"{url}/v1/embeddings", json={"input": "word " * 2000, "model": "bert"})
        fill(page, "chat", most="8")
        for form in ("embed", "rerank", "chat"):
            submit(page, form)
        fill(page, "rerank", query="")
        submit(page, "rerank")
        page.until("!document.querySelector('#refusals').hidden")
    assert page.run("document.documentElement.scrollWidth") <= size[0]
    assert violations(page) == []
    # It would have said so.
    page.run("document.documentElement.removeAttribute('lang')")
    assert [each.split(":")[0] for each in violations(page)] == ["serious html-has-lang"]
