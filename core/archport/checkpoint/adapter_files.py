"""A LoRA adapter in PEFT's layout, as its two files describe it: what is added to which module, what is replaced.

Reads JSON and headers only, and knows no base: which weight a module's name means is `adapting`'s.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archport.checkpoint.disk import files_in, inside, read_object
from archport.checkpoint.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, is_whole_model, refuse_adapter_pickle, shorten
from archport.checkpoint.headers import Fetched, TensorInfo, read_header
from archport.contract.errors import CheckpointError

# Keys that change no result of a trained adapter, or say what the tensors' names and shapes say as well.
_PASSED_OVER = frozenset({
    *("auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying", "eva_config"),
    *("exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern"),
    *("layers_to_transform", "loftq_config", "lora_alpha", "lora_bias", "lora_dropout", "lora_ga_config"),
    *("megatron_core", "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern"),
    *("alpha_pattern", "revision", "runtime_config", "target_modules", "task_type", "use_rslora", "velora_config"),
})  # fmt: skip
_NOTHING: tuple[Any, ...] = (None, False, {}, [], "")
# Ways to begin that leave the base's weights alone; PiSSA and its kin train beside a base that they changed.
_INITS = (None, True, False, "gaussian", "eva", "orthogonal")
_MERGE = (
    "Merge it where it was trained: load it with peft, call merge_and_unload(), save the model, and load the result"
)
_FACTOR = re.compile(
    r"^(?P<path>.+)\.lora_(?P<table>embedding_)?(?P<factor>[AB])(?:\.default)?(?:\.(?P<leaf>weight|bias))?$"
)
_WRAPPERS = re.compile(r"\.(?:modules_to_save(?:\.default)?|base_layer|original_module)(?=\.)")
_FLOATS = ("float32", "float16", "bfloat16")
# Of a pattern of module names: nothing in it may make the search for a match take long.
_QUANTIFIER, _MOST_QUANTIFIERS, _LONGEST_NAME = re.compile(r"(?<!\\)(?:[*+?]|\{\d*,?\d*\})"), 3, 200


@dataclass(frozen=True, slots=True)
class LowRank:
    """What is added to the matrix of one module: scale * B A.

    Args:
        a: the factor (r, in).
        b: the factor (out, r).
        scale: alpha / r, or alpha / sqrt(r).
        bias: what scale times it is added to the module's bias, (out,).
        table: whether the module is a table of vectors (V, D), whose addition is turned.
    """

    a: TensorInfo
    b: TensorInfo
    scale: float
    bias: TensorInfo | None = None
    table: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Of what is added: (out, in), of a table (V, D)."""
        out, rank = self.b.shape[0], self.a.shape[0]
        inner = self.a.size // rank
        return (inner, out) if self.table else (out, inner)


@dataclass(frozen=True, slots=True)
class Adapter:
    """One adapter.

    Args:
        name: the folder or hub id that it was found by.
        folder: where its two files are.
        terms: module -> what is added, by the names of transformers' modules.
        whole: tensors that replace the base's, by their names there.
        base: the folder or hub id that it says it was trained on.
        base_revision: the version of it.
        model_class: transformers' class that the base was loaded as, where the file says so.
        task_type: PEFT's word for what it was trained for.
        saved: names of modules that it replaces.
        turned: whether square matrices are stored as (in, out).
        tying: whether an output head that shares the token embeddings stays theirs when they are replaced.
    """

    name: str
    folder: Path
    terms: Mapping[str, LowRank]
    whole: Mapping[str, TensorInfo]
    base: str | None = None
    base_revision: str | None = None
    model_class: str | None = None
    task_type: str | None = None
    saved: frozenset[str] = frozenset()
    turned: bool = False
    tying: bool = False


def adapter_alone(folder: Path, fetched: Fetched | None = None) -> bool:
    """Whether a folder holds an adapter and not the model it belongs to."""
    if not (folder / ADAPTER_CONFIG).is_file():
        return False
    names = {*files_in(folder), *(fetched or {})}
    return "config.json" not in names or not is_whole_model(names)


