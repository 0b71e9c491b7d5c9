"""One spelling of `config.json` for the three dialects in which the same model is published.

The dialects are the classic hub files, mlx-community's conversions, and what transformers 5 saves. Rules act on keys;
the few that depend on what a family's files leave out are the tables below. Knows nothing of modules or tensors.

Normalised keys, beyond those that all dialects share:
    causal              whether tokens see only earlier ones; the one flag, on the root and on a text config
    rope_theta          with `global_rope_theta` as its second name where a local one exists
    rope_local_base_freq  with `local_rope_theta` as its second name: the theta of sliding layers
    rope_scaling        None or a dict with both `type` and `rope_type`
    layer_types         one name per layer, whenever the file says or implies them
    num_experts         whatever the file called the count of experts
    dtype               the stored element type, without `torch.`
    text_config         under this name where a file calls it `llm_config`
    text_only           True for the text half of a multimodal family, saved on its own
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

from archport.contract.errors import CheckpointError

_TAGGED_FLOATS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}
# Encoders carry no flag that says so.
_ENCODERS = frozenset(
    {
        *("albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "ernie", "esm", "eurobert"),
        *("gte", "longformer", "modernbert", "mpnet", "neobert", "new", "nomic_bert", "rembert", "roberta"),
        *("roberta-prelayernorm", "siglip", "siglip_text_model", "siglip_vision_model", "squeezebert", "xlm-roberta"),
        *("xlm-roberta-xl", "xlm_roberta", "xmod"),
    }
)
# Their routers always renormalise, and their files leave the flag out.
_ALWAYS_RENORMALISE = ("qwen3_vl_moe", "qwen3_5_moe")
_NEVER_RECURSE = ("quantization_config", "generation_config")
_SECOND_NAMES = (("rope_theta", "global_rope_theta"), ("rope_local_base_freq", "local_rope_theta"))


def normalise_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A `config.json` in the one spelling that adapters read; the argument stays as it was.

    Raises:
        CheckpointError: a value that contradicts another, such as a layer pattern of another length.
    """
    config = _level(_decode(copy.deepcopy(dict(raw))))
    if isinstance(config.get("architectures"), str):
        config["architectures"] = [config["architectures"]]
    if "text_config" not in config and isinstance(config.get("llm_config"), dict):
        config["text_config"] = config.pop("llm_config")
    text = config.get("text_config")
    if isinstance(text, dict):
        _share_with_text(config, text)
    for name in ("vision_config", "audio_config"):
        # A tower's own type is spelled differently by every dialect: nobody may dispatch on it.
        if isinstance(config.get(name), dict):
            config[name].pop("model_type", None)
    if str(config.get("model_type", "")).endswith("_text"):
        config["text_only"] = True
    config["causal"] = _is_causal(config)
    if isinstance(text, dict):
        text["causal"] = config["causal"]
    return config


def _decode(value: Any) -> Any:
    """JSON has no infinity; transformers writes `{"__float__": "Infinity"}` for it."""
    if isinstance(value, dict):
        if set(value) == {"__float__"} and value["__float__"] in _TAGGED_FLOATS:
            return _TAGGED_FLOATS[value["__float__"]]
        return {key: _decode(item) for key, item in value.items()}
    return [_decode(item) for item in value] if isinstance(value, list) else value


def _level(config: dict[str, Any]) -> dict[str, Any]:
    """One level of the config and, recursively, its `*_config` children."""
    for key, child in config.items():
        if key.endswith("_config") and key not in _NEVER_RECURSE and isinstance(child, dict):
            config[key] = _level(child)
    _rope(config)
    _experts(config)
    _layer_types(config)
    dtype = config.pop("torch_dtype", None)
    dtype = config.get("dtype") or dtype
    if isinstance(dtype, str):
        config["dtype"] = dtype.removeprefix("torch.")
    return config


