"""archport's side: what it answers to the checkpoints that reference.py made, or how it refuses them.

`answer(draw, folder)` returns arrays under the names of `expected.npz`, several times where there are several ways: a
batch padded on either side, a tight budget, a prompt whose beginning is cached.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from archport import engine
from archport.contract.errors import ArchportError
from archport.contract.heads import ClassificationHead
from archport.contract.plugins import discover
from archport.testing.finding import find

from . import quantised
from .families import FAMILIES
from .space import Draw, word
from .values import pairs_of, patches, picture, texts_of

# A plugin of somebody else's, which is not installed.
sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "third_party" / "archport-decoders"))
import archport_decoders

load = partial(engine.load, plugins=(*discover(), find(archport_decoders)))

# Bytes of a budget above what the plan of the whole batch needs at least.
SLACK = 1 << 16


@dataclass(slots=True)
class Answer:
    """What archport made of a draw.

    Args:
        arrays: (how, name) -> array.
        quantised: name -> what mlx-lm says to a quantised save of the same checkpoint.
        refusal: why it did not answer, in its words.
        bare: whether that was an exception that it does not raise on purpose.
    """

    arrays: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    quantised: dict[str, np.ndarray] = field(default_factory=dict)
    refusal: str | None = None
    bare: bool = False


def answer(draw: Draw, folder: Path, expected: dict[str, np.ndarray]) -> Answer:
    found = Answer()
    try:
        _answer(draw, folder, expected, found)
    except ArchportError as error:
        found.refusal = f"{type(error).__name__}: {error}"
    except Exception as error:
        found.refusal, found.bare = f"{type(error).__name__}: {error}", True
    return found


def _answer(draw: Draw, folder: Path, expected: dict[str, np.ndarray], found: Answer) -> None:
    tasks = FAMILIES[draw.family].tasks[draw.architecture]
    ids = [expected[f"ids_{index}"] for index in range(sum(name.startswith("ids_") for name in expected))]
    if "vectors" in expected:
        _vectors(folder / "vectors", ids, found)
    if "raw_scores" in expected:
        _scores(folder / "scores", ids, found)
    if not any(name.startswith(("hidden_", "logits_", "labels_", "tags_", "text_")) for name in expected):
        return
    model = load(folder / "checkpoint", dtype="float32")
    if "hidden" in tasks:
        for how in ("padded right", "padded left"):
            _hidden(model, ids, found, how, logits="logits" in tasks)
        _tight(model, folder, ids, found, len(expected["tokens"]) if "tokens" in tasks else 0)
    if "seen" in tasks:
        _seen(model, draw, folder, found)
    if "labels" in tasks:
        scores = model.classify([_text(row) for row in ids], raw_scores=True)
        for index, each in enumerate(scores):
            found.arrays["batch", f"labels_{index}"] = np.array(list(each.scores.values()), np.float32)
    if "tags" in tasks:
        for index, scores in enumerate(model._runtime.tagger().scores(ids)):
            found.arrays["batch", f"tags_{index}"] = scores
    if "tokens" in tasks:
        _tokens(model, ids[1].tolist(), len(expected["tokens"]), found)
    save = draw.options.get("make.save")
    if save and "logits" in tasks and quantised.agrees(folder / "checkpoint", expected, ids):
        _quantised(folder, save, ids, found)
    if "pictures" in tasks:
        _pictures(model, draw, ids, found)


def _text(ids: np.ndarray) -> str:
    return " ".join(word(each) for each in ids)


def _hidden(model: Any, ids: list[np.ndarray], found: Answer, how: str, *, logits: bool) -> None:
    """Hidden states and logits of all rows in one padded batch; `how` ends in the side that is padded."""
    longest = max(len(row) for row in ids)
    given, mask = np.full((len(ids), longest), 7), np.zeros((len(ids), longest), np.int32)
    left = how.endswith("left")
    places = [slice(longest - len(row), longest) if left else slice(0, len(row)) for row in ids]
    for index, (row, at) in enumerate(zip(ids, places, strict=True)):
        given[index, at], mask[index, at] = row, 1
    hidden = model.forward(given, mask)
    said = model._runtime.encoder.trunk.logits(hidden) if logits else None
    for index, at in enumerate(places):
        found.arrays[how, f"hidden_{index}"] = np.array(hidden[index, at])
        if said is not None:
            found.arrays[how, f"logits_{index}"] = np.array(said[index, at].astype(mx.float32))


def _tight(model: Any, folder: Path, ids: list[np.ndarray], found: Answer, new_tokens: int) -> None:
    """The same batch, its longest row, and text after its second row, each under a budget that hardly holds it."""

    def under(lengths: list[int], new: int = 0) -> Any:
        budget = model.plan(lengths, new_tokens=new).minimum + SLACK
        return load(folder / "checkpoint", dtype="float32", memory_budget=budget, prefix_cache=0)

    lengths = [len(row) for row in ids]
    found.arrays["tight budget", f"hidden_{len(ids) - 1}"] = np.array(under(lengths[-1:]).forward(ids[-1][None])[0])
    _hidden(under(lengths), ids, found, "tight budget, padded left", logits=False)
    if new_tokens:
        said = under(lengths[1:2], new_tokens).generate(ids[1].tolist(), max_tokens=new_tokens)
        found.arrays["tight budget", "tokens"] = np.array(said.tokens, np.int32)


def _vectors(folder: Path, ids: list[np.ndarray], found: Answer) -> None:
    """Vectors of all texts in one batch, in all three roles, and again under a budget that hardly holds them."""
    model, texts = load(folder, dtype="float32"), texts_of(ids)
    ways = {"vectors": model.embed, "query": model.encode_query, "document": model.encode_document}
    for name, embed in ways.items():
        found.arrays["batch", name] = embed(texts, overflow="truncate")
    vectors = found.arrays["batch", "vectors"]
    found.arrays["batch", "similar"] = model.similarity(vectors[:2], vectors[2:])
    tokeniser = model._runtime.tokeniser
    lengths = tokeniser(texts, prompt=tokeniser.prompt(None, None), overflow="truncate").lengths
    budget = max(model.plan([each]).minimum for each in lengths) + SLACK
    small = load(folder, dtype="float32", memory_budget=budget)
    found.arrays["tight budget", "vectors"] = small.embed(texts, overflow="truncate")


def _scores(folder: Path, ids: list[np.ndarray], found: Answer) -> None:
    """Scores of a query's pairs in one batch."""
    model, pairs = load(folder, dtype="float32"), pairs_of(ids)
    if isinstance(model.head, ClassificationHead) and len(model.head.labels) > 1:
        said = model.classify(pairs, raw_scores=True, overflow="truncate")
        found.arrays["batch", "raw_scores"] = np.array([list(each.scores.values()) for each in said], np.float32)
        return
    for name in ("scores", "raw_scores"):
        documents = [document for _, document in pairs]
        ranked = model.rerank(pairs[0][0], documents, raw_scores=name == "raw_scores", overflow="truncate")
        ordered = sorted(ranked, key=lambda each: each.index)
        found.arrays["batch", name] = np.array([each.score for each in ordered], np.float32)


