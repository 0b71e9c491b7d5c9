"""What the interfaces ask for, in one vocabulary: embed, sparse or not, score, classify, tag, vectors of tokens.

Knows nothing of any interface's JSON, of queues or of threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import numpy as np

from archport.answering.callers import AnswerWork, LabelWork, Row, SparseWork, TagWork, TokenWork, VectorWork
from archport.answering.labels import Classified, LabelScorer
from archport.answering.rerank import RerankRequest
from archport.answering.similarity import similarity
from archport.answering.tags import OUTSIDE, Span, spans, token_labels
from archport.answering.token_vectors import TokenEmbedder, maxsim
from archport.answering.vectors import Embedder, EmbedRequest
from archport.answering.yes_no import YesNoScorer
from archport.checkpoint import Role
from archport.contract import ClassificationHead, EmbeddingHead, InputError, TokenHead
from archport.reading.texts import Overflow, TextTokeniser
from archport.serving.device import Device
from archport.serving.errors import refused, unsupported
from archport.serving.models import Served
from archport.serving.requests import Requests, Timing
from archport.serving.scheduler import Scheduler
from archport.serving.settings import Limits

T = TypeVar("T")
Truncate = Literal["none", "start", "end"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What stands in front of a text: literally, by its stored name, or by what the text is for.

    Args:
        param: the field of the request that said so.
    """

    text: str | None = None
    name: str | None = None
    role: Literal["query", "document"] | None = None
    param: str = "prompt_name"


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which vectors of a text are asked for; None for the model's own.

    Args:
        dimensions: how many leading ones.
        normalize: whether they have unit length.
        task: whose adapter makes them.
    """

    dimensions: int | None = None
    normalize: bool | None = None
    task: str | None = None


@dataclass(frozen=True, slots=True)
class Cutting:
    """What to do with a text over the limit.

    Args:
        truncate: refuse it, or cut it at its start or end.
        max_tokens: a lower limit than the model's.
    """

    truncate: Truncate = "none"
    max_tokens: int | None = None

    @property
    def overflow(self) -> Overflow:
        return "error" if self.truncate == "none" else "truncate"


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores of pairs, in their order.

    Args:
        raw: the head's own numbers (N,).
        shown: what `kind` says of them.
        tokens: of every pair.
    """

    raw: np.ndarray
    shown: np.ndarray
    kind: str
    tokens: list[int]


