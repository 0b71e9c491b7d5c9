"""Sparse vectors of texts by a table: each word that a text holds has its own weight, however often. Runs no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import numpy as np

from archport.answering.collecting import Errors, rows_together
from archport.answering.sparse_vectors import SparseRow, handed_out, largest
from archport.answering.token_vectors import refuse_given
from archport.checkpoint import StaticTable
from archport.contract import InputError, TextInputs
from archport.contract.arguments import checked
from archport.device.progress import Counter
from archport.reading.texts import Overflow, TextTokeniser, iterable

# Where a table states no limit: any text is read whole.
_UNLIMITED = 1 << 30
# Texts tokenised together.
_WINDOW = 2048
# Stands for a text without any token, whose vector is empty.
_NOTHING = -1


class StaticWords:
    """Answers `Model.embed` with the weights of a table.

    Args:
        name: the model's, for messages.
        inputs: the model's prompts.
        top_k: largest weights that a vector keeps by default; None for all.
    """

    def __init__(self, name: str, table: StaticTable, inputs: TextInputs, top_k: int | None) -> None:
        self._name, self._weights, self._top_k = name, table.weights, top_k
        own = TextInputs(prompts=inputs.prompts, default_prompt=inputs.default_prompt, empty_token=_NOTHING)
        limit = table.max_tokens or _UNLIMITED
        self._tokeniser = TextTokeniser(table.tokenizer, own, limit, _UNLIMITED, table.side)

    @checked
    def embed(
        self,
        texts: object,
        *,
        output: object = "vectors",
        top_k: int | None = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
        max_tokens: int | None = None,
        overflow: Overflow = "error",
        precision: str = "float32",
        dimensions: int | None = None,
        normalize: bool | None = None,
        task: str | None = None,
        progress: bool | Counter = False,
        errors: Errors = "raise",
    ) -> Any:
        """What `Model.embed` answers for `output="sparse"`; raises as it does."""
        if output != "sparse":
            raise InputError(
                f"{self._name} looks up the weights of words for these texts, which make no output={output!r}; use "
                "output='sparse'"
            )
        if top_k is not None and top_k < 1:
            raise InputError(f"{top_k=}; expected a number >= 1, or None for the model's own")
        exact = None if precision == "float32" else precision
        fixed = {"precision": exact, "dimensions": dimensions, "normalize": normalize, "task": task}
        refuse_given("sparse", fixed)
        text = self._tokeniser.prompt(prompt, prompt_name)
        read = partial(self._tokeniser, prompt=text, max_tokens=max_tokens, overflow=overflow)
        items = cast("list[str]", [texts] if isinstance(texts, str | Mapping) else list(iterable(texts)))
        kept = self._top_k if top_k is None else top_k

        def run(some: Sequence[str], done: Counter) -> list[SparseRow]:
            found: list[SparseRow] = []
            for first in range(0, len(some), _WINDOW):
                rows = read(some[first : first + _WINDOW], first=first).ids
                found += [largest(self._row(ids), kept) for ids in rows]
                done(len(rows), tokens=sum(map(len, rows)))
            return found

        return rows_together(run, lambda: read([]), items, self._together, progress=progress, errors=errors)

    def _row(self, ids: np.ndarray) -> SparseRow:
        words = np.unique(ids[ids != _NOTHING])
        weights = self._weights[words]
        words = words[weights != 0]
        return words.astype(np.int32, copy=False), self._weights[words]

    def _together(self, rows: Sequence[SparseRow]) -> Any:
        return handed_out(rows, len(self._weights))