def _tokens(model: Any, prompt: list[int], count: int, found: Answer) -> None:
    """Greedy tokens, and the same where the prompt's beginning is already in the prefix cache."""
    first = list(model.generate(prompt, max_tokens=count).tokens)
    found.arrays["generated", "tokens"] = np.array(first, np.int32)
    more = list(model.generate([*prompt, *first[:5]], max_tokens=count - 5).tokens)
    found.arrays["prefix cached", "tokens"] = np.array(first[:5] + more, np.int32)


def _quantised(folder: Path, save: str, ids: list[np.ndarray], found: Answer) -> None:
    """Logits of a quantised save, unpacked and packed, beside mlx-lm's own."""
    quantised.convert(folder / "checkpoint", folder / save, save)
    for index, want in enumerate(quantised.logits(quantised.load(folder / save), ids)):
        found.quantised[f"logits_{index}"] = want
    for how in ("float32", "checkpoint"):
        model = load(folder / save, dtype=how)
        for index, row in enumerate(ids):
            said = model._runtime.encoder.trunk.logits(model.forward(row[None])[0])
            found.arrays[f"{save}, {how}", f"logits_{index}"] = np.array(said.astype(mx.float32))


class Alone:
    """A tower's context for one picture: all of it in one piece."""

    def __init__(self, grid: tuple[int, int]) -> None:
        self.grids = [grid]

    def normalise(self, patches: mx.array) -> mx.array:
        return patches.astype(mx.float32) / 127.5 - 1

    def attend(self, layer: int, q: mx.array, k: mx.array, v: mx.array, *, scale: float) -> mx.array:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale)

    def rows(self, function: Any, *inputs: mx.array) -> mx.array:
        return function(*inputs)


def _seen(model: Any, draw: Draw, folder: Path, found: Answer) -> None:
    """Features of one picture, as it leaves the tower."""
    vision = json.loads((folder / "checkpoint" / "config.json").read_text())["vision_config"]
    patch, merge = vision["patch_size"], vision["spatial_merge_size"]
    pixels = picture(draw.seed, patch * merge * 2)
    given = mx.array(patches(pixels, patch, merge))[None]
    told = model._runtime.encoder.trunk.see(given, Alone((pixels.shape[0] // patch, pixels.shape[1] // patch)))
    for index, each in enumerate(told):
        found.arrays["tower", f"seen_{index}"] = np.array(each[0])


def _pictures(model: Any, draw: Draw, ids: list[np.ndarray], found: Answer) -> None:
    from PIL import Image

    side = draw.options.get("vision.image_size", 16)
    pixels = np.random.default_rng(draw.seed).integers(0, 256, size=(2, side, side, 3), dtype=np.uint8)
    vectors = np.asarray(model.embed([{"image": Image.fromarray(each)} for each in pixels], normalize=False))
    found.arrays["batch", "pictures"] = vectors
    # A tower without a tokenizer's padding: the rows are of its full length.
    hidden = model.forward(np.stack(ids))
    for index in range(len(ids)):
        found.arrays["batch", f"text_{index}"] = np.array(hidden[index, -1])
