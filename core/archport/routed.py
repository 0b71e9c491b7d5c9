"""A model whose files send queries and documents to modules of their own: sentence-transformers' Router.

Each route is a `Model` of its own, or a table of weights next to one (inference-free SPLADE). Which role takes which
route `archport.checkpoint.routes` reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any, Self, cast

from archport.admission import admit_weights
from archport.answering.static_words import StaticWords
from archport.checkpoint import Checkpoint, Role, Routes, load_static_table, open_checkpoint
from archport.contract import CheckpointError, DeviceFacts, InputError, MemoryBudgetExceeded, SparseHead
from archport.contract.plugins import Plugin, discover
from archport.contract.sizes import format_bytes, parse_bytes
from archport.device.memory import ModelMemory
from archport.loading import Description, described, narrowed
from archport.model import Model


def described_routes(
    about: Description, overrides: Sequence[ModuleType], plugins: Sequence[Plugin] | None, *, adapted: bool
) -> dict[str, Description]:
    """Route -> what its files describe, of every route besides the main one that is a model of its own.

    Args:
        adapted: whether adapters were asked for.

    Raises:
        InputError: with an adapter, which is one model's.
        CheckpointError, ClaimError: as of any model.
    """
    here, routes = about.checkpoint, about.checkpoint.routes
    names = [] if routes is None else [name for name in routes.others if name not in routes.static]
    if names and adapted:
        raise InputError(
            f"{here.name} has a router of {1 + len(names)} models, and adapters are one's; merge them first"
        )
    known = discover() if plugins is None else tuple(plugins)

    def opened(name: str) -> Checkpoint:
        return open_checkpoint(
            here.folder,
            name=here.name,
            requested=here.requested,
            source=here.source,
            revision=here.revision,
            fetched=here.fetched,
            route=name,
        )

    return {name: described(lambda models, name=name: opened(name), overrides, known) for name in names}


def budgets_of(
    abouts: Sequence[Description], dtype: str | None, device: DeviceFacts, memory_budget: int | str | None
) -> list[int]:
    """Bytes that each of several models may use when the others' weights are there too.

    Raises:
        MemoryBudgetExceeded: for all weights together, before any is read.
    """
    budget = device.default_budget if memory_budget is None else parse_bytes(memory_budget, what="memory_budget")
    heads = [about.hooks.head(about.spec, about.checkpoint) for about in abouts]
    built = [narrowed(about, head) for about, head in zip(abouts, heads, strict=True)]
    sizes = [admit_weights(about, dtype, device, budget)[1] for about in built]
    if sum(sizes) > budget:
        raise MemoryBudgetExceeded(
            f"the weights of the {len(sizes)} models of {abouts[0].checkpoint.name} need {format_bytes(sum(sizes))} "
            f"together; the memory budget is {format_bytes(budget)}. Raise memory_budget=, or choose a smaller dtype",
            required_bytes=sum(sizes),
            limit_bytes=budget,
            binding="memory_budget",
            breakdown={"weights": sum(sizes)},
        )
    return [budget - sum(sizes) + size for size in sizes]


class RoutedModel(Model):
    """A `Model` that answers queries, documents, and texts without a role by what its files name for each.

    What it says of itself (`spec`, `head`, plans) is its main route's, and so are its answers to all other calls.
    """

    _routes: Routes
    _models: Mapping[str, Model]
    _tables: Mapping[str, StaticWords]

    @classmethod
    def of(cls, main: Model, others: Mapping[str, Model]) -> Self:
        """The main route's model with those of other routes."""
        routes = main.checkpoint.routes
        assert routes is not None, "made of a checkpoint with routes alone"
        made = object.__new__(cls)
        made.__dict__.update(main.__dict__)
        made._routes, made._models = routes, dict(others)
        made._tables = {name: _table(main, routes.where, folder) for name, folder in routes.static.items()}
        return made

    def __copy__(self) -> Self:
        other = super().__copy__()
        other._models = {name: model.__copy__() for name, model in self._models.items()}
        return other

    def embed(self, texts: Any, **options: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """`Model.embed` by what the files name for texts without a role."""
        return self._answer(None, texts, options)

    def encode_query(self, texts: Any, **options: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """`Model.encode_query` by what the files name for queries."""
        return self._answer("query", texts, options)

    def encode_document(self, texts: Any, **options: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """`Model.encode_document` by what the files name for documents."""
        return self._answer("document", texts, options)

    def _answer(self, role: Role, texts: Any, options: Mapping[str, Any]) -> Any:
        # Of a model that was closed, which says so.
        name, route = self._runtime.name, self._routes.roles[role]
        if route is None:
            what = "texts without a role" if role is None else f"a {role}"
            raise InputError(
                f"{name} has no route for {what}; its routes are {', '.join(self._routes.modules)} "
                f"({self._routes.where}), so call encode_query or encode_document, whichever has one"
            )
        owner, asked = self._models.get(route, self), dict(options)
        table = self._tables.get(route)
        if role is not None:
            inputs, query = owner.inputs, role == "query"
            prompt = inputs.query_prompt if query else inputs.document_prompt
            tokens = inputs.query_tokens if query else inputs.document_tokens
            asked = owner._runtime.of_role(prompt, tokens if table is None else None, options)
        if table is not None:
            return table.embed(texts, **asked)
        return cast("Callable[..., Any]", Model.embed)(owner, texts, **asked)

    def memory(self) -> ModelMemory:
        """`Model.memory` of all routes together."""
        own, others = super().memory(), [model.memory() for model in self._models.values()]
        return replace(
            own,
            weights=own.weights + sum(other.weights for other in others),
            prefix_cache=own.prefix_cache + sum(other.prefix_cache for other in others),
        )

    def close(self) -> None:
        """`Model.close` of every route."""
        super().close()
        for model in self._models.values():
            model.close()


def _table(main: Model, where: str, folder: str) -> StaticWords:
    table, head, vocabulary = load_static_table(main.checkpoint, folder), main.head, main.spec.vocab_size
    if not isinstance(head, SparseHead):
        raise CheckpointError(
            f"{where}: weights of words answer one role, and {type(head).__name__} ({head.source}) the other, whose "
            "vectors can't be compared; expected SpladePooling after the Transformer"
        )
    if len(table.weights) != vocabulary:
        raise CheckpointError(
            f"{main.checkpoint.folder}: {folder} has {len(table.weights):,} weights, and the transformer a vocabulary "
            f"of {vocabulary:,}; expected as many, or vectors can't be compared"
        )
    return StaticWords(main.name, table, main.inputs, head.top_k)
