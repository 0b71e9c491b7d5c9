"""A vector per token: hidden rows through the head's projection, and late interaction (MaxSim) of such vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal, cast

import mlx.core as mx
import numpy as np

from archport.answering.collecting import Collected, Errors, rows_together
from archport.answering.rerank import RerankRequest, ScoreKind
from archport.contract import ArchportError, InputError, Measured, NonFiniteOutput
from archport.contract.arguments import as_array
from archport.contract.heads import TokenHead
from archport.device.evaluation import Stretches
from archport.device.progress import Counter, nothing_shown
from archport.planning.readouts import vectors_of_tokens
from archport.reading.texts import Overflow, TextTokeniser, check_vocabulary, iterable
from archport.running.calls import device_call
from archport.running.encode import Encoder, verified
from archport.running.pool import project, unit_length
from archport.running.steps import batch_caches, run_steps

# Scores held at a time.
_MOST = 1 << 24


def maxsim(query: np.ndarray, documents: Sequence[np.ndarray]) -> np.ndarray:
    """MaxSim (N,) float32 of a query (n, D) with documents (m_i, D): for each of its rows the best dot product, summed.

    Raises:
        InputError: for arrays of other shapes or widths, or without rows.
    """
    query = _rows(query, "the query")
    checked = [_rows(each, f"document {index}") for index, each in enumerate(documents)]
    for index, each in enumerate(checked):
        if each.shape[1] != query.shape[1]:
            raise InputError(
                f"document {index} has vectors of width {each.shape[1]}; the query's have {query.shape[1]}"
            )
    found = np.zeros(len(checked), np.float32)
    first = 0
    while first < len(checked):
        last, width = first + 1, len(checked[first])
        while last < len(checked) and (width + len(checked[last])) * len(query) <= _MOST:
            width, last = width + len(checked[last]), last + 1
        scores = query @ np.concatenate(checked[first:last]).T
        starts = np.cumsum([0, *(len(each) for each in checked[first : last - 1])])
        found[first:last] = np.maximum.reduceat(scores, starts, axis=1).sum(axis=0)
        first = last
    return found


def _rows(value: object, what: str) -> np.ndarray:
    array = as_array(value, what)
    if array.ndim != 2 or 0 in array.shape or not np.issubdtype(array.dtype, np.floating):
        raise InputError(
            f"{what} has shape {array.shape} and type {array.dtype}; expected floats (tokens, D), both at least 1"
        )
    return array.astype(np.float32, copy=False)


Role = Literal["query", "document"]
# Texts tokenised and sorted together.
_WINDOW = 2048


@dataclass(frozen=True, slots=True)
class TokenEmbedder:
    """Texts to a vector per token, and the scorer of a `TokenHead`.

    Args:
        dense: (weight, bias) of each of the head's Dense layers.
    """

    tokeniser: TextTokeniser
    encoder: Encoder
    head: TokenHead
    dense: tuple[tuple[mx.array, mx.array | None], ...] = ()

    @property
    def kind(self) -> ScoreKind:
        return "maxsim"

    def scores(self, query: str, documents: Sequence[str], request: RerankRequest) -> np.ndarray:
        """MaxSim (N,) float32 of a query with documents."""
        if request.instruction is not None:
            raise InputError("this model takes no instruction: it compares the query's tokens with the document's")
        limits: dict[str, Any] = {"max_tokens": request.max_tokens, "overflow": request.overflow}
        try:
            (asked,) = self([query], "query", self.role_prompt("query"), **limits)
        except ArchportError as error:
            error.args = (str(error).replace("text 0", "the query", 1), *error.args[1:])
            raise
        if not documents:
            return np.zeros(0, np.float32)
        return maxsim(asked, self(documents, "document", self.role_prompt("document"), done=request.scored, **limits))

    def shown(self, scores: np.ndarray) -> np.ndarray:
        """The same numbers."""
        return scores

    def __call__(
        self,
        texts: Sequence[str],
        role: Role,
        prompt: str = "",
        *,
        max_tokens: int | None = None,
        overflow: Overflow = "error",
        done: Counter = nothing_shown,
    ) -> list[np.ndarray]:
        """Per text an array (tokens that count, D) float32, in the order of the texts; `done` is told of every batch.

        Raises:
            InputError, ContextLengthExceeded: for a text that can't be embedded.
            NonFiniteOutput: when a vector holds NaN or infinity.
        """
        found: list[np.ndarray] = []
        for first in range(0, len(texts), _WINDOW):
            some = texts[first : first + _WINDOW]
            rows, measured = self.read(some, role, prompt, max_tokens, overflow, first)
            for index, vectors in enumerate(self.run(rows, measured, role, done, first)):
                if not np.isfinite(vectors).all():
                    raise NonFiniteOutput(
                        f"a vector of text {first + index} holds NaN or infinity; it is not returned. The weights may "
                        "be damaged, or overflow in this dtype: try dtype='float32'"
                    )
                found.append(vectors)
        return found

    @device_call
    def prompted(self, texts: Sequence[str], role: Role) -> list[np.ndarray]:
        """The same with the role's own prompt."""
        return self(texts, role, self.role_prompt(role))

    def role_prompt(self, role: Role) -> str:
        """The prompt that texts of a role have."""
        inputs = self.tokeniser.inputs
        name = inputs.query_prompt if role == "query" else inputs.document_prompt
        return inputs.prompts[name] if name is not None else ""

    def read(
        self,
        texts: Sequence[str],
        role: Role,
        prompt: str = "",
        max_tokens: int | None = None,
        overflow: Overflow = "error",
        first: int = 0,
    ) -> tuple[list[np.ndarray], tuple[Measured, ...]]:
        """Ids of every text with its marker, and what a reader found in them; may be called from any thread.

        Raises:
            InputError, ContextLengthExceeded: for a text that can't be embedded.
        """
        query = role == "query"
        marker = self.head.query_marker if query else self.head.document_marker
        own = self.head.query_tokens if query else self.head.document_tokens
        limit = max_tokens if max_tokens is not None else own
        if marker is not None:
            # Room for the marker, which no tokenizer puts there.
            limit = (self.tokeniser.max_tokens if limit is None else min(limit, self.tokeniser.max_tokens)) - 1
        tokens = self.tokeniser(texts, prompt=prompt, max_tokens=limit, overflow=overflow, first=first)
        grows = marker is not None or (query and self.head.expansion is not None)
        if grows and any(each.pictures for each in tokens.measured):
            raise InputError("this model adds tokens of its own, between which pictures have no place; give texts")
        rows, seen = list(tokens.ids), tokens.measured
        if marker is not None:
            rows = [np.concatenate([ids[:1], np.asarray([marker], np.int32), ids[1:]]) for ids in rows]
            seen = ()
        check_vocabulary(rows, self.encoder.spec.vocab_size, "text", first)
        return rows, seen

    def run(
        self,
        rows: Sequence[np.ndarray],
        measured: Sequence[Measured],
        role: Role,
        done: Counter = nothing_shown,
        first: int = 0,
    ) -> list[np.ndarray]:
        """Vectors of the tokens that count, of texts that were read; nobody has looked at whether they are finite."""
        expansion = self.head.expansion if role == "query" else None
        lengths = [len(row) for row in rows]
        hidden_from = lengths
        if expansion is not None:
            filler = np.asarray([expansion.token], np.int32)
            rows = [np.concatenate([row, np.repeat(filler, max(0, expansion.length - len(row)))]) for row in rows]
            hidden_from = [len(row) for row in rows] if expansion.attended else lengths
        vectors: list[np.ndarray] = [np.zeros((0, 0), np.float32)] * len(rows)
        short = [index for index, row in enumerate(rows) if hidden_from[index] < len(row)]
        plain = [index for index, row in enumerate(rows) if hidden_from[index] >= len(row)]
        for some in (plain, short):
            if some:
                self._run(some, rows, hidden_from, measured, vectors, done, first)
        if role == "document" and self.head.skipped:
            keep = [~np.isin(row, self.head.skipped) for row in rows]
            vectors = [found[mask] for found, mask in zip(vectors, keep, strict=True)]
        return [found[self.head.leading :] for found in vectors] if self.head.leading else vectors

    def _run(
        self,
        some: Sequence[int],
        rows: Sequence[np.ndarray],
        real: Sequence[int],
        measured: Sequence[Measured],
        vectors: list[np.ndarray],
        done: Counter,
        first: int,
    ) -> None:
        """Fill in the vectors of some rows; `real` says how many tokens of each row others may see."""
        encoder, stretches = self.encoder, Stretches()
        seen = [measured[index] for index in some] if measured else ()
        plan = encoder.planned(
            [rows[index] for index in some],
            what="text",
            place=lambda row: first + some[row],
            images=[[picture.patches for picture in each.pictures] for each in seen],
            visible=[real[index] for index in some],
            readout=vectors_of_tokens(self.head, encoder.spec.hidden_size),
        )
        plan = encoder.with_pictures(plan, seen)
        with verified(plan) as watch, encoder.sight(self.tokeniser.inputs.reader, stretches) as sight:
            for batch in watch.batches(plan.batches):
                visual = sight.look(plan, batch, seen) if sight is not None else None
                chosen = [some[row] for row in batch.rows]
                ids, caches = [rows[index] for index in chosen], batch_caches(encoder.spec, plan, batch)
                pieces: list[np.ndarray] = []
                with closing(run_steps(encoder.trunk, plan, batch, ids, caches, stretches, visual)) as steps:
                    for _, hidden in steps:
                        # Finish the layers first: the plan does not budget their temporaries and the head's together.
                        stretches.finish(hidden)
                        stretches.drain()
                        pieces.append(np.array(projection(hidden, self.head, self.dense)))
                array = np.concatenate(pieces, axis=1) if len(pieces) > 1 else pieces[0]
                for at, index in enumerate(chosen):
                    vectors[index] = array[at, : len(rows[index])].copy()
                done(len(chosen), tokens=sum(len(row) for row in ids))