class Answers(Requests):
    """The operations of a server.

    Args:
        scheduler, device: what runs rows.
        limits: what a request may ask for.
        token_ids: whether inputs may be ids.
        any_dimensions: whether vectors are cut for models that do not declare it.
        threads: that read texts.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        device: Device,
        limits: Limits,
        *,
        token_ids: bool = False,
        any_dimensions: bool = False,
        threads: int = 2,
    ) -> None:
        super().__init__(scheduler, device, limits, threads)
        self._token_ids, self._any_dimensions = token_ids, any_dimensions

    async def embed(
        self,
        served: Served,
        items: Sequence[Any],
        timing: Timing,
        *,
        prompt: Prompt | None = None,
        wanted: Wanted | None = None,
        cutting: Cutting | None = None,
        param: str = "input",
    ) -> tuple[list[np.ndarray], list[int]]:
        """(a vector (D,) float32 of every item, tokens of every item).

        Args:
            items: texts, ids of tokens, or mappings of a model that sees.
        """
        served.need("embed")
        prompt, wanted, cutting = prompt or Prompt(), wanted or Wanted(), cutting or Cutting()
        self._check_dimensions(served, wanted.dimensions)
        runtime = served.of_task(wanted.task)
        embedder = _cutting_at(runtime.embedder(), cutting)
        text = _prompt_text(served, runtime.tokeniser, prompt, timing)
        request = EmbedRequest(text, wanted.dimensions, wanted.normalize, _limit(served, cutting), cutting.overflow)
        work = VectorWork(embedder, request)
        if any(isinstance(item, np.ndarray) for item in items):
            read = partial(self._ids, served, items, prompt, embedder.tokeniser.max_tokens, param)
        else:
            read = partial(work.read, items)
        rows = await self.rows(served, items, read, timing, param, pack=True)
        job = await self.run(("embed", served.id, wanted.task, *work.form(rows)), work, rows, timing)
        return job.results, [row.tokens for row in rows]

    async def embed_tokens(
        self, served: Served, items: Sequence[Any], timing: Timing, *, prompt: Prompt | None = None,
        cutting: Cutting | None = None, param: str = "inputs",
    ) -> tuple[list[np.ndarray], list[int]]:  # fmt: skip
        """(vectors (n, D) of the tokens that count, of every item, tokens of every item)."""
        if not isinstance(served.runtime.head, EmbeddingHead | TokenHead):
            served.need("embed_tokens")
        prompt, cutting = prompt or Prompt(), cutting or Cutting()
        work = TokenWork(served.runtime.tokens(hidden=True), "query" if prompt.role == "query" else "document")
        text = _prompt_text(served, served.runtime.tokeniser, prompt, timing)
        options = {"prompt": text, **_cut(served, cutting)}
        rows = await self.rows(served, items, lambda: work.read(items, **options), timing, param)
        job = await self.run(("tokens", served.id, work.role), work, rows, timing)
        return job.results, [row.tokens for row in rows]

    async def embed_sparse(
        self, served: Served, items: Sequence[Any], timing: Timing, *, prompt: Prompt | None = None,
        cutting: Cutting | None = None, param: str = "inputs",
    ) -> tuple[list[np.ndarray], list[int]]:  # fmt: skip
        """(ids of the vocabulary and their weights (n, 2) of every item, tokens of every item)."""
        served.need("embed_sparse")
        work = SparseWork(served.runtime.sparse())
        options = {
            "prompt": _prompt_text(served, served.runtime.tokeniser, prompt or Prompt(), timing),
            **_cut(served, cutting or Cutting()),
        }
        rows = await self.rows(served, items, lambda: work.read(items, **options), timing, param)
        job = await self.run(("sparse", served.id), work, rows, timing)
        return job.results, [row.tokens for row in rows]

    async def classify(
        self,
        served: Served,
        items: Sequence[Any],
        timing: Timing,
        *,
        raw: bool = False,
        cutting: Cutting | None = None,
        param: str = "input",
    ) -> tuple[list[Classified], list[int]]:
        """(labels of every text or pair, tokens of every one)."""
        served.need("classify")
        cutting, scorer = cutting or Cutting(), served.runtime.labels()
        work = LabelWork(scorer)
        limits = _cut(served, cutting)
        rows = await self.rows(served, items, lambda: work.read(items, **limits), timing, param)
        job = await self.run(("labels", served.id), work, rows, timing)
        scores = np.stack(job.results) if rows else np.zeros((0, len(scorer.head.labels)), np.float32)
        return scorer.classified(scores, raw=raw), [row.tokens for row in rows]

    async def tag(
        self, served: Served, texts: Sequence[str], timing: Timing, *, joined: bool = True,
        ignored: Collection[str] = (OUTSIDE,), cutting: Cutting | None = None, param: str = "inputs",
    ) -> list[list[Span]]:  # fmt: skip
        """The labelled spans of every text.

        Args:
            joined: whether neighbours with one label are a span; else every token is one.
            ignored: labels that are left out.
        """
        served.need("tag")
        tagger = served.runtime.tagger()
        work, limits = TagWork(tagger), _cut(served, cutting or Cutting())
        rows = await self.rows(served, texts, lambda: work.read(texts, **limits), timing, param)
        job = await self.run(("tags", served.id), work, rows, timing)
        found: list[list[Span]] = []
        for text, row, scores in zip(texts, rows, job.results, strict=True):
            assert row.places is not None
            found.append(
                list((spans if joined else token_labels)(text, scores, row.places, tagger.head.labels, ignored))
            )
        return found

    async def score(
        self,
        served: Served,
        pairs: Sequence[tuple[Any, Any]],
        timing: Timing,
        *,
        instruction: str | None = None,
        cutting: Cutting | None = None,
        param: str = "documents",
    ) -> Scored:
        """Scores of (query, document) pairs: by a head that ranks, by late interaction, or of the texts' vectors."""
        served.need("rerank")
        cutting = cutting or Cutting()
        head = served.runtime.head
        if isinstance(head, EmbeddingHead):
            return await self._by_vectors(served, pairs, timing, instruction, cutting, param)
        if served.reranks_apart:
            return await self._by_call(served, pairs, timing, instruction, cutting, param)
        scorer: Any = served.runtime.scorer()
        request = RerankRequest(instruction, **_cut(served, cutting))
        if isinstance(head, TokenHead):
            return await self._by_tokens(served, scorer, pairs, timing, request, param)
        assert isinstance(scorer, LabelScorer | YesNoScorer)
        work = LabelWork(scorer) if isinstance(scorer, LabelScorer) else AnswerWork(scorer)

        def read() -> list[Row]:
            rows: list[Row] = []
            for query, documents in _by_query(pairs):
                rows += work.read_pairs(query, documents, request)
            return rows

        items = [text for pair in pairs for text in pair]
        rows = await self.rows(served, items, read, timing, param)
        labels = isinstance(head, ClassificationHead)
        job = await self.run(("labels" if labels else "answers", served.id), work, rows, timing)
        found = np.stack(job.results) if rows else np.zeros((0, 1), np.float32)
        raw = _alike(pairs, scorer.order(found) if isinstance(scorer, LabelScorer) else found)
        return Scored(raw, scorer.shown(raw) if len(raw) else raw, scorer.kind, [row.tokens for row in rows])

    async def _by_vectors(
        self, served: Served, pairs: Sequence[tuple[Any, Any]], timing: Timing, instruction: str | None,
        cutting: Cutting, param: str,
    ) -> Scored:  # fmt: skip
        if instruction is not None:
            raise unsupported("An embedding model takes no instruction when it ranks; leave it out.", "instruction")
        queries = list(dict.fromkeys(query for query, _ in pairs))
        documents = list(dict.fromkeys(document for _, document in pairs))
        (asked, first), (given, second) = await asyncio.gather(
            self.embed(served, queries, timing, prompt=Prompt(role="query"), cutting=cutting, param="query"),
            self.embed(served, documents, timing, prompt=Prompt(role="document"), cutting=cutting, param=param),
        )
        head = served.runtime.head
        assert isinstance(head, EmbeddingHead)
        left, right = dict(zip(queries, asked, strict=True)), dict(zip(documents, given, strict=True))
        scores = np.array(
            [similarity(left[query], right[document], head.similarity)[0, 0] for query, document in pairs], np.float32
        )
        tokens = dict(zip(documents, second, strict=True))
        counts = [tokens[document] for _, document in pairs]
        counts[0] += sum(first)
        return Scored(scores, scores, head.similarity, counts)

    async def _by_tokens(
        self, served: Served, scorer: TokenEmbedder, pairs: Sequence[tuple[Any, Any]], timing: Timing,
        request: RerankRequest, param: str,
    ) -> Scored:  # fmt: skip
        if request.instruction is not None:
            raise unsupported("This model takes no instruction: it compares tokens.", "instruction")
        options: dict[str, Any] = {"max_tokens": request.max_tokens, "overflow": request.overflow}
        groups = {
            "query": list(dict.fromkeys(query for query, _ in pairs)),
            "document": list(dict.fromkeys(document for _, document in pairs)),
        }
        found: dict[str, dict[str, np.ndarray]] = {}
        tokens: dict[str, int] = {}
        for role, texts in groups.items():
            work = TokenWork(scorer, role)  # pyright: ignore[reportArgumentType]
            read = partial(work.read, texts, prompt=scorer.role_prompt(work.role), **options)
            rows = await self.rows(served, texts, read, timing, param if role == "document" else "query")
            job = await self.run(("tokens", served.id, role), work, rows, timing)
            found[role] = dict(zip(texts, job.results, strict=True))
            tokens |= {text: row.tokens for text, row in zip(texts, rows, strict=True)}
        scores = np.zeros(len(pairs), np.float32)
        for index, (query, document) in enumerate(pairs):
            scores[index] = maxsim(found["query"][query], [found["document"][document]])[0]
        return Scored(scores, scores, "maxsim", [tokens[document] for _, document in pairs])

    async def _by_call(
        self, served: Served, pairs: Sequence[tuple[Any, Any]], timing: Timing, instruction: str | None,
        cutting: Cutting, param: str,
    ) -> Scored:  # fmt: skip
        scorer = served.runtime.scorer()
        request = RerankRequest(instruction, **_cut(served, cutting))

        def run() -> np.ndarray:
            return np.concatenate([scorer.scores(query, texts, request) for query, texts in _by_query(pairs)])

        # It has room in the queue until it is answered, within the bounds of every other request.
        with self.admitted(pairs, param):
            raw = _alike(pairs, await self.call(run, timing))
        timing.model = served.id
        if not np.isfinite(raw).all():
            raise InputError("a score is NaN or infinity and is not returned")
        return Scored(raw, scorer.shown(raw), scorer.kind, [0] * len(pairs))

    def _check_dimensions(self, served: Served, dimensions: int | None) -> None:
        if dimensions is None:
            return
        width = served.model.dimensions
        if not 1 <= dimensions <= width:
            raise refused(
                f"dimensions is {dimensions}; expected 1 to {width}, the width of this model's vectors.",
                "invalid_dimensions", "dimensions",
            )  # fmt: skip
        if dimensions != width and not served.matryoshka and not self._any_dimensions:
            raise refused(
                f"The files of {served.id!r} do not say that its vectors may be cut (Matryoshka). Leave it out, "
                "or start the server with --any-dimensions.",
                "invalid_dimensions", "dimensions",
            )  # fmt: skip

    def _ids(self, served: Served, items: Sequence[Any], prompt: Prompt, limit: int, param: str) -> list[Row]:
        """Rows of inputs that are ids already."""
        if not self._token_ids:
            raise refused(
                f"{param} holds token ids, which another tokenizer's may be, and would embed as nonsense. Send texts "
                "(LangChain: check_embedding_ctx_length=False), or start the server with --token-ids accept.",
                "token_ids_not_accepted", param,
            )  # fmt: skip
        if prompt.text is not None or prompt.name is not None:
            raise refused("A prompt can't be put in front of token ids.", "invalid_prompt", prompt.param)
        vocabulary = served.model.spec.vocab_size
        rows: list[Row] = []
        for index, item in enumerate(items):
            if item.min() < 0 or item.max() >= vocabulary:
                raise refused(
                    f"{param}[{index}] holds token id {int(item.max() if item.max() >= vocabulary else item.min())}; "
                    f"expected 0 to {vocabulary - 1}.", "invalid_token_id", param,
                )  # fmt: skip
            if len(item) > limit:
                raise refused(
                    f"This model's maximum context length is {limit} tokens, however you requested {len(item)} tokens.",
                    "context_length_exceeded", param,
                )  # fmt: skip
            rows.append(Row(item.astype(np.int32)))
        return rows


