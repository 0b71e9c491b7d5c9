"""Load a model by name: the stages in their order, and nothing else.

name -> checkpoint -> claim -> dtype and budget -> weights -> Model

What a `Model` takes and answers is `archport.model`'s.
"""

from __future__ import annotations

# First, because it says what to install where MLX can't run, and whatever follows imports MLX.
import archport.device.backend  # noqa: F401  # isort: skip

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from archport import loading, tasks
from archport.admission import admit_weights
from archport.attention import limits_from_environment
from archport.contract import AttentionLimits, InputError
from archport.contract.plugins import Plugin
from archport.contract.sizes import parse_bytes
from archport.device import tf32, workers
from archport.device.blas import warn_if_late
from archport.device.facts import this_device
from archport.device.failures import failure_of
from archport.device.heap import keep_freed_memory
from archport.device.memory import ModelMemory
from archport.device.process import use_device
from archport.faults import explained, unexpected
from archport.loading import Description, describe
from archport.model import Model
from archport.running.calls import public

__all__ = ["Model", "ModelMemory", "describe", "load"]


@public
def load(
    name: str | Path,
    *,
    revision: str | None = None,
    dtype: str | None = None,
    max_context: int | None = None,
    memory_budget: int | str | None = None,
    limits: AttentionLimits | None = None,
    prefix_cache: int | str | None = None,
    overrides: Sequence[ModuleType] = (),
    plugin: str | None = None,
    plugins: Sequence[Plugin] | None = None,
    share_weights: bool = True,
    tensor_parallel: bool = False,
    adapter: str | Path | None = None,
    adapters: Mapping[str, str | Path] | None = None,
) -> Model:
    """Load a model that is ready to run.

    Args:
        name: a folder, a hub id ("Qwen/Qwen3-Embedding-0.6B"), or an alias ("all-MiniLM-L6-v2").
        revision: branch, tag or commit on the hub.
        dtype: "float32", "float16", "bfloat16", or "checkpoint" for what is stored, quantisation included; there a type
            of 16 bits that most weights are in is that of all. Default: the checkpoint's on a GPU, float32 on a CPU
            (where quantised weights are unpacked if they fit).
        max_context: longest text in tokens, at most the model's positions. Default: the model's own limit.
        memory_budget: bytes, or "16GB"; default: most of the device, a constant of the machine.
        limits: what one attention call may use; MLX_SDPA_CHUNK_THRESHOLD and MLX_SDPA_CHUNK_SIZE change its chunks.
        prefix_cache: bytes that `generate` keeps of earlier prompts and texts, for later ones that begin alike; 0 turns
            it off. Default: a sixteenth of the budget.
        overrides: modules whose hooks answer before the plugin's.
        plugin: the name of the plugin to ask, where several claim the checkpoint; ARCHPORT_PREFER says it for all.
        plugins: who may claim the checkpoint; the installed ones when left out.
        share_weights: use the buffers of a model of this process whose files, plugin and dtype are the same.
        tensor_parallel: split the model over the processes that `mx.distributed` joins, one a device, as `mlx.launch`
            starts them. Every process loads it and makes the same calls; each gets the whole answers.
        adapter: a folder or hub id of a LoRA adapter in PEFT's layout, which the weights are loaded with; in place of
            one that lies next to them. A `name` that leads to an adapter alone loads the base that it names, with it.
        adapters: name -> such an adapter, each kept apart from the weights: calls say with `task=` which one runs.

    Raises:
        ModelNotFound: the name leads nowhere; near matches are listed.
        ClaimError: no plugin, or more than one, claims the checkpoint.
        CheckpointError: files are missing, damaged or inconsistent.
        MemoryBudgetExceeded: the weights exceed the budget; raised before any is read.
        ContextLengthExceeded: `max_context` is above the model's positions.
        ForkedProcess: this process was forked from one that had loaded a model.
        InputError: `tensor_parallel` in a process that was started alone, or for a model that can't be split.
    """
    warn_if_late()
    options: dict[str, Any] = {
        "dtype": dtype, "max_context": max_context, "memory_budget": memory_budget, "limits": limits,
        "prefix_cache": prefix_cache, "plugin": plugin, "share_weights": share_weights,
        "tensor_parallel": tensor_parallel, "adapter": adapter,
        "adapters": adapters,
    }  # fmt: skip
    about = describe(
        name, revision=revision, overrides=overrides, plugin=plugin, plugins=plugins, weights=True, adapter=adapter
    )
    try:
        # Whatever builds a module makes arrays.
        use_device()
        tf32.choose_precision()
        given = {**options, "plugins": plugins or (about.plugin,)}
        routed = about.checkpoint.routes is not None
        model = _routed(about, overrides, plugins, given) if routed else _loaded(about, given)
    except Exception as error:
        if not unexpected(error) or failure_of(error):
            raise
        again = partial(loading.read_again, name, revision, plugins or (about.plugin,), adapter)
        better = explained(error, about.checkpoint.folder, () if overrides else (about.plugin,), again)
        if better is error:
            raise
        raise better from error
    model.recipe = Recipe.of(about, overrides, plugins, options)
    return model


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a model was loaded, in values that pickle; called, it loads it again.

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
        name = (
            str((checkpoint.root or checkpoint.folder).resolve()) if checkpoint.source == "folder" else checkpoint.name
        )
        kept = None if options["adapters"] is None else {name: _place(it) for name, it in options["adapters"].items()}
        options = {**options, "adapter": checkpoint.adapter, "adapters": kept}
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

    def __call__(self) -> Model:
        """The model, loaded in this process; raises as `load` does."""
        return load(**self.arguments())


