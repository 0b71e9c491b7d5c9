"""Texts to vectors: tokenise, batch, encode, pool, stage by stage, in bounded memory for any number of texts."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice, pairwise, repeat
from typing import Any

import mlx.core as mx
import numpy as np

from archport.answering.collecting import Collected, Errors, vectors_apart
from archport.answering.precision import check_dimensions, quantise
from archport.contract import DeviceKind, Measured, NonFiniteOutput
from archport.device.evaluation import Stretches
from archport.device.progress import Counter, counted, nothing_shown
from archport.device.workers import Coming, Threads
from archport.planning import BatchPlan, Plan
from archport.reading.texts import Overflow, TextTokeniser, Tokens, check_vocabulary, iterable
from archport.running.encode import Encoder, run_ahead, verified
from archport.running.pool import VectorHead
from archport.running.vision import Sight

# Texts tokenised and sorted together: enough to fill batches with equal lengths, few enough to hold. A GPU starts on a
# few: while it runs half of their tokens, twice as many texts are tokenised, which the other half is sorted anew with.
# How many does not depend on the clock, or the shapes that run would: CUDA takes 67 ms to prepare a new one.
_WINDOWS: dict[DeviceKind, tuple[int, ...]] = {
    "cpu": (2048,),
    "metal": (256, 512, 1024, 2304, 4096),
    "cuda": (256, 512, 1024, 2304, 4096),
}
# Of an iterator, which nothing reads ahead.
_WINDOW = 2048


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """What a caller asked of `embed`, checked.

    Args:
        prompt: text in front of every input.
        dimensions: leading dimensions to keep; None for all.
        normalize: unit length; None where the model says so.
        max_tokens, overflow: as TextTokeniser takes them.
    """

    prompt: str
    dimensions: int | None
    normalize: bool | None
    max_tokens: int | None
    overflow: Overflow


@dataclass(slots=True)
class _Window:
    """Some consecutive texts, tokenised, and where their vectors go.

    Args:
        left: texts without a vector.
    """

    first: int
    tokens: Tokens
    vectors: list[np.ndarray | None]
    left: int


Tokenise = Callable[[Sequence[Any], int], Tokens]
# A text: its window, and its index there.
_Row = tuple[_Window, int]


@dataclass(frozen=True, slots=True)
class _Task:
    """A planned batch and the texts that its plan counts."""

    plan: Plan
    batch: BatchPlan
    rows: list[_Row]

    @property
    def texts(self) -> list[_Row]:
        return [self.rows[row] for row in self.batch.rows]


@dataclass(frozen=True, slots=True)
class Embedder:
    """The embedding path of a loaded model: the stages of one request, in order."""

    tokeniser: TextTokeniser
    encoder: Encoder
    head: VectorHead

    def run(
        self,
        texts: Iterable[str],
        request: EmbedRequest,
        take: Callable[[np.ndarray], None],
        done: Counter = nothing_shown,
    ) -> None:
        """Embed texts in bounded memory, however many there are.

        Args:
            take: given vectors (n, D) float32 of consecutive texts, in order, as they are done.
            done: told of every text that has its vector.

        Raises:
            InputError, ContextLengthExceeded: for a text that can't be embedded, when it is reached.
            NonFiniteOutput: when a vector holds NaN or infinity.
        """
        stretches, windows = Stretches(), deque[_Window]()
        sizes = _WINDOWS[self.encoder.plan.device.kind] if isinstance(texts, Sequence) else (_WINDOW,)

        def finish(task: _Task, rows: mx.array) -> None:
            vectors = np.array(rows)
            bad = ~np.isfinite(vectors).all(axis=1)
            if bad.any():
                window, row = task.texts[int(bad.argmax())]
                raise NonFiniteOutput(
                    f"the vector of text {window.first + row} holds NaN or infinity; it is not returned. The weights "
                    "may be damaged, or overflow in this dtype: try dtype='float32'"
                )
            for (window, row), vector in zip(task.texts, vectors, strict=True):
                window.vectors[row] = vector
                window.left -= 1
            done(len(vectors), tokens=sum(task.batch.lengths))
            while windows and not windows[0].left:
                take(np.stack([vector for vector in windows.popleft().vectors if vector is not None]))

        with (
            TokensAhead(texts, lambda chunk, at: self.tokens_of(chunk, request, at), sizes) as ahead,
            self.encoder.sight(self.tokeniser.inputs.reader, stretches) as sight,
            closing(self._tasks(ahead, len(sizes), sight, windows)) as tasks,
        ):
            run_ahead(tasks, lambda task: self._start(task, request, stretches, sight), finish)

    def run_tokens(self, tokens: Tokens, request: EmbedRequest, take: Callable[[int, np.ndarray], None]) -> None:
        """Embed texts that `tokens_of` has tokenised, all planned together.

        Args:
            take: given each text's index and its vector (D,) float32, in whatever order they are done; nobody has
                looked at whether it is finite.

        Raises:
            AdmissionRefused: a text does not fit, naming it.
        """
        stretches, count = Stretches(), len(tokens.ids)
        window = _Window(0, tokens, [], count)
        rows: list[_Row] = [(window, row) for row in range(count)]

        def finish(task: _Task, vectors: mx.array) -> None:
            for (_, row), vector in zip(task.texts, np.array(vectors), strict=True):
                take(row, vector)

        with self.encoder.sight(self.tokeniser.inputs.reader, stretches) as sight:
            plan, measured = self._planned(rows)
            with closing(self._all(plan, measured, rows, sight)) as tasks:
                run_ahead(tasks, lambda task: self._start(task, request, stretches, sight), finish)

    def collected(
        self, texts: Iterable[str], request: EmbedRequest, width: int, done: Counter = nothing_shown
    ) -> Collected[np.ndarray]:
        """Vectors (n, width) of the texts that have one, and the errors of the others.

        Raises:
            InputError, ContextLengthExceeded: for a request that no text could be embedded with.
        """
        self.tokens_of([], request, 0)

        def told(_: int, *, dropped: int = 0, tokens: int = 0) -> None:
            done(0, tokens=tokens)

        return vectors_apart(lambda some, take: self.run(some, request, take, told), texts, width, done)

    def _tasks(
        self, ahead: TokensAhead, sizes: int, sight: Sight | None, windows: deque[_Window]
    ) -> Generator[_Task, None, None]:
        """Batches of all texts; their windows are appended to `windows` in order.

        Args:
            sizes: windows until they stop growing.
        """
        waiting: list[_Row] = []
        for number, (first, tokens) in enumerate(ahead, 1):
            count = len(tokens.ids)
            windows.append(_Window(first, tokens, [None] * count, count))
            waiting += [(windows[-1], row) for row in range(count)]
            # Later windows are large enough by themselves, and pictures are decoded for the batches they are in.
            plan, measured = self._planned(waiting)
            grows = ahead.more and number < sizes - 1 and not tokens.measured
            if ahead.more and plan.batches[-1].packed:
                waiting = yield from self._full(plan, waiting)
            elif grows:
                waiting = yield from self._some(plan, waiting)
            else:
                waiting = yield from self._all(plan, measured, waiting, sight)

    def _all(
        self, plan: Plan, measured: list[Measured], rows: list[_Row], sight: Sight | None
    ) -> Generator[_Task, None, list[_Row]]:
        """All batches of these texts; returns none."""
        with verified(plan) as watch:
            for batch, following in pairwise([*plan.batches, None]):
                assert batch is not None
                if sight is not None:
                    sight.ahead([batch, following] if following else [batch], measured)
                with watch.batch(batch):
                    yield _Task(plan, batch, rows)
        return []

    def _full(self, plan: Plan, rows: list[_Row]) -> Generator[_Task, None, list[_Row]]:
        """All packed batches but the last, which more texts fill; returns its texts."""
        *full, last = plan.batches
        with verified(plan) as watch:
            for batch in watch.batches(full):
                yield _Task(plan, batch, rows)
        return [rows[row] for row in last.rows]

    def _some(self, plan: Plan, rows: list[_Row]) -> Generator[_Task, None, list[_Row]]:
        """Batches with half of these texts' tokens, those that gain least by more texts; returns the other texts."""
        left = sum(sum(batch.lengths) for batch in plan.batches)
        enough = left / 2
        done: set[int] = set()
        with verified(plan) as watch:
            for batch in sorted(plan.batches, key=lambda batch: batch.seconds / sum(batch.lengths)):
                if left <= enough:
                    break
                left -= sum(batch.lengths)
                done.update(batch.rows)
                with watch.batch(batch):
                    yield _Task(plan, batch, rows)
        return [row for index, row in enumerate(rows) if index not in done]

    def _planned(self, rows: list[_Row]) -> tuple[Plan, list[Measured]]:
        measured = [window.tokens.measured[row] for window, row in rows if window.tokens.measured]
        ids = [window.tokens.ids[row] for window, row in rows]
        images = [tuple(picture.patches for picture in each.pictures) for each in measured]
        plan = self.encoder.planned(
            ids, what="text", place=lambda row: rows[row][0].first + rows[row][1], images=images, pack=True
        )
        return self.encoder.with_pictures(plan, measured), measured

    def tokens_of(self, texts: Sequence[str], request: EmbedRequest, first: int) -> Tokens:
        """Ids of some texts, all of which the model knows; may be called from any thread.

        Args:
            first: index of the first one, for messages.

        Raises:
            InputError, ContextLengthExceeded: for a text that can't be embedded.
        """
        tokens = self.tokeniser(
            texts, prompt=request.prompt, max_tokens=request.max_tokens, overflow=request.overflow, first=first
        )
        check_vocabulary(tokens.ids, self.encoder.spec.vocab_size, "text", first)
        return tokens

    def _start(self, task: _Task, request: EmbedRequest, stretches: Stretches, sight: Sight | None) -> mx.array:
        ids = [window.tokens.ids[row] for window, row in task.texts]
        visual = None
        if sight is not None:
            measured = [window.tokens.measured[row] for window, row in task.rows]
            visual = sight.look(task.plan, task.batch, measured)
        prompt = task.rows[0][0].tokens.prompt_tokens
        rows = self.encoder.pooled(task.plan, task.batch, ids, self.head, prompt, stretches, visual)
        return self.head.finish(rows, dimensions=request.dimensions, normalize=request.normalize)