def _prompt_text(served: Served, tokeniser: TextTokeniser, prompt: Prompt, timing: Timing) -> str:
    """The text in front of every input, and its name in the timing."""
    inputs = tokeniser.inputs
    name = prompt.name
    _check_route(served, prompt)
    if prompt.text is None and name is None and prompt.role is not None:
        name = inputs.query_prompt if prompt.role == "query" else inputs.document_prompt
        if name is None:
            return ""
    if name is not None and name not in inputs.prompts:
        tasks = served.model.tasks if prompt.param == "task" else ()
        stored = ", ".join([*tasks, *sorted(inputs.prompts)]) or "none"
        raise refused(f"{prompt.param} is {name[:100]!r}; this model stores: {stored}.", "invalid_prompt", prompt.param)
    timing.prompt = name if prompt.text is None else "literal"
    if prompt.text is None and name is None:
        timing.prompt = inputs.default_prompt
    return tokeniser.prompt(prompt.text, name)


def _check_route(served: Served, prompt: Prompt) -> None:
    """Refuse texts that the model's files send to other modules than those that the server runs."""
    routes, inputs = served.model.checkpoint.routes, served.runtime.tokeniser.inputs
    if routes is None:
        return
    role: Role = prompt.role
    if role is None and prompt.name is not None:
        role = "query" if prompt.name == inputs.query_prompt else "document"
    if routes.roles[role] != routes.main:
        ran = ", ".join(str(name) for name, route in routes.roles.items() if route == routes.main)
        raise unsupported(
            f"{served.id!r} answers {role or 'texts without a role'} by modules of their own ({routes.where}); this "
            f"server runs those of {ran}.",
            prompt.param,
        )


