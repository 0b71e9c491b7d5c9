"""Models that requests load and idle time lets go, within one budget."""

from __future__ import annotations

import asyncio
import gc
import weakref
from pathlib import Path

import httpx
import pytest

from archport.contract import InputError, MemoryBudgetExceeded
from archport.serving.app import App, State
from archport.serving.dialects import openai
from archport.serving.endpoints import ENDPOINTS
from archport.serving.models import Registry, lasting_bytes
from archport.serving.settings import Settings
from archport.serving.shelf import Shelf, Wanted

GOLDENS = Path(__file__).parents[1] / "goldens"
BERT, QWEN = (Wanted(str(GOLDENS / name), id, {}) for name, id in (("bert-plain", "bert"), ("qwen3-embed", "qwen")))


@pytest.fixture
def state():
    made = State(Settings(), Registry())
    made.device.start()
    yield made
    made.device.stop()
    made.answers.close()
    gc.unfreeze()


def asked(state, work, budget=1 << 30):
    """What `work(shelf, client)` returns, with a shelf of two models of which none is loaded."""

    async def run():
        state.shelf = Shelf(state, [BERT, QWEN], budget)
        transport = httpx.ASGITransport(App(state, ENDPOINTS, openai.shape), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client:
            return await work(state.shelf, client)

    return asyncio.run(run())


def loaded(state):
    return sorted(each.id for each in state.registry.all)


def test_the_first_request_loads_its_model_and_callers_at_once_load_it_once(state):
    async def work(shelf, client):
        before = (await client.get("/v1/models")).json()["data"]
        asks = [client.post("/v1/embeddings", json={"input": "a", "model": "qwen"}) for _ in range(4)]
        return [each["id"] for each in before], [each.status_code for each in await asyncio.gather(*asks)]

    names, statuses = asked(state, work)
    assert names == ["bert", "qwen"]
    assert statuses == [200] * 4
    assert loaded(state) == ["qwen"]


def test_an_interface_that_names_no_model_gets_the_first(state):
    async def work(shelf, client):
        return (await client.post("/embed", json={"inputs": "a"})).status_code

    assert asked(state, work) == 200
    assert loaded(state) == ["bert"]


def test_an_idle_model_is_let_go_and_comes_back(state):
    async def work(shelf, client):
        await client.post("/v1/embeddings", json={"input": "a", "model": "bert"})
        idle = asyncio.ensure_future(shelf.unload_idle(0.1))
        while state.registry.all:
            await asyncio.sleep(0.02)
        idle.cancel()
        return (await client.post("/v1/embeddings", json={"input": "a", "model": "bert"})).status_code

    assert asked(state, work) == 200


def test_the_collector_passes_over_models_until_they_are_let_go(state):
    async def work(shelf, client):
        await shelf.load("bert")
        model = state.registry.find("bert").model
        there, gone = any(each is model for each in gc.get_objects()), weakref.ref(model)
        del model
        await shelf.load("qwen")
        await shelf._unload("bert")
        return there, gone()

    assert asked(state, work) == (False, None)


def test_a_model_that_is_in_use_is_not_let_go(state):
    async def work(shelf, client):
        await shelf.hold("bert")
        idle = asyncio.ensure_future(shelf.unload_idle(0.05))
        await asyncio.sleep(0.3)
        idle.cancel()
        return loaded(state)

    assert asked(state, work) == ["bert"]


def test_unused_models_give_way_to_one_that_needs_their_room(state):
    async def work(shelf, client):
        await shelf.load("bert")
        first = lasting_bytes(state.registry.find("bert"))
        await shelf.load("qwen")
        second = lasting_bytes(state.registry.find("qwen"))
        tight = Shelf(state, [BERT, QWEN], max(first, second) + min(first, second) // 2)
        await tight._unload("bert")
        await tight._unload("qwen")
        await tight.load("bert")
        await tight.load("qwen")
        return loaded(state)

    assert asked(state, work) == ["qwen"]


def test_what_can_t_be_loaded_beside_models_in_use_is_503_and_alone_an_error(state):
    async def work(shelf, client):
        await shelf.hold("bert")
        return (await client.post("/v1/embeddings", json={"input": "a", "model": "qwen"})).json()["error"]["code"]

    budget = 600_000
    assert asked(state, work, budget) == "model_loading"

    async def alone(shelf, client):
        with pytest.raises(MemoryBudgetExceeded):
            await Shelf(state, [QWEN], 1000).load("qwen")

    asked(state, alone)


def test_a_name_that_is_not_served_loads_nothing(state):
    async def work(shelf, client):
        return (await client.post("/v1/embeddings", json={"input": "a", "model": "../qwen3-embed"})).status_code

    assert asked(state, work) == 404
    assert loaded(state) == []


def test_two_models_of_one_name_are_refused(state):
    with pytest.raises(InputError, match="two models"):
        Shelf(state, [BERT, BERT], 1)
