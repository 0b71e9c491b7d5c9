"""A model whose files send queries and documents to modules of their own: sentence-transformers' Router.

One transformer answers one role, as `Model` does, and a table of weights the other (inference-free SPLADE). Which role
is whose `archport.checkpoint.routes` reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from archport.answering.static_words import StaticWords
from archport.checkpoint import Role, Routes, load_static_table
from archport.checkpoint.dtype import DTypeChoice
from archport.contract import CheckpointError, DeviceFacts, InputError, SparseHead
from archport.loading import Description
from archport.model import Model
from archport.runtime import Runtime


class RoutedModel(Model):
    """A `Model` that answers queries, documents, and texts without a role by what its files name for each.

    What it says of itself (`spec`, `head`, plans, memory) is its transformer's.
    """

    def __init__(
        self, about: Description, device: DeviceFacts, budget: int, dtype: DTypeChoice, runtime: Runtime
    ) -> None:
        super().__init__(about, device, budget, dtype, runtime)
        routes = about.checkpoint.routes
        assert routes is not None, "made for a checkpoint with routes alone"
        self._routes: Routes = routes
        self._tables = {name: self._table(about, folder, runtime) for name, folder in routes.static.items()}

    def _table(self, about: Description, folder: str, runtime: Runtime) -> StaticWords:
        table, head = load_static_table(about.checkpoint, folder), runtime.head
        if not isinstance(head, SparseHead):
            raise CheckpointError(
                f"{self._routes.where}: weights of words answer one role, and {type(head).__name__} ({head.source}) "
                "the other, whose vectors can't be compared; expected SpladePooling after the Transformer"
            )
        if len(table.weights) != about.spec.vocab_size:
            raise CheckpointError(
                f"{about.checkpoint.folder}: {folder} has {len(table.weights):,} weights, and the transformer a "
                f"vocabulary of {about.spec.vocab_size:,}; expected as many, or vectors can't be compared"
            )
        return StaticWords(self.name, table, runtime.tokeniser.inputs, head.top_k)

    def embed(self, texts: Any, **options: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """`Model.embed` by what the files name for texts without a role."""
        return self._answer(None, texts, options)

    def encode_query(self, texts: Any, **options: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """`Model.encode_query` by what the files name for queries."""
        asked = self._runtime.of_role(self.inputs.query_prompt, self._limit("query"), options)
        return self._answer("query", texts, asked)

    def encode_document(self, texts: Any, **options: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """`Model.encode_document` by what the files name for documents."""
        asked = self._runtime.of_role(self.inputs.document_prompt, self._limit("document"), options)
        return self._answer("document", texts, asked)

    def _limit(self, role: Role) -> int | None:
        """Tokens of a text in a role, where its transformer has such a limit."""
        if self._routes.roles[role] != self._routes.main:
            return None
        return self.inputs.query_tokens if role == "query" else self.inputs.document_tokens

    def _answer(self, role: Role, texts: Any, options: Mapping[str, Any]) -> Any:
        # Of a model that was closed, which says so.
        name, route = self._runtime.name, self._routes.roles[role]
        if route is None:
            what = "texts without a role" if role is None else f"{role} texts"
            raise InputError(
                f"{name} has no route for {what}; its routes are {', '.join(self._routes.modules)} "
                f"({self._routes.where}), so call encode_query or encode_document, whichever has one"
            )
        if route in self._tables:
            return self._tables[route].embed(texts, **options)
        return cast("Callable[..., Any]", Model.embed)(self, texts, **options)
