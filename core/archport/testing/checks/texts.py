"""Tiny tier: from texts to vectors as declared, and what is said about input that can't be used."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np

from archport.contract import ArchportError, ClassificationHead, ContextLengthExceeded, InputError
from archport.testing.check import check, fail, skip
from archport.testing.measure import as_array, gap
from archport.testing.subject import Tiny
from archport.testing.writing import write_pipeline

TEXTS = ["abc", "a longer text, with punctuation", "z"]
PROMPTS = {"query": "find: ", "document": "text: "}


def piped(t: Tiny, pooling: str) -> Path:
    """A copy of the example's checkpoint with a stored pipeline."""
    folder = t.folder.parent / f"{pooling}-piped-embedding"
    if not folder.exists():
        shutil.copytree(t.folder, folder)
        write_pipeline(folder, t.spec, pooling, PROMPTS)
    return folder


def pooled(hidden: np.ndarray, mode: str) -> np.ndarray:
    """One pooling mode over the hidden states (L, D) of a row."""
    n = len(hidden)
    ramp = np.arange(1, n + 1)[:, None]
    return {
        "cls": lambda: hidden[0],
        "last": lambda: hidden[-1],
        "mean": lambda: hidden.mean(axis=0),
        "max": lambda: hidden.max(axis=0),
        "sum": lambda: hidden.sum(axis=0),
        "mean_sqrt_len": lambda: hidden.sum(axis=0) / np.sqrt(n),
        "weighted_mean": lambda: (hidden * ramp).sum(axis=0) / ramp.sum(),
    }[mode]()


@check("tiny", hook="archport_head")
def pooling_is_as_declared(t: Tiny) -> str:
    """Vectors are the declared pooling of the hidden states, and a pooling stored with a checkpoint is kept.

    Answer None in `archport_head` when the checkpoint has a `modules.json`: what is stored with the weights is right.
    """
    if not t.embeds:
        return _scores_are_of_the_pooled_row(t)
    worst, told = 0.0, list[str]()
    for stored in (None, "cls", "mean", "last", "max"):
        model = t.model if stored is None else t.load(piped(t, stored))
        head = model._runtime.embedder().head.head
        if stored is not None and (head.pooling != (stored,) or not head.normalize):
            fail(
                f"the checkpoint stores {stored} pooling to unit length, the model uses {' + '.join(head.pooling)}, "
                f"normalize={head.normalize} (from {head.source})"
            )
        told.append("+".join(head.pooling))
        if head.dense:
            continue
        tokeniser = model._runtime.tokeniser
        for index, text in enumerate(TEXTS if stored is None else TEXTS[:1]):
            # One by one: what shares a batch is another check.
            (vector,), (ids,) = model.embed(text), tokeniser([text], prompt=tokeniser.prompt(None, None)).ids
            hidden = as_array(t.model.forward(ids[None]))[0]
            want = np.concatenate([pooled(hidden, mode) for mode in head.pooling])
            if head.normalize:
                want = want / np.linalg.norm(want)
            difference = gap(vector, want[: len(vector)])
            worst = max(worst, difference)
            if difference > t.limit:
                fail(f"text {index}: the vector differs by {difference:.2g} (limit {t.limit:.0e}) from {head.pooling}")
    return f"{', '.join(told)}: {worst:.1e}"


def _scores_are_of_the_pooled_row(t: Tiny) -> str:
    """The same for a classifier: its scores are those of the declared row, over its temperature."""
    head = t.model.head
    if not isinstance(head, ClassificationHead):
        skip(f"a {type(head).__name__} pools nothing")
    worst, tokeniser = 0.0, t.model._runtime.labels().tokeniser
    for index, text in enumerate(TEXTS):
        (scores,), ((ids,), _) = t.answers(text), tokeniser([text])
        hidden = pooled(as_array(t.model.forward(ids[None]))[0], head.pooling)
        want = cast(Any, t.trunk).scores(mx.array(hidden[None].astype(np.float32))) / head.temperature
        difference = gap(scores, as_array(want)[0])
        worst = max(worst, difference)
        if difference > t.limit:
            fail(f"text {index}: scores differ by {difference:.2g} (limit {t.limit:.0e}) from pooling {head.pooling}")
    return f"{head.pooling}, {len(head.labels)} labels: {worst:.1e}"


@check("tiny", hook="archport_inputs")
def prompts_are_as_declared(t: Tiny) -> str:
    """Declared prompts exist, stand in front of the text, and those stored with a checkpoint are kept.

    Merge the prompts of `config_sentence_transformers.json` over the plugin's own in `archport_inputs`.
    """
    if not t.embeds:
        skip("its head takes no prompts")
    stored = t.load(piped(t, "mean"))
    for name, prompt in PROMPTS.items():
        if stored.inputs.prompts.get(name) != prompt:
            fail(
                f"the checkpoint stores the prompt {name}={prompt!r}, the model has {stored.inputs.prompts.get(name)!r}"
            )
    asked = 0
    for model in (t.model, stored):
        inputs = model.inputs
        for role in ("query_prompt", "document_prompt", "default_prompt"):
            name = getattr(inputs, role)
            if name is not None and name not in inputs.prompts:
                fail(f"{role} is {name!r}, which is not among the prompts {sorted(inputs.prompts)}")
        for name, prompt in inputs.prompts.items():
            asked += 1
            difference = gap(model.embed("abc", prompt_name=name), model.embed("abc", prompt=prompt))
            if difference:
                fail(f"prompt_name={name!r} differs by {difference:.2g} (limit 0) from its text {prompt!r}")
        final = inputs.final_token
        ends = {int(ids[-1]) for ids in model._runtime.tokeniser(TEXTS).ids}
        if final is not None and ends != {final}:
            fail(f"every row must end with token {final}, but rows end with {sorted(ends)}")
        if final is not None and not 0 <= final < t.spec.vocab_size:
            fail(f"final_token={final} is outside the vocabulary of {t.spec.vocab_size}")
    return f"{asked} prompts"


