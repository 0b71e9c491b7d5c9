"""The type of every layer, as the config states or implies it. Knows nothing of what a type does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from archport.checkpoint.config.config_class import LayerRule
from archport.contract.errors import CheckpointError

LINEAR, SLIDING, FULL = "linear_attention", "sliding_attention", "full_attention"
# Far more than any model has: lists of one entry per layer are made before tensors are counted.
MOST_LAYERS = 100_000
# Names that older files use.
_OLD_NAMES = {"mamba": LINEAR, "attention": FULL}


def normalise_layer_types(config: dict[str, Any], rule: LayerRule | None) -> None:
    """Set `layer_types` of one level in place, one name per layer, where the file or its class says them.

    Args:
        rule: of the config's class; None reads whichever key the file has.

    Raises:
        CheckpointError: a list of another length, an interval that is none, or windows that are switched off.
    """
    layers, stated = config.get("num_hidden_layers"), config.get("layer_types")
    if isinstance(layers, int) and layers > MOST_LAYERS:
        raise CheckpointError(f"num_hidden_layers={layers}; expected at most {MOST_LAYERS:,}.")
    if stated is not None and not isinstance(stated, list):
        raise CheckpointError(f"layer_types={stated!r}; expected a list of one name per layer.")
    if rule in ("windows", "all") and not config.get("use_sliding_window"):
        config["sliding_window"] = None
    if isinstance(stated, list) and rule != "all":
        config["layer_types"] = [_OLD_NAMES.get(name, name) if isinstance(name, str) else name for name in stated]
        if isinstance(layers, int) and len(stated) != layers:
            raise CheckpointError(
                f"layer_types names {len(stated)} layers and num_hidden_layers is {layers}; expected one per layer."
            )
        if rule == "windows" and SLIDING in stated and config.get("sliding_window") is None:
            raise CheckpointError(
                f"layer_types names {SLIDING!r} while use_sliding_window={config.get('use_sliding_window')!r} leaves "
                "no window; expected use_sliding_window true and sliding_window in tokens, or full_attention only."
            )
        return
    if not isinstance(layers, int) or isinstance(layers, bool):
        return
    derived = _by_rule(config, layers, rule) if rule else _by_keys(config, layers)
    if derived is not None:
        config["layer_types"] = derived


def _by_rule(config: Mapping[str, Any], layers: int, rule: LayerRule) -> list[str]:
    """The types that a known class takes; it reads no other class's keys."""
    if rule == "interval":
        return _most(layers, LINEAR, _interval(config, "full_attention_interval") or 4, first=1)
    if rule == "pattern":
        return _most(layers, SLIDING, _interval(config, "sliding_window_pattern") or 6, first=1)
    if rule == "every":
        return _most(layers, SLIDING, _interval(config, "global_attn_every_n_layers") or 3, first=0)
    if config.get("sliding_window") is None:
        return [FULL] * layers
    return [SLIDING] * layers if rule == "all" else _windows(config, layers)


def _by_keys(config: Mapping[str, Any], layers: int) -> list[str] | None:
    if every := _interval(config, "full_attention_interval"):
        return _most(layers, LINEAR, every, first=1)
    if every := _interval(config, "sliding_window_pattern") or _interval(config, "_sliding_window_pattern"):
        return _most(layers, SLIDING, every, first=1)
    if every := _interval(config, "global_attn_every_n_layers"):
        return _most(layers, SLIDING, every, first=0)
    if config.get("use_sliding_window") is None:
        return None
    windowed = config["use_sliding_window"] and config.get("sliding_window")
    return _windows(config, layers) if windowed else [FULL] * layers


def _most(layers: int, kind: str, every: int, *, first: int) -> list[str]:
    """`kind`, but full attention in every `every`-th layer; the first of these has number `first` from one, or zero."""
    return [kind if (index + first) % every else FULL for index in range(layers)]


def _windows(config: Mapping[str, Any], layers: int) -> list[str]:
    first = config.get("max_window_layers", layers)
    if not isinstance(first, int) or isinstance(first, bool):
        raise CheckpointError(f"max_window_layers={first!r}; expected a number of layers.")
    return [SLIDING if index >= first else FULL for index in range(layers)]


def _interval(config: Mapping[str, Any], key: str) -> int:
    """A layer interval, 0 when the file states none."""
    value = config.get(key)
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"{key}={value!r}; expected a number of layers >= 1.")
    return value
