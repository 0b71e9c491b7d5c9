"""A loaded model as a Python object: its sizes, how it prints, copies, pickles, counts, closes and is awaited.

Runs no model itself; the calls that do are `Model`'s.
"""

from __future__ import annotations

import contextvars
import copy
import importlib
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack, cast

import numpy as np
from tokenizers import Tokenizer

from archport.checkpoint import duplicate
from archport.contract import ArchSpec, DeviceFacts, InputError
from archport.contract.arguments import checked
from archport.contract.plugins import Plugin
from archport.contract.sizes import format_bytes
from archport.device.memory import ProcessMemory, process_memory
from archport.options import ClassifyOptions, EmbedOptions, RerankOptions
from archport.planning import Plan
from archport.reading.texts import iterable
from archport.running.calls import device_call

if TYPE_CHECKING:
    from archport.answering.labels import Classified
    from archport.answering.rerank import Ranked
    from archport.generating.pieces import Generation
    from archport.loading import Description
    from archport.runtime import Runtime

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class ModelMemory:
    """Bytes that a model and its process hold.

    Args:
        weights: of this model.
        prefix_cache: what its calls of `generate` left for later ones.
        process: live arrays, pool of freed buffers, host and device, of all models of the process together.
    """

    weights: int
    prefix_cache: int
    process: ProcessMemory


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a model was loaded, in values that pickle; `archport.engine.reloaded` loads it again.

    Args:
        name: a folder's absolute path, or the id that the name led to.
        revision: the commit of a hub checkpoint, so that another process loads the same weights.
        overrides: the names of modules.
        plugins: who may claim it, each with the name of its module; None: the installed ones.
        options: the other arguments of `engine.load`.
    """

    name: str
    revision: str | None
    overrides: tuple[str, ...]
    plugins: tuple[tuple[Plugin, str], ...] | None
    options: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        about: Description,
        overrides: Sequence[ModuleType],
        plugins: Sequence[Plugin] | None,
        options: Mapping[str, Any],
    ) -> Recipe:
        checkpoint = about.checkpoint
        name = str(checkpoint.folder.resolve()) if checkpoint.source == "folder" else checkpoint.name
        modules = tuple(module.__name__ for module in overrides)
        given = None if plugins is None else tuple(
            (replace(plugin, module=None), plugin.module.__name__) for plugin in plugins if plugin.module is not None
        )  # fmt: skip
        return cls(name, checkpoint.revision, modules, given, options)

    def arguments(self) -> dict[str, Any]:
        """Arguments for `engine.load`; raises ImportError for a module that this process lacks."""
        plugins = self.plugins and tuple(
            replace(plugin, module=importlib.import_module(module)) for plugin, module in self.plugins
        )
        overrides = tuple(importlib.import_module(name) for name in self.overrides)
        return {
            "name": self.name,
            "revision": self.revision,
            "overrides": overrides,
            "plugins": plugins,
            **self.options,
        }


class Closed:
    """What a model runs with after `close`: nothing, and it says so."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        raise InputError(f"the model {self._name} was closed; load it again with engine.load({self._name!r})")


