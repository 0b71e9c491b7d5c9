"""Make the quantised Qwen3 checkpoints with mlx-lm's own converter, so the layout is as published.

Dense ones come from qwen3-embed, the one with experts from random weights of its own.

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
import numpy as np
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


def choose_expert_bits(path: str, module: Any, *_: Any) -> bool | dict[str, Any]:
    """Return mlx-lm's own 8 bit for routers, and 8 bit for the embedding and one of the experts' three matrices."""
    if path.endswith("mlp.gate"):
        return {"group_size": 64, "bits": 8}
    if path == "model.embed_tokens" or path.endswith("switch_mlp.down_proj"):
        return {"group_size": 32, "bits": 8}
    return True


def write_dense(folder: Path) -> None:
    """Write qwen3-embed again as a plain bfloat16 Qwen3ForCausalLM, with the `model.` prefix mlx-lm expects."""
    source = HERE / "qwen3-embed"
    weights = mx.load(str(source / "model.safetensors"))
    # As wide as it is there, a tied embedding answers every token with itself, whatever the layers do.
    weights["embed_tokens.weight"] *= weights["embed_tokens.weight"].shape[1] ** -0.5
    renamed = {f"model.{name}": value.astype(mx.bfloat16) for name, value in weights.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), renamed, metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text()) | {"torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder)


# Half of 2 x 96 is not the hidden 64, so that no transposed expert passes for a right one.
EXPERTS: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_hidden_layers": 2,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 96,
    "norm_topk_prob": True,
    "mlp_only_layers": [0],
    "decoder_sparse_step": 1,
    "tie_word_embeddings": False,
    "router_aux_loss_coef": 0.001,
}


def write_experts(folder: Path) -> None:
    """Write a random Qwen3MoeForCausalLM in bfloat16: untied, a dense layer and one of four experts, two per token."""
    write_dense(folder)
    config = json.loads((folder / "config.json").read_text()) | EXPERTS
    dice = np.random.default_rng(35)
    D, V, dense, own = (
        config[key] for key in ("hidden_size", "vocab_size", "intermediate_size", "moe_intermediate_size")
    )
    q, k = (config[key] * config["head_dim"] for key in ("num_attention_heads", "num_key_value_heads"))
    shapes = {"model.embed_tokens": (V, D), "lm_head": (V, D), "model.norm": (D,)}
    for layer in ("model.layers.0.", "model.layers.1."):
        heads = {
            "q_proj": (q, D),
            "k_proj": (k, D),
            "v_proj": (k, D),
            "o_proj": (D, q),
            "q_norm": (32,),
            "k_norm": (32,),
        }
        shapes |= {f"{layer}self_attn.{name}": shape for name, shape in heads.items()}
        shapes |= {f"{layer}{name}_layernorm": (D,) for name in ("input", "post_attention")}
    shapes["model.layers.1.mlp.gate"] = (config["num_experts"], D)
    mlps = {"0.mlp": dense} | {f"1.mlp.experts.{index}": own for index in range(config["num_experts"])}
    for path, width in mlps.items():
        parts = {"gate_proj": (width, D), "up_proj": (width, D), "down_proj": (D, width)}
        shapes |= {f"model.layers.{path}.{name}": shape for name, shape in parts.items()}
    weights: dict[str, mx.array] = {}
    for name, shape in sorted(shapes.items()):
        noise = dice.standard_normal(shape)
        gain = 1.7 if name.endswith(("q_norm", "k_norm")) else 1.0
        filled = 0.3 * noise + gain if len(shape) == 1 else noise if "embed" in name else noise / shape[-1] ** 0.5
        weights[f"{name}.weight"] = mx.array(filled.astype(np.float32)).astype(mx.bfloat16)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))


def main() -> None:
    """Write the checkpoints named on the command line, or all, replacing what is there."""
    recipes: dict[str, dict[str, Any]] = {
        "qwen3-4bit": {"q_group_size": 32, "q_bits": 4, "q_mode": "affine", "quant_predicate": choose_bits},
        "qwen3-6bit": {"q_group_size": 32, "q_bits": 6, "q_mode": "affine"},
        "qwen3-mxfp4": {"q_group_size": 32, "q_bits": 4, "q_mode": "mxfp4"},
        "qwen3-nvfp4": {"q_group_size": 16, "q_bits": 4, "q_mode": "nvfp4"},
        "qwen3-moe-4bit": {
            "q_group_size": 32,
            "q_bits": 4,
            "q_mode": "affine",
            "quant_predicate": choose_expert_bits,
        },
    }
    for name in sys.argv[1:] or recipes:
        recipe = recipes[name]
        with tempfile.TemporaryDirectory() as scratch:
            (write_experts if "moe" in name else write_dense)(Path(scratch))
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
