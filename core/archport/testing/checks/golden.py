"""Golden tier: what a reference computed, stage by stage, and real weights' vectors again and in other batches.

Token ids come first, and each later stage is given what the reference had in front of it, so that the first check
that fails names the stage.
"""

from __future__ import annotations

from typing import Any, cast

import mlx.core as mx
import numpy as np

from archport.contract import EmbeddingHead
from archport.testing.check import check, fail, skip
from archport.testing.checks.batches import padded
from archport.testing.measure import as_array, gap
from archport.testing.subject import Golden

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "Memory is planned before it is allocated.",
    "query",
    "A much longer text that shares its batch with short ones, so that rows are padded, sorted and put back in order. "
    * 4,
]
ALIKE = 0.9999
# Relative differences that float32 may make, in full precision and in TF32.
EXACT, ROUNDED = 2e-5, 5e-3


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


def _recorded(g: Golden, name: str, what: str) -> Any:
    """An array of the reference; skips where there is none."""
    if g.recorded is None:
        skip("no reference was given (`--golden FILE.npz`, which `archport record` makes)")
    found = getattr(g.recorded, name)
    if found is None:
        skip(f"the reference holds no {what}")
    return found


def _limit() -> float:
    """What rounding may make in float32: of a device that was told to round products to TF32, more."""
    from archport.device import tf32

    return ROUNDED if tf32.in_use() else EXACT


@check("golden", hook="archport_inputs")
def golden_token_ids_match(g: Golden) -> str:
    """Texts have the token ids that the reference's tokenizer gives them.

    A fault of the tokenizer and not of the module: look at tokenizer.json, at what `archport_inputs` says (`lowercase`,
    `final_token`), and at special tokens around a text.
    """
    want = _recorded(g, "ids", "token ids")
    assert g.recorded is not None
    tokeniser = g.model._runtime.tokeniser
    for index, (text, ids) in enumerate(zip(g.recorded.texts, want, strict=True)):
        if g.model.inputs.reader is None and g.model.inputs.messages is None:
            (got,) = tokeniser([text]).ids
        else:
            # What puts a conversation around a text; the reference has the text alone.
            got = np.array(tokeniser.tokenizer.encode(text).ids, np.int32)
        if np.array_equal(got, ids):
            continue
        both = min(len(got), len(ids))
        at = int(np.argmax(got[:both] != ids[:both])) if (got[:both] != ids[:both]).any() else both
        fail(
            f"text {index} ({text!r:.40}): the tokenizer gives {len(got)} tokens, the reference's {len(ids)}; token "
            f"{at} is {_at(got, at)}, the reference's {_at(ids, at)}"
        )
    return f"{len(want)} texts, {sum(map(len, want))} tokens"


def _at(ids: np.ndarray, index: int) -> str:
    return str(int(ids[index])) if index < len(ids) else "none"


@check("golden")
def golden_hidden_states_match(g: Golden) -> str:
    """The reference's token ids give the reference's hidden states, after the final norm.

    Compare layer by layer: embedding and its scale, positions, norms, biases, activation, what attention sees.
    """
    want = _recorded(g, "hidden", "hidden states")
    ids, limit, worst = _recorded(g, "ids", "token ids"), _limit(), 0.0
    for index, (row, states) in enumerate(zip(ids, want, strict=True)):
        got = as_array(g.model.forward(row[None]))[0]
        if got.shape != states.shape:
            fail(f"text {index}: hidden states are {got.shape}, the reference's {states.shape}")
        difference = gap(got, states)
        worst = max(worst, difference)
        if difference > limit:
            far = np.abs(got - states).max(axis=-1) > limit * np.abs(states).max()
            first = int(far.argmax()) if np.isfinite(got).all() else 0
            fail(
                f"text {index} of {len(row)} tokens differs by {difference:.2g} (limit {limit:.0e}) from the "
                f"reference's hidden states, from token {first} on"
            )
    return f"{len(ids)} texts, {worst:.1e}"


@check("golden")
def golden_vectors_match(g: Golden) -> str:
    """Real weights give the vectors that were stored earlier, from this or from the reference implementation.

    Find the first stage that differs: token ids, hidden states, pooling, scaling.
    """
    want = _recorded(g, "vectors", "vectors")
    assert g.recorded is not None
    texts = list(g.recorded.texts)
    got = g.model.embed(texts)
    if got.shape != want.shape:
        fail(f"vectors are {got.shape}, stored are {want.shape}")
    cosines = _cosines(got, want)
    if cosines.min() < ALIKE:
        fail(f"text {int(cosines.argmin())} has cosine {cosines.min():.6f} with its stored vector (limit {ALIKE})")
    if g.recorded.ids is not None and (difference := gap(got, want)) > _limit():
        # A reference that was recorded is float32 like the model; of other vectors nobody knows.
        fail(
            f"vectors differ by {difference:.2g} (limit {_limit():.0e}) from the reference, with a cosine of "
            f"{cosines.min():.6f}: lengths {np.linalg.norm(got[0]):.4g} and {np.linalg.norm(want[0]):.4g} of text 0"
        )
    return f"{len(texts)} texts, cosine {cosines.min():.6f}"


@check("golden")
def golden_scores_match(g: Golden) -> str:
    """Texts have the raw scores of labels that the reference gives them.

    Find the first stage that differs: token ids, hidden states, which row is pooled, the classifier's layers.
    """
    want = _recorded(g, "scores", "scores of labels")
    assert g.recorded is not None
    found = g.model.classify(list(g.recorded.texts), raw_scores=True)
    got, limit = np.array([list(each.scores.values()) for each in found]), _limit()
    if got.shape != want.shape:
        fail(f"scores are {got.shape}, the reference's {want.shape}")
    difference = gap(got, want)
    if difference > limit:
        fail(f"scores differ by {difference:.2g} (limit {limit:.0e}) from the reference")
    return f"{len(want)} texts, {difference:.1e}"