class TokensAhead:
    """Iterates over (index of the first text, its window's tokens); close it, or use it in a `with` block.

    Only a sequence is read ahead: an iterator may take its time, and what it gave before is due first.

    Args:
        texts: read window by window.
        tokenise: (texts of a window, index of the first) -> tokens. Its errors are raised at the window's turn.
        sizes: texts of each window; the last size is that of all further ones.
    """

    def __init__(self, texts: Iterable[Any], tokenise: Tokenise, sizes: Sequence[int]) -> None:
        self._source, self._tokenise = iter(texts), tokenise
        self._sizes = chain(sizes, repeat(sizes[-1]))
        self._whole = isinstance(texts, Sequence)
        self._threads: Threads | None = None
        self._coming: Coming[tuple[int, Tokens]] | None = None
        self._read = 0

    @property
    def more(self) -> bool:
        """Whether a window after the one in use is being tokenised, or is tokenised already."""
        return self._coming is not None

    def __enter__(self) -> TokensAhead:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[tuple[int, Tokens]]:
        return self

    def __next__(self) -> tuple[int, Tokens]:
        coming, self._coming = self._coming, None
        if coming is not None:
            tokens = coming.take()
        else:
            # Nothing runs yet while the first window is tokenised.
            window = self._window()
            if window is None:
                raise StopIteration
            tokens = window()
        following = self._window() if self._whole else None
        if following is not None:
            self._threads = self._threads or Threads("archport-tokenise", 1)
            self._coming = self._threads.start(following)
        return tokens

    def close(self) -> None:
        """End the thread; the window that it is at is forgotten."""
        self._coming = None
        if self._threads is not None:
            self._threads.close()

    def _window(self) -> Callable[[], tuple[int, Tokens]] | None:
        """What tokenises the next window; None after the last text."""
        texts = list(islice(self._source, next(self._sizes)))
        first, self._read = self._read, self._read + len(texts)
        return partial(_tokenised, self._tokenise, texts, first) if texts else None


