"""SigLIP: a text tower and an image tower whose vectors are compared with each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from archport.contract import (
    ArchSpec,
    AttentionLayer,
    CheckpointView,
    EmbeddingHead,
    Example,
    Head,
    SpecError,
    TextInputs,
    Trunk,
    VisionTower,
)
from archport_bidirectional.families.common import has_pipeline, named

ARCHS = ("siglip",)
ARCHITECTURES = ("SiglipModel",)
MODELS = {
    name: name
    for name in (
        "google/siglip-base-patch16-224",
        "google/siglip-so400m-patch14-384",
        "google/siglip2-base-patch16-224",
        "google/siglip2-so400m-patch16-512",
    )
}
# Published configs leave out what equals these.
TEXT = {
    "vocab_size": 32000,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 64,
}
VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
}


def claim(config: Mapping[str, Any]) -> ArchSpec | None:
    if named(config, ARCHITECTURES) is None:
        return None
    text, vision = {**TEXT, **(config.get("text_config") or {})}, {**VISION, **(config.get("vision_config") or {})}
    width = text["hidden_size"]
    if text.get("projection_size", width) != width or vision["hidden_size"] != width:
        raise SpecError(
            f"siglip: text width {width}, its projection {text.get('projection_size', width)} and image width "
            f"{vision['hidden_size']} differ; expected equal ones"
        )

    def layer(half: Mapping[str, Any]) -> AttentionLayer:
        heads = half["num_attention_heads"]
        return AttentionLayer("bidirectional", heads, heads, half["hidden_size"] // heads)

    return ArchSpec(
        arch="siglip",
        tasks=("embed",),
        layers=(layer(text),) * text["num_hidden_layers"],
        vocab_size=text["vocab_size"],
        hidden_size=width,
        intermediate_size=text["intermediate_size"],
        max_positions=text["max_position_embeddings"],
        dtype=config.get("dtype", "float32"),
        gated_mlp=False,
        qk_norm=False,
        vision=VisionTower(
            layers=(layer(vision),) * vision["num_hidden_layers"],
            hidden_size=vision["hidden_size"],
            intermediate_size=vision["intermediate_size"],
            patch_size=vision["patch_size"],
            # The pooling head makes one of them all.
            merge_size=vision["image_size"] // vision["patch_size"],
        ),
    )


def build(spec: ArchSpec, config: Mapping[str, Any]) -> Trunk:
    from archport_bidirectional.models.siglip_pair import Siglip

    vision = {**VISION, **(config.get("vision_config") or {})}
    full = {**config, "text_config": {**TEXT, **(config.get("text_config") or {})}, "vision_config": vision}
    return Siglip(spec, full, vision["image_size"] // vision["patch_size"])


def head(spec: ArchSpec, checkpoint: CheckpointView) -> Head | None:
    if has_pipeline(checkpoint):
        return None
    return EmbeddingHead(("last",), normalize=True, source="SigLIP: the last of all text positions, or the image")


def inputs(spec: ArchSpec, checkpoint: CheckpointView) -> TextInputs:
    from archport_bidirectional.siglip_reader import Settings, SiglipReader

    tokenizer = checkpoint.json("tokenizer_config.json") or {}
    processor = checkpoint.json("preprocessor_config.json") or {}
    vision = {**VISION, **(checkpoint.config.get("vision_config") or {})}
    pad = _token(checkpoint, tokenizer.get("pad_token"), 1)
    settings = Settings(
        length=spec.max_positions,
        end=_token(checkpoint, tokenizer.get("eos_token"), pad),
        pad=pad,
        lowercase=bool(tokenizer.get("do_lower_case", True)),
        canonical=tokenizer.get("tokenizer_class") == "SiglipTokenizer",
        side=vision["image_size"],
        patch=vision["patch_size"],
        mean=tuple(processor.get("image_mean") or (0.5,) * 3),
        std=tuple(processor.get("image_std") or (0.5,) * 3),
    )
    return replace(checkpoint.stored_inputs(), max_tokens=spec.max_positions, reader=SiglipReader(settings))


def _token(checkpoint: CheckpointView, stated: Any, default: int) -> int:
    text = stated.get("content") if isinstance(stated, Mapping) else stated
    found = checkpoint.token_id(text) if isinstance(text, str) else None
    return default if found is None else found


def examples() -> Sequence[Example]:
    half = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    config = {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "text_config": {**half, "vocab_size": 199, "max_position_embeddings": 64},
        "vision_config": {**half, "image_size": 16, "patch_size": 4},
        "torch_dtype": "float32",
    }
    return [Example("siglip, two towers", config, seed=18, publish=_published)]


def _published(weights: Mapping[str, Any]) -> Mapping[str, Any]:
    from archport_bidirectional.models.siglip_pair import published

    return published(weights)
