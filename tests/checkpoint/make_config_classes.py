"""Record the config classes of transformers for every family that archport claims, into config_classes.json.

    python tests/checkpoint/make_config_classes.py

Run by hand, with transformers 5. `test_config_keys.py` compares archport's own defaults with these, and asks that every
key is obeyed, refused, or known to change nothing.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import transformers
from transformers import CONFIG_MAPPING
from transformers.configuration_utils import PreTrainedConfig

TYPES = (
    *("bert", "roberta", "xlm-roberta", "modernbert", "gemma3_text", "llama", "qwen2", "qwen3", "qwen3_moe"),
    *("qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_vision", "qwen3_5_moe", "qwen3_5_moe_text"),
    *("camembert", "mpnet", "distilbert", "electra", "albert"),
    *("qwen3_5_moe_vision", "qwen3_vl", "qwen3_vl_text", "qwen3_vl_vision", "qwen3_vl_moe", "qwen3_vl_moe_text"),
    *("qwen3_vl_moe_vision", "siglip", "siglip_text_model", "siglip_vision_model"),
    *("nomic_bert", "gte", "eurobert", "t5", "mt5", "umt5", "deberta-v2", "jina_embeddings_v3"),
    *("clip", "clip_text_model", "clip_vision_model"),
)


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def described(kind: str) -> dict[str, Any]:
    """Fields of a class with their defaults, and the other names that it reads for some of them."""
    cls = CONFIG_MAPPING[kind]
    defaults = {each.name: None if each.default is MISSING else plain(each.default) for each in fields(cls)}
    return {"fields": defaults, "names": dict(cls.attribute_map)}


def main() -> None:
    found = {
        "transformers": transformers.__version__,
        "every class": sorted(each.name for each in fields(PreTrainedConfig)),
        "classes": {kind: described(kind) for kind in TYPES},
    }
    target = Path(__file__).with_name("config_classes.json")
    target.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
