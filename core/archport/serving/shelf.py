"""Models that come and go: loaded at the start or by the first request that names them, let go after idle time.

Loading and letting go happen on the device's thread. What loads has to fit beside what is loaded: models that nobody
uses give way, the one that was used longest ago first.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from archport import engine
from archport.contract import InputError, MemoryBudgetExceeded
from archport.serving.app import State
from archport.serving.errors import Refused, unavailable
from archport.serving.frontiers import loading_flags
from archport.serving.models import Served, lasting_bytes, public_id, served_model


@dataclass(frozen=True, slots=True)
class Wanted:
    """A model that is to be served.

    Args:
        name: folder, hub id or alias.
        id: how requests call it; None for what the name says.
        options: for `engine.load`.
    """

    name: str
    id: str | None
    options: Mapping[str, Any]

    @property
    def public(self) -> str:
        return self.id or public_id(self.name)


class Shelf:
    """The models of a server, loaded or not.

    Args:
        wanted: in the order in which they are loaded; the first is the one of interfaces that name none.
        budget: bytes that all of them may use together.
        warm: run once of every model that was loaded.
    """

    def __init__(
        self, state: State, wanted: Sequence[Wanted], budget: int, warm: Callable[[Served], None] = lambda served: None
    ) -> None:
        names = [each.public for each in wanted]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"two models are called {name!r}; name one otherwise, with ID=NAME")
        self._state, self._budget, self._warm = state, budget, warm
        self._wanted = {each.public: each for each in wanted}
        self._lock = asyncio.Lock()
        self._used: dict[str, float] = {}
        self._busy: dict[str, int] = {}

    async def load_all(self) -> None:
        """Load every model; raises what `engine.load` does."""
        for id in self._wanted:
            await self.load(id)

    def resolve(self, name: object) -> str | None:
        """The id of a model that a request names; None for one that is not served. No name is the first model."""
        if name is None:
            return next(iter(self._wanted), None)
        if not isinstance(name, str):
            return None
        for key in (name, name.removesuffix(":latest")):
            if key in self._wanted:
                return key
        return next((id for id, each in self._wanted.items() if each.name == name), None)

    async def hold(self, name: object) -> str | None:
        """Have a model loaded and keep it until `let_go`; returns its id, None for one that is not served.

        Raises:
            Refused: 503 where it can't be loaded now.
        """
        id = self.resolve(name)
        if id is None:
            return None
        self._busy[id] = self._busy.get(id, 0) + 1
        self._used[id] = time.monotonic()
        try:
            if not self._state.registry.has(id):
                await self.load(id)
        except BaseException as error:
            self.let_go(id)
            if isinstance(error, Refused) or not isinstance(error, Exception):
                raise
            raise unavailable("model_loading", f"The model {id!r} can't be loaded now.", 10) from error
        return id

    def let_go(self, id: str) -> None:
        """One request less needs a model."""
        self._busy[id] -= 1
        self._used[id] = time.monotonic()

    async def load(self, id: str) -> None:
        """Load a model, where it is not loaded already; those that nobody uses give way."""
        async with self._lock:
            if self._state.registry.has(id):
                return
            while True:
                try:
                    served = await self._on_device(lambda: self._loaded(id))
                    break
                except MemoryBudgetExceeded:
                    idle = sorted(self._idle(), key=lambda each: self._used.get(each, 0.0))
                    if not idle:
                        raise
                    await self._unload(idle[0])
            wanted = self._wanted[id]
            names = [name for name in (served.model.name, wanted.name) if name == public_id(name)]
            self._state.registry.add(served, names)
            await self._on_device(lambda: self._warm(served))
            await self._on_device(_settle)
            self._used.setdefault(id, time.monotonic())

    async def unload_idle(self, seconds: float) -> None:
        """Let models go that nobody has used for so long; runs until it is cancelled."""
        while True:
            await asyncio.sleep(min(seconds / 4, 5.0))
            async with self._lock:
                now = time.monotonic()
                for id in self._idle():
                    if now - self._used.get(id, now) >= seconds:
                        await self._unload(id)

    def _idle(self) -> list[str]:
        return [each.id for each in self._state.registry.all if not self._busy.get(each.id)]

    async def _unload(self, id: str) -> None:
        await self._forget(self._state.registry.remove(id))
        await self._on_device(_give_back)

    async def _forget(self, served: Served) -> None:
        self._state.talks.forget(served)
        await self._on_device(lambda: self._state.generations.forget(served))

    async def _on_device(self, work: Callable[[], Any]) -> Any:
        return await asyncio.wrap_future(self._state.device.call(work))

    def _loaded(self, id: str) -> Served:
        """A model that shares the budget with the others; runs on the device's thread."""
        wanted, registry = self._wanted[id], self._state.registry
        taken = sum(map(lasting_bytes, registry.all)) + self._state.device.reserved
        options = wanted.options
        about = engine.describe(wanted.name, revision=options.get("revision"), adapter=options.get("adapter"))
        # Refused before any weight is read.
        model = engine.load(wanted.name, memory_budget=max(1, self._budget - taken), **wanted.options)

        def others() -> int:
            return sum(lasting_bytes(each) for each in registry.all if each.id != id)

        checkpoint, held = about.checkpoint, lambda: self._state.device.reserved
        served = served_model(id, model, checkpoint.config, others=others, held=held, budget=self._budget)
        # Of an adapter that was named itself, the adapter's.
        folder = checkpoint.root or checkpoint.folder
        return replace(served, revision=checkpoint.revision, folder=folder, loading=loading_flags(options))

    @property
    def unloaded(self) -> list[str]:
        """Models that are served and not loaded."""
        return [id for id in self._wanted if not self._state.registry.has(id)]


def _give_back() -> None:
    """Have the memory of what nobody holds any more back."""
    import mlx.core as mx

    _settle()
    mx.clear_cache()


def _settle() -> None:
    """Have the collector take what is garbage now and pass over all that stays, such as modules and models.

    Looking through them holds every thread up for a tenth of a second, whenever requests have made enough new objects.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