def refusal(call: Callable[[], object], kind: type[ArchportError], *mentions: str) -> str:
    """What is wrong with how a bad call is answered, "" when it is refused as it should be."""
    try:
        call()
    except kind as error:
        absent = [word for word in mentions if word not in str(error)]
        return f"the {kind.__name__} does not mention {', '.join(absent)}: {error}" if absent else ""
    except Exception as error:
        return f"{type(error).__name__} instead of {kind.__name__}: {error}"
    return f"no error; expected {kind.__name__}"


@check("tiny", hook="archport_inputs")
def over_long_input_is_refused(t: Tiny) -> str:
    """The longest declared row runs; one token more is refused with the text and both lengths, or cut on request.

    Declare in `max_positions` what the module can really place, and limits of text in `archport_inputs`.
    """
    limit, positions = t.model.max_tokens, t.spec.max_positions
    longest = t.model.forward(t.tokens(positions)[None])
    if not np.isfinite(as_array(longest)).all():
        fail(f"a row of the declared {positions} positions gives NaN or infinity")
    text = "a" * (limit + 1)
    cases = {
        f"forward of {positions + 1} tokens": lambda: refusal(
            lambda: t.model.forward(t.tokens(positions + 1)[None]), ArchportError, str(positions + 1), str(positions)
        ),
        f"embed of {limit + 1} characters": lambda: refusal(
            lambda: t.answers(["a", text]), ContextLengthExceeded, "text 1", str(limit)
        ),
    }
    for name, answer in cases.items():
        if wrong := answer():
            fail(f"{name}: {wrong}")
    if not np.isfinite(t.answers(["a", text], overflow="truncate")).all():
        fail(f"a text cut to {limit} tokens gives NaN or infinity")
    return f"{positions} run, {positions + 1} refused"


@check("tiny", hook="archport_build")
def malformed_input_is_refused(t: Tiny) -> str:
    """Ids outside the vocabulary, wrong shapes, holes in a mask and texts that are none are refused with their place.

    Declare the `vocab_size` that the embedding really has: ids are checked against it, and a GPU reads past its end.
    """
    from archport.answering.vectors import EmbedRequest

    V, forward, answers = t.spec.vocab_size, t.model.forward, t.answers
    table = max((a.shape[0] for name, a in t.weights.items() if a.ndim == 2 and _embeds(t, name)), default=V)
    if table < V:
        fail(f"token id {V - 1} is accepted, but the largest embedding has {table} rows")
    edge = as_array(forward(np.array([[0, V - 1]])))
    if not np.isfinite(edge).all():
        fail(f"token id {V - 1}, the last of the vocabulary, gives NaN or infinity")
    cases: dict[str, str] = {
        "id V": refusal(lambda: forward(np.array([[1, 2], [0, V]])), InputError, "row 1", str(V)),
        "id -1": refusal(lambda: forward(np.array([[-1]])), InputError, "row 0", "-1"),
        "one axis": refusal(lambda: forward(np.array([1, 2])), InputError, "(2,)"),
        "floats": refusal(lambda: forward(np.array([[0.5]])), InputError, "float"),
        "a hole": refusal(lambda: forward(np.array([[1, 2, 3]]), np.array([[1, 0, 1]])), InputError, "row 0"),
        "None": refusal(lambda: answers(["a", None]), InputError, "text 1"),  # pyright: ignore[reportArgumentType]
        "a surrogate": refusal(lambda: answers(["a", "b\ud800"]), InputError, "text 1"),
    }
    if t.embeds:
        embed, tokeniser = t.model.embed, t.model._runtime.tokeniser
        cases["an unknown prompt"] = refusal(lambda: embed("a", prompt_name="nobody's"), InputError, "nobody's")
        stray = replace(t.model._runtime.embedder(), tokeniser=cast(Any, _WithStray(tokeniser, V)))
        request = EmbedRequest("", None, None, None, "error")
        told = refusal(lambda: stray.run(["a", "b"], request, lambda _: None), InputError, "text 0", str(V))
        cases["a tokenizer's id V"] = told
    for name, wrong in cases.items():
        if wrong:
            fail(f"{name}: {wrong}")
    return f"{len(cases)} kinds refused"


class _WithStray:
    """A tokeniser whose last token is behind the vocabulary, as when tokens were added to it alone."""

    def __init__(self, inner: Any, stray: int) -> None:
        self._inner, self._stray, self.inputs = inner, stray, inner.inputs

    def __call__(self, texts: Any, **options: Any) -> Any:
        tokens = self._inner(texts, **options)
        return replace(tokens, ids=tuple(np.append(ids[:-1], self._stray).astype(np.int32) for ids in tokens.ids))


def _embeds(t: Tiny, name: str) -> bool:
    return "embed" in name or t.weights[name].shape[0] == t.spec.vocab_size
