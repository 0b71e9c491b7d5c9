"""Adapters that are kept apart from one base: a trunk for each around the same weights, and what it adds to a plan.

Plans and `archport info` ask without a backend of MLX, so what runs is imported where a trunk is made.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archport.checkpoint import Checkpoint
from archport.checkpoint.adapting import fitted
from archport.checkpoint.apart import Source, check_apart, factor_count, factors_of, own_tensors, sources_of
from archport.checkpoint.resolve import resolve_adapter
from archport.checkpoint.stacked import Task, stored_tasks
from archport.contract import ArchSpec, Footprint, InputError
from archport.contract.errors import shown
from archport.contract.plugins import Plugin, known_models
from archport.contract.spec import DType, itemsize

if TYPE_CHECKING:
    from archport.contract import Trunk
    from archport.layers.low_rank import Term
    from archport.planning import Planner
    from archport.reading.texts import TextTokeniser
    from archport.runtime import Runtime


@dataclass(frozen=True, slots=True)
class Apart:
    """Adapters that fit a base, by the names that calls know them by.

    Args:
        tasks: what each adds to which stored matrix, and how its factors are read.
        sources: of each, which rows of which stored matrix a module has, by the module's path.
    """

    tasks: Mapping[str, Task]
    sources: Mapping[str, Mapping[str, Source]]

    def nbytes(self, dtype: DType) -> int:
        """Bytes of all that they add, once loaded."""
        return sum(self.nbytes_of(name, dtype) for name in self.tasks)

    def nbytes_of(self, name: str, dtype: DType) -> int:
        """Bytes that one of them adds, once loaded."""
        terms = self.tasks[name].fit.terms
        return itemsize(dtype) * sum(factor_count(terms[it.name], it) for it in self.sources[name].values())

    def widest(self) -> int:
        """Numbers per token of the widest term: its output, and the factor in between."""
        terms = [term for task in self.tasks.values() for term in task.fit.terms.values()]
        return max((term.b.shape[0] + term.a.shape[0] for term in terms), default=0)


def find_apart(
    checkpoint: Checkpoint,
    adapters: Mapping[str, str | Path] | None,
    plugins: Sequence[Plugin],
    build: Callable[[], Trunk],
) -> Apart | None:
    """The adapters of a load that are kept apart, those that the checkpoint stores itself first; None without any.

    Reads headers only, and fetches files.

    Args:
        build: makes the plugin's module, unfilled.

    Raises:
        InputError: names that are none.
        ModelNotFound, CheckpointError: an adapter that is not there, is none, does not fit, or can't be kept apart.
    """
    found = stored_tasks(checkpoint)
    adapters = {} if adapters is None else adapters
    if not isinstance(adapters, Mapping) or not all(isinstance(name, str) and name for name in adapters):
        raise InputError(f"adapters={shown(adapters)}; expected names, each with a folder or hub id")
    for name, place in adapters.items():
        if name in found:
            raise InputError(
                f"adapters= names {shown(name)}, a task that {checkpoint.name} has itself; name it otherwise"
            )
        adapter = resolve_adapter(place, models=known_models(tuple(plugins)))
        fit = fitted(adapter, str(checkpoint.folder), checkpoint.stored_tensors)
        check_apart(fit)
        found[name] = Task(fit, partial(own_tensors, fit))
    if not found:
        return None
    module, sources = build(), dict[str, Mapping[str, Source]]()
    for name, task in found.items():
        # Tasks that a checkpoint stores itself are of one layout.
        alike = next((other for other in sources if found[other].fit is task.fit), None)
        sources[name] = sources_of(task.fit, module) if alike is None else sources[alike]
    return Apart(found, sources)


def most_bytes(apart: Apart | None) -> int:
    """Bytes that adapters take at most, in float32."""
    return 0 if apart is None else apart.nbytes("float32")


def priced(spec: ArchSpec, apart: Apart) -> ArchSpec:
    """The spec for plans: each layer holds the widest term at its peak, and its sum with what it is added to."""
    more = 2 * apart.widest()

    def wider(own: Footprint | None) -> Footprint:
        return Footprint(more=more) if own is None else replace(own, more=(own.more or 0) + more)

    return replace(spec, layers=tuple(replace(layer, footprint=wider(layer.footprint)) for layer in spec.layers))


def holding(planner: Planner, apart: Apart) -> Planner:
    """The planner of a model that holds adapters next to its weights."""
    weights = planner.weights
    return replace(planner, weights=replace(weights, total=weights.total + apart.nbytes(planner.dtype)))


def with_tasks(runtime: Runtime, apart: Apart, dtype: DType) -> Runtime:
    """A runtime with one for each adapter, which shares its weights, its tokeniser and its plans.

    Args:
        dtype: element type of the factors.
    """
    import mlx.core as mx

    from archport.layers.low_rank import Term, with_terms
    from archport.memory.snapshot import PrefixCache
    from archport.running.encode import Encoder

    encoder, made = runtime.encoder, dict[str, Any]()
    limit = runtime.prefixes.limit // (1 + len(apart.tasks))
    for name, task in apart.tasks.items():
        factors = factors_of(task.fit, apart.sources[name], task.load(), dtype)
        mx.eval([array for pair in factors.values() for array in pair])
        terms: dict[str, Term] = {path: Term(*pair) for path, pair in factors.items()}
        trunk = with_terms(encoder.trunk, terms)
        made[name] = replace(
            runtime,
            encoder=Encoder(trunk, encoder.spec, encoder.plan, encoder.rule),
            tokeniser=_instructed(runtime.tokeniser, name, task.instruction),
            # What one task leaves behind is of no use to another.
            prefixes=PrefixCache(limit),
        )
    return replace(runtime, tasks=made, prefixes=PrefixCache(limit))


def _instructed(tokeniser: TextTokeniser, name: str, instruction: str | None) -> TextTokeniser:
    """A tokeniser that puts a task's own words in front of texts, where a call names no others."""
    if instruction is None:
        return tokeniser
    made, inputs = copy.copy(tokeniser), tokeniser.inputs
    made.inputs = replace(inputs, prompts={**inputs.prompts, name: instruction}, default_prompt=name)
    return made


def chosen(runtime: Runtime, task: str | None) -> Runtime:
    """What a model runs a call with: by the adapter of a task, or by the base's weights alone.

    Raises:
        InputError: a task that the model has not.
    """
    if task is None:
        return runtime
    if task not in runtime.tasks:
        known = ", ".join(runtime.tasks)
        expected = f"expected one of {known}" if known else "it has none; name some with adapters= where it is loaded"
        raise InputError(f"task={shown(task)} of {runtime.name}; {expected}")
    return runtime.tasks[task]
