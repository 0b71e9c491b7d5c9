"""SigLIP: a text tower and an image tower whose vectors are compared with each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from archport.contract import (
    ArchSpec,
    AttentionLayer,
    CheckpointView,
    ConfigKeys,
    EmbeddingHead,
    Example,
    Head,
    SpecError,
    TextInputs,
    Trunk,
    VisionTower,
    head_width,
)
from archport_bidirectional.configs import has_pipeline, named, of_model

ARCHS = ("siglip",)
TEXT_ALONE, IMAGES_ALONE = "SiglipTextModel", "SiglipVisionModel"
ARCHITECTURES = ("SiglipModel", TEXT_ALONE, IMAGES_ALONE)
ROOT = ConfigKeys("siglip", obeyed=("text_config", "vision_config"))
TEXT = ConfigKeys(
    "siglip, text_config",
    obeyed=(
        *("hidden_act", "hidden_size", "intermediate_size", "layer_norm_eps", "max_position_embeddings"),
        *("num_attention_heads", "num_hidden_layers", "projection_size", "vocab_size"),
    ),
)
VISION = ConfigKeys(
    "siglip, vision_config",
    obeyed=(
        *("hidden_act", "hidden_size", "image_size", "intermediate_size", "layer_norm_eps", "num_attention_heads"),
        *("num_hidden_layers", "patch_size", "vision_use_head"),
    ),
    refused={"num_channels": (3,)},
)
MODELS = {
    name: name
    for name in (
        "google/siglip-base-patch16-224",
        "google/siglip-so400m-patch14-384",
        "google/siglip2-base-patch16-224",
        "google/siglip2-so400m-patch16-512",
    )
}


def towers(config: Mapping[str, Any]) -> tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]:
    """(config of the text tower, config of the image tower); None for one that is not there."""
    name = named(config, ARCHITECTURES)
    if name == TEXT_ALONE:
        return config, None
    return (None, config) if name == IMAGES_ALONE else (config["text_config"], config["vision_config"])


def claim(config: Mapping[str, Any], _: str) -> ArchSpec:
    text, vision = towers(config)
    if text is not config and vision is not config:
        ROOT.check(config)
    for keys, half in ((TEXT, text), (VISION, vision)):
        if half is not None:
            keys.check(half)
    widths = {half["hidden_size"] for half in (text, vision) if half is not None}
    if text is not None:
        widths.add(text.get("projection_size") or text["hidden_size"])
    if len(widths) > 1:
        raise SpecError(f"siglip: texts, their projection and images have the widths {sorted(widths)}; expected one")
    if vision is not None:
        _check_squares(vision)

    def layer(half: Mapping[str, Any]) -> AttentionLayer:
        heads = half["num_attention_heads"]
        return AttentionLayer("bidirectional", heads, heads, head_width("siglip", half["hidden_size"], heads))

    tower = None
    if vision is not None:
        tower = VisionTower(
            layers=(layer(vision),) * vision["num_hidden_layers"],
            hidden_size=vision["hidden_size"],
            intermediate_size=vision["intermediate_size"],
            patch_size=vision["patch_size"],
            # The pooling head makes one of them all.
            merge_size=vision["image_size"] // vision["patch_size"],
        )
    # A plan has a layer after the tower; images alone pass through none, and one of a single token costs nothing.
    blocks = text or {**(vision or {}), "num_hidden_layers": 1, "vocab_size": 1, "max_position_embeddings": 1}
    return ArchSpec(
        arch="siglip",
        tasks=("embed",),
        layers=(layer(blocks),) * blocks["num_hidden_layers"],
        vocab_size=blocks["vocab_size"],
        hidden_size=blocks["hidden_size"],
        intermediate_size=blocks["intermediate_size"],
        max_positions=blocks["max_position_embeddings"],
        dtype=config.get("dtype", "float32"),
        gated_mlp=False,
        qk_norm=False,
        vision=tower,
    )


def _check_squares(vision: Mapping[str, Any]) -> None:
    if vision.get("vision_use_head") is False:
        raise SpecError("siglip: vision_use_head is false; without its pooling head an image has no vector")
    side, patch = vision["image_size"], vision["patch_size"]
    if not isinstance(side, int) or not isinstance(patch, int) or patch < 1 or side % patch:
        raise SpecError(f"siglip: image_size={side!r} is no multiple of patch_size={patch!r}; expected whole patches")


def build(spec: ArchSpec, config: Mapping[str, Any]) -> Trunk:
    from archport_bidirectional.siglip.model import Siglip

    return Siglip(spec, *towers(config))


def head(spec: ArchSpec, checkpoint: CheckpointView) -> Head | None:
    if has_pipeline(checkpoint):
        return None
    return EmbeddingHead(("last",), normalize=True, source="SigLIP: the last of all text positions, or the image")


def inputs(spec: ArchSpec, checkpoint: CheckpointView) -> TextInputs:
    from archport.media import channel_normalisation, image_settings
    from archport_bidirectional.siglip.reader import Images, SiglipReader, Texts

    text, vision = towers(checkpoint.config)
    texts = images = None
    if text is not None:
        tokenizer = checkpoint.json("tokenizer_config.json") or {}
        pad = _token(checkpoint, tokenizer.get("pad_token"), 1)
        texts = Texts(
            length=spec.max_positions,
            end=_token(checkpoint, tokenizer.get("eos_token"), pad),
            pad=pad,
            lowercase=bool(tokenizer.get("do_lower_case", True)),
            canonical=tokenizer.get("tokenizer_class") == "SiglipTokenizer",
        )
    if vision is not None:
        mean, std = channel_normalisation(image_settings(checkpoint))
        images = Images(side=vision["image_size"], patch=vision["patch_size"], mean=mean, std=std)
    reader = SiglipReader(texts, images)
    if texts is None:
        return TextInputs(reader=reader, images_only=True)
    return replace(checkpoint.stored_inputs(), max_tokens=spec.max_positions, reader=reader)


def _token(checkpoint: CheckpointView, stated: Any, default: int) -> int:
    text = stated.get("content") if isinstance(stated, Mapping) else stated
    found = checkpoint.token_id(text) if isinstance(text, str) else None
    return default if found is None else found


_published = of_model(__name__, "published")


def examples() -> Sequence[Example]:
    half = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    config: dict[str, Any] = {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "text_config": {**half, "vocab_size": 199, "max_position_embeddings": 64},
        "vision_config": {**half, "image_size": 16, "patch_size": 4},
        "torch_dtype": "float32",
    }
    alone = {**config["text_config"], "architectures": [TEXT_ALONE], "model_type": "siglip_text_model"}
    return [
        Example("siglip, two towers", config, seed=18, publish=_published),
        Example("siglip, texts alone", {**alone, "torch_dtype": "float32"}, seed=19, publish=_published),
    ]
