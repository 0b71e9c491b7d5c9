"""What a built module says about itself when its tensors are changed one by one. Knows no property that is checked."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from archport.contract import AttentionLayer, ClassificationHead, InputError, TaggingHead
from archport.testing.measure import Attended, Tap, as_array, taps
from archport.testing.subject import Tiny

# Tokens of the row that is looked at; with experts so many that each is visited by some.
TOKENS, TOKENS_OF_EXPERTS = 24, 64
# Below this q has not grown with the matrices that make it, which were doubled.
NORMALISED = 1.5


def vocabulary_biases(t: Tiny) -> list[str]:
    """Tensors that hold one number per word."""
    return [name for name, value in t.weights.items() if value.shape == (t.spec.vocab_size,)]


def moved_by(t: Tiny) -> dict[str, frozenset[str]]:
    """What each floating tensor moves when it alone is changed, to the last bit; worked out once.

    Of "hidden states", "logits" and "scores" (both of given hidden states), and "pictures". A tensor that moves
    nothing is not read at all: even one that cancels out, such as a bias of all keys, changes how sums are rounded.
    """
    if "moved" not in t.memo:
        t.memo["moved"] = _moved(t)
    return t.memo["moved"]


def _moved(t: Tiny) -> dict[str, frozenset[str]]:
    trunk = cast(Any, t.bare())
    row = t.tokens(t.length(TOKENS if t.spec.experts is None else TOKENS_OF_EXPERTS))
    first = t.hidden(row, trunk=trunk)
    hidden = mx.array(first[None])
    head = t.model.head
    scores = isinstance(head, TaggingHead) or (isinstance(head, ClassificationHead) and head.vector is None)
    masked = "fill_mask" in t.spec.tasks

    def seen() -> dict[str, np.ndarray]:
        found = {"hidden states": t.hidden(row, trunk=trunk)}
        if masked or t.has_head:
            found["logits"] = as_array(trunk.logits(hidden[0] if masked else hidden))
        if scores:
            found["scores"] = as_array(trunk.scores(hidden[0]))
        return found

    before, moved = seen(), dict[str, frozenset[str]]()
    for name, value in t.weights.items():
        if not mx.issubdtype(value.dtype, mx.floating):
            continue
        trunk.load_weights([(name, changed(value))], strict=False)
        after = seen()
        moved[name] = frozenset(kind for kind, array in after.items() if not np.array_equal(array, before[kind]))
        trunk.load_weights([(name, value)], strict=False)
    if t.spec.vision is not None:
        for name in _moving_pictures(t, [name for name, what in moved.items() if not what]):
            moved[name] = frozenset({"pictures"})
    return moved


def _moving_pictures(t: Tiny, names: list[str]) -> list[str]:
    """Those of the tensors that move what the model answers to a picture; all where nothing here opens pictures."""
    image = {"image": picture(t)}
    model = t.load(t.folder)
    trunk = cast(Any, model._runtime.encoder.trunk)
    # What loading merged has other names, and is not judged.
    known = {name for name, _ in tree_flatten(trunk.parameters())}
    try:
        before = t.answers(image, model)
    except InputError as error:
        if isinstance(error.__cause__, ImportError):
            return names
        raise
    moving = [name for name in names if name not in known]
    for name in (name for name in names if name in known):
        trunk.load_weights([(name, changed(t.weights[name]))], strict=False)
        if not np.array_equal(t.answers(image, model), before):
            moving.append(name)
        trunk.load_weights([(name, t.weights[name])], strict=False)
    return moving


def picture(t: Tiny) -> np.ndarray:
    """A picture (height, width, 3) of six tokens, which is not square: rows and columns of positions are told apart."""
    assert t.spec.vision is not None, "asked of models with a tower"
    side = t.spec.vision.patch_size * t.spec.vision.merge_size
    return np.random.default_rng(t.example.seed).integers(0, 256, (2 * side, 3 * side, 3), dtype=np.uint8)


def changed(value: mx.array) -> mx.array:
    """The same tensor with every element moved by about its own size."""
    numbers = np.array(value.astype(mx.float32))
    noise = np.random.default_rng(numbers.size).standard_normal(numbers.shape)
    return mx.array((numbers + noise * (0.5 * np.abs(numbers).max() + 0.1)).astype(np.float32)).astype(value.dtype)


@dataclass(frozen=True, slots=True)
class Shown:
    """What the matrices of one layer show of it.

    Args:
        layer: its index.
        inner: width inside an MLP -> whether a gate matrix stands beside up and down; empty where none was recognised.
        normalised: whether q does not grow with the matrices that make it.
    """

    layer: int
    inner: Mapping[int, bool]
    normalised: bool


def shown_by(t: Tiny) -> Shown | None:
    """What the first attention layer with a dense MLP shows, or the first at all; None where none can be told apart.

    A matrix that moves a layer's own q, k or v is attention's; of the others one leads back from the heads, and those
    between D and one other width are the MLP's. Worked out once.
    """
    if "shown" not in t.memo:
        t.memo["shown"] = _shown(t)
    return t.memo["shown"]


def _shown(t: Tiny) -> Shown | None:
    sparse = set(t.spec.experts.layers) if t.spec.experts else set[int]()
    attention = [index for index, layer in enumerate(t.spec.layers) if isinstance(layer, AttentionLayer)]
    if not attention:
        return None
    layer = next((index for index in attention if index not in sparse), attention[0])
    trunk, row = cast(Any, t.bare()), t.tokens(t.length(8))

    def made(weights: Mapping[str, mx.array]) -> Attended:
        found: list[Tap] = []
        trunk.load_weights(list(weights.items()), strict=False)
        t.hidden(row, trunk=trunk, wrap=taps(found))
        trunk.load_weights([(name, t.weights[name]) for name in weights], strict=False)
        return next(call for call in found[0].calls if call.layer == layer)

    before = made({})
    for names in _layers_named(t, layer):
        queries, rest = list[str](), list[str]()
        for name in names:
            after = made({name: changed(t.weights[name])})
            moved = [part for part in "qkv" if not _same(getattr(after, part), getattr(before, part))]
            queries += [name] if "q" in moved else []
            rest += [] if moved else [name]
        if queries:
            grown = made({name: 2 * t.weights[name] for name in queries})
            ratio = np.linalg.norm(as_array(grown.q)) / np.linalg.norm(as_array(before.q))
            inner = {} if layer in sparse else _inner(t, layer, rest)
            return Shown(layer, inner, bool(ratio < NORMALISED))
    return None


def misdeclared(t: Tiny) -> list[str]:
    """What the spec says otherwise than the matrices of the layer that was looked at show, in words.

    A `qk_norm` that is declared and not shown is let pass: other things copy q and k too.
    """
    shown, spec = shown_by(t), t.spec
    if shown is None:
        return []
    found: list[str] = []
    if shown.normalised and not spec.qk_norm:
        found.append("qk_norm=False, but q is normalised per head")
    gated = shown.inner.get(spec.intermediate_size)
    if gated is not None and gated != spec.gated_mlp:
        found.append(f"gated_mlp={spec.gated_mlp}, but there is {'a' if gated else 'no'} gate beside up and down")
    return [f"layer {shown.layer}: declared {each}" for each in found]


def own_blocks(t: Tiny) -> list[str]:
    """Kinds of modules inside the layers that are not of archport's layers or MLX's, by name."""
    found = {
        type(part).__name__
        for path, part in cast(Any, t.bare()).named_modules()
        if re.search(r"\.\d+\.", f".{path}.") and not type(part).__module__.startswith(("archport.", "mlx."))
    }
    return sorted(found)


def _same(one: mx.array, other: mx.array) -> bool:
    return np.array_equal(as_array(one), as_array(other))


def _layers_named(t: Tiny, layer: int) -> Iterator[list[str]]:
    """Matrices of one layer, by every list of modules that is as long as the spec's list of layers."""
    lists: dict[str, dict[int, list[str]]] = {}
    for name, value in t.weights.items():
        path = re.match(r"(.*?)\.(\d+)\.", f".{name}")
        if path is not None and value.ndim == 2:
            lists.setdefault(path[1], {}).setdefault(int(path[2]), []).append(name)
    for found in lists.values():
        if len(found) == len(t.spec.layers) and layer in found:
            yield found[layer]


def _inner(t: Tiny, index: int, names: Sequence[str]) -> dict[int, bool]:
    """Widths inside MLPs that matrices form, each with whether there is a gate."""
    layer, D = t.spec.layers[index], t.spec.hidden_size
    assert isinstance(layer, AttentionLayer), "asked of attention layers"
    widths: Counter[int] = Counter()
    for name in names:
        rows, columns = t.weights[name].shape
        if D in (rows, columns):
            widths[columns if rows == D else rows] += 1
    widths[layer.n_heads * layer.v_head_dim] -= 1
    # Gate and up may be one matrix.
    found = {width: widths[2 * width] > 0 or count > 2 for width, count in widths.items() if count > 0}
    return {width: gated for width, gated in found.items() if gated or widths[width] == 2}
