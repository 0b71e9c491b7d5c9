"""Make the quantised Qwen3 checkpoints from qwen3-embed with mlx-lm's own converter, so the layout is as published.

Runs in an environment with mlx and mlx-lm. Records nothing: golden_quantised.py, which needs torch and no mlx, reads
the packed files by itself and computes what they mean.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm import convert

HERE = Path(__file__).parent
EIGHT_BIT = {"model.layers.0.self_attn.v_proj", "model.layers.2.self_attn.v_proj"}
KEPT = {"model.layers.1.mlp.gate_proj"}


def choose_bits(path: str, module: Any, *_: Any) -> bool | dict[str, Any]:
    """Return the mixed recipe: two modules of 8 bit and another group, an 8-bit embedding, one module not quantised."""
    if path in EIGHT_BIT:
        return {"group_size": 64, "bits": 8}
    if path == "model.embed_tokens":
        return {"group_size": 32, "bits": 8}
    return path not in KEPT


def write_source(folder: Path) -> None:
    """Write qwen3-embed again as a plain bfloat16 Qwen3ForCausalLM, with the `model.` prefix mlx-lm expects."""
    source = HERE / "qwen3-embed"
    weights = mx.load(str(source / "model.safetensors"))
    renamed = {f"model.{name}": value.astype(mx.bfloat16) for name, value in weights.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), renamed, metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text()) | {"torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder)


def main() -> None:
    """Write the checkpoints named on the command line, or all, replacing what is there."""
    recipes: dict[str, dict[str, Any]] = {
        "qwen3-4bit": {"q_group_size": 32, "q_bits": 4, "q_mode": "affine", "quant_predicate": choose_bits},
        "qwen3-6bit": {"q_group_size": 32, "q_bits": 6, "q_mode": "affine"},
        "qwen3-mxfp4": {"q_group_size": 32, "q_bits": 4, "q_mode": "mxfp4"},
        "qwen3-nvfp4": {"q_group_size": 16, "q_bits": 4, "q_mode": "nvfp4"},
    }
    for name in sys.argv[1:] or recipes:
        recipe = recipes[name]
        with tempfile.TemporaryDirectory() as scratch:
            write_source(Path(scratch))
            made = Path(scratch) / "made"
            convert(scratch, str(made), quantize=True, **recipe)
            shutil.rmtree(HERE / name, ignore_errors=True)
            (HERE / name).mkdir()
            # The converter also writes a model card that names the scratch folder, and a chat template if there is one.
            for file in sorted(made.iterdir()):
                if file.suffix in (".json", ".safetensors"):
                    shutil.copy(file, HERE / name)
        print(name, sorted(file.name for file in (HERE / name).iterdir()))


if __name__ == "__main__":
    main()
