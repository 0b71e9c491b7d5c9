"""Write a tiny model as a checkpoint: random weights, config.json, a small tokenizer. Knows files, no property.

The tokenizer reads one token per character, so lengths of texts are known, and holds the special tokens that plugins
look up by name.
"""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from archport.contract import ArchSpec, Example, Trunk, VisionTower

SPECIAL = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<pad>", "<unk>", "<s>", "</s>", "<mask>", "<bos>", "<eos>"),
)
# What stands for pictures in a text, and the entry of a config that says its id.
PLACEHOLDERS = {
    "<|image_pad|>": "image_token_id",
    "<|video_pad|>": "video_token_id",
    "<|vision_start|>": "vision_start_token_id",
    "<|vision_end|>": "vision_end_token_id",
}
CHARACTERS = string.ascii_lowercase + " " + string.ascii_uppercase + string.digits + string.punctuation + "\n"


def random_weights(trunk: Trunk, example: Example) -> dict[str, mx.array]:
    """Random tensors for every parameter of a fresh module: matrices around 0, vectors around their default."""
    rng = np.random.default_rng(example.seed)
    filled: dict[str, mx.array] = {}
    for name, default in sorted(dict(tree_flatten(cast(Any, trunk).parameters())).items()):
        noise = rng.standard_normal(default.shape).astype(np.float32) * example.scale
        if not mx.issubdtype(default.dtype, mx.floating):
            filled[name] = default
        else:
            filled[name] = mx.array(noise if default.ndim > 1 else np.array(default.astype(mx.float32)) + noise)
    mx.eval(filled)
    return filled


def write_checkpoint(folder: Path, config: Mapping[str, Any], weights: Mapping[str, mx.array], spec: ArchSpec) -> None:
    """config.json, model.safetensors and tokenizer.json, as a hub repository has them; for a tower its sizes too."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    mx.save_safetensors(str(folder / "model.safetensors"), dict(weights), metadata={"format": "pt"})
    tokenizer(spec, config).save(str(folder / "tokenizer.json"))
    # Without a class the tokenizer would be made anew as published models of this type have it.
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    if spec.vision is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(_bounds(spec.vision)), encoding="utf-8")


def _bounds(tower: VisionTower) -> dict[str, int]:
    """Areas of pictures that have a few tokens each; what is published suits real models, and a tiny one has room."""
    side = tower.patch_size * tower.merge_size
    return {"min_pixels": side**2, "max_pixels": 16 * side**2}


def tokenizer(spec: ArchSpec, config: Mapping[str, Any] | None = None) -> Any:
    """A character tokenizer that fits the vocabulary; encoders put their usual tokens around a text.

    Args:
        config: where the ids of what stands for pictures are read; None for a tokenizer of text.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

    names = [*SPECIAL, *CHARACTERS][: spec.vocab_size]
    vocabulary = {name: index for index, name in enumerate(names)}
    placed = {name: config.get(entry) for name, entry in PLACEHOLDERS.items()} if config and spec.vision else {}
    taken = set(vocabulary.values())
    vocabulary |= {name: at for name, at in placed.items() if isinstance(at, int) and at not in taken}
    unknown = "[UNK]" if "[UNK]" in vocabulary else names[0]
    made = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    made.add_special_tokens([name for name in (*SPECIAL, *PLACEHOLDERS) if name in vocabulary])
    if spec.semantics == "bidirectional" and "[SEP]" in vocabulary:
        made.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
        )
    return made


def write_pipeline(folder: Path, spec: ArchSpec, pooling: str, prompts: Mapping[str, str]) -> None:
    """The files of a sentence-transformers pipeline: this pooling, unit length, these prompts."""
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    entries = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(kinds)
    ]
    flags = {"cls": "cls_token", "mean": "mean_tokens", "last": "lasttoken", "max": "max_tokens"}
    stated = {f"pooling_mode_{flag}": mode == pooling for mode, flag in flags.items()}
    files = {
        "modules.json": entries,
        "1_Pooling/config.json": {"word_embedding_dimension": spec.hidden_size, **stated},
        "config_sentence_transformers.json": {"prompts": dict(prompts), "default_prompt_name": None},
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
