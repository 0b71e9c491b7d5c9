"""Texts through the trunk once, batch by batch, and a reader that makes of the hidden states what is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from archport.answering.collecting import Errors, rows_together
from archport.answering.readers import Reader
from archport.contract import InputError, NonFiniteOutput
from archport.device.evaluation import Stretches
from archport.device.progress import Counter, nothing_shown
from archport.reading.texts import Overflow, TextTokeniser, Tokens, check_vocabulary, iterable
from archport.running.encode import Encoder, verified
from archport.running.steps import run_steps

# Texts tokenised and sorted together.
_WINDOW = 2048


@dataclass(frozen=True, slots=True)
class OutputEmbedder:
    """Texts to what a reader makes of them.

    Args:
        reader: what reads each batch's hidden states.
    """

    tokeniser: TextTokeniser
    encoder: Encoder
    reader: Reader

    def __call__(
        self,
        texts: Sequence[str],
        prompt: str = "",
        *,
        max_tokens: int | None = None,
        overflow: Overflow = "error",
        done: Counter = nothing_shown,
    ) -> list[Any]:
        """A result per text, in their order; `done` is told of every batch.

        Raises:
            InputError, ContextLengthExceeded: for a text that can't be embedded.
            NonFiniteOutput: when a result holds NaN or infinity.
        """
        found: list[Any] = []
        for first in range(0, len(texts), _WINDOW):
            some = texts[first : first + _WINDOW]
            tokens = self.read(some, prompt, max_tokens, overflow, first)
            for index, result in enumerate(self.run(tokens.ids, tokens.prompt_tokens, done, first)):
                if not self.reader.finite(result):
                    raise NonFiniteOutput(
                        f"the vector of text {first + index} holds NaN or infinity; it is not returned. The weights "
                        "may be damaged, or overflow in this dtype: try dtype='float32'"
                    )
                found.append(result)
        return found

    def read(
        self,
        texts: Sequence[str],
        prompt: str = "",
        max_tokens: int | None = None,
        overflow: Overflow = "error",
        first: int = 0,
    ) -> Tokens:
        """Tokens of every text; may be called from any thread. Raises as the call does."""
        tokens = self.tokeniser(texts, prompt=prompt, max_tokens=max_tokens, overflow=overflow, first=first)
        if any(measured.pictures for measured in tokens.measured):
            raise InputError("this output is for texts alone; leave pictures out")
        check_vocabulary(tokens.ids, self.encoder.spec.vocab_size, "text", first)
        return tokens

    def run(
        self, rows: Sequence[np.ndarray], prompt_tokens: int = 0, done: Counter = nothing_shown, first: int = 0
    ) -> list[Any]:
        """Results of rows that were read, all planned together; nobody has looked at whether they are finite."""
        found: list[Any] = [None] * len(rows)
        if not rows:
            return found
        stretches = Stretches()
        plan = self.encoder.planned(rows, what="text", place=lambda row: first + row, readout=self.reader.readout())
        with verified(plan) as watch:
            for batch in watch.batches(plan.batches):
                ids = [rows[row] for row in batch.rows]
                with closing(run_steps(self.encoder.trunk, plan, batch, ids, stretches=stretches)) as steps:
                    # A bidirectional batch runs in one step.
                    ((_, hidden),) = steps
                # Finish the layers first: the plan does not budget their temporaries and the reader's together.
                stretches.finish(hidden)
                stretches.drain()
                for row, result in zip(batch.rows, self.reader.read(hidden, ids, prompt_tokens), strict=True):
                    found[row] = result
                done(len(ids), tokens=sum(map(len, ids)))
        return found

    def answer(
        self,
        texts: object,
        *,
        prompt: str | None,
        prompt_name: str | None,
        max_tokens: int | None,
        overflow: Overflow,
        progress: bool | Counter,
        errors: Errors,
    ) -> Any:
        """What `Model.embed` answers: the reader's results together, or with `collect` a `Collected` of them."""
        text = self.tokeniser.prompt(prompt, prompt_name)
        items = cast("list[str]", [texts] if isinstance(texts, str | Mapping) else list(iterable(texts)))

        def run(some: Sequence[str], done: Counter) -> list[Any]:
            return self(some, text, max_tokens=max_tokens, overflow=overflow, done=done)

        def check() -> None:
            self.tokeniser([], prompt=text, max_tokens=max_tokens, overflow=overflow)

        return rows_together(run, check, items, self.reader.together, progress=progress, errors=errors)
