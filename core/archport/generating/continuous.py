"""Generation for many callers at once: rows join and leave between steps, and prompts are read in chunks between them.

A step is a chunk of the prompts that are being read, or one token of every row. What a row may come to hold is reserved
by a plan of all rows before its prompt is read; a prompt that does not fit beside the others waits until some left.
Every row's text is that of a call of its own. Runs on one thread; knows nothing of who asks or over what.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, cast

import mlx.core as mx
import numpy as np

from archport.contract import AdmissionRefused, CausalLM
from archport.contract.memory import kv_capacity
from archport.generating.decode import Decoding
from archport.generating.detokeniser import special_tokens
from archport.generating.generate import Generator as TextGenerator
from archport.generating.joining import PromptReading, Reading, groups
from archport.generating.pieces import GenerateRequest
from archport.generating.sampling import Sampler
from archport.generating.talks import Drawn, Row, Talk, draw, not_finite, rows_of, sampler_of
from archport.memory import joined
from archport.memory.snapshot import PrefixDraft
from archport.planning import Plan, Request
from archport.running.calls import device_call
from archport.running.encode import verified


class ContinuousBatch:
    """The rows of one model.

    Args:
        generator: the model's; its planner leaves room for whatever else the process holds.
        most_rows: texts side by side.
        chunk: tokens of prompts that are read between two steps.
        crowded: whether others of the process hold memory that comes back, for which a prompt that does not fit waits.
    """

    def __init__(
        self,
        generator: TextGenerator,
        *,
        most_rows: int = 64,
        chunk: int = 512,
        crowded: Callable[[], bool] = lambda: False,
    ) -> None:
        self._crowded = crowded
        self._generator, self._encoder, self._most_rows = generator, generator.encoder, most_rows
        self._prompts = PromptReading(generator, chunk)
        self._special = special_tokens(generator.tokenizer)
        self._waiting: deque[Talk] = deque()
        # Prompts under way: what is read, the plan of all rows once they have joined, and what reads on.
        self._reading: tuple[Reading, Plan, Generator[None]] | None = None
        self._read_last = False
        self._rows: list[Row] = []
        self._decoding: Decoding | None = None
        self._sampler: Sampler | None = None
        self._drawn: Drawn | None = None
        self._limits = ExitStack()
        # Whether the next prompt has to wait until rows leave, which says more than asking a plan at every step.
        self._full = False
        # Tokens that the longest row may come to hold, and the plan of all rows at their fullest.
        self._columns, self._plan = 0, cast("Plan | None", None)

    @property
    def ready(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._rows or self._waiting or self._reading)

    @property
    def awaited(self) -> bool:
        """Whether a prompt that is being read, or could be, has no token yet."""
        waits = self._reading is not None or (bool(self._waiting) and not self._full)
        return waits or any(not row.tokens for row in self._rows)

    @property
    def rows(self) -> int:
        """Texts that are being generated."""
        return len(self._rows)

    @property
    def waiting(self) -> int:
        """Prompts that wait."""
        return len(self._waiting)

    @property
    def plan(self) -> Plan | None:
        """The plan of all rows at their fullest; None while there are none."""
        return self._plan

    @property
    def reserved(self) -> int:
        """Bytes that the rows, and the prompts that are being read, may come to hold."""
        reading = self._reading
        return self._of_rows + (0 if reading is None else reading[0].plan.moving)

    @property
    def _of_rows(self) -> int:
        return 0 if self._plan is None else self._plan.moving

    def check(self, talk: Talk) -> None:
        """Refuse what can never fit, even alone; from any thread.

        Raises:
            ContextLengthExceeded, AdmissionRefused: with numbers.
        """
        self._whole([], 0, [talk])
        self._prompts.alone(talk)

    def submit(self, talk: Talk) -> None:
        """Have a prompt wait for its turn; from any thread."""
        self._waiting.append(talk)

    @device_call
    def step(self) -> None:
        """A chunk of the prompts that are being read, or one token of every row; the two take turns."""
        self._drop_gone()
        if self._reading is None:
            self._begin()
        if self._reading is not None and not (self._read_last and self._rows):
            self._read_last = True
            self._read(*self._reading)
        elif self._rows:
            self._read_last = False
            self._decode()

    def close(self, error: Exception) -> int:
        """Answer everybody with an error and let go of everything; returns how many."""
        talks = [row.talk for row in self._rows]
        talks += [] if self._reading is None else self._reading[0].talks
        # One by one: `submit` may add another meanwhile, which has to be answered too.
        while self._waiting:
            talks.append(self._waiting.popleft())
        self._stop_reading()
        self._let_go()
        everybody = list(dict.fromkeys(talk for talk in talks if not talk.gone))
        for talk in everybody:
            _fail(talk, error)
        return len(everybody)

    def _begin(self) -> None:
        """Take up the next prompts, where they fit beside the rows."""
        while self._waiting and self._waiting[0].gone:
            self._waiting.popleft()
        free = self._most_rows - len(self._rows)
        if not self._waiting or self._full or (self._rows and self._waiting[0].drawn > free):
            return
        for talks in groups(tuple(self._waiting), self._prompts.chunk, free):
            try:
                whole = self._whole(self._rows, self._columns, talks)
                reading = self._prompts.planned(talks, self._of_rows)
            except Exception as error:
                refused = isinstance(error, AdmissionRefused)
                if len(talks) == 1 and not (refused and (self._rows or self._crowded())):
                    self._waiting.popleft()
                    _fail(talks[0], error)
                    return
                continue
            for _ in talks:
                self._waiting.popleft()
            self._reading = reading, whole, self._prompts.steps(reading)
            return
        self._full = bool(self._rows)

    def _whole(self, rows: Sequence[Row], columns: int, talks: Sequence[Talk]) -> Plan:
        """The plan of a token of some rows, and of those that prompts become, at their fullest.

        Args:
            columns: tokens that the rows may come to hold.
        """
        needed = [
            len(talk.ids) + most
            for talk, most in zip(
                talks,
                self._generator.most_of([talk.ids for talk in talks], [talk.options for talk in talks]),
                strict=True,
            )
        ]
        asked = [*(row.talk for row in rows), *talks]
        told = [talk.logprobs for talk in asked if talk.logprobs is not None]
        request = GenerateRequest(tuple(talk.options for talk in asked), None, max(told) if told else None)
        # As caches are made, so that rows of nearly one length have one plan.
        most = min(kv_capacity(max([columns, *needed])), self._encoder.plan.max_context)
        whole = Request(
            lengths=[1] * (len(rows) + sum(talk.drawn for talk in talks)),
            new_tokens=max(most - 1, 1),
            mode="generate",
            readout=self._generator.readout(request),
            resident=self._generator.prefixes.limit,
        )
        return self._encoder.plan(whole)

    def _read(self, reading: Reading, whole: Plan, steps: Generator[None]) -> None:
        """One more chunk; after the last one the prompts join the rows."""
        try:
            if next(steps, "done") != "done":
                return
            self._reading = None
            if not all(talk.gone for talk in reading.talks):
                self._join(reading, whole)
        except Exception as error:
            self._stop_reading()
            for talk in reading.talks:
                _fail(talk, error)

    def _join(self, reading: Reading, whole: Plan) -> None:
        """Have prompts that were read decode with the rows, from the token that follows each."""
        encoder, caches, hidden = self._encoder, reading.caches, reading.hidden
        assert caches is not None
        assert hidden is not None
        reading.caches = reading.hidden = None
        made = [
            (index, rows_of(self._generator, self._special, talk, key, cached))
            for index, (talk, key, cached) in enumerate(zip(reading.talks, reading.keys, reading.cached, strict=True))
            if not talk.gone
        ]
        rows, order = [row for _, some in made for row in some], [index for index, some in made for _ in some]
        # Each caller's rows draw as those of a call of its own.
        sampler, *others = [sampler_of(some, encoder.spec.vocab_size) for _, some in made]
        for other in others:
            sampler.join(other)
        if order != list(range(len(reading.talks))):
            caches.keep_rows(order)
            hidden = hidden[mx.array(order)]
        visual = self._prompts.visual(reading.talks)
        lengths = [len(row.talk.ids) for row in rows]
        positions = lengths if visual is None else [visual.next_positions[index] for index in order]
        drawn = self._draw(hidden.astype(_DTYPES[whole.dtype])[:, None], sampler, rows)
        parts = [(caches, max(lengths))]
        if self._decoding is not None:
            parts.insert(0, (self._decoding.caches, max(self._decoding.lengths)))
            lengths, positions = [*self._decoding.lengths, *lengths], [*self._decoding.positions, *positions]
        self._hold_to(whole)
        kinds = whole.batches[0].kinds
        together = joined(parts, encoder.spec.layers, [kinds[kind].kv for kind in whole.layer_kinds], whole.dtype)
        self._decoding = Decoding(encoder.trunk, encoder.spec, encoder.plan, whole, together, lengths, positions)
        if self._sampler is None or self._drawn is None:
            self._sampler, self._drawn = sampler, drawn
        else:
            self._sampler.join(sampler)
            self._drawn = self._drawn.join(drawn)
        mx.async_eval(*self._drawn.arrays)
        self._rows, self._plan = self._rows + rows, whole
        self._columns = max(row.columns for row in self._rows)

    def _hold_to(self, plan: Plan) -> None:
        """Keep pool and memory of the device to a plan, from before the hold to the last one ends."""
        stack = ExitStack()
        stack.enter_context(verified(plan))
        self._limits.close()
        self._limits = stack

    def _decode(self) -> None:
        """One token of every row; the next is under way before anybody looks at this one, unless it depends on it."""
        decoding, sampler, drawn = self._decoding, self._sampler, self._drawn
        assert decoding is not None
        assert sampler is not None
        assert drawn is not None
        depends = any(row.constraint is not None for row in self._rows)
        ahead: Drawn | None = None
        if not depends and any(len(row.tokens) + 1 < row.most for row in self._rows):
            ahead = self._draw(decoding.step(drawn.tokens), sampler, self._rows)
            mx.async_eval(*ahead.arrays)
        staying = self._tell(drawn)
        if not staying:
            self._let_go()
            return
        if len(staying) < len(self._rows):
            self._keep(staying)
            drawn, ahead = drawn.rows(staying), None if ahead is None else ahead.rows(staying)
        if ahead is None:
            ahead = self._draw(decoding.step(drawn.tokens), sampler, self._rows)
            mx.async_eval(*ahead.arrays)
        self._drawn = ahead

    def _draw(self, hidden: mx.array, sampler: Sampler, rows: Sequence[Row]) -> Drawn:
        return draw(cast(CausalLM, self._encoder.trunk), hidden, sampler, rows)

    def _tell(self, drawn: Drawn) -> list[int]:
        """Hand the tokens of a step to who wants them; returns the rows that go on."""
        tokens, finite = cast("list[int]", drawn.tokens.tolist()), np.array(drawn.finite)
        scores = None if drawn.logprobs is None else np.array(drawn.logprobs)
        top = None if drawn.top is None else (np.array(drawn.top[0]), np.array(drawn.top[1]))
        staying: list[int] = []
        for at, (row, token) in enumerate(zip(self._rows, tokens, strict=True)):
            if row.talk.gone:
                continue
            if not finite[at]:
                _fail(row.talk, not_finite(row))
                continue
            try:
                piece = row.take(token, at, scores, top)
            except Exception as error:
                _fail(row.talk, error)
                continue
            if piece.finish_reason is None:
                staying.append(at)
            else:
                self._remember(row, at)
            for answer in row.answers:
                row.talk.told(replace(piece, answer=answer))
        # A caller whose one row failed wants none of the others.
        return [at for at in staying if not self._rows[at].talk.gone]

    def _remember(self, row: Row, at: int) -> None:
        """Leave what a finished row holds to later prompts."""
        if self._generator.prefixes.limit:
            assert self._decoding is not None
            draft = PrefixDraft(self._generator.prefixes)
            self._decoding.remember(draft, at, np.concatenate([row.key, np.asarray(row.tokens, np.int32)]))
            draft.keep()

    def _drop_gone(self) -> None:
        """Let rows go that nobody wants, and stop reading such prompts."""
        if self._reading is not None and all(talk.gone for talk in self._reading[0].talks):
            self._stop_reading()
        staying = [at for at, row in enumerate(self._rows) if not row.talk.gone]
        if len(staying) == len(self._rows):
            return
        if not staying:
            self._let_go()
            return
        assert self._drawn is not None
        self._keep(staying)
        self._drawn = self._drawn.rows(staying)

    def _keep(self, rows: list[int]) -> None:
        """Go on with these rows only; their buffers stay as long as they are."""
        assert self._decoding is not None
        assert self._sampler is not None
        self._rows = [self._rows[at] for at in rows]
        self._decoding.keep_rows(rows)
        self._sampler.keep_rows(rows)
        self._plan, self._full = self._whole(self._rows, self._columns, []), False

    def _let_go(self) -> None:
        self._rows = []
        self._decoding = self._sampler = self._drawn = None
        self._columns, self._plan = 0, None
        self._full = False
        self._limits.close()

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading[2].close()
            self._reading = None


def _fail(talk: Talk, error: Exception) -> None:
    if not talk.gone:
        talk.gone = True
        talk.told(error)


_DTYPES: dict[str, Any] = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
