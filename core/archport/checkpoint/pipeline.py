"""What a sentence-transformers pipeline says: how rows become vectors, and how text becomes tokens.

Reads small JSON files only. Knows module and key names of old and new saves. Anything unknown that would change
vectors is an error, never ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from archport.checkpoint.files import body_folder, module_kind, pipeline_modules
from archport.contract.errors import CheckpointError
from archport.contract.model import (
    Activation,
    CheckpointView,
    Dense,
    EmbeddingHead,
    PoolingMode,
    Similarity,
    TextInputs,
)

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
# Settings of the transformer module; the file is named after the class of the day.
_SETTINGS_FILES = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
# A tokenizer without a limit states this one.
_NO_LIMIT = 1_000_000_000


def read_head(checkpoint: CheckpointView) -> EmbeddingHead:
    """How this checkpoint's rows become vectors.

    Without `modules.json`: the last token for an `...ForCausalLM` that is causal, else the mean; no normalisation.

    Raises:
        CheckpointError: a module, order, pooling mode, activation or similarity that archport does not know.
    """
    entries = pipeline_modules(checkpoint.folder)
    settings = checkpoint.json("config_sentence_transformers.json") or {}
    common: dict[str, Any] = {"similarity": _similarity(checkpoint, settings), "dimensions": _truncate(settings)}
    if entries is None:
        names = checkpoint.config.get("architectures") or [""]
        generates = str(names[0]).endswith("ForCausalLM") and checkpoint.config.get("causal") is not False
        mode: PoolingMode = "last" if generates else "mean"
        return EmbeddingHead((mode,), source=f"default without modules.json: {mode}", stated=False, **common)
    pooling: tuple[PoolingMode, ...] = ()
    include_prompt, normalize, dense = True, False, []
    for entry in entries:
        kind, folder = module_kind(entry), str(entry["path"]).strip("/")
        # Pooling comes first and once, and nothing follows Normalize.
        early, late = not pooling and kind in ("Dense", "Normalize"), normalize or (pooling and kind == "Pooling")
        if early or (late and kind in ("Pooling", "Dense", "Normalize")):
            raise CheckpointError(
                f"{checkpoint.folder}: modules.json has {kind} out of order; expected Transformer, Pooling, Dense "
                "modules, Normalize."
            )
        if kind == "Pooling":
            config = _module_config(checkpoint, folder, kind)
            pooling, include_prompt = _pooling(checkpoint, folder, config), config.get("include_prompt") is not False
        elif kind == "Dense":
            dense.append(_dense(checkpoint, folder, _module_config(checkpoint, folder, kind)))
        elif kind == "Normalize":
            normalize = True
        # Dropout does nothing outside training.
        elif kind not in ("Transformer", "Dropout"):
            raise CheckpointError(
                f"{checkpoint.folder}: modules.json has a module of type {entry['type']!r}, which archport does not "
                "know; expected Transformer, Pooling, Dense, Normalize or Dropout. Leaving it out would give another "
                "model's vectors, so a plugin has to answer `archport_head` for this checkpoint."
            )
    if not pooling:
        raise CheckpointError(f"{checkpoint.folder}: modules.json has no Pooling module, so nothing makes one vector.")
    return EmbeddingHead(pooling, include_prompt, tuple(dense), normalize, source="modules.json", **common)


def _module_config(checkpoint: CheckpointView, folder: str, kind: str) -> dict[str, Any]:
    path = f"{folder}/config.json" if folder else "config.json"
    config = checkpoint.json(path)
    if config is None:
        raise CheckpointError(f"{checkpoint.folder}: modules.json lists a {kind} module and {path} is missing.")
    return config


def _pooling(checkpoint: CheckpointView, folder: str, config: Mapping[str, Any]) -> tuple[PoolingMode, ...]:
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


def _dense(checkpoint: CheckpointView, folder: str, config: Mapping[str, Any]) -> Dense:
    where = f"{checkpoint.folder}: {folder}/config.json"
    stated = config.get("activation_function", "Tanh")
    name = "identity" if stated is None else str(stated).rsplit(".", 1)[-1].lower()
    activations: dict[str, Activation] = {activation: activation for activation in get_args(Activation)}
    if name not in activations:
        raise CheckpointError(f"{where}: activation_function={stated!r}; expected one of {', '.join(activations)}.")
    in_features, out_features = config.get("in_features"), config.get("out_features")
    if type(in_features) is not int or type(out_features) is not int or min(in_features, out_features) < 1:
        raise CheckpointError(f"{where}: in_features={in_features!r}, out_features={out_features!r}; expected sizes.")
    for key in ("module_input_name", "module_output_name"):
        if config.get(key) not in (None, "sentence_embedding"):
            raise CheckpointError(
                f"{where}: {key}={config[key]!r}; archport applies Dense modules to pooled vectors only. "
                "A plugin that projects per token has to answer `archport_head` for this checkpoint."
            )
    residual = config.get("use_residual") is True
    if residual and in_features != out_features and name != "identity":
        raise CheckpointError(
            f"{where}: use_residual with in_features={in_features} and out_features={out_features} projects the "
            f"residual by a second matrix, which archport reads without an activation only; here it is {stated!r}."
        )
    return Dense(folder, in_features, out_features, config.get("bias", True) is True, activations[name], residual)


def _similarity(checkpoint: CheckpointView, settings: Mapping[str, Any]) -> Similarity:
    stated = settings.get("similarity_fn_name") or "cosine"
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


def read_inputs(checkpoint: CheckpointView) -> TextInputs:
    """How text becomes tokens: length limit, prompts, lower-casing.

    The limit is the pipeline's, else the tokenizer's; None when neither states one.

    Raises:
        CheckpointError: prompts that are not text, a default prompt that does not exist, or a limit that is none.
    """
    settings = _transformer_settings(checkpoint)
    pipeline = checkpoint.json("config_sentence_transformers.json") or {}
    prompts = pipeline.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise CheckpointError(
            f"{checkpoint.folder}: config_sentence_transformers.json: prompts={prompts!r}; expected name to text."
        )
    default = pipeline.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise CheckpointError(
            f"{checkpoint.folder}: default_prompt_name={default!r} is not among the prompts {', '.join(prompts)}."
        )
    return TextInputs(
        max_tokens=_max_tokens(checkpoint, settings),
        prompts=dict(prompts),
        query_prompt="query" if "query" in prompts else None,
        document_prompt=next((name for name in ("document", "passage", "corpus") if name in prompts), None),
        default_prompt=default,
        lowercase=settings.get("do_lower_case") is True,
    )


def _transformer_settings(checkpoint: CheckpointView) -> dict[str, Any]:
    for name in _SETTINGS_FILES:
        found = _body_json(checkpoint, name)
        if found is not None:
            return found
    return {}


def _body_json(checkpoint: CheckpointView, name: str) -> dict[str, Any] | None:
    """A JSON object from beside the transformer, which some old pipelines keep in a folder of its own."""
    body = body_folder(checkpoint.folder)
    return checkpoint.json(f"{body}/{name}" if body else name)


def _max_tokens(checkpoint: CheckpointView, settings: Mapping[str, Any]) -> int | None:
    processing = settings.get("processing_kwargs") or {}
    text = processing.get("text") or {} if isinstance(processing, dict) else {}
    tokenizer = _body_json(checkpoint, "tokenizer_config.json") or checkpoint.json("tokenizer_config.json") or {}
    stated = {
        "max_seq_length": settings.get("max_seq_length"),
        "processing_kwargs.text.max_length": text.get("max_length") if isinstance(text, dict) else None,
        "model_max_length": tokenizer.get("model_max_length"),
    }
    for key, value in stated.items():
        if value is None or (isinstance(value, int | float) and value > _NO_LIMIT):
            continue
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if isinstance(value, bool) or not whole or value < 1:
            raise CheckpointError(f"{checkpoint.folder}: {key}={value!r}; expected a number of tokens >= 1 or null.")
        return int(value)
    return None
