"""Build tiny Qwen3.5 and Qwen3-Next checkpoints and record what transformers computes from them.

Hybrids of gated delta nets and gated attention: dense, with experts, and the text half of a vision checkpoint. Hidden
states, last logits, 64 greedy tokens. Knows no mlx; tests turn these files into the other published layouts.
"""

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden_qwen3 import hidden_rows, save_tokenizer, train_tokenizer
from golden_qwen3_families import record_pairs
from recording import HERE, relative_error, write_golden, write_json
from tokenizers import AddedToken, Tokenizer
from transformers import (
    Qwen2VLImageProcessorPil,
    Qwen3_5Config,
    Qwen3_5ForCausalLM,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeForCausalLM,
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

LENGTHS = (1, 2, 3, 4, 31, 64, 100, 130)
GREEDY, GREEDY_ROWS = 64, (3, 6)
# Not every fourth layer is full; head_dim is not width over heads, value heads are not key heads, their widths differ,
# and a quarter of head_dim is rotated, in three sections.
SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}
SECTIONS = {"mrope_section": [2, 1, 1], "mrope_interleaved": True}
LAYERS = ["linear_attention", "full_attention", "linear_attention", "linear_attention", "full_attention"]
EXPERTS = {
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 40,
}

PIXELS = {"shortest_edge": 64, "longest_edge": 65536}
USER, ASSISTANT = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
# name -> (images, pieces of text with None where an image stands)
PICTURES = {
    "one": ((0,), (USER, None, "What is this?", ASSISTANT)),
    "two": ((1, 0), (USER, "Compare ", None, " with ", None, ASSISTANT)),
}


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int) -> None:
    """Fill every parameter from a seed so that nothing is close to trivial; zero-centred norms stay around zero."""
    dice = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=dice)
        if name.endswith("A_log"):
            spread = torch.rand(parameter.shape, generator=dice)
            parameter.copy_(torch.log(0.01 + spread * (16 - 0.01)))
        elif name.endswith("dt_bias"):
            parameter.copy_(noise - 2.0)
        elif parameter.ndim == 1:
            centre = 1.0 if "linear_attn.norm" in name or ("visual" in name and name.endswith("weight")) else 0.0
            parameter.copy_(centre + (0.7 if "q_norm" in name or "k_norm" in name else 0.3) * noise)
        elif "embed" in name:
            parameter.copy_(noise)
        else:
            parameter.copy_(noise / math.sqrt(parameter.shape[-1]))


def rows_for(vocabulary: int, seed: int) -> list[dict[str, Any]]:
    """One row of random ids per length."""
    dice = torch.Generator().manual_seed(seed)
    return [{"length": n, "ids": torch.randint(0, vocabulary, (n,), generator=dice).tolist()} for n in LENGTHS]


@torch.no_grad()
def greedy(model: Any, ids: list[int]) -> tuple[list[int], float]:
    """Greedy tokens behind a prompt, whole passes each, and the smallest gap between the best two."""
    found, narrowest = list(ids), math.inf
    for _ in range(GREEDY):
        best = model(input_ids=torch.tensor([found])).logits[0, -1].topk(2)
        narrowest = min(narrowest, float(best.values[0] - best.values[1]))
        found.append(int(best.indices[0]))
    return found[len(ids) :], narrowest


def save(model: torch.nn.Module, tokenizer: Tokenizer, name: str, seed: int) -> tuple[Path, Any]:
    """Write a checkpoint in bfloat16, and return its folder and the model read back in float32."""
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    randomise(model, seed)
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    save_tokenizer(tokenizer, folder)
    return folder, type(model).from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def without(model: Any, name: str, value: float, row: dict[str, Any], trunk: Any) -> np.ndarray:
    """Hidden states of a row with every parameter of that ending replaced by a number."""
    kept = {}
    for path, parameter in model.named_parameters():
        if path.endswith(name):
            kept[path] = parameter.detach().clone()
            parameter.fill_(value)
    found = hidden_rows(trunk, [row])[0]
    for path, parameter in model.named_parameters():
        if path in kept:
            parameter.copy_(kept[path])
    assert kept, name
    return found


def record_one(name: str, model: torch.nn.Module, tokenizer: Tokenizer, seed: int) -> None:
    """Save a model and record hidden states, last logits and greedy tokens."""
    folder, model = save(model, tokenizer, name, seed)
    trunk = model.model.language_model if hasattr(model.model, "language_model") else model.model
    rows = rows_for(tokenizer.get_vocab_size(), seed + 1)
    hidden = hidden_rows(trunk, rows)
    arrays = {f"hidden_{i}": array for i, array in enumerate(hidden)}
    gaps = []
    for index in GREEDY_ROWS:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([rows[index]["ids"]])).logits[0, -1]
        arrays[f"logits_{index}"] = logits.numpy()
        tokens, gap = greedy(model, rows[index]["ids"])
        arrays[f"greedy_{index}"] = np.asarray(tokens, np.int32)
        gaps.append(gap)
    last = len(LENGTHS) - 1
    wrong = {
        "no decay": without(model, "A_log", -30.0, rows[last], trunk),
        "no convolution": without(model, "conv1d.weight", 0.25, rows[last], trunk),
        "norms centred on one": without(model, "input_layernorm.weight", 0.0, rows[last], trunk),
        "no q and k norms": without(model, "q_norm.weight", 0.0, rows[last], trunk),
    }
    moved = {what: relative_error(array, hidden[last]) for what, array in wrong.items()}
    assert min(moved.values()) > 1e-3, moved
    notes = {
        "attention_implementation": model.config._attn_implementation,
        "dtype": "float32",
        "stored_dtype": "bfloat16, widened to float32 before the run",
        "narrowest_greedy_gap": min(gaps),
        "wrong_engines": moved,
    }
    write_golden(folder, rows, arrays, notes)
    size = sum(file.stat().st_size for file in folder.iterdir()) // 1024
    print(f"{name}: {len(rows)} rows, {size} KB, gap {min(gaps):.1e}, {moved}")


