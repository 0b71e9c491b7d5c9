"""llama_nemotron_vl: Llama blocks without a causal mask after a SigLIP tower; texts, images, and images with text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

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
from archport_bidirectional.configs import has_pipeline, of_model, prompted
from archport_bidirectional.decoders import config_pooling, decoder_spec
from archport_bidirectional.siglip import VISION

if TYPE_CHECKING:
    from archport_bidirectional.nemotron.reader import Settings

ARCHS = ("llama_nemotron_vl",)
ARCHITECTURES = ("LlamaNemotronVLModel", "LlamaNemotronVLForEmbedding")
MODELS = {"nvidia/llama-nemotron-embed-vl-1b-v2": "nvidia/llama-nemotron-embed-vl-1b-v2"}
KEYS = ConfigKeys(
    "llama_nemotron_vl",
    obeyed=(
        *("downsample_ratio", "force_image_size", "image_mean", "image_std", "img_context_token_id"),
        *("max_dynamic_patch", "max_input_tiles", "pooling", "text_config", "use_thumbnail", "vision_config"),
    ),
    # A flag whose class default is false although the trunk is bidirectional; limits that the tokenizer's files state.
    inert=("bidirectional_attention", "p_max_length", "q_max_length"),
)
PROMPTS = {"query": "query: ", "passage": "passage: "}
# The published classes' own default; checkpoints say more.
TILES = 2


def claim(config: Mapping[str, Any], _: str) -> ArchSpec | None:
    text, vision = config.get("text_config"), config.get("vision_config")
    if not isinstance(text, Mapping) or not isinstance(vision, Mapping):
        return None
    KEYS.check(config)
    VISION.check(vision)
    if config.get("downsample_ratio", 0.5) != 0.5:
        raise SpecError(f"llama_nemotron_vl: downsample_ratio={config['downsample_ratio']!r}; expected 0.5")
    heads, width = vision["num_attention_heads"], vision["hidden_size"]
    side = tile_side(config) // vision["patch_size"]
    if side % 2 or tile_side(config) % vision["patch_size"]:
        raise SpecError(
            f"llama_nemotron_vl: tiles of {tile_side(config)} pixels and patches of {vision['patch_size']} give no "
            "even number of patches per side, which four to a token need"
        )
    block = AttentionLayer("bidirectional", heads, heads, head_width("the vision tower", width, heads))
    spec = decoder_spec("llama_nemotron_vl", {"dtype": config.get("dtype", "float32"), **text})
    tower = VisionTower(
        layers=(block,) * vision["num_hidden_layers"],
        hidden_size=width,
        intermediate_size=vision["intermediate_size"],
        patch_size=vision["patch_size"],
        merge_size=2,
    )
    return replace(spec, vision=tower)


def tile_side(config: Mapping[str, Any]) -> int:
    """Pixels per side of a tile."""
    return config.get("force_image_size") or config["vision_config"].get("image_size", 512)


def build(spec: ArchSpec, config: Mapping[str, Any]) -> Trunk:
    from archport_bidirectional.nemotron.model import NemotronVL

    return NemotronVL(spec, config, tile_side(config) // config["vision_config"]["patch_size"])


def head(spec: ArchSpec, checkpoint: CheckpointView) -> Head | None:
    if has_pipeline(checkpoint):
        return None
    return EmbeddingHead((config_pooling(checkpoint),), normalize=True, source="pooling of the config, to unit length")


def inputs(spec: ArchSpec, checkpoint: CheckpointView) -> TextInputs:
    from archport_bidirectional.nemotron.reader import NemotronReader

    stored = prompted(checkpoint, PROMPTS, query="query", document="passage")
    return replace(stored, reader=NemotronReader(settings(checkpoint)))


def settings(checkpoint: CheckpointView) -> Settings:
    """The numbers of a checkpoint's processor."""
    from archport.media import channel_normalisation
    from archport_bidirectional.nemotron.reader import Settings

    config = checkpoint.config
    processor = checkpoint.json("processor_config.json") or checkpoint.json("preprocessor_config.json") or {}
    start = (checkpoint.json("tokenizer_config.json") or {}).get("bos_token") or ""
    stated = {**config, **processor, **(processor.get("image_processor") or {})}
    mean, std = channel_normalisation(stated)
    return Settings(
        image_token=config["img_context_token_id"],
        start=start.get("content", "") if isinstance(start, Mapping) else start,
        side=tile_side(config),
        patch=config["vision_config"]["patch_size"],
        tiles=stated.get("max_input_tiles") or stated.get("max_dynamic_patch") or TILES,
        thumbnail=bool(stated.get("use_thumbnail", True)),
        mean=mean,
        std=std,
    )


_published = of_model(__name__, "published")


def examples() -> Sequence[Example]:
    text = {
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rms_norm_eps": 1e-6,
        "rope_theta": 500000.0,
        "vocab_size": 199,
        "max_position_embeddings": 512,
        "hidden_act": "silu",
    }
    vision = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "image_size": 16,
        "patch_size": 4,
        "hidden_act": "gelu_pytorch_tanh",
    }
    config = {
        "architectures": ["LlamaNemotronVLModel"],
        "model_type": "llama_nemotron_vl",
        "llm_config": text,
        "vision_config": vision,
        "downsample_ratio": 0.5,
        "img_context_token_id": 190,
        "pooling": "avg",
        "torch_dtype": "float32",
    }
    return [Example("llama_nemotron_vl, tiles of four tokens", config, seed=17, publish=_published)]