def _place(adapter: str | Path) -> str:
    """An adapter's folder as other processes find it, or its hub id."""
    path = Path(adapter).expanduser()
    return str(path.resolve() if path.is_dir() else adapter)


def _routed(
    about: Description, overrides: Sequence[ModuleType], plugins: Sequence[Plugin] | None, options: Mapping[str, Any]
) -> Model:
    """The model of a router's main route, with one for each other route; each plans next to the others' weights."""
    from archport.routed import RoutedModel, budgets_of, described_routes

    others = described_routes(about, overrides, plugins, adapted=bool(options["adapter"] or options["adapters"]))
    budgets = budgets_of([about, *others.values()], options["dtype"], this_device(), options["memory_budget"])
    main, *made = (
        _loaded(own, {**options, "memory_budget": budget})
        for own, budget in zip([about, *others.values()], budgets, strict=True)
    )
    return RoutedModel.of(main, dict(zip(others, made, strict=True)))


def _loaded(about: Description, options: Mapping[str, Any]) -> Model:
    """What is loaded of a description by the options of `load`: the stages behind the claim."""
    device, memory_budget = this_device(), options["memory_budget"]
    if device.kind == "cpu":
        keep_freed_memory()
        workers.begin()
    budget = device.default_budget if memory_budget is None else parse_bytes(memory_budget, what="memory_budget")
    head = about.hooks.head(about.spec, about.checkpoint)
    inputs = about.hooks.inputs(about.spec, about.checkpoint)
    about = loading.narrowed(about, head)
    max_tokens, ceiling = loading.context_ceiling(about.checkpoint.name, about.spec, inputs, options["max_context"])
    split = loading.split_over(about) if options["tensor_parallel"] else None
    build = partial(about.hooks.build, about.spec, about.checkpoint.config)
    apart = tasks.find_apart(about.checkpoint, options["adapters"], options["plugins"], build)
    if split is not None:
        if options["adapters"]:
            raise InputError("adapters= with tensor_parallel=True: adapters that are kept apart run in one process")
        apart = None
    share = 1.0 if split is None else split.share
    choice, _ = admit_weights(about, options["dtype"], device, budget - tasks.most_bytes(apart), share=share)
    # A merged product has no place of its own for each term.
    trunk = loading.load_trunk(about, choice, share=options["share_weights"], split=split, merge=apart is None)
    limits = limits_from_environment(options["limits"])
    described = about if apart is None else replace(about, spec=tasks.priced(about.spec, apart))
    planner = loading.make_planner(described, trunk, device, budget, ceiling, limits, split)
    planner = planner if apart is None else tasks.holding(planner, apart)
    if planner.dtype == "float32":
        tf32.warn_if_rounded()
    runtime = loading.make_runtime(about, trunk, planner, choice, head, inputs, max_tokens, options["prefix_cache"])
    if apart is not None:
        runtime = tasks.with_tasks(runtime, apart, planner.dtype)
    return Model(about, device=device, budget=budget, dtype=choice, runtime=runtime)