@check("golden")
def golden_logits_match(g: Golden) -> str:
    """The reference's hidden states at the last token give its logits.

    Read logits from the matrix that the checkpoint has for them, with its bias, scale and soft cap.
    """
    want = _recorded(g, "logits", "logits")
    hidden = np.stack([states[-1] for states in _recorded(g, "hidden", "hidden states")])
    words = "generate" in g.model.spec.tasks or "rerank" in g.model.spec.tasks
    # A head that decodes reads (B, n, D), one of masked words (n, D).
    given = mx.array(hidden[:, None] if words else hidden)
    got, limit = as_array(cast(Any, g.model._runtime.encoder.trunk).logits(given)).reshape(len(hidden), -1), _limit()
    if got.shape != want.shape:
        fail(f"logits are {got.shape}, the reference's {want.shape}")
    difference = gap(got, want)
    if difference > limit:
        ratio = float((got * want).sum() / max(float((want.astype(np.float64) ** 2).sum()), 1e-30))
        fail(
            f"logits differ by {difference:.2g} (limit {limit:.0e}) from the reference; the factor that fits best is "
            f"{ratio:.3g}"
        )
    return f"{want.shape[0]} x {want.shape[1]}, {difference:.1e}"


@check("golden")
def golden_greedy_tokens_match(g: Golden) -> str:
    """`generate` goes on from the reference's token ids with the reference's tokens, up to a final token.

    Where hidden states and logits match, look at what decoding adds: caches, positions of steps, state that is kept.
    A token may be another one where the reference's first two are as close as rounding.
    """
    want, margins = _recorded(g, "greedy", "generated tokens"), _recorded(g, "margins", "margins of generated tokens")
    ids = _recorded(g, "ids", "token ids")
    if "generate" not in g.model.spec.tasks:
        skip(f"declared for {', '.join(g.model.spec.tasks)}: it generates nothing")
    made = cast(Any, g.model.generate([row.tolist() for row in ids], max_tokens=want.shape[1]))
    compared = ties = 0
    for row, generation in enumerate(made):
        got = list(generation.tokens)
        if len(got) < want.shape[1] and generation.finish_reason != "stop":
            fail(f"text {row}: {len(got)} tokens are generated of {want.shape[1]}")
        other = [at for at, token in enumerate(got) if token != want[row, at]]
        compared += other[0] if other else len(got)
        if not other:
            continue
        # What follows a tie follows another text.
        if margins[row, other[0]] > 2 * _limit():
            fail(
                f"text {row}: generated token {other[0]} is {got[other[0]]}, the reference's {want[row, other[0]]}, "
                f"which is ahead of all others by {margins[row, other[0]]:.2g} of the largest logit (a tie is up to "
                f"{2 * _limit():.0e})"
            )
        ties += 1
    return f"{compared} tokens after {len(ids)} texts, {ties} texts end in a tie"


def _embeds(g: Golden) -> None:
    """Skip what has no vectors to compare, or what the tiny tier has compared."""
    if not g.real:
        skip("no real weights were named (`-m MODEL`): the tiny tier checks this of examples")
    if not isinstance(g.model.head, EmbeddingHead):
        skip(f"its head makes no vectors: {type(g.model.head).__name__}")


@check("golden")
def golden_vectors_repeat(g: Golden) -> str:
    """Real weights give finite vectors, the same ones again.

    See what the tiny tier's `deterministic` says; then look at what only real weights reach: large activations.
    """
    _embeds(g)
    first = g.model.embed(TEXTS)
    if not np.isfinite(first).all():
        fail("a vector holds NaN or infinity")
    difference = float(np.abs(g.model.embed(TEXTS) - first).max())
    if difference:
        fail(f"{len(TEXTS)} texts embedded again differ by {difference:.2g} (limit 0)")
    return f"{len(TEXTS)} texts of {first.shape[1]} dimensions: equal"


@check("golden")
def golden_batch_invariance(g: Golden) -> str:
    """With real weights a text has the same vector alone and among others, in any order.

    See what the tiny tier's `row_alone_equals_row_in_batch` says.
    """
    _embeds(g)
    together = g.model.embed(TEXTS)
    alone = np.concatenate([g.model.embed(text) for text in TEXTS])
    reverse = g.model.embed(TEXTS[::-1])[::-1]
    worst = float(min(_cosines(together, alone).min(), _cosines(together, reverse).min()))
    if worst < ALIKE:
        fail(f"a vector alone has cosine {worst:.6f} (limit {ALIKE}) with its own in a batch of {len(TEXTS)}")
    if g.model.inputs.reader is None and g.model.inputs.messages is None:
        # `embed` may lay texts of unlike lengths into one row, where no row is next to another.
        worst = min(worst, _padded(g))
        if worst < ALIKE:
            fail(f"a text alone has cosine {worst:.6f} (limit {ALIKE}) with itself, padded in a batch of {len(TEXTS)}")
    return f"cosine {worst:.6f}"


def _padded(g: Golden) -> float:
    """The lowest cosine of a text's last hidden state with the same in a padded batch of all."""
    rows = g.model._runtime.tokeniser(TEXTS).ids
    ids, mask = padded(list(rows), "right")
    together = as_array(g.model.forward(ids, mask))
    last = np.stack([together[index, len(row) - 1] for index, row in enumerate(rows)])
    return float(_cosines(last, np.stack([as_array(g.model.forward(row[None]))[0, -1] for row in rows])).min())