def _rope(config: dict[str, Any]) -> None:
    parameters = config.get("rope_parameters")
    if isinstance(parameters, dict):
        full, sliding = parameters.get("full_attention"), parameters.get("sliding_attention")
        if isinstance(full, dict) or isinstance(sliding, dict):
            del config["rope_parameters"]
            _lift(config, full if isinstance(full, dict) else {}, "rope_theta")
            _lift(config, sliding if isinstance(sliding, dict) else {}, "rope_local_base_freq", scaling=False)
        elif parameters.get("rope_type", parameters.get("type")) == "axial":
            # Two axes of a vision tower: only the theta means the same as elsewhere.
            _lift(config, parameters, "rope_theta", scaling=False)
        else:
            del config["rope_parameters"]
            _lift(config, parameters, "rope_theta")
    scaling = config.get("rope_scaling")
    if isinstance(scaling, dict):
        kind = scaling.get("rope_type", scaling.get("type"))
        if kind is not None:
            scaling["type"] = scaling["rope_type"] = kind
    if any(config.get(name) is not None for name in ("rope_local_base_freq", "local_rope_theta", "global_rope_theta")):
        for first, second in _SECOND_NAMES:
            value = config.get(first) if config.get(first) is not None else config.get(second)
            if value is not None:
                config[first] = config[second] = value


def _lift(config: dict[str, Any], parameters: Mapping[str, Any], theta: str, scaling: bool = True) -> None:
    """Move one rope dict to the classic keys: its theta, its partial factor, and the rest as `rope_scaling`."""
    if parameters.get("rope_theta") is not None:
        config[theta] = parameters["rope_theta"]
        # The old spelling next to the new one is a leftover.
        for first, second in _SECOND_NAMES:
            if theta == first:
                config.pop(second, None)
    if not scaling:
        return
    if parameters.get("partial_rotary_factor") is not None:
        config["partial_rotary_factor"] = parameters["partial_rotary_factor"]
    rest = {key: value for key, value in parameters.items() if key != "rope_theta"}
    kind = rest.get("rope_type", rest.get("type"))
    plain = kind in (None, "default") and set(rest) <= {"rope_type", "type"}
    config["rope_scaling"] = None if plain else rest


def _experts(config: dict[str, Any]) -> None:
    if config.get("num_experts") is None and config.get("num_local_experts") is not None:
        config["num_experts"] = config["num_local_experts"]
    model_type = str(config.get("model_type", ""))
    if (
        config.get("num_experts")
        and config.get("norm_topk_prob") is None
        and model_type.startswith(_ALWAYS_RENORMALISE)
    ):
        config["norm_topk_prob"] = True


def _layer_types(config: dict[str, Any]) -> None:
    layers = config.get("num_hidden_layers")
    stated = config.get("layer_types")
    if isinstance(stated, list):
        if isinstance(layers, int) and len(stated) != layers:
            raise CheckpointError(
                f"layer_types names {len(stated)} layers and num_hidden_layers is {layers}; expected one per layer."
            )
        return
    if not isinstance(layers, int) or isinstance(layers, bool):
        return
    linear_every = _interval(config, "full_attention_interval")
    sliding_every = _interval(config, "sliding_window_pattern") or _interval(config, "_sliding_window_pattern")
    global_every = _interval(config, "global_attn_every_n_layers")
    window = config.get("sliding_window")
    if linear_every:
        derived = ["linear_attention" if (i + 1) % linear_every else "full_attention" for i in range(layers)]
    elif sliding_every:
        derived = ["sliding_attention" if (i + 1) % sliding_every else "full_attention" for i in range(layers)]
    elif global_every:
        derived = ["sliding_attention" if i % global_every else "full_attention" for i in range(layers)]
    elif config.get("use_sliding_window") is not None:
        first = config.get("max_window_layers", layers) if config["use_sliding_window"] and window else layers
        derived = ["sliding_attention" if i >= first else "full_attention" for i in range(layers)]
    else:
        return
    config["layer_types"] = derived


def _interval(config: Mapping[str, Any], key: str) -> int:
    """A layer interval, 0 when the file states none."""
    value = config.get(key)
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"{key}={value!r}; expected a number of layers >= 1.")
    return value


def _share_with_text(config: dict[str, Any], text: dict[str, Any]) -> None:
    """Settings that a multimodal root and its text half both state: the root wins, or is filled in."""
    # transformers writes the class default into the text half of a save whose head is its own.
    for key in ("tie_word_embeddings", "dtype"):
        if config.get(key) is not None:
            text[key] = config[key]
        elif text.get(key) is not None:
            config[key] = text[key]
    model_type = str(config.get("model_type", ""))
    if text.get("num_experts") and text.get("norm_topk_prob") is None and model_type.startswith(_ALWAYS_RENORMALISE):
        text["norm_topk_prob"] = True


def _is_causal(config: Mapping[str, Any]) -> bool:
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
            return False
    if str(config.get("model_type", "")) in _ENCODERS:
        return config.get("is_decoder") is True
    return True
