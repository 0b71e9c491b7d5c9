"""Tiny tier: tokens of one span see each other whichever comes first, in one pass and in steps, where inputs say so."""

from __future__ import annotations

import numpy as np

from archport.testing.check import check, fail, skip
from archport.testing.checks.caches import needs_steps
from archport.testing.checks.masks import STILL, moved_by_key, observing_length
from archport.testing.measure import Attended, Tap, gap, taps, visible
from archport.testing.subject import Tiny


def _needs_spans(t: Tiny) -> None:
    if not any(layer.spans for layer in t.spec.attention_layers):
        skip("no layer is declared to know spans")


def _drawn(t: Tiny) -> tuple[np.ndarray, tuple[tuple[int, int], ...]]:
    """A random row, and spans in its middle and at its end."""
    L = observing_length(t)
    return t.tokens(L), ((L // 4, L // 2), (L - L // 4, L))


@check("tiny")
def spans_see_both_ways(t: Tiny) -> str:
    """In every layer that knows spans a key moves the rows of its span before it too, and nothing else than its reach.

    A backend that names the feature `spans` must show a query what `call.spans` lets it see.
    """
    _needs_spans(t)
    row, spans = _drawn(t)
    L, kinds = len(row), dict(t.attention)

    def again(tap: Tap, call: Attended) -> None:
        layer = kinds.get(call.layer)
        if layer is None or call.k is None:
            return
        for at in (spans[0][1] - 1, spans[0][0] + 1, L - 1, 1):
            moved = moved_by_key(tap, call, call.k, at)[:L]
            want = visible(layer, L, L, spans)[:, at]
            wrong = np.flatnonzero((moved > STILL) != want)
            if len(wrong):
                i = int(wrong[0])
                fail(
                    f"layer {call.layer} with reach {layer.reach}{', which knows spans,' * layer.spans} and spans "
                    f"{spans} in a row of {L}: key {at} {'did not move' if want[i] else 'moved'} row {i} (by "
                    f"{moved[i]:.3g}); {len(wrong)} rows are wrong"
                )

    t.hidden(row, spans=spans, wrap=taps([], again))
    return f"spans of {', '.join(str(stop - start) for start, stop in spans)} tokens, L={L}"


@check("tiny")
def spans_are_never_cut(t: Tiny) -> str:
    """A prompt with spans that is read in chunks, shorter than its spans too, gives the hidden states of one pass.

    The engine ends chunks where spans end; let nothing but `ctx.attend` and `ctx.positions` tell a module where it is.
    """
    _needs_spans(t)
    needs_steps(t)
    row, spans = _drawn(t)
    whole, worst, counts = t.hidden(row, spans=spans), 0.0, list[int]()
    for chunk in (2, 7, 16):
        plan = t.plan([len(row)], chunk=chunk, spans=[spans])
        difference = gap(t.run(plan, [row])[0], whole)
        worst = max(worst, difference)
        counts.append(len(plan.batches[0].steps))
        if difference > t.limit:
            fail(
                f"{len(row)} tokens with spans {spans} in chunks of at most {chunk} differ by {difference:.2g} (limit "
                f"{t.limit:.0e}) from one pass"
            )
    return f"L={len(row)} in {', '.join(map(str, counts))} steps, {worst:.1e}"


@check("tiny", hook="archport_inputs")
def spans_are_named_by_ids(t: Tiny) -> str:
    """Where layers know spans, the inputs name them: by a row's ids alone, in order, apart and within the row.

    Answer `archport_inputs` with TextInputs whose `spans` is a function of the ids that keeps nothing between calls.
    """
    _needs_spans(t)
    rule = t.model._runtime.encoder.rule
    if rule is None:
        fail("layers declare spans=True, but archport_inputs names none: its TextInputs have no `spans`")
    total = 0
    for length in (1, 2, t.length(24), t.length(61)):
        drawn = t.tokens(length)
        # Random ids seldom repeat, and rules may look for ids that do.
        repeated = np.repeat(drawn, 3)[:length]
        for row in (drawn, repeated, *(np.full(length, each, np.int32) for each in range(t.spec.vocab_size))):
            first, again = t.spans(row), t.spans(row.copy())
            total += len(first)
            if first != again:
                fail(f"a row of {length} tokens has spans {first} when it is first asked about, and {again} then")
    if not total:
        fail("no row of any one token, and none of random ones, has a span; the rule never names any")
    return f"{total} spans"
