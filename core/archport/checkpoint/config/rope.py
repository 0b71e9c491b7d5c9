"""The ropes of a config under one spelling, merged as transformers 5 merges them.

Files write them as `rope_theta` and `rope_scaling`, as `rope_parameters`, or as `rope_parameters` per layer type, and
some as several of these. Knows nothing of frequencies.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from archport.checkpoint.config.config_class import RopeDefaults
from archport.contract.errors import CheckpointError

_SECOND_NAMES = (("rope_theta", "global_rope_theta"), ("rope_local_base_freq", "local_rope_theta"))
_LAYER_TYPES = ("full_attention", "sliding_attention")
# Types that count from a trained length; without one it is `max_position_embeddings`.
_TRAINED = ("llama3", "yarn", "longrope")


def normalise_ropes(config: dict[str, Any], defaults: RopeDefaults | None) -> None:
    """Bring one level of a config to the keys that `normalise_config` promises.

    Args:
        config: changed in place; `max_position_embeddings` is what its class says where the file does not.
        defaults: of its class; None leaves what no file states unstated.

    Raises:
        CheckpointError: settings that contradict each other.
    """
    for key in ("rope_parameters", "rope_scaling"):
        if config.get(key) is not None and not isinstance(config[key], dict):
            raise CheckpointError(f"{key}={config[key]!r}; expected an object, or null.")
    parameters = config.get("rope_parameters")
    if parameters is not None and _kind(parameters) == "axial":
        # Two axes of a vision tower: only the theta means the same as elsewhere.
        if parameters.get("rope_theta") is not None:
            config["rope_theta"] = parameters["rope_theta"]
        return
    layered = parameters is not None and any(isinstance(parameters.get(name), dict) for name in _LAYER_TYPES)
    local_theta_stated = any(config.get(name) is not None for name in ("rope_local_base_freq", "local_rope_theta"))
    if defaults.local_theta is not None if defaults else layered:
        _layered(config, parameters, defaults)
    elif defaults is not None or parameters is not None or isinstance(config.get("rope_scaling"), dict):
        _flat(config, parameters, defaults)
    if local_theta_stated or config.get("global_rope_theta") is not None:
        for first, second in _SECOND_NAMES:
            value = config.get(first) if config.get(first) is not None else config.get(second)
            if value is not None:
                config[first] = config[second] = value


def _flat(config: dict[str, Any], parameters: Mapping[str, Any] | None, defaults: RopeDefaults | None) -> None:
    """One rope for all layers."""
    scaling = config.get("rope_scaling")
    # transformers 5 takes rope_scaling instead of rope_parameters, its theta included, not merged key by key.
    stated = dict(scaling or parameters or {})
    config.pop("rope_parameters", None)
    theta = _first(stated.get("rope_theta"), config.get("rope_theta"), defaults.theta if defaults else None)
    if theta is not None:
        config["rope_theta"] = theta
        # The old spelling next to the new one is a leftover.
        config.pop("global_rope_theta", None)
    partial = _first(stated.get("partial_rotary_factor"), config.get("partial_rotary_factor"))
    partial = partial if partial is not None or defaults is None else defaults.partial
    rest = {key: value for key, value in stated.items() if key != "rope_theta"}
    if defaults is not None:
        rest.pop("partial_rotary_factor", None)
    if partial is not None:
        config["partial_rotary_factor"] = partial
    if defaults is not None and defaults.partial is None:
        _whole_heads(config.pop("partial_rotary_factor", None), rest)
    # A class that states the trained length next to its rope means that one.
    if config.get("original_max_position_embeddings") is not None and _kind(rest) in _TRAINED:
        rest["original_max_position_embeddings"] = config["original_max_position_embeddings"]
    config["rope_scaling"] = _scaling(config, rest, defaults)
    _stretch(config)


def _layered(config: dict[str, Any], parameters: dict[str, Any] | None, defaults: RopeDefaults | None) -> None:
    """One rope for layers with full attention, and one for sliding layers."""
    if parameters is None:
        # A config that was normalised before has its sliding layers' scaling under its own name.
        parameters = {"sliding_attention": config.get("rope_local_scaling")}
    scaling, scales_local = config.get("rope_scaling"), defaults is not None and defaults.scales_local
    found: list[dict[str, Any] | None] = []
    for at, name in enumerate(_LAYER_TYPES):
        own = parameters.get(name)
        rope: dict[str, Any] = dict(own) if isinstance(own, dict) else {"rope_type": "default"}
        if isinstance(scaling, dict) and (at == 0 or (scales_local and "rope_local_scaling" not in config)):
            rope |= scaling
        key = defaults.keys[at] if defaults else _SECOND_NAMES[at][0]
        theta = _first(
            rope.pop("rope_theta", None),
            config.get(key),
            (defaults.theta, defaults.local_theta)[at] if defaults else None,
        )
        for other in _SECOND_NAMES[at]:
            config.pop(other, None)
        if theta is not None:
            config[_SECOND_NAMES[at][0]] = config[_SECOND_NAMES[at][1]] = theta
        partial = _first(rope.pop("partial_rotary_factor", None), config.get("partial_rotary_factor"))
        if defaults is not None:
            _whole_heads(partial, rope)
        # Read next to the layer types, where no file has it.
        rope.pop("truncate", None)
        found.append(_scaling(config, rope, defaults))
    config.pop("rope_parameters", None)
    config["rope_scaling"], config["rope_local_scaling"] = found
    _stretch(config)


def _scaling(config: Mapping[str, Any], rope: dict[str, Any], defaults: RopeDefaults | None) -> dict[str, Any] | None:
    """What is left of a rope without its theta, under both names of its type; None where nothing is stretched."""
    kind = _kind(rope)
    positions = config.get("max_position_embeddings")
    if kind is not None:
        rope["type"] = rope["rope_type"] = kind
    if defaults is None:
        return None if kind in (None, "default") and set(rope) <= {"rope_type", "type"} else rope
    if kind in _TRAINED and positions is not None:
        rope.setdefault("original_max_position_embeddings", positions)
    trained = rope.get("original_max_position_embeddings")
    if kind in ("yarn", "longrope") and "factor" in rope and rope["factor"] is None and trained and positions:
        rope["factor"] = positions / trained
    if kind == "dynamic":
        # It stretches only what is longer than max_position_embeddings, and no request is.
        return None
    return None if kind in (None, "default") and set(rope) <= {"rope_type", "type", "factor"} else rope


def _stretch(config: dict[str, Any]) -> None:
    """Positions that yarn makes usable: the published recipe adds `rope_scaling` and leaves the old ceiling."""
    positions = config.get("max_position_embeddings")
    ropes = [config.get("rope_scaling"), *([config["rope_local_scaling"]] if "rope_local_scaling" in config else [])]
    if not isinstance(positions, int) or not all(isinstance(rope, dict) and _kind(rope) == "yarn" for rope in ropes):
        return
    reach: list[int] = []
    for rope in ropes:
        trained, factor = rope.get("original_max_position_embeddings"), rope.get("factor")
        if not isinstance(trained, int | float) or not isinstance(factor, int | float) or isinstance(factor, bool):
            return
        reach.append(int(trained * factor))
    config["max_position_embeddings"] = max(positions, min(reach))


def _whole_heads(partial: Any, rope: Mapping[str, Any]) -> None:
    """Classes that turn whole heads ignore a share where their rope is plain, and fail where it is stretched."""
    if partial not in (None, 1, 1.0) and _kind(rope) not in (None, "default"):
        raise CheckpointError(
            f"partial_rotary_factor={partial!r} beside a rope of type {_kind(rope)!r}: this model turns whole heads; "
            "expected 1.0 or none."
        )


def _kind(rope: Mapping[str, Any]) -> Any:
    return rope.get("rope_type", rope.get("type"))


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
