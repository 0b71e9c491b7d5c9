"""An adapter on its base: which stored weight each of its tensors means, and the weights with all of it in them.

Names are compared as the files have them, before a plugin renames anything, so that it works for every family. A
quantised matrix that is adapted becomes a dense one: what the adapter adds would be lost in the rounding.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from archport.checkpoint.adapter_files import Adapter, LowRank
from archport.checkpoint.files import shorten
from archport.checkpoint.headers import TensorInfo
from archport.checkpoint.quantization import packing
from archport.contract.errors import CheckpointError

if TYPE_CHECKING:
    import mlx.core as mx

# Classes with a head that a base of another class lacks, by PEFT's word for the task.
_HEADS = {"SEQ_CLS": "ForSequenceClassification", "TOKEN_CLS": "ForTokenClassification"}
_KIND = re.compile(r"(For[A-Z]\w*|Model)$")
# Where the names of labels are as many as the rows of a matrix.
_LABELS = ("classifier.out_proj.weight", "classifier.weight", "score.weight")
_CARRIERS = ("model", "language_model")
# A factor of the adapters that a checkpoint stores itself: a slice for each task.
STACKED_FACTOR = re.compile(r"^(?P<module>.+)\.parametrizations\.weight\.0\.lora_(?P<factor>[AB])$")
_ITEMSIZE = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class Adapted:
    """An adapter that fits a base.

    Args:
        adapter: what the files say.
        terms: what is added, by the stored name of the base's matrix.
        biases: what is added to a stored bias, by its name.
        whole: what replaces or joins the base's tensors, by the name that it then has.
        before: of the tensors that are replaced, what they were.
        copied: name -> whose values it has before anything is added: of an output head that no longer is the table.
        tensors: the checkpoint's tensors with the adapter in them: dense where a quantised one is adapted.
    """

    adapter: Adapter
    terms: Mapping[str, LowRank]
    biases: Mapping[str, LowRank]
    whole: Mapping[str, TensorInfo]
    before: Mapping[str, TensorInfo]
    copied: Mapping[str, str]
    tensors: Mapping[str, TensorInfo]

    @property
    def changed(self) -> frozenset[str]:
        """Names of `tensors` that are in no file as they are loaded."""
        return frozenset({*self.terms, *self.biases, *self.whole, *self.copied})


def fitted(adapter: Adapter, base: str, stored: Mapping[str, TensorInfo], *, generates: bool = False) -> Adapted:
    """Find the base's weight for each tensor of an adapter.

    Args:
        base: how messages call the base.
        stored: its tensors.
        generates: whether its class has an output head, which may share the token embeddings.

    Raises:
        CheckpointError: tensors that fit no weight of the base, by name or by shape.
    """
    copied = _own_head(adapter, stored) if generates else {}
    stored = {**stored, **{name: replace(stored[source], name=name) for name, source in copied.items()}}
    names = _Names(adapter, stored)
    terms: dict[str, LowRank] = {}
    biases: dict[str, LowRank] = {}
    whole: dict[str, TensorInfo] = {}
    tensors = dict(stored)
    homeless: list[str] = []
    misshapen: list[str] = []
    for path, info in adapter.whole.items():
        name = names.find(path)
        if name is None and not adapter.saved.isdisjoint(path.split(".")):
            # A head that the base does not have.
            name = path
        if name is None:
            homeless += [] if _of_absent_pooler(path) else [path]
            continue
        before = stored.get(name)
        packed = before is not None and _drop_packing(name, tensors)
        if before is not None and not packed and before.shape[1:] != info.shape[1:]:
            misshapen.append(f"{path} {info.shape} for {before.shape}")
        whole[name] = info
        tensors[name] = replace(info, name=name)
    for path, term in adapter.terms.items():
        name = names.find(f"{path}.weight")
        bias = None if term.bias is None else names.find(f"{path}.bias")
        if name is None or (term.bias is not None and bias is None):
            missing = path if name is None else f"{path}.bias"
            homeless += [] if _of_absent_pooler(missing) else [missing]
            continue
        if name in terms:
            raise CheckpointError(f"{adapter.name}: {path} and another module are both {name} of {base}.")
        info = _dense(name, tensors, term)
        if not _fits(info.shape, term, turned=adapter.turned):
            misshapen.append(f"{path} adds {term.shape} to {info.shape}")
        _drop_packing(name, tensors)
        terms[name] = term
        tensors[name] = info
        if bias is not None:
            biases[bias] = term
    if homeless or misshapen:
        raise CheckpointError(_misfit(adapter, base, homeless, misshapen))
    before = {name: stored[name] for name in whole if name in stored}
    return Adapted(adapter, terms, biases, whole, before, copied, tensors)


def _of_absent_pooler(path: str) -> bool:
    """Whether a module is in a pooler, where the base stores none.

    transformers makes one for a trunk that was saved without, so that adapters of all linear layers have a term for it.
    Nothing reads it: a head that does is refused for want of it.
    """
    return "pooler" in path.split(".")


def _drop_packing(name: str, tensors: dict[str, Any]) -> bool:
    """Remove the scales of a matrix that is packed no longer; whether it was."""
    path = name.removesuffix(".weight")
    gone = [tensors.pop(f"{path}.{leaf}", None) for leaf in ("scales", "biases")]
    return gone[0] is not None


def _misfit(adapter: Adapter, base: str, homeless: list[str], misshapen: list[str]) -> str:
    count = len(adapter.terms) + len(adapter.whole)
    lines = [f"{adapter.name}: the adapter does not fit {base} ({len(homeless) + len(misshapen)} of {count} modules)."]
    if homeless:
        lines.append(f"no such weight ({len(homeless)}): {shorten(homeless)}")
    if misshapen:
        lines.append(f"wrong shape ({len(misshapen)}): {shorten(misshapen)}")
    said = (
        f"It was trained on {adapter.base!r}; load that one" if adapter.base else "Load the base that it was trained on"
    )
    return "\n  ".join([*lines, f"{said}, with adapter=."])


def _own_head(adapter: Adapter, stored: Mapping[str, TensorInfo]) -> dict[str, str]:
    """The tensors of an output head that is the token embeddings no longer, each with the one that it begins as.

    PEFT changes the one of both that it was told to change, and leaves the other as it was.
    """
    tables = [name for name in stored if name.endswith("embed_tokens.weight")]
    if len(tables) != 1:
        return {}
    table = tables[0].removesuffix(".weight")
    outer = table.removesuffix("model.embed_tokens") if table.endswith(".model.embed_tokens") else ""
    adapted = {path.rpartition(".")[2] for path in adapter.terms}
    replaced = {path.removesuffix(".weight").rpartition(".")[2] for path in adapter.whole} & adapter.saved
    changed = (adapted | replaced) & {"embed_tokens", "lm_head"}
    if f"{outer}lm_head.weight" in stored or not changed or "lm_head" in replaced:
        return {}
    if adapter.tying and not adapted.isdisjoint(changed):
        raise CheckpointError(
            f"{adapter.name}: ensure_weight_tying with {' and '.join(sorted(changed))}: archport does not add to token "
            "embeddings and an output head together. Merge the adapter with peft, and load the result."
        )
    leaves = [leaf for leaf in ("weight", "scales", "biases") if f"{table}.{leaf}" in stored and not adapter.tying]
    return {f"{outer}lm_head.{leaf}": f"{table}.{leaf}" for leaf in leaves}


class _Names:
    """Stored names by the names of modules: equal, or with what one of them has in front left out.

    A trunk that was saved alone has no prefix, the model that it is in has one, and the text half of a model with
    towers has another one in each layout.
    """

    def __init__(self, adapter: Adapter, stored: Mapping[str, TensorInfo]) -> None:
        self._adapter, self._stored = adapter, stored
        self._ends: dict[str, list[str]] = {}
        for name in stored:
            for end in {*_ends(name), _inner(name)} - {name}:
                self._ends.setdefault(end, []).append(name)

    def find(self, name: str) -> str | None:
        """The stored name; None where there is none.

        Raises:
            CheckpointError: there are several.
        """
        if name in self._stored:
            return name
        shorter = next((end for end in _ends(name) if end in self._stored), None)
        if shorter is not None:
            return shorter
        longer = self._ends.get(name) or self._ends.get(_inner(name)) or []
        if len(longer) > 1:
            raise CheckpointError(
                f"{self._adapter.name}: {name} may be each of {shorten(longer)}; expected the name of one weight."
            )
        return longer[0] if longer else None


def _ends(name: str) -> list[str]:
    """A name without its first labels, at most three of them."""
    labels = name.split(".")
    return [".".join(labels[at:]) for at in range(1, min(len(labels) - 1, 4))]


def _inner(name: str) -> str:
    """A name without what says only that a text model is in another one."""
    labels = name.split(".")
    while len(labels) > 2 and labels[0] in _CARRIERS:
        labels = labels[1:]
    return ".".join(labels)


def _dense(name: str, stored: Mapping[str, TensorInfo], term: LowRank) -> TensorInfo:
    """A stored matrix as it is adapted: unpacked where it is quantised."""
    info, path = stored[name], name.removesuffix(".weight")
    scales = stored.get(f"{path}.scales")
    if scales is None:
        return info
    columns = term.shape[1]
    packing(path, columns, info.shape[-1], scales.shape[-1], scales.dtype)
    kind = scales.dtype if scales.dtype in _ITEMSIZE else "bfloat16"
    shape = (*info.shape[:-1], columns)
    return replace(info, dtype=kind, shape=shape, nbytes=info.shape[0] * columns * _ITEMSIZE[kind])


def _fits(shape: tuple[int, ...], term: LowRank, *, turned: bool) -> bool:
    out, inner = term.shape
    if len(shape) == 2:
        return shape == (out, inner) or (turned and not term.table and shape == (inner, out))
    # Filters, as torch stores them.
    return shape[:1] == (out,) and math.prod(shape[1:]) == inner


def adapted_config(raw: Mapping[str, Any], fit: Adapted) -> dict[str, Any]:
    """A base's config.json with the head that an adapter brings: its class, and how many labels it has."""
    found, adapter = dict(raw), fit.adapter
    tables = {fit.before[name].shape[0]: info for name, info in fit.whole.items() if name in fit.before}
    if (table := tables.get(found.get("vocab_size", 0))) is not None:
        # Of a base whose vocabulary grew before it was trained.
        found["vocab_size"] = table.shape[0]
    labels = next((info for name, info in fit.whole.items() if name.endswith(_LABELS)), None)
    named = found.get("architectures")
    if labels is None or not isinstance(named, list) or not named:
        return found
    stem = _KIND.sub("", str(named[0]))
    wanted = adapter.model_class or f"{stem}{_HEADS.get(adapter.task_type or '', '')}"
    if wanted.endswith(tuple(_HEADS.values())):
        found["architectures"] = [wanted]
    known = found.get("id2label")
    if labels.shape[0] != (len(known) if isinstance(known, dict) else found.get("num_labels", 2)):
        found = {key: value for key, value in found.items() if key not in ("id2label", "label2id")}
        found["num_labels"] = labels.shape[0]
    return found


