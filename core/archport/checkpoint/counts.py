"""The counts of a config against the tensors of its checkpoint: before anything is built, and where it did not fit.

Knows that layers are numbered in the names of tensors and that a width is a side of some tensor. Knows no architecture.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from archport.checkpoint.headers import TensorInfo
from archport.contract.errors import CheckpointError

# Up to so many, a module is built and compared by its names and shapes, which tells more.
_FEW_LAYERS, _FEW_EXPERTS, _FEW = 256, 4096, 1 << 20
# A packed tensor has so many columns in one of its words.
_MOST_PACKED = 32
_LAYERS = ("num_hidden_layers", "depth", "num_layers", "n_layer", "n_layers")
_WIDTHS = (
    *("vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "type_vocab_size"),
    *("linear_key_head_dim", "linear_value_head_dim", "linear_num_key_heads", "linear_num_value_heads"),
    *("linear_conv_kernel_dim", "num_heads", "out_hidden_size", "num_position_embeddings", "patch_size"),
    *("temporal_patch_size", "in_channels", "num_channels", "embedding_size", "num_labels"),
)
_EXPERTS = ("num_experts", "num_local_experts", "num_experts_per_tok")
_NUMBER = re.compile(r"\.(\d{1,9})\.")


class Shaped(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...


def has_large_counts(config: Mapping[str, Any]) -> bool:
    """Whether a config states a count that is worth a look into the headers of its tensors."""
    return any(value > few for _, value, few in _stated(config))


def check_counts(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> None:
    """Refuse counts far beyond what the tensors could hold, which would be built layer by layer first.

    Raises:
        CheckpointError: naming the key.
    """
    layers = _stored_layers(tensors)
    widest = max((side for info in tensors.values() for side in info.shape), default=0)
    for key, value, few in _stated(config):
        most = layers if few == _FEW_LAYERS else max(widest * _MOST_PACKED, layers)
        if value > max(few, most):
            stored = f"{layers:,} numbered layers" if few == _FEW_LAYERS else f"no side above {widest:,}"
            raise CheckpointError(f"{key}={value:,}, and the tensors of the checkpoint have {stored}.")


def keys_of_misfits(
    config: Mapping[str, Any], found: Mapping[str, Shaped], expected: Mapping[str, Shaped]
) -> list[str]:
    """The keys of a config that say what its tensors contradict, as `key=value (what is stored)`."""
    told: list[str] = []
    stored, wanted = _stored_layers(found), _stored_layers(expected)
    if stored != wanted:
        told += [f"{key}={value} ({stored} are stored)" for key, value, few in _stated(config) if few == _FEW_LAYERS]
    odd: dict[int, int] = {}
    for name, array in expected.items():
        have = tuple(found[name].shape) if name in found else None
        if have is not None and len(have) == len(array.shape):
            odd |= {want: side for want, side in zip(array.shape, have, strict=True) if want != side}
    levels = [("", config), *((f"{key}.", value) for key, value in config.items() if isinstance(value, dict))]
    for level, entries in levels:
        for key, value in entries.items():
            if type(value) is int and value in odd:
                told.append(f"{level}{key}={value} ({odd[value]} is stored)")
    return told


def _stated(config: Mapping[str, Any]) -> Iterator[tuple[str, int, int]]:
    """(key, its count, up to which it is looked at later) of every level."""
    levels = [("", config), *((f"{key}.", value) for key, value in config.items() if isinstance(value, dict))]
    for level, entries in levels:
        for keys, few in ((_LAYERS, _FEW_LAYERS), (_EXPERTS, _FEW_EXPERTS), (_WIDTHS, _FEW)):
            for key in keys:
                value = entries.get(key)
                if isinstance(value, int) and not isinstance(value, bool):
                    yield f"{level}{key}", value, few


def _stored_layers(tensors: Mapping[str, Any]) -> int:
    """One more than the highest number in a tensor's name."""
    return max((int(number) for name in tensors for number in _NUMBER.findall(name)), default=-1) + 1
