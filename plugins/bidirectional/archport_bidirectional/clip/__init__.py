"""CLIP: a causal text tower and an image tower with a class token, projected into one space.

The one family here whose texts are causal: a text's vector is what its end token has read.
"""

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
from archport_bidirectional.configs import has_pipeline, of_model

ARCHS = ("clip",)
ARCHITECTURES = ("CLIPModel",)
ROOT = ConfigKeys(
    "clip",
    obeyed=("projection_dim", "text_config", "text_config_dict", "vision_config", "vision_config_dict"),
    # Of the scores of training.
    inert=("logit_scale_init_value",),
)
_HALF = ("hidden_act", "hidden_size", "intermediate_size", "layer_norm_eps", "num_attention_heads", "num_hidden_layers")
TEXT = ConfigKeys(
    "clip, text_config", obeyed=(*_HALF, "max_position_embeddings", "vocab_size"), inert=("projection_dim",)
)
VISION = ConfigKeys(
    "clip, vision_config",
    obeyed=(*_HALF, "image_size", "patch_size"),
    inert=("projection_dim",),
    refused={"num_channels": (3,)},
)
MODELS = {
    name: name
    for name in (
        *("openai/clip-vit-base-patch32", "openai/clip-vit-base-patch16", "openai/clip-vit-large-patch14"),
        "laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
    )
}
START = "<|startoftext|>"
# What the halves' classes fill in where an older file's second statement of a half leaves a key out.
_FILLED = {
    "text_config": {
        "vocab_size": 49408,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "eos_token_id": 49407,
    },
    "vision_config": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_channels": 3,
        "image_size": 224,
        "patch_size": 32,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    },
}


def towers(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(text half, image half): a half that an older file states a second time is what that says, filled up."""
    text, vision = (
        {**config[half], **({**filled, **stated} if (stated := config.get(f"{half}_dict")) else {})}
        for half, filled in _FILLED.items()
    )
    return text, vision


def claim(config: Mapping[str, Any], _: str) -> ArchSpec | None:
    if not config.get("causal", True):
        return None
    ROOT.check(config)
    text, vision = towers(config)
    for keys, half in ((TEXT, text), (VISION, vision)):
        keys.check(half)
    width, projected = text["hidden_size"], config["projection_dim"]
    if projected != width:
        raise SpecError(f"clip: projection_dim={projected!r} of texts that are {width} wide; expected the same")
    side, patch = vision["image_size"], vision["patch_size"]
    if not isinstance(side, int) or not isinstance(patch, int) or patch < 1 or side % patch:
        raise SpecError(f"clip: image_size={side!r} is no multiple of patch_size={patch!r}; expected whole patches")

    def layer(half: Mapping[str, Any], **how: Any) -> AttentionLayer:
        heads = half["num_attention_heads"]
        return AttentionLayer(
            n_heads=heads, n_kv_heads=heads, head_dim=head_width("clip", half["hidden_size"], heads), **how
        )

    return ArchSpec(
        arch="clip",
        tasks=("embed",),
        layers=(layer(text, semantics="causal"),) * text["num_hidden_layers"],
        vocab_size=text["vocab_size"],
        hidden_size=width,
        intermediate_size=text["intermediate_size"],
        max_positions=text["max_position_embeddings"],
        dtype=config.get("dtype", "float32"),
        gated_mlp=False,
        qk_norm=False,
        rotary=False,
        vision=VisionTower(
            layers=(layer(vision, semantics="bidirectional"),) * vision["num_hidden_layers"],
            hidden_size=vision["hidden_size"],
            intermediate_size=vision["intermediate_size"],
            patch_size=patch,
            # The class token has seen them all, and stands for them.
            merge_size=side // patch,
            class_rows=1,
        ),
    )


def build(spec: ArchSpec, config: Mapping[str, Any]) -> Trunk:
    from archport_bidirectional.clip.model import Clip

    return Clip(spec, *towers(config))


def head(spec: ArchSpec, checkpoint: CheckpointView) -> Head | None:
    if has_pipeline(checkpoint):
        return None
    return EmbeddingHead(("last",), normalize=True, source="CLIP: the end token of a text, or the image")


def inputs(spec: ArchSpec, checkpoint: CheckpointView) -> TextInputs:
    from archport.media import channel_normalisation, image_settings
    from archport_bidirectional.clip.reader import MEAN, STD, ClipReader, scaling
    from archport_bidirectional.siglip.reader import Images, Texts

    text, vision = towers(checkpoint.config)
    end = text.get("eos_token_id")
    # The second is an older number, with which transformers takes the largest id of a text for its end.
    last = end if isinstance(end, int) and end != 2 else spec.vocab_size - 1
    stated = (checkpoint.json("tokenizer_config.json") or {}).get("bos_token") or START
    start = checkpoint.token_id(stated["content"] if isinstance(stated, Mapping) else stated)
    texts = Texts(length=spec.max_positions, end=last, pad=last, lowercase=False, canonical=False, start=start)
    settings = image_settings(checkpoint)
    mean, std = channel_normalisation({"image_mean": MEAN, "image_std": STD, **settings})
    side = vision["image_size"]
    images = Images(side=side, patch=vision["patch_size"], mean=mean, std=std)
    reader = ClipReader(texts, images, scaling(settings, side, checkpoint.name))
    return replace(checkpoint.stored_inputs(), max_tokens=spec.max_positions, reader=reader)


_published = of_model(__name__, "published")


def examples() -> Sequence[Example]:
    half = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96, "hidden_act": "quick_gelu"}
    config: dict[str, Any] = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": 64,
        "text_config": {
            **half, "hidden_size": 64, "vocab_size": 199, "max_position_embeddings": 64, "eos_token_id": 2
        },
        "vision_config": {**half, "hidden_size": 48, "image_size": 16, "patch_size": 4},
        "torch_dtype": "float32",
    }  # fmt: skip
    return [Example("clip, two towers", config, seed=91, publish=_published)]
