"""One spelling of `config.json` for the dialects in which the same model is published.

The dialects are the classic hub files, mlx-community's conversions, and what transformers 5 saves. Rules act on keys;
what a class fills in is the table in classes.py. Knows nothing of modules or tensors.

Normalised keys, beyond those that all dialects share:
    causal              whether tokens see only earlier ones; the one flag, on the root and on a text config
    causal_stated       whether the file says so, or its class is one that core knows; without either `causal` is only
                        the usual answer, and an encoder's claim need not believe it
    rope_theta          with `global_rope_theta` as its second name where a local one exists
    rope_local_base_freq  with `local_rope_theta` as its second name: the theta of sliding layers
    rope_scaling        None or a dict with both `type` and `rope_type`
    rope_local_scaling  the same of sliding layers, where these have a rope of their own
    max_position_embeddings  with what yarn adds to it
    layer_types         one name per layer, whenever the file or its class says or implies them
    num_experts         whatever the file called the count of experts
    dtype               the stored element type, without `torch.`; no key where the file has none
    text_config         under this name where a file calls it `llm_config`
    text_only           True for the text half of a multimodal family, saved on its own
and, for a `model_type` of classes.py, every key of its class that a file leaves out or states as null.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

from archport.checkpoint.config.classes import CLASSES
from archport.checkpoint.config.config_class import ConfigClass
from archport.checkpoint.config.kinds import check_kinds
from archport.checkpoint.config.layers import normalise_layer_types
from archport.checkpoint.config.rope import normalise_ropes
from archport.contract.errors import CheckpointError

_TAGGED_FLOATS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}
# Encoders carry no flag that says so. These are those for which plugins read `causal`; any other is left to its claim.
_ENCODERS = frozenset(
    {
        *("albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "ernie", "esm", "eurobert"),
        *("gte", "jina_embeddings_v3", "longformer", "modernbert", "mpnet", "mt5", "neobert", "new", "nomic_bert"),
        *("rembert", "roberta", "roberta-prelayernorm", "siglip", "siglip_text_model", "siglip_vision_model"),
        *("squeezebert", "t5", "umt5", "xlm-roberta", "xlm-roberta-xl", "xlm_roberta", "xmod"),
    }
)
_NEVER_RECURSE = ("quantization_config", "generation_config")
_PARTS: tuple[str, ...] = ("text_config", "vision_config")


def normalise_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A `config.json` in the one spelling that adapters read; the argument stays as it was.

    Raises:
        CheckpointError: a value that contradicts another, such as a layer pattern of another length.
    """
    config: dict[str, Any] = _decode(copy.deepcopy(dict(raw)))
    names = config.get("architectures")
    if isinstance(names, str):
        names = config["architectures"] = [names]
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise CheckpointError(f"architectures={names!r}; expected a list of class names.")
    if not isinstance(config.get("model_type", ""), str | None):
        raise CheckpointError(f"model_type={config['model_type']!r:.80}; expected a name.")
    if "text_config" not in config and isinstance(config.get("llm_config"), dict):
        config["text_config"] = config.pop("llm_config")
    known = CLASSES.get(str(config.get("model_type", "")))
    for part in _PARTS if known is not None and known.parts else ():
        if known is not None and known.whole and config.get(part) is None:
            config[part] = {}
        if config.get(part) is not None and not isinstance(config[part], dict):
            raise CheckpointError(f"{part}={config[part]!r:.80}; expected an object.")
    config = _level(config, known, "")
    text = config.get("text_config")
    if isinstance(text, dict):
        _share_with_text(config, text)
    for name in ("vision_config", "audio_config"):
        # A tower's own type is spelled differently by every dialect: nobody may dispatch on it.
        if isinstance(config.get(name), dict):
            config[name].pop("model_type", None)
    if str(config.get("model_type", "")).endswith("_text"):
        config["text_only"] = True
    config["causal"], config["causal_stated"] = _is_causal(config)
    if isinstance(text, dict):
        text["causal"], text["causal_stated"] = config["causal"], config["causal_stated"]
    return config


