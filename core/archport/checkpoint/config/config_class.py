"""What a config class of transformers is here: the values that it fills in, its names of keys, its ropes and layers.

Pure data. Knows no class by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

# How a class names its layers where no `layer_types` does:
#   interval  every fourth (`full_attention_interval`) is full attention, the others are linear
#   windows   the layers from `max_window_layers` on are sliding, with `use_sliding_window`
#   all       every layer is sliding, with `use_sliding_window`; `layer_types` is not read
#   pattern   every sixth (`sliding_window_pattern`) is full attention, the others are sliding
#   every     the first and every third (`global_attn_every_n_layers`) is full attention, the others are sliding
LayerRule = Literal["interval", "windows", "all", "pattern", "every"]


@dataclass(frozen=True, slots=True)
class RopeDefaults:
    """The rope of a class.

    Args:
        theta: of all layers, or of those with full attention.
        local_theta: of sliding layers, where they have a rope of their own.
        partial: share of a head that turns, where the class knows one.
        scales_local: whether `rope_scaling` of a file is meant for sliding layers as well.
        keys: names of the two thetas in files of the class.
    """

    theta: float = 10_000.0
    local_theta: float | None = None
    partial: float | None = None
    scales_local: bool = False
    keys: tuple[str, str] = ("rope_theta", "rope_local_base_freq")


@dataclass(frozen=True, slots=True)
class ConfigClass:
    """One config class.

    Args:
        defaults: key -> value where a file leaves it out or says null.
        absent: the same, where null means something else than the default does.
        names: other names that files may use -> the key that is read.
        rope: None where positions are learned or a tower's own.
        layers: how layers are named; None where all are alike.
        grouped: whether null for `num_key_value_heads` means as many as heads, and for `head_dim` width / heads.
        parts: the classes of `text_config` and `vision_config`.
        whole: whether a part that a file leaves out is there all the same; a text half alone is published of others.
        trunk, head, labels: the architectures that a file without `architectures` means: a trunk alone, with an output
            head, and with a classifier.
        renormalises: whether its routers always do, whatever a file says.
    """

    defaults: Mapping[str, Any] = field(default_factory=dict[str, Any])
    absent: Mapping[str, Any] = field(default_factory=dict[str, Any])
    names: Mapping[str, str] = field(default_factory=dict[str, str])
    rope: RopeDefaults | None = None
    layers: LayerRule | None = None
    grouped: bool = False
    parts: tuple[str, str] | None = None
    whole: bool = False
    trunk: str | None = None
    head: str | None = None
    labels: str | None = None
    renormalises: bool = False


def sizes(vocabulary: int, width: int, inner: int, layers: int, heads: int, positions: int) -> dict[str, Any]:
    """The keys that most classes have, in the order of most."""
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": positions,
    }


# Keys that most decoders and most encoders share.
DECODER: Mapping[str, Any] = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "attention_bias": False}
BERT: Mapping[str, Any] = {
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "type_vocab_size": 2,
    "tie_word_embeddings": True,
}
