"""What a sentence-transformers pipeline makes of rows: vectors, dense or sparse, or scores of pairs.

Reads small JSON files only. Knows module and key names of old and new saves, and runs modules in the order of their
list. Anything unknown that would change vectors is an error, never ignored.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

from archport.checkpoint.files import TABLES, TRANSFORMERS, Opened, module_kind, pipeline_modules
from archport.checkpoint.transformer import transformer_settings
from archport.contract.errors import CheckpointError
from archport.contract.heads import (
    Activation,
    ClassificationHead,
    Dense,
    EmbeddingHead,
    Head,
    PoolingMode,
    Similarity,
    SparseHead,
    SparsePooling,
    YesNoHead,
)

log = logging.getLogger("archport")

# In the order in which several true flags are concatenated.
_POOLING_FLAGS: Mapping[str, PoolingMode] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weighted_mean",
    "pooling_mode_lasttoken": "last",
}
_POOLING_NAMES: Mapping[str, PoolingMode] = {
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean": "weighted_mean",
    "lasttoken": "last",
}
# How often log(1 + x) follows relu in an activation of SpladePooling.
_LOGARITHMS = {"relu": 1, "log1p_relu": 2}


def read_head(checkpoint: Opened) -> Head:
    """What this checkpoint's pipeline makes of its rows: a vector per text, sparse or not, or scores of pairs.

    Without `modules.json`: the last token for an `...ForCausalLM` that is causal, else the mean; no normalisation.

    Raises:
        CheckpointError: a module, order, pooling mode, activation or similarity that archport does not know.
    """
    entries = pipeline_modules(checkpoint.folder, checkpoint.route)
    if entries is None:
        names = checkpoint.config.get("architectures") or [""]
        generates = str(names[0]).endswith("ForCausalLM") and checkpoint.config.get("causal") is not False
        mode: PoolingMode = "last" if generates else "mean"
        return EmbeddingHead((mode,), source=f"default without modules.json: {mode}", stated=False)
    stated, transformer = pipeline_settings(checkpoint), transformer_settings(checkpoint.folder, checkpoint.route)
    kinds = [module_kind(entry) for entry in entries]
    if transformer.expands:
        raise CheckpointError(
            f"{transformer.source}: query_expansion fills queries up to a length, which archport does for late "
            "interaction only; this pipeline makes one vector or score. Save it without."
        )
    if "LogitScore" in kinds:
        return _logit_score(checkpoint, entries, kinds)
    if "SpladePooling" in kinds:
        return _splade(checkpoint, entries, kinds, transformer.task)
    if transformer.task != "feature-extraction":
        raise CheckpointError(
            f"{transformer.source}: transformer_task={transformer.task!r} beside the modules {', '.join(kinds)}, which "
            "archport runs on hidden states only; expected 'feature-extraction'."
        )
    ranks = stated.get("model_type") == "CrossEncoder"
    steps = _Steps(checkpoint, ranks)
    for entry, kind in zip(entries, kinds, strict=True):
        steps.take(entry, kind)
    if not ranks:
        return replace(
            steps.head(),
            similarity=_similarity(checkpoint, stated),
            dimensions=_truncate(stated),
            source="modules.json",
        )
    vector = steps.scores()
    count = vector.dense[-1].out_features
    return ClassificationHead(
        labels=("score",) if count == 1 else tuple(f"LABEL_{index}" for index in range(count)),
        activation="sigmoid" if count == 1 else "softmax",
        ranks_by=read_score_activation(checkpoint, count),
        source="modules.json",
        vector=vector,
    )


@dataclass(slots=True)
class _Steps:
    """The modules after a Transformer, taken one by one in the order in which they run.

    Args:
        scoring: whether the pipeline scores pairs, so that a Dense module may name its output `scores`.
        pooling, include_prompt, dense: so far.
        unit: whether the vector has just been scaled to unit length.
        scored: what made the scores.
    """

    checkpoint: Opened
    scoring: bool
    pooling: tuple[PoolingMode, ...] = ()
    include_prompt: bool = True
    dense: tuple[Dense, ...] = ()
    unit: bool = False
    scored: EmbeddingHead | None = None

    def take(self, entry: Mapping[str, Any], kind: str) -> None:
        folder = str(entry["path"]).strip("/")
        # Dropout does nothing outside training.
        if kind in (*TRANSFORMERS, "Dropout"):
            return
        if kind in TABLES:
            self.pooling = ("mean",)
            return
        if kind == "Pooling":
            config = _module_config(self.checkpoint, folder, kind)
            # It pools the tokens again, whatever became of the vector before.
            self.pooling, self.dense, self.unit = _pooling(self.checkpoint, folder, config), (), False
            self.include_prompt = config.get("include_prompt") is not False
        elif kind == "Dense":
            self._dense(folder)
        elif kind == "Normalize":
            _check_names(self.checkpoint, folder, self.checkpoint.json(f"{folder}/config.json") or {}, kind)
            # Before there is a vector it does nothing.
            self.unit = bool(self.pooling)
        else:
            raise CheckpointError(
                f"{self.checkpoint.folder}: modules.json has a module of type {entry['type']!r}, which archport does "
                "not know; expected Transformer, Pooling, Dense, Normalize or Dropout, StaticEmbedding in place of the "
                "first two, or LogitScore or SpladePooling after Transformer. "
                "Leaving it out would give another model's vectors, so a plugin has to answer `archport_head` for this "
                "checkpoint."
            )

    def _dense(self, folder: str) -> None:
        if not self.pooling:
            raise CheckpointError(
                f"{self.checkpoint.folder}: modules.json has Dense before Pooling, where there is no vector; expected "
                "Transformer, Pooling, Dense and Normalize modules."
            )
        config = _module_config(self.checkpoint, folder, "Dense")
        scores = config.get("module_output_name") == "scores" and self.scoring
        names = {key: value for key, value in config.items() if not (scores and key == "module_output_name")}
        _check_names(self.checkpoint, folder, names, "Dense")
        dense = replace(_dense(self.checkpoint, folder, config), unit_input=self.unit)
        if scores:
            self.scored = EmbeddingHead(self.pooling, self.include_prompt, (*self.dense, dense), source="modules.json")
        else:
            self.dense, self.unit = (*self.dense, dense), False

    def head(self) -> EmbeddingHead:
        if not self.pooling:
            raise CheckpointError(
                f"{self.checkpoint.folder}: modules.json has no Pooling module, so nothing makes one vector."
            )
        return EmbeddingHead(self.pooling, self.include_prompt, self.dense, self.unit)

    def scores(self) -> EmbeddingHead:
        if self.scored is None:
            raise CheckpointError(
                f"{self.checkpoint.folder}: config_sentence_transformers.json says model_type 'CrossEncoder', and no "
                "module makes scores: expected a Dense module with module_output_name 'scores', a LogitScore module, "
                "or an architecture ...ForSequenceClassification."
            )
        if not self.include_prompt:
            raise CheckpointError(
                f"{self.checkpoint.folder}: a CrossEncoder whose Pooling leaves prompts out (include_prompt false) is "
                "not supported; pooling of pairs counts all tokens."
            )
        return self.scored


def _splade(checkpoint: Opened, entries: list[dict[str, Any]], kinds: list[str], task: str) -> SparseHead:
    if len(kinds) != 2 or kinds[0] not in TRANSFORMERS or kinds[1] != "SpladePooling" or task != "fill-mask":
        raise CheckpointError(
            f"{checkpoint.folder}: modules.json has the modules {', '.join(kinds)}, the first for the task {task!r}; "
            "expected Transformer for 'fill-mask', then SpladePooling."
        )
    folder = str(entries[1]["path"]).strip("/")
    config = _module_config(checkpoint, folder, "SpladePooling")
    pooling, activation = config.get("pooling_strategy", "max"), config.get("activation_function", "relu")
    where = f"{checkpoint.folder}: {folder}/config.json"
    if pooling not in get_args(SparsePooling) or activation not in _LOGARITHMS:
        raise CheckpointError(
            f"{where}: pooling_strategy={pooling!r}, activation_function={activation!r}; expected "
            f"{' or '.join(get_args(SparsePooling))}, and {' or '.join(_LOGARITHMS)}."
        )
    stated = pipeline_settings(checkpoint)
    top_k = stated.get("max_active_dims")
    if top_k is not None and (type(top_k) is not int or top_k < 1):
        raise CheckpointError(
            f"{checkpoint.folder}: config_sentence_transformers.json: max_active_dims={top_k!r}; expected a number "
            ">= 1 or null."
        )
    similarity = _similarity(checkpoint, stated, "dot")
    return SparseHead(pooling, _LOGARITHMS[activation], top_k=top_k, similarity=similarity, source="modules.json")


def _logit_score(checkpoint: Opened, entries: list[dict[str, Any]], kinds: list[str]) -> YesNoHead:
    if kinds != ["Transformer", "LogitScore"]:
        raise CheckpointError(
            f"{checkpoint.folder}: modules.json has the modules {', '.join(kinds)}; expected Transformer, LogitScore."
        )
    folder = str(entries[1]["path"]).strip("/")
    config = _module_config(checkpoint, folder, "LogitScore")
    yes, no = config.get("true_token_id"), config.get("false_token_id")
    if type(yes) is not int or not (no is None or type(no) is int) or yes < 0 or (no or 0) < 0 or yes == no:
        raise CheckpointError(
            f"{checkpoint.folder}: {folder}/config.json: true_token_id={yes!r}, false_token_id={no!r}; expected two "
            "vocabulary ids, the second one or null."
        )
    if config.get("module_input_name", "causal_logits") != "causal_logits":
        raise CheckpointError(
            f"{checkpoint.folder}: {folder}/config.json: module_input_name={config['module_input_name']!r}; expected "
            "'causal_logits'."
        )
    return YesNoHead(yes, no, f"{folder}/config.json", read_score_activation(checkpoint, 1))


def read_score_activation(checkpoint: Opened, labels: int) -> Activation:
    """What raw scores of pairs go through: of the pipeline's file, else of config.json, else sigmoid of one score.

    A name that is none of torch's is passed over, as sentence-transformers does without trust in a repository's code.

    Raises:
        CheckpointError: a module of torch that archport does not know.
    """
    own = checkpoint.config.get("sentence_transformers")
    places = {
        "config_sentence_transformers.json: activation_fn": pipeline_settings(checkpoint).get("activation_fn"),
        "config.json: sentence_transformers.activation_fn": own.get("activation_fn") if isinstance(own, dict) else None,
        "config.json: sbert_ce_default_activation_function": checkpoint.config.get(
            "sbert_ce_default_activation_function"
        ),
    }
    for where, stated in places.items():
        if stated is None:
            continue
        if not str(stated).startswith("torch."):
            log.warning(
                "%s: %s=%r is code that archport does not run; it is passed over", checkpoint.folder, where, stated
            )
            continue
        return _activation(f"{checkpoint.folder}: {where}", stated)
    return "sigmoid" if labels == 1 else "identity"


def pipeline_settings(checkpoint: Opened) -> dict[str, Any]:
    """`config_sentence_transformers.json`, which counts next to a `modules.json` only."""
    if checkpoint.modules is None:
        return {}
    return checkpoint.json("config_sentence_transformers.json") or {}


def _module_config(checkpoint: Opened, folder: str, kind: str) -> dict[str, Any]:
    path = f"{folder}/config.json" if folder else "config.json"
    config = checkpoint.json(path)
    if config is None:
        raise CheckpointError(f"{checkpoint.folder}: modules.json lists a {kind} module and {path} is missing.")
    return config


def _pooling(checkpoint: Opened, folder: str, config: Mapping[str, Any]) -> tuple[PoolingMode, ...]:
    stated = config.get("pooling_mode")
    if stated is None:
        flags = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
        unknown = [flag for flag in flags if flag not in _POOLING_FLAGS]
        modes: list[PoolingMode] = [mode for flag, mode in _POOLING_FLAGS.items() if flag in flags]
        # A file whose flags are all false or absent means the class default.
        modes = modes or ["mean"]
    else:
        names = [stated] if isinstance(stated, str) else stated
        listed = names if isinstance(names, list) else [names]
        unknown = [str(name) for name in listed if name not in _POOLING_NAMES]
        modes = [_POOLING_NAMES[name] for name in listed if name in _POOLING_NAMES]
    if unknown or not modes:
        raise CheckpointError(
            f"{checkpoint.folder}: {folder}/config.json asks for pooling {', '.join(unknown) or stated!r}; "
            f"expected one or more of {', '.join(_POOLING_NAMES)}."
        )
    return tuple(modes)


def _dense(checkpoint: Opened, folder: str, config: Mapping[str, Any]) -> Dense:
    where = f"{checkpoint.folder}: {folder}/config.json"
    stated = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    name: Activation = "identity" if stated is None else _activation(f"{where}: activation_function", stated)
    in_features, out_features = config.get("in_features"), config.get("out_features")
    if type(in_features) is not int or type(out_features) is not int or min(in_features, out_features) < 1:
        raise CheckpointError(f"{where}: in_features={in_features!r}, out_features={out_features!r}; expected sizes.")
    residual = config.get("use_residual") is True
    return Dense(folder, in_features, out_features, config.get("bias", True) is True, name, residual)


def _activation(where: str, stated: Any) -> Activation:
    """The activation that a dotted name of torch means."""
    name = str(stated).rsplit(".", 1)[-1].lower()
    for known in get_args(Activation):
        if name == known and str(stated).startswith("torch."):
            return known
    raise CheckpointError(f"{where}={stated!r}; expected torch.nn's module of {', '.join(get_args(Activation))}.")


def _check_names(checkpoint: Opened, folder: str, config: Mapping[str, Any], kind: str) -> None:
    """Refuse a module that reads or makes something else than the pooled vector."""
    for key in ("module_input_name", "module_output_name"):
        if config.get(key) not in (None, "sentence_embedding"):
            raise CheckpointError(
                f"{checkpoint.folder}: {folder}/config.json: {key}={config[key]!r}; archport applies {kind} modules to "
                "pooled vectors only. A plugin that projects per token has to answer `archport_head` here."
            )


def _similarity(checkpoint: Opened, settings: Mapping[str, Any], default: Similarity = "cosine") -> Similarity:
    stated = settings.get("similarity_fn_name") or default
    for known in get_args(Similarity):
        if stated == known:
            return known
    raise CheckpointError(
        f"{checkpoint.folder}: similarity_fn_name={stated!r}; expected one of {', '.join(get_args(Similarity))}."
    )


def _truncate(settings: Mapping[str, Any]) -> int | None:
    stated = settings.get("truncate_dim")
    if stated is None:
        return None
    if type(stated) is not int or stated < 1:
        raise CheckpointError(f"config_sentence_transformers.json: truncate_dim={stated!r}; expected a size or null.")
    return stated