@torch.no_grad()
def record_pictures(tokenizer: Tokenizer) -> None:
    """Add to qwen35-wrapper two conversations with images: ids, pixels, positions and hidden states."""
    folder = HERE / "qwen35-wrapper"
    model = Qwen3_5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, size=PIXELS, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    write_json(folder / "preprocessor_config.json", {"size": PIXELS, "image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    config, dice = model.config, np.random.default_rng(59)
    golden = dict(np.load(folder / "golden.npz"))
    images = [dice.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((24, 40), (16, 16))]
    golden |= {f"image_{at}": image for at, image in enumerate(images)}
    for case, (used, pieces) in PICTURES.items():
        cut = processor(images=[images[at] for at in used], return_tensors="pt")
        ids, waiting = [], iter(cut["image_grid_thw"].tolist())
        for piece in pieces:
            if piece is None:
                _, down, across = next(waiting)
                tokens = [config.image_token_id] * (down * across // 4)
                ids += [config.vision_start_token_id, *tokens, config.vision_end_token_id]
            else:
                ids += tokenizer.encode(piece).ids
        inputs = torch.tensor([ids])
        kinds = (inputs == config.image_token_id).int()
        found = model.model(input_ids=inputs, mm_token_type_ids=kinds, **cut)
        golden |= {f"pids_{case}": np.asarray(ids, np.int32), f"phidden_{case}": found.last_hidden_state[0].numpy()}
    np.savez_compressed(folder / "golden.npz", **golden)
    print(f"qwen35-wrapper: {list(PICTURES)} with images")


def record_reranker() -> None:
    """Write qwen35-reranker: a hybrid with Qwen3-Reranker's recipe, with tokens for answers and thoughts."""
    tokenizer = train_tokenizer(append_endoftext=False)
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in ("yes", "no", "<think>", "</think>")])
    config = Qwen3_5TextConfig(
        **{**SHAPE, "max_position_embeddings": 1024},
        rope_parameters={**ROPE, **SECTIONS},
        vocab_size=tokenizer.get_vocab_size(),
        eos_token_id=tokenizer.token_to_id("<|im_end|>"),
        intermediate_size=64,
        layer_types=LAYERS[:3],
        num_hidden_layers=3,
        tie_word_embeddings=False,
    )
    folder, model = save(Qwen3_5ForCausalLM(config).eval(), tokenizer, "qwen35-reranker", 61)
    record_pairs(folder, model, tokenizer)


def record() -> None:
    """Write qwen35-text, qwen35-wrapper, qwen35-moe, qwen3-next and qwen35-reranker."""
    tokenizer = train_tokenizer(append_endoftext=False)
    common = {
        **SHAPE,
        "vocab_size": tokenizer.get_vocab_size(),
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
    }
    rope = {"rope_parameters": {**ROPE, **SECTIONS}}
    dense = {**common, **rope, "intermediate_size": 64}
    text = Qwen3_5TextConfig(**dense, layer_types=LAYERS, num_hidden_layers=5, tie_word_embeddings=False)
    record_one("qwen35-text", Qwen3_5ForCausalLM(text).eval(), tokenizer, 51)
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": 4,
        "out_hidden_size": 32,
        "num_position_embeddings": 16,
    }
    tokens = {"image_token_id": 500, "video_token_id": 501, "vision_start_token_id": 498, "vision_end_token_id": 499}
    wrapper = Qwen3_5Config(
        text_config={**dense, "num_hidden_layers": 4, "tie_word_embeddings": True},
        vision_config=vision,
        tie_word_embeddings=True,
        **tokens,
    )
    record_one("qwen35-wrapper", Qwen3_5ForConditionalGeneration(wrapper).eval(), tokenizer, 53)
    record_pictures(tokenizer)
    moe = Qwen3_5MoeTextConfig(
        **common, **rope, **EXPERTS, layer_types=LAYERS[:3], num_hidden_layers=3, tie_word_embeddings=True
    )
    record_one("qwen35-moe", Qwen3_5MoeForCausalLM(moe).eval(), tokenizer, 55)
    following = Qwen3NextConfig(
        **common,
        **EXPERTS,
        rope_parameters=dict(ROPE),
        intermediate_size=64,
        layer_types=LAYERS[:3],
        num_hidden_layers=3,
        mlp_only_layers=[1],
        decoder_sparse_step=1,
        norm_topk_prob=True,
        tie_word_embeddings=False,
    )
    record_one("qwen3-next", Qwen3NextForCausalLM(following).eval(), tokenizer, 57)
    record_reranker()


if __name__ == "__main__":
    torch.set_num_threads(1)
    record()
