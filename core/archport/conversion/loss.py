"""What a conversion cost: cosines of the vectors of both versions, or their perplexities.

Loads one version after the other, so memory holds one model at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import mlx.core as mx
import numpy as np

from archport.contract import InputError
from archport.contract.arguments import checked
from archport.contract.model import CausalLM
from archport.engine import Model, load
from archport.running.calls import device_call

# Logits of so many positions at a time: a vocabulary of 256K takes 64 MB.
_POSITIONS = 64
TEXTS = (
    "The river rises in the mountains and reaches the sea after nine hundred kilometres.",
    "How do I reset the password of an account that I can no longer sign in to?",
    "A list comprehension builds a list from an iterable: [n * n for n in range(10) if n % 2].",
    "The committee postponed its decision because two of the five members were absent.",
    "Photosynthesis turns water and carbon dioxide into sugar and oxygen with the energy of light.",
    "Der Zug nach Hamburg fährt heute von Gleis sieben ab und hält nicht in Uelzen.",
    "The recipe asks for two eggs, a cup of flour, a pinch of salt and half a litre of milk.",
    "En 1789, la Bastille fut prise par les Parisiens au matin du quatorze juillet.",
)


@dataclass(frozen=True, slots=True)
class Loss:
    """How far two versions of a model lie apart.

    Args:
        kind: what was compared.
        texts: how many.
        mean, least: of the cosines; of scores and perplexities NaN.
        before, after: perplexities; of cosines NaN.
        largest: the largest difference of two scores; NaN elsewhere.
    """

    kind: Literal["cosine", "perplexity", "scores"]
    texts: int
    mean: float = math.nan
    least: float = math.nan
    before: float = math.nan
    after: float = math.nan
    largest: float = math.nan

    def line(self) -> str:
        """One sentence for people."""
        if self.kind == "cosine":
            return f"cosine of {self.texts} vectors with the source's: mean {self.mean:.6f}, least {self.least:.6f}"
        if self.kind == "scores":
            return f"scores of {self.texts} texts: at most {self.largest:.6f} from the source's"
        change = self.after / self.before - 1
        return f"perplexity of {self.texts} texts: {self.before:.3f} before, {self.after:.3f} after ({change:+.2%})"


@checked
def measure_loss(
    source: str | Path,
    out: str | Path,
    texts: Sequence[str] = TEXTS,
    *,
    revision: str | None = None,
    memory_budget: int | str | None = None,
    adapter: str | Path | None = None,
) -> Loss:
    """Run both versions over texts: vectors where the model makes them, else perplexity, else scores of pairs.

    Args:
        adapter: one that the source is loaded with.

    Raises:
        InputError: no text, or a model that makes none of these.
        ArchportError: whatever `load` and the calls raise.
    """
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise InputError("texts is empty; expected at least one text to measure the loss on")
    kind, before = _answers(source, texts, memory_budget, revision=revision, adapter=adapter)
    _, after = _answers(out, texts, memory_budget)
    if kind == "cosine":
        lengths = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
        cosines = (before * after).sum(axis=1) / np.maximum(lengths, 1e-30)
        return Loss("cosine", len(texts), mean=float(cosines.mean()), least=float(cosines.min()))
    if kind == "scores":
        return Loss("scores", len(texts), largest=float(np.abs(before - after).max()))
    return Loss("perplexity", len(texts), before=float(before[0]), after=float(after[0]))


Kind = Literal["cosine", "perplexity", "scores"]


def _answers(
    name: str | Path, texts: Sequence[str], memory_budget: int | str | None, **version: Any
) -> tuple[Kind, np.ndarray]:
    with load(name, memory_budget=memory_budget, prefix_cache=0, **version) as model:
        return _answered(model, texts)


def _answered(model: Model, texts: Sequence[str]) -> tuple[Kind, np.ndarray]:
    tasks = model.spec.tasks
    if "generate" in tasks:
        return "perplexity", np.array([perplexity(model, texts)])
    if "embed" in tasks:
        return "cosine", np.asarray(model.embed(list(texts), overflow="truncate"), np.float64)
    if "classify" in tasks:
        classified = model.classify(list(texts), overflow="truncate")
        return "scores", np.array([list(row.scores.values()) for row in classified])
    if "rerank" in tasks:
        ranked = model.rerank(texts[0], list(texts), overflow="truncate")
        return "scores", np.array([row.score for row in sorted(ranked, key=lambda row: row.index)])
    raise InputError(f"{model.name} does {', '.join(tasks)}; a loss is measured of vectors, text and scores")


@device_call
def perplexity(model: Model, texts: Sequence[str]) -> float:
    """exp of the mean of each token's negative log-probability, given those before it in its text."""
    total, count = 0.0, 0
    encoder, tokenizer = model._runtime.encoder, model._runtime.tokeniser.tokenizer
    trunk = cast(CausalLM, encoder.trunk)
    for text in texts:
        ids = tokenizer.encode(text).ids[: model.max_tokens]
        if len(ids) < 2:
            continue
        hidden = encoder.forward(np.array([ids]))
        wanted = mx.array(ids[1:])
        for start in range(0, len(ids) - 1, _POSITIONS):
            end = min(start + _POSITIONS, len(ids) - 1)
            logits = trunk.logits(hidden[:, start:end]).squeeze(0).astype(mx.float32)
            scores = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
            total -= float(mx.take_along_axis(scores, wanted[start:end, None], axis=-1).sum())
        count += len(ids) - 1
    if not count:
        raise InputError("no text has two tokens; perplexity needs longer texts")
    return math.exp(total / count)