def read_adapter(folder: Path, name: str, fetched: Mapping[str, TensorInfo] | None = None) -> Adapter | None:
    """The adapter in a folder, None where it has no adapter_config.json.

    Args:
        name: how messages call it.
        fetched: the tensors of its weights, where they stayed on the hub.

    Raises:
        CheckpointError: a kind of adapter that archport does not run, or damaged or missing files.
    """
    path = inside(folder, ADAPTER_CONFIG, "an adapter")
    config = read_object(path)
    if config is None:
        return None
    where = str(path)
    _refuse_others(where, config)
    weights = inside(folder, ADAPTER_WEIGHTS, "an adapter")
    if fetched is None and not weights.exists():
        refuse_adapter_pickle(files_in(folder), str(folder))
        raise CheckpointError(f"{folder}: {ADAPTER_WEIGHTS} is missing, which {ADAPTER_CONFIG} belongs to.")
    tensors = read_header(weights, ADAPTER_WEIGHTS) if fetched is None else fetched
    terms, whole = _sorted(str(weights), config, where, tensors)
    mapping = config.get("auto_mapping")
    return Adapter(
        name=name,
        folder=folder,
        base=_text(where, config, "base_model_name_or_path") or None,
        base_revision=_text(where, config, "revision") or None,
        model_class=_text(where, mapping, "base_model_class") if isinstance(mapping, dict) else None,
        task_type=_text(where, config, "task_type"),
        saved=frozenset(_words(where, config, "modules_to_save")),
        turned=config.get("fan_in_fan_out") is True,
        tying=config.get("ensure_weight_tying") is True,
        terms=terms,
        whole=whole,
    )