def _tokenised(tokenise: Tokenise, texts: list[Any], first: int) -> tuple[int, Tokens]:
    return first, tokenise(texts, first)


def embed(
    embedder: Embedder, texts: Any, options: Mapping[str, Any], errors: Errors, width: int
) -> np.ndarray | Collected[np.ndarray]:
    """What `Model.embed` answers: one vector per text.

    Args:
        options: all of `EmbedOptions`.
        width: D of the model's vectors.
    """
    dimensions, precision = options["dimensions"], options["precision"]
    check_dimensions(dimensions, width)
    prompt = embedder.tokeniser.prompt(options["prompt"], options["prompt_name"])
    request = EmbedRequest(prompt, dimensions, options["normalize"], options["max_tokens"], options["overflow"])
    inputs = [texts] if isinstance(texts, str | Mapping) else iterable(texts)
    blocks: list[np.ndarray] = []
    total = len(inputs) if isinstance(inputs, Sized) else None
    with counted("embedding", total, shown=options["progress"]) as done:
        if errors == "collect":
            made = embedder.collected(inputs, request, dimensions or width, done)
            return replace(made, results=quantise(made.results, precision))
        embedder.run(inputs, request, blocks.append, done)
    vectors = np.concatenate(blocks) if blocks else np.zeros((0, dimensions or width), np.float32)
    return quantise(vectors, precision)