def _limit(served: Served, cutting: Cutting) -> int | None:
    """Tokens per text of this request: a limit above the model's own is the model's own."""
    return None if cutting.max_tokens is None else min(cutting.max_tokens, served.model.max_tokens)


def _cut(served: Served, cutting: Cutting) -> dict[str, Any]:
    """Options of what cuts texts at its tokenizer's own side alone."""
    if cutting.truncate == "start" and served.runtime.tokeniser.side != "left":
        raise unsupported(
            f"truncate asks for a cut at the start, and {served.id!r} cuts pairs, labelled texts and vectors of tokens "
            "at their end; expected none or end.", "truncate",
        )  # fmt: skip
    return {"max_tokens": _limit(served, cutting), "overflow": cutting.overflow}


def _cutting_at(embedder: Embedder, cutting: Cutting) -> Embedder:
    """The embedder whose tokeniser cuts at the side that was asked for."""
    if cutting.truncate == "none":
        return embedder
    tokeniser = embedder.tokeniser.cutting_at("left" if cutting.truncate == "start" else "right")
    return Embedder(tokeniser, embedder.encoder, embedder.head)


def _by_query(pairs: Sequence[tuple[Any, Any]]) -> list[tuple[Any, list[Any]]]:
    """Runs of pairs with one query."""
    groups: list[tuple[Any, list[Any]]] = []
    for query, document in pairs:
        if not groups or groups[-1][0] != query:
            groups.append((query, []))
        groups[-1][1].append(document)
    return groups


def _alike(pairs: Sequence[tuple[Any, Any]], scores: np.ndarray) -> np.ndarray:
    """Equal pairs score alike, whatever rounding in other batches made of them."""
    first: dict[object, int] = {}
    keys = [pair if all(isinstance(part, str) for part in pair) else index for index, pair in enumerate(pairs)]
    return scores[[first.setdefault(key, at) for at, key in enumerate(keys)]] if len(scores) else scores
