"""A server's application with tiny models, without a socket: `serving` talks to it as an ASGI client does."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

GOLDENS = Path(__file__).parents[1] / "goldens"
# What tests of other folders share with these: `pages.points`.
sys.path.insert(0, str(Path(__file__).parents[1]))
# The server's own extra; the dev group brings it.
MISSING = [name for name in ("starlette", "uvicorn", "orjson", "httpx") if not find_spec(name)]


class Absent(pytest.Module):
    """A file of tests that can't be imported here, also where it is named on the command line."""

    def collect(self) -> Any:
        pytest.skip(f"needs {', '.join(MISSING)}", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: Any) -> Any:
    return Absent.from_parent(parent, path=module_path) if MISSING else None


if not MISSING:
    import httpx

    from archport import engine
    from archport.serving.app import App, State
    from archport.serving.dialects import openai
    from archport.serving.endpoints import ENDPOINTS
    from archport.serving.models import Registry, served_model
    from archport.serving.settings import Limits, Settings


@dataclass
class Serving:
    """An application and its parts."""

    app: Any
    state: Any
    headers: dict[str, str] = field(default_factory=dict)

    def ask(self, path: str, body: Any = None, *, method: str | None = None, **options: Any) -> httpx.Response:
        """One request: POST with a body, GET without."""

        async def run() -> httpx.Response:
            async with self.client() as client:
                kind = method or ("GET" if body is None and "content" not in options else "POST")
                return await client.request(kind, path, json=body, **options)

        return asyncio.run(run())

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app, raise_app_exceptions=False),
            base_url="http://localhost",
            headers=self.headers,
            timeout=30,
        )


@pytest.fixture(scope="session")
def tiny() -> Callable[[str], Any]:
    """Loaded models of the goldens by name, each loaded once."""
    loaded: dict[str, Any] = {}

    def load(name: str) -> Any:
        if name not in loaded:
            loaded[name] = engine.load(GOLDENS / name)
        return loaded[name]

    return load


@pytest.fixture
def make(tiny: Callable[[str], Any]) -> Iterator[Callable[..., Serving]]:
    """Makes applications: `make("bert-plain", limits={...}, **settings)`."""
    made: list[Serving] = []

    def application(*names: str, limits: dict[str, Any] | None = None, start: bool = True, **settings: Any) -> Serving:
        state = State(replace(Settings(**settings), limits=Limits(**(limits or {}))), Registry())
        for name in names:
            state.registry.add(served_model(name, tiny(name), {}, held=lambda: state.device.reserved))
        if start:
            state.device.start()
        made.append(Serving(App(state, ENDPOINTS, openai.shape), state))
        return made[-1]

    yield application
    for each in made:
        each.state.device.stop()
        each.state.frontiers.close()
        each.state.answers.close()


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], None]:
    """Waits until something holds, at most five seconds."""

    def wait(holds: Callable[[], bool]) -> None:
        until = time.monotonic() + 60
        while not holds():
            assert time.monotonic() < until, "it did not happen"
            time.sleep(0.005)

    return wait
