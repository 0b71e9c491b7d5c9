"""What the families declare alike: widths, tasks and heads of a config. Imports no mlx."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from archport.contract import ArchSpec, AttentionLayer, LayerSpec, Task

# Tiny widths that the examples share. 199 words: no power of two, nor a multiple of one.
TINY = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 176,
    "vocab_size": 199,
    "max_position_embeddings": 512,
    "torch_dtype": "float32",
}

# Of every Gemma.
GEMMA_DTYPES = {"float16": "Gemma's residual stream exceeds float16's largest number"}


def filled(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The config with a class's value where the file has none, or says null.

    A stretched rope that does not say from which length is meant from the positions of the model. A dynamic one
    stretches only what is longer than these, and no request is.
    """
    found = {**defaults, **{key: value for key, value in config.items() if value is not None or key not in defaults}}
    rope = found.get("rope_scaling")
    if rope and rope.get("rope_type") == "dynamic":
        found["rope_scaling"] = None
    elif rope and rope.get("rope_type") in ("yarn", "llama3"):
        positions = found["max_position_embeddings"]
        found["rope_scaling"] = {"original_max_position_embeddings": positions, **rope}
    return found


def attention(config: Mapping[str, Any], *, window: int | None = None, **more: Any) -> AttentionLayer:
    """A causal layer with the config's heads.

    Args:
        window: tokens that it sees, itself included; None for all.
        more: further fields of `AttentionLayer`.
    """
    heads = config["num_attention_heads"]
    return AttentionLayer(
        "causal",
        n_heads=heads,
        n_kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        reach=(None if window is None else window - 1, 0),
        **more,
    )


def declared(config: Mapping[str, Any], arch: str, layers: Iterable[LayerSpec], **more: Any) -> ArchSpec:
    """The spec of a decoder that embeds, and generates where its checkpoint has an output head.

    Args:
        more: further fields of `ArchSpec`, which win over the config's.
    """
    stated = {
        "vocab_size": config["vocab_size"],
        "hidden_size": config["hidden_size"],
        "intermediate_size": config["intermediate_size"],
        "max_positions": config["max_position_embeddings"],
        "dtype": config.get("dtype") or "float32",
        "tied_head": bool(config["tie_word_embeddings"]),
    }
    # A trunk that was saved alone, as embedders are, has no output head.
    generates = any(name.endswith("ForCausalLM") for name in config.get("architectures") or [])
    tasks: tuple[Task, ...] = ("embed", "generate") if generates else ("embed",)
    return ArchSpec(arch=arch, tasks=tasks, layers=tuple(layers), **{**stated, **more})