def projection(hidden: mx.array, head: TokenHead, weights: Sequence[tuple[mx.array, mx.array | None]]) -> mx.array:
    """Vectors (B, L, D') float32 of all tokens of hidden states (B, L, D)."""
    found = project(hidden.astype(mx.float32), head.dense, weights)
    return unit_length(found) if head.normalize else found


def refuse_given(output: str, fixed: Mapping[str, object]) -> None:
    """Raise InputError for arguments that mean nothing for an output, and were given."""
    given = [name for name, value in fixed.items() if value is not None]
    if given:
        raise InputError(f"{', '.join(given)} can't be chosen with output={output!r}; leave it out")


def embed_tokens(
    embedder: TokenEmbedder,
    texts: object,
    *,
    prompt: str | None,
    prompt_name: str | None,
    max_tokens: int | None,
    overflow: Overflow,
    progress: bool | Counter = False,
    errors: Errors = "raise",
) -> np.ndarray | Collected[np.ndarray]:
    """What `Model.embed(output="tokens")` answers: an object array (N,) of arrays (tokens, D).

    Args:
        prompt, prompt_name: as there; the name of the model's prompt for queries makes them queries.
    """
    inputs = embedder.tokeniser.inputs
    role: Role = "query" if prompt_name is not None and prompt_name == inputs.query_prompt else "document"
    text = embedder.tokeniser.prompt(prompt, prompt_name)
    items = cast("list[str]", [texts] if isinstance(texts, str | Mapping) else list(iterable(texts)))

    def run(some: Sequence[str], done: Counter) -> list[np.ndarray]:
        return embedder(some, role, text, max_tokens=max_tokens, overflow=overflow, done=done)

    def check() -> None:
        embedder.tokeniser([], prompt=text, max_tokens=max_tokens, overflow=overflow)

    return rows_together(run, check, items, objects, progress=progress, errors=errors)


def objects(found: Sequence[np.ndarray]) -> np.ndarray:
    """An object array (N,) of arrays of any shapes."""
    answer = np.empty(len(found), dtype=object)
    for index, vectors in enumerate(found):
        answer[index] = vectors
    return answer


def late_interaction(
    embedder: TokenEmbedder, query: str | np.ndarray, documents: str | np.ndarray | Sequence[str | np.ndarray]
) -> np.ndarray:
    """MaxSim (N,) of a query with documents, each a text or its vectors (n, D)."""
    if isinstance(query, str):
        (query,) = embedder.prompted([query], "query")
    single = isinstance(documents, str) or (isinstance(documents, np.ndarray) and documents.dtype != object)
    each: list[Any] = [documents] if single else list(documents)
    texts = [index for index, document in enumerate(each) if isinstance(document, str)]
    if texts:
        for index, vectors in zip(texts, embedder.prompted([each[index] for index in texts], "document"), strict=True):
            each[index] = vectors
    return maxsim(query, each)