class Habits:
    """Methods of `Model` that say what it is, copy it, end it, or wait for its answers."""

    name: str
    spec: ArchSpec
    device: DeviceFacts
    max_tokens: int
    recipe: Recipe
    _runtime: Runtime

    def __repr__(self) -> str:
        return f"<archport model {self.name!r}: {self.spec.arch}, {self.max_tokens} tokens, on {self.device.name}>"

    def _repr_html_(self) -> str:
        from html import escape

        facts = {"model": self.name, "architecture": self.spec.arch, "tasks": ", ".join(self.spec.tasks),
                 "longest text": f"{self.max_tokens:,} tokens", "device": self.device.name}  # fmt: skip
        if not isinstance(self._runtime, Closed):
            facts["weights"] = format_bytes(self._runtime.encoder.plan.weights.total)
        rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts.items())
        return f"<table>{rows}</table>"

    def __copy__(self) -> Self:
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Another handle of the same weights, which no call changes; each is closed by itself."""
        return copy.copy(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the weights and caches, once no copy of this model uses them; later calls raise InputError."""
        if isinstance(self._runtime, Closed):
            return
        self._runtime = cast("Runtime", Closed(self.name))
        _free()

    @property
    def dimensions(self) -> int:
        """Width of this model's vectors; raises InputError when it makes none."""
        return self._runtime.width

    @property
    def tokenizer(self) -> Tokenizer:
        """A copy of the checkpoint's tokenizer, without padding and truncation; changing it changes no answer."""
        return duplicate(self._runtime.tokeniser.tokenizer)

    @checked
    def count_tokens(
        self, texts: str | Iterable[Any], *, prompt: str | None = None, prompt_name: str | None = None
    ) -> np.ndarray:
        """Tokens (N,) int64 of each text as `embed` reads it, special tokens and prompt included, whatever the limit.

        Raises:
            InputError: for a text that can't be read, naming its index.
        """
        tokeniser = self._runtime.tokeniser
        items = cast("list[str]", [texts] if isinstance(texts, str | Mapping) else list(iterable(texts)))
        tokens = tokeniser.unlimited()(items, prompt=tokeniser.prompt(prompt, prompt_name))
        return np.array(tokens.lengths, np.int64)

    def memory(self) -> ModelMemory:
        """What this model holds, and what the process it is in holds, in bytes, now."""
        planner = self._runtime.encoder.plan
        return ModelMemory(planner.weights.total, self._runtime.prefixes.bytes, process_memory())

    @property
    def last_plan(self) -> Plan | None:
        """The plan that was made last, of a call or by `plan`; None before the first. `explain()` says why it is so."""
        latest = self._runtime.encoder.plan.latest
        return latest[-1] if latest else None

    async def aembed(self, texts: Any, **options: Unpack[EmbedOptions]) -> np.ndarray:
        """`embed` for callers of asyncio: the event loop runs on, and calls of one process take turns.

        A call that has begun is not interrupted when its task is cancelled.
        """
        model: Any = self
        return await aside(model.embed, texts, **options)

    async def aencode_query(self, texts: Any, **options: Unpack[EmbedOptions]) -> np.ndarray:
        """`encode_query` as `aembed` does it."""
        model: Any = self
        return await aside(model.encode_query, texts, **options)

    async def aencode_document(self, texts: Any, **options: Unpack[EmbedOptions]) -> np.ndarray:
        """`encode_document` as `aembed` does it."""
        model: Any = self
        return await aside(model.encode_document, texts, **options)

    async def arerank(
        self, query: str | Mapping[str, Any], documents: Iterable[Any], **options: Unpack[RerankOptions]
    ) -> list[Ranked]:
        """`rerank` as `aembed` does it."""
        model: Any = self
        return await aside(model.rerank, query, documents, **options)

    async def aclassify(self, texts: Any, **options: Unpack[ClassifyOptions]) -> list[Classified]:
        """`classify` as `aembed` does it."""
        model: Any = self
        return await aside(model.classify, texts, **options)

    async def agenerate(self, prompt: object, **options: Any) -> Generation | list[Generation] | list[list[Generation]]:
        """`generate` as `aembed` does it; raises InputError for `stream`, which has no twin yet."""
        if options.get("stream"):
            raise InputError("stream=True: agenerate streams nothing; call generate(stream=True) in a thread of yours")
        model: Any = self
        return await aside(model.generate, prompt, **options)


_lock = threading.Lock()
_executor: ThreadPoolExecutor | None = None


async def aside(call: Callable[..., R], *args: Any, **options: Any) -> R:
    """Await a call that runs in the one thread kept for such calls: MLX compiles and caches per thread."""
    # Takes longer to import than many a model to load.
    import asyncio

    global _executor
    with _lock:
        if _executor is None:
            _executor = ThreadPoolExecutor(1, "archport")
    run = partial(contextvars.copy_context().run, call, *args, **options)
    return await asyncio.get_running_loop().run_in_executor(_executor, run)


@device_call
def _free() -> None:
    """Hand back what nobody uses any more."""
    import gc

    import mlx.core as mx

    # Modules refer to one another in circles.
    gc.collect()
    mx.clear_cache()
