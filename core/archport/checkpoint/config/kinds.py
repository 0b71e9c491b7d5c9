"""What kind of value a key of a config has, by the classes that know it, and that no count is beyond any model.

A wrong kind would fall in whatever reads the key first: a claim, a rope, a module. Knows no relation between keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from archport.checkpoint.config.classes import CLASSES
from archport.contract.errors import CheckpointError

# Shapes of arrays end there.
LARGEST = 2**31 - 1
Test = Callable[[Any], bool]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST


def _listed(test: Test) -> Test:
    return lambda value: isinstance(value, list) and all(test(entry) for entry in value)


_COUNT: tuple[Test, str] = (_is_count, f"a whole number from 0 to {LARGEST:,}")
_NUMBER: tuple[Test, str] = (_is_number, "a finite number")
_FLAG: tuple[Test, str] = (lambda value: isinstance(value, bool), "true or false")
_WHOLE: tuple[Test, str] = (_is_id, "a whole number")
_NAME: tuple[Test, str] = (lambda value: isinstance(value, str), "a name")
_COUNTS: tuple[Test, str] = (_listed(_is_count), "a list of whole numbers")
_NUMBERS: tuple[Test, str] = (_listed(_is_number), "a list of finite numbers")
_NAMES: tuple[Test, str] = (_listed(lambda value: isinstance(value, str)), "a list of names")
_ID: tuple[Test, str] = (_is_id, "a token id")
_IDS: tuple[Test, str] = (lambda value: _is_id(value) or _listed(_is_id)(value), "a token id, or a list of them")
_LABELS: tuple[Test, str] = (
    lambda value: isinstance(value, dict) and all(isinstance(name, str) for name in value.values()),
    "an object of number to name",
)


def _by_default(value: Any) -> tuple[Test, str]:
    if isinstance(value, bool):
        return _FLAG
    if isinstance(value, int):
        return _COUNT
    return _NUMBER if isinstance(value, float) else _COUNTS if isinstance(value, list) else _NAME


def _of_classes() -> dict[str, tuple[Test, str]]:
    known: dict[str, tuple[Test, str]] = {}
    for each in CLASSES.values():
        for key, value in {**each.defaults, **each.absent}.items():
            known[key] = _by_default(value)
        known |= {other: known[key] for other, key in each.names.items() if key in known}
    return known


# Of every level that a class of classes.py reads.
KINDS: Mapping[str, tuple[Test, str]] = {
    **_of_classes(),
    # Scales of attention, which files also write with a point.
    "query_pre_attn_scalar": _NUMBER,
    **dict.fromkeys(("head_dim", "num_key_value_heads", "num_labels", "rotary_dim"), _COUNT),
    **dict.fromkeys(("full_attention_interval", "sliding_window_pattern", "_sliding_window_pattern"), _COUNT),
    **dict.fromkeys(("global_attn_every_n_layers", "mtp_num_hidden_layers"), _COUNT),
    **dict.fromkeys(("rope_theta", "global_rope_theta", "local_rope_theta", "rope_local_base_freq"), _NUMBER),
    **dict.fromkeys(("partial_rotary_factor", "original_max_position_embeddings"), _NUMBER),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping"), _NUMBER),
    **dict.fromkeys(("layer_types", "mlp_layer_types"), _NAMES),
    **dict.fromkeys(("dtype", "torch_dtype", "hidden_act", "hidden_activation", "pooling"), _NAME),
    "position_embedding_type": _NAME,
    # Below 1 a file says that it states none.
    **dict.fromkeys(("max_relative_positions", "position_buckets"), _WHOLE),
    "norm_rel_ebd": _NAME,
    "share_att_key": _FLAG,
    "pos_att_type": (
        lambda value: isinstance(value, str) or _listed(lambda entry: isinstance(entry, str))(value),
        "a name, or a list of names",
    ),
    **dict.fromkeys(("is_causal", "is_decoder", "use_cache", "tie_word_embeddings", "norm_topk_prob"), _FLAG),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "cls_token_id", "sep_token_id", "mask_token_id"), _ID),
    "eos_token_id": _IDS,
    "id2label": _LABELS,
    "label2id": (lambda value: isinstance(value, dict), "an object of name to number"),
}  # fmt: skip
_ROPE: Mapping[str, tuple[Test, str]] = {
    **dict.fromkeys(("factor", "low_freq_factor", "high_freq_factor", "attention_factor", "beta_fast"), _NUMBER),
    **dict.fromkeys(("beta_slow", "mscale", "mscale_all_dim", "rope_theta", "partial_rotary_factor"), _NUMBER),
    "original_max_position_embeddings": _NUMBER,
    **dict.fromkeys(("short_factor", "long_factor"), _NUMBERS),
    "mrope_section": _COUNTS,
    **dict.fromkeys(("rope_type", "type"), _NAME),
    **dict.fromkeys(("truncate", "mrope_interleaved", "finetuned"), _FLAG),
}
_ROPES = ("rope_scaling", "rope_parameters", "rope_local_scaling")


def check_kinds(config: Mapping[str, Any], level: str = "") -> None:
    """Refuse values of another kind than the classes of classes.py read; null is what the class takes.

    Args:
        config: one level, as the file has it.
        level: its name in front of the key in messages, with a dot after it.

    Raises:
        CheckpointError: naming the key, its value and what was expected.
    """
    _check(config.items(), KINDS, level)
    for key in _ROPES:
        check_rope(config.get(key), f"{level}{key}.")


def check_rope(rope: Any, level: str) -> None:
    """The same of a rope's settings, or of ropes by the type of their layers; what is no object is passed over."""
    if not isinstance(rope, dict):
        return
    _check(rope.items(), _ROPE, level)
    for name, own in rope.items():
        if isinstance(own, dict):
            _check(own.items(), _ROPE, f"{level}{name}.")


def _check(entries: Iterable[tuple[str, Any]], kinds: Mapping[str, tuple[Test, str]], level: str) -> None:
    for key, value in entries:
        if value is None or key not in kinds:
            continue
        test, expected = kinds[key]
        if not test(value):
            raise CheckpointError(f"{level}{key}={value!r:.80}; expected {expected}.")