def _decode(value: Any) -> Any:
    """JSON has no infinity; transformers writes `{"__float__": "Infinity"}` for it."""
    if isinstance(value, dict):
        tagged = value.get("__float__") if len(value) == 1 else None
        if isinstance(tagged, str) and tagged in _TAGGED_FLOATS:
            return _TAGGED_FLOATS[tagged]
        return {key: _decode(item) for key, item in value.items()}
    return [_decode(item) for item in value] if isinstance(value, list) else value


def _level(config: dict[str, Any], known: ConfigClass | None, name: str) -> dict[str, Any]:
    """One level of the config and, recursively, its `*_config` children; `name` is its own, with a dot after it."""
    parts = dict(zip(_PARTS, known.parts, strict=True)) if known and known.parts else {}
    for key, child in config.items():
        if key.endswith("_config") and key not in _NEVER_RECURSE and isinstance(child, dict):
            config[key] = _level(child, CLASSES.get(parts.get(key, str(child.get("model_type", "")))), f"{name}{key}.")
    if known is not None:
        check_kinds(config, name)
        _fill(config, known)
    elif config.get("num_experts") is None and config.get("num_local_experts") is not None:
        config["num_experts"] = config["num_local_experts"]
    normalise_ropes(config, known.rope if known else None)
    normalise_layer_types(config, known.layers if known else None)
    dtype = config.pop("torch_dtype", None)
    dtype = config.pop("dtype", None) or dtype
    if dtype is not None:
        config["dtype"] = dtype.removeprefix("torch.") if isinstance(dtype, str) else dtype
    return config


def _fill(config: dict[str, Any], known: ConfigClass) -> None:
    """What the class takes for keys that the file leaves out."""
    for other, key in known.names.items():
        if config.get(other) is not None:
            config[key] = config[other]
    for key, value in known.absent.items():
        config.setdefault(key, value)
    for key, value in known.defaults.items():
        if config.get(key) is None:
            config[key] = copy.copy(value)
    heads, width = config.get("num_attention_heads"), config.get("hidden_size")
    if known.grouped and isinstance(heads, int) and isinstance(width, int) and heads > 0:
        if config.get("num_key_value_heads") is None:
            config["num_key_value_heads"] = heads
        if config.get("head_dim") is None:
            config["head_dim"] = width // heads
    if known.renormalises:
        config["norm_topk_prob"] = True


def _share_with_text(config: dict[str, Any], text: dict[str, Any]) -> None:
    """Settings that a multimodal root and its text half both state: the root wins, or is filled in."""
    # transformers writes the class default into the text half of a save whose head is its own.
    for key in ("tie_word_embeddings", "dtype"):
        if config.get(key) is not None:
            text[key] = config[key]
        elif text.get(key) is not None:
            config[key] = text[key]


def _is_causal(config: Mapping[str, Any]) -> tuple[bool, bool]:
    """(whether tokens see only earlier ones, whether the file or a known class says so)."""
    text = config.get("text_config")
    levels = [config, text] if isinstance(text, dict) else [config]
    for level in levels:
        model_type = str(level.get("model_type", ""))
        architectures = level.get("architectures") or []
        if (
            level.get("is_causal") is False
            or level.get("use_bidirectional_attention") in (True, "all")
            or "bidirec" in model_type
            # Its own flag says causal by a class default, although the trunk is not.
            or model_type == "llama_nemotron_vl"
            or any("Bidirectional" in str(name) for name in architectures)
        ):
            return False, True
    if str(config.get("model_type", "")) in _ENCODERS:
        return config.get("is_decoder") is True or config.get("causal") is True, True
    said = any(
        level.get("is_causal") is True
        or level.get("is_decoder") is True
        or any(str(name).endswith(("ForCausalLM", "LMHeadModel")) for name in level.get("architectures") or [])
        for level in levels
    )
    return True, said or str(config.get("model_type", "")) in CLASSES
