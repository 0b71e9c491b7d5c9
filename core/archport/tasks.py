"""Adapters that are kept apart from one base: a trunk for each around the same weights, and what it adds to a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archport.checkpoint import Checkpoint
from archport.checkpoint.adapting import Adapted, fitted
from archport.checkpoint.apart import check_apart, factors_of, own_tensors, sources_of
from archport.checkpoint.resolve import resolve_adapter
from archport.contract import ArchSpec, Footprint, InputError
from archport.contract.errors import shown
from archport.contract.plugins import Plugin, known_models
from archport.contract.spec import DType, itemsize
from archport.memory.prefix_cache import PrefixCache
from archport.running.encode import Encoder

if TYPE_CHECKING:
    from archport.contract import Trunk
    from archport.layers.low_rank import Term
    from archport.planning import Planner
    from archport.runtime import Runtime


@dataclass(frozen=True, slots=True)
class Apart:
    """Adapters that fit a base, by the names that calls know them by.

    Args:
        fits: what each adds to which stored matrix.
    """

    fits: Mapping[str, Adapted]

    def nbytes(self, dtype: DType) -> int:
        """Bytes of all that they add, once loaded."""
        factors = (info for fit in self.fits.values() for term in fit.terms.values() for info in (term.a, term.b))
        return itemsize(dtype) * sum(info.size for info in factors)

    def widest(self) -> int:
        """Numbers per token of the widest term: its output, and the factor in between."""
        terms = [term for fit in self.fits.values() for term in fit.terms.values()]
        return max((term.b.shape[0] + term.a.shape[0] for term in terms), default=0)


def find_apart(
    checkpoint: Checkpoint, adapters: Mapping[str, str | Path] | None, plugins: Sequence[Plugin]
) -> Apart | None:
    """The adapters of a load that are kept apart; None where there are none. Reads headers only, and fetches files.

    Raises:
        InputError: names that are none.
        ModelNotFound, CheckpointError: an adapter that is not there, is none, does not fit, or can't be kept apart.
    """
    if not adapters:
        return None
    if not isinstance(adapters, Mapping) or not all(isinstance(name, str) and name for name in adapters):
        raise InputError(f"adapters={shown(adapters)}; expected names, each with a folder or hub id")
    fits: dict[str, Adapted] = {}
    for name, place in adapters.items():
        adapter = resolve_adapter(place, models=known_models(tuple(plugins)))
        fits[name] = fitted(adapter, str(checkpoint.folder), checkpoint.stored_tensors)
        check_apart(fits[name])
    return Apart(fits)


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


def with_tasks(runtime: Runtime, apart: Apart, build: Callable[[], Trunk], dtype: DType) -> Runtime:
    """A runtime with one for each adapter, which shares its weights, its tokeniser and its plans.

    Args:
        build: makes the plugin's module, unfilled.
        dtype: element type of the factors.

    Raises:
        CheckpointError: a matrix that can't be adapted apart.
    """
    import mlx.core as mx

    from archport.layers.low_rank import Term, with_terms

    encoder, made = runtime.encoder, dict[str, Any]()
    for name, fit in apart.fits.items():
        factors = factors_of(fit, sources_of(fit, build()), own_tensors(fit), dtype)
        mx.eval([array for pair in factors.values() for array in pair])
        terms: dict[str, Term] = {path: Term(*pair) for path, pair in factors.items()}
        trunk = with_terms(encoder.trunk, terms)
        made[name] = replace(
            runtime,
            encoder=Encoder(trunk, encoder.spec, encoder.plan, encoder.rule),
            # What one task leaves behind is of no use to another.
            prefixes=PrefixCache(runtime.prefixes.limit // (1 + len(apart.fits))),
        )
    own = PrefixCache(runtime.prefixes.limit // (1 + len(apart.fits)))
    return replace(runtime, tasks=made, prefixes=own)


def chosen(runtime: Runtime, task: str | None) -> Runtime:
    """What a model runs a call with: by the adapter of a task, or by the base's weights alone.

    Raises:
        InputError: a task that the model has not.
    """
    if task is None:
        return runtime
    if task not in runtime.tasks:
        known = ", ".join(runtime.tasks)
        expected = f"expected one of {known}" if known else "it has none; name some: engine.load(..., adapters={...})"
        raise InputError(f"task={shown(task)} of {runtime.name}; {expected}")
    return runtime.tasks[task]