def merged(
    fit: Adapted, stored: Mapping[str, mx.array], own: Mapping[str, mx.array], dtype: str
) -> dict[str, mx.array]:
    """A base's tensors with an adapter in them, all of them lazily.

    Args:
        stored: the base's, by their stored names.
        own: the adapter's, by theirs.
        dtype: element type of the load; sums are float32 for the cast that follows, but of "checkpoint", which casts
            nothing.
    """
    import mlx.core as mx

    weights = {**stored, **{name: stored[source] for name, source in fit.copied.items()}}

    def kind(name: str) -> Any:
        return getattr(mx, fit.tensors[name].dtype) if dtype == "checkpoint" else mx.float32

    for name, info in fit.whole.items():
        _drop_packing(name, weights)
        weights[name] = own[info.name]
    for name, term in fit.terms.items():
        module = name.removesuffix(".weight")
        base = weights[name]
        if (scales := weights.pop(f"{module}.scales", None)) is not None:
            base = unpacked(module, base, scales, weights.pop(f"{module}.biases", None), term.shape[1], mx.float32)
        a, b = (own[info.name].astype(mx.float32) for info in (term.a, term.b))
        more = term.scale * (b.reshape(b.shape[0], -1) @ a.reshape(a.shape[0], -1))
        turned = fit.adapter.turned if tuple(base.shape) == tuple(more.shape) else base.ndim == 2
        if turned or term.table:
            more = more.T
        weights[name] = (base.astype(mx.float32) + more.reshape(base.shape)).astype(kind(name))
    for name, term in fit.biases.items():
        assert term.bias is not None, "a bias that is adapted has one"
        more = term.scale * own[term.bias.name].astype(mx.float32)
        weights[name] = (weights[name].astype(mx.float32) + more).astype(kind(name))
    return weights


def unpacked(
    path: str, words: mx.array, scales: mx.array, biases: mx.array | None, in_features: int, dtype: Any
) -> mx.array:
    """A packed matrix in a floating type, lazily.

    Args:
        path: the module, for errors.
        in_features: columns of the dense matrix.
    """
    import mlx.core as mx

    kind = str(scales.dtype).removeprefix("mlx.core.")
    settings = packing(path, in_features, words.shape[-1], scales.shape[-1], kind)
    if settings.mode == "affine":
        # Widened first: MLX unpacks in the dtype of the scales and would round to 16 bits on the way.
        scales, biases = scales.astype(dtype), None if biases is None else biases.astype(dtype)
    return mx.dequantize(
        words, scales, biases,
        group_size=settings.group_size, bits=settings.bits, mode=settings.mode, dtype=dtype,
    )  # fmt: skip
