"""Prompts of callers, read in chunks while other rows decode. What a row holds afterwards is somebody else's."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from archport.contract import AdmissionRefused, Span
from archport.device.evaluation import Stretches
from archport.generating.generate import Generator as TextGenerator
from archport.generating.prefill import can_be_cut, cut_edge
from archport.generating.talks import Talk
from archport.memory import Caches, Snapshot, put
from archport.memory.snapshot import PrefixDraft, remember
from archport.planning import Plan, Request
from archport.reading.prompts import VisualPrompts, of_prompts
from archport.running.encode import verified
from archport.running.pool import Pooling
from archport.running.steps import batch_caches, run_steps, spans_of


@dataclass(slots=True)
class Reading:
    """Prompts that are being read.

    Args:
        keys: what each is remembered by.
        found: what an earlier text left behind of the only prompt's beginning.
        plan: of reading them.

    Attributes:
        caches, hidden: of all prompts, aligned, and (B, D) float32 of their last tokens, once they are read.
    """

    talks: list[Talk]
    keys: list[np.ndarray]
    found: Snapshot | None
    plan: Plan
    caches: Caches | None = None
    hidden: mx.array | None = None

    @property
    def cached(self) -> list[int]:
        """Leading tokens of each prompt that an earlier text had left behind."""
        lengths = self.plan.batches[0].lengths
        return [len(talk.ids) - length for talk, length in zip(self.talks, lengths, strict=True)]


@dataclass(frozen=True, slots=True)
class PromptReading:
    """Reads the prompts of one model.

    Args:
        generator: the model's.
        chunk: tokens of prompts that are read at once.
    """

    generator: TextGenerator
    chunk: int

    def visual(self, talks: Sequence[Talk]) -> VisualPrompts | None:
        """Prompts with their pictures, where they have any."""
        measured = [talk.measured for talk in talks if talk.measured is not None]
        return of_prompts(measured, self.generator.reader)

    def alone(self, talk: Talk) -> Plan:
        """The plan of reading one prompt when nothing else runs.

        Raises:
            AdmissionRefused: it can never fit.
        """
        spans = spans_of(self.generator.encoder.rule, [talk.ids])
        seeing = () if spans is None else spans.rows
        return self._plan([len(talk.ids)], 0, self.visual([talk]), seeing, self.generator.prefixes.limit)

    def planned(self, talks: list[Talk], reserved: int) -> Reading:
        """Prompts that are to be read together, from where an earlier text with the same beginning left off.

        Args:
            reserved: bytes that other rows may come to hold.

        Raises:
            AdmissionRefused: they do not fit next to those, or not together.
        """
        visual, prefixes = self.visual(talks), self.generator.prefixes
        rows = [talk.ids for talk in talks]
        spans = spans_of(self.generator.encoder.rule, rows)
        keys = rows if visual is None else visual.keys
        keys = keys if spans is None else spans.keys(keys)
        found = prefixes.find(keys[0]) if len(talks) == 1 and len(prefixes) else None
        if found is not None:
            edge = cut_edge(found.tokens, visual, spans)
            found = found.first(edge) if edge else None
        first = 0 if found is None else found.tokens
        rest = None if visual is None else visual.behind(first)
        seeing = () if spans is None else spans.after(first)
        plan = self._plan([len(row) - first for row in rows], first, rest, seeing, prefixes.limit + reserved)
        kinds, steps = plan.batches[0].kinds, plan.batches[0].steps
        rings = any(kind.kv is not None and kind.kv.storage == "ring" for kind in kinds)
        if len(talks) > 1 and (rings or len(steps) > 1):
            raise AdmissionRefused("windows of rows of different lengths move apart; read the prompts one by one")
        return Reading(talks, keys, found, plan)

    def _plan(
        self,
        lengths: list[int],
        cached: int,
        visual: VisualPrompts | None,
        spans: Sequence[Sequence[Span]],
        resident: int,
    ) -> Plan:
        encoder = self.generator.encoder
        request = Request(
            lengths=lengths,
            cached=[cached] * len(lengths),
            new_tokens=0,
            mode="generate",
            chunk=self.chunk,
            images=() if visual is None else visual.images,
            spans=spans,
            resident=resident,
        )
        plan = encoder.plan(request)
        return encoder.with_pictures(plan, () if visual is None else visual.measured)

    def steps(self, reading: Reading) -> Generator[None]:
        """Read as planned; pauses after every chunk, when nothing of it is under way."""
        encoder, plan = self.generator.encoder, reading.plan
        (batch,) = plan.batches
        visual = self.visual(reading.talks)
        first = 0 if reading.found is None else reading.found.tokens
        visual = None if visual is None else visual.behind(first)
        stretches, pooling = Stretches(), Pooling(batch.lengths, ("last",))
        with verified(plan), encoder.sight(visual.reader if visual else None, stretches) as sight:
            caches = batch_caches(encoder.spec, plan, batch)
            assert caches is not None
            if reading.found is not None:
                put(reading.found, caches)
                reading.found = None
            seen = sight.look(plan, batch, visual.measured) if sight is not None and visual is not None else None
            rest = [talk.ids[first:] for talk in reading.talks]
            with closing(run_steps(encoder.trunk, plan, batch, rest, caches, stretches, seen)) as steps:
                for step, hidden in steps:
                    pooling.add(hidden, step.start)
                    pooling.evaluate(hidden)
                    del hidden
                    yield
            reading.hidden = pooling.rows()
            mx.eval(reading.hidden)
            caches.align([len(talk.ids) for talk in reading.talks])
            reading.caches = caches
        if self.generator.prefixes.limit and not can_be_cut(encoder):
            self._remember_prompts(reading, caches)

    def _remember_prompts(self, reading: Reading, caches: Caches) -> None:
        """Leave prompts behind whose ends can't be gone back to after generated tokens."""
        draft, longest = PrefixDraft(self.generator.prefixes), max(map(len, reading.keys))
        for index, key in enumerate(reading.keys):
            remember(draft, caches, index, longest - len(key), key, tokens=len(key))
        draft.keep()


def groups(waiting: Sequence[Talk], tokens: int, rows: int) -> Iterator[list[Talk]]:
    """Prompts from the head of a queue that might be read together, most first; the first one alone at last.

    Args:
        tokens: padded, that all may have together.
        rows: texts that they may become.
    """
    group: list[Talk] = []
    longest = texts = 0
    for talk in waiting:
        longest, texts = max(longest, len(talk.ids)), texts + talk.drawn
        apart = talk.gone or talk.measured is not None or longest * (len(group) + 1) > tokens or texts > rows
        if group and apart:
            break
        group.append(talk)
        if apart:
            break
    if len(group) > 1:
        yield group
    yield group[:1]