def _refuse_others(where: str, config: Mapping[str, Any]) -> None:
    """Refuse adapters that are no plain LoRA."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(
            f"{where}: peft_type={kind!r}; archport runs LORA adapters. {_MERGE}, if its kind can be merged; else run "
            "it with peft."
        )
    if config.get("use_dora") not in _NOTHING:
        raise CheckpointError(
            f"{where}: use_dora={config['use_dora']!r}: DoRA scales whole rows of the base's matrices as well, "
            f"which archport does not. {_MERGE}."
        )
    begun = config.get("init_lora_weights", True)
    if begun not in _INITS:
        raise CheckpointError(
            f"{where}: init_lora_weights={begun!r} changes the base's weights before training, so that the adapter "
            "fits no published base. Save it as plain LoRA where it was trained (save_pretrained with "
            f"path_initial_model_for_weight_conversion). Or: {_MERGE.lower()}."
        )
    changing = [
        f"{key}={value!r:.60}"
        for key, value in config.items()
        if key not in _PASSED_OVER and not any(type(value) is type(none) and value == none for none in _NOTHING)
    ]
    if changing:
        raise CheckpointError(f"{where}: {shorten(changing)}, which archport does not obey. {_MERGE}.")


def _text(where: str, config: Mapping[str, Any], key: str) -> str | None:
    value = config.get(key)
    if value is not None and not isinstance(value, str):
        raise CheckpointError(f"{where}: {key}={value!r:.80}; expected a text, or null.")
    return value


def _words(where: str, config: Mapping[str, Any], key: str) -> list[str]:
    value = config.get(key) or []
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise CheckpointError(f"{where}: {key}={value!r:.80}; expected a list of names, or null.")
    return value


def _sorted(
    weights: str, config: Mapping[str, Any], where: str, tensors: Mapping[str, TensorInfo]
) -> tuple[dict[str, LowRank], dict[str, TensorInfo]]:
    """(what is added by module, what replaces the base's by name)."""
    factors: dict[tuple[str, bool], dict[str, TensorInfo]] = {}
    whole: dict[str, TensorInfo] = {}
    for name, info in tensors.items():
        if info.dtype not in _FLOATS:
            raise CheckpointError(
                f"{weights}: {name!r} is {info.dtype}; expected one of {', '.join(_FLOATS)}. Save the adapter in one."
            )
        if len(name) > _LONGEST_NAME:
            raise CheckpointError(
                f"{weights}: {name[:80]!r}... has {len(name):,} characters; expected a tensor's name."
            )
        bare = _WRAPPERS.sub("", name.removeprefix("base_model.model."))
        match = _FACTOR.match(bare)
        if match is not None:
            kind = "bias" if match["leaf"] == "bias" else match["factor"]
            factors.setdefault((match["path"], bool(match["table"])), {})[kind] = info
        elif ".lora_" in bare or bare.startswith("lora_"):
            raise CheckpointError(
                f"{weights}: {name!r} is no tensor of plain LoRA; expected lora_A and lora_B. {_MERGE}."
            )
        else:
            whole[bare] = info
    if not factors and not whole:
        raise CheckpointError(f"{weights}: holds no tensor, so the adapter changes nothing. Fetch it again.")
    scales = _Scales(where, config)
    terms: dict[str, LowRank] = {}
    for (path, table), pair in factors.items():
        if path in terms:
            raise CheckpointError(
                f"{weights}: {path} is adapted twice, as a matrix and as a table; expected one of them."
            )
        if "A" not in pair or "B" not in pair:
            missing = "lora_B" if "A" in pair else "lora_A"
            raise CheckpointError(f"{weights}: {path} has no {missing}; expected both factors. Fetch the file again.")
        a, b = pair["A"], pair["B"]
        rank = a.shape[0] if a.shape else 0
        plain = len(a.shape) >= 2 and len(b.shape) == len(a.shape) and math.prod(b.shape[2:]) == 1
        bias = pair.get("bias")
        if not plain or b.shape[1] != rank or a.size == 0 or (bias is not None and bias.shape != b.shape[:1]):
            shapes = f"{a.shape} and {b.shape}" + ("" if bias is None else f" with a bias {bias.shape}")
            raise CheckpointError(f"{weights}: the factors of {path} are {shapes}; expected (r, in) and (out, r).")
        terms[path] = LowRank(a, b, scales(path, rank), bias, table)
    return terms, whole


class _Scales:
    """What the product of a module's factors is multiplied by."""

    def __init__(self, where: str, config: Mapping[str, Any]) -> None:
        self._where, self._root = where, config.get("use_rslora") is True
        ranks = _numbers(where, config, "rank_pattern")
        self._ranks = {_number(where, "r", config.get("r", 8)), *ranks.values()}
        self._alpha = _number(where, "lora_alpha", config.get("lora_alpha", 8))
        alphas = _numbers(where, config, "alpha_pattern")
        self._alphas = [(_pattern(where, key), alpha) for key, alpha in alphas.items()]

    def __call__(self, path: str, rank: int) -> float:
        if rank not in self._ranks:
            raise CheckpointError(
                f"{self._where}: the factors of {path} have rank {rank}; r and rank_pattern say "
                f"{' or '.join(f'{known:g}' for known in sorted(self._ranks))}. They belong to different adapters."
            )
        alpha = next((alpha for pattern, alpha in self._alphas if pattern.match(path)), self._alpha)
        return alpha / (math.sqrt(rank) if self._root else rank)


def _number(where: str, key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise CheckpointError(f"{where}: {key}={value!r:.80}; expected a number.")
    return value


def _numbers(where: str, config: Mapping[str, Any], key: str) -> dict[str, float]:
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: {key}={value!r:.80}; expected names of modules, each with a number.")
    return {name: _number(where, f"{key}[{name!r:.80}]", number) for name, number in value.items()}


def _pattern(where: str, key: str) -> re.Pattern[str]:
    """What a key of a pattern matches: the end of a module's name, as PEFT reads it."""
    if len(_QUANTIFIER.findall(key)) > _MOST_QUANTIFIERS or re.search(r"\)[*+?{]|\(\?(?!:)|\\\d", key):
        raise CheckpointError(
            f"{where}: alpha_pattern has the key {key!r:.120}; archport reads names of modules and patterns with at "
            f"most {_MOST_QUANTIFIERS} repetitions, none of them of a group."
        )
    try:
        return re.compile(rf"(?:.*\.)?(?:{key})$")
    except re.error as error:
        raise CheckpointError(
            f"{where}: alpha_pattern has the key {key!r:.120}, which is no pattern ({error})."
        ) from error
