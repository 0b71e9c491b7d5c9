"""Tiny tier: from hidden states to words. The output head, tokens that are decoded, and the weights behind both."""

from __future__ import annotations

from typing import Any, cast

import mlx.core as mx
import numpy as np

from archport.contract import CausalLM
from archport.testing.check import check, fail, skip
from archport.testing.checks.caches import decoder, needs_steps
from archport.testing.measure import as_array, gap
from archport.testing.subject import Tiny
from archport.testing.weights import moved_by, vocabulary_biases

# Rows that are decoded together, and tokens that each has cached: more than a cache holds at first.
DECODED = (1, 4, 9)
CACHED = 261
# Tokens that each row is given: more than an engine waits before it compiles the steps of a batch.
STEPS = 12


def _head(t: Tiny) -> CausalLM:
    """The trunk with its output head; skips models that are declared to have none."""
    if not t.has_head:
        skip(f"declared {t.spec.semantics} for {', '.join(t.spec.tasks)}: no task reads an output head")
    return cast(CausalLM, t.trunk)


@check("tiny")
def logits_are_those_of_the_head(t: Tiny) -> str:
    """`logits` are `head_rows` times the hidden states, for one position or many, and rows come in the order asked for.

    Take both from one matrix: the output head, or the embedding where the two are tied. What is done to the rows'
    products, such as a scale, belongs into the rows; a soft cap is declared, `ArchSpec(logit_softcap=)`.
    """
    trunk, V = _head(t), t.spec.vocab_size
    hidden = np.stack([t.hidden(t.tokens(t.length(19), seed)) for seed in (0, 1)]).astype(np.float32)
    rows = as_array(trunk.head_rows(list(range(V))))
    if rows.shape != (V, t.spec.hidden_size):
        fail(f"head_rows of all {V} ids are {rows.shape}; expected {(V, t.spec.hidden_size)}")
    ids = [V - 1, 3, 0, V // 2, 3]
    difference = gap(trunk.head_rows(ids), rows[ids])
    if difference > t.limit:
        fail(f"head_rows of ids {ids} differ by {difference:.2g} (limit {t.limit:.0e}) from those rows among all")
    worst = 0.0
    for name, states in {"2 x 19 positions": hidden, "one position of 2 rows": hidden[:, -1:]}.items():
        got, want = as_array(trunk.logits(mx.array(states))), _capped(t, states.astype(np.float64) @ rows.T)
        if got.shape != want.shape:
            fail(f"logits of hidden states {states.shape} are {got.shape}; expected {want.shape}")
        if vocabulary_biases(t) and "rerank" not in t.spec.tasks:
            # A head's own biases are in no row; what differs in the same way everywhere is theirs.
            want = want + (got - want).mean(axis=(0, 1))
        difference = gap(got, want)
        worst = max(worst, difference)
        if difference > t.limit:
            ratio = float((got * want).sum() / max(float((want * want).sum()), 1e-30))
            fail(
                f"logits of {name} differ by {difference:.2g} (limit {t.limit:.0e}) from head_rows times hidden "
                f"states; the factor that fits best is {ratio:.3g}"
            )
    return f"{V} rows, {worst:.1e}"


def _capped(t: Tiny, logits: np.ndarray) -> np.ndarray:
    """Logits as the declared soft cap leaves them."""
    cap = t.spec.logit_softcap
    return logits if cap is None else cap * np.tanh(logits / cap)


@check("tiny", hook="archport_claim")
def tied_head_is_as_declared(t: Tiny) -> str:
    """Changing the head's matrix moves logits; it moves hidden states exactly where `tied_head` says it embeds as well.

    Derive `tied_head` from the config (`tie_word_embeddings`), and read logits from the matrix that it means.
    """
    _head(t)
    moved = {name: what for name, what in moved_by(t).items() if t.weights[name].ndim > 1}
    heads = [name for name, what in moved.items() if "logits" in what]
    if not heads:
        fail(f"changing any of {len(moved)} matrices leaves the logits of given hidden states as they are")
    tied = [name for name in heads if "hidden states" in moved[name]]
    if t.spec.tied_head and not tied:
        fail(f"declared tied_head=True, but logits are of {', '.join(heads)}, which no hidden state depends on")
    if not t.spec.tied_head and tied:
        fail(f"declared tied_head=False, but logits are of {', '.join(tied)}, which hidden states depend on too")
    return f"{', '.join(heads)} of {len(moved)} matrices, {'tied' if tied else 'not tied'}"


@check("tiny")
def every_weight_is_used(t: Tiny) -> str:
    """Changing any one tensor of the checkpoint changes hidden states, logits, scores or what is seen of a picture.

    Apply what you load; drop in `sanitize` what takes no part.
    """
    moved = moved_by(t)
    unused = [name for name, what in moved.items() if not what]
    if unused:
        fail(f"{len(unused)} of {len(moved)} tensors change nothing: {', '.join(unused)}")
    return f"{len(moved)} tensors"


@check("tiny")
def batches_decode_as_one_pass(t: Tiny) -> str:
    """Rows that are decoded together, behind more tokens than a cache starts with, have the hidden states of one pass.

    Positions, keys and the number of rows come from the context: a row must not know of the others, nor how many
    tokens are cached.
    """
    needs_steps(t)
    worst = 0.0
    base = min(CACHED, t.length(CACHED + STEPS + max(DECODED)) - STEPS - max(DECODED))
    if base < 1:
        skip(f"the example has {t.spec.max_positions} positions, too few to decode {STEPS} tokens")
    rows = [t.tokens(base + index * 5 % 9 + STEPS, index) for index in range(max(DECODED))]
    whole = [t.hidden(row, prompt=len(row) - STEPS) for row in rows]
    for count in DECODED:
        lengths = [len(row) - STEPS for row in rows[:count]]
        _, decoding = decoder(t, [row[:-STEPS] for row in rows[:count]], STEPS)
        live = list(range(count))
        for step in range(STEPS):
            if step == STEPS - 2 and count > 2:
                # Two steps before the end every second row has finished.
                live = live[::2]
                decoding.keep_rows(live)
            fed = mx.array([int(rows[row][lengths[row] + step]) for row in live])
            got = as_array(decoding.step(fed))
            for index, row in enumerate(live):
                difference = gap(got[index, 0], whole[row][lengths[row] + step])
                worst = max(worst, difference)
                if difference > t.limit:
                    fail(
                        f"of {len(live)} rows decoded together, row {row} differs by {difference:.2g} (limit "
                        f"{t.limit:.0e}) at token {step} behind its {lengths[row]} from one pass"
                    )
    return f"{', '.join(map(str, DECODED))} rows behind {base} tokens, {worst:.1e}"


@check("tiny")
def generated_tokens_are_the_likeliest(t: Tiny) -> str:
    """`generate` takes the likeliest token at every step, by the logits that one pass over its own text gives.

    Keep nothing between calls of `logits`, and give one position the logits that it has among many.
    """
    trunk = _head(t)
    if "generate" not in t.spec.tasks:
        skip(f"declared for {', '.join(t.spec.tasks)}: it generates nothing")
    prompts = [t.tokens(t.length(length), seed) for seed, length in enumerate((17, 5, 30))]
    new = min(16, t.model.max_tokens - max(map(len, prompts)))
    made = cast(Any, t.model.generate([row.tolist() for row in prompts], max_tokens=new, logprobs=0))
    count, worst = 0, 0.0
    for row, (prompt, generation) in enumerate(zip(prompts, made, strict=True)):
        tokens = np.array(generation.tokens, np.int32)
        hidden = t.hidden(np.concatenate([prompt, tokens]), prompt=len(prompt))[len(prompt) - 1 : -1]
        logits = as_array(trunk.logits(mx.array(hidden[None])))[0]
        scale = max(float(np.abs(logits).max()), 1.0)
        chances = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
        told = np.array([each.logprob for each in generation.logprobs])
        own = np.take_along_axis(chances, tokens[:, None], axis=-1)[:, 0]
        wrong = np.maximum(np.abs(told - own), chances.max(axis=-1) - own) / scale
        worst, count = max(worst, float(wrong.max())), count + len(tokens)
        if wrong.max() > 4 * t.limit:
            at = int((wrong > 4 * t.limit).argmax())
            fail(
                f"prompt {row}: generated token {at} is {tokens[at]} at a log-probability of {told[at]:.5g}; one pass "
                f"gives it {own[at]:.5g} and token {chances[at].argmax()} {chances[at].max():.5g} (limit "
                f"{4 * t.limit:.0e} of the largest logit)"
            )
    return f"{count} tokens of {len(prompts)} prompts, {worst:.1e}"
