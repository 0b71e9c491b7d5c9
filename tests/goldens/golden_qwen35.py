"""Build tiny Qwen3.5 and Qwen3-Next checkpoints and record what transformers computes from them.

Hybrids of gated delta nets and gated attention: dense, with experts, and the text half of a vision checkpoint. Hidden
states, last logits, 64 greedy tokens. Knows no mlx; tests turn these files into the other published layouts.
"""

import math
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from golden_qwen3 import hidden_rows, save_tokenizer, train_tokenizer
from golden_qwen3_families import record_pairs
from golden_qwen3_vl import FPS, FRAMES, IMAGE, VIDEO, expanded, video_patches
from golden_qwen3_vl import greedy as greedy_from
from recording import HERE, relative_error, write_golden, write_json
from tokenizers import AddedToken, Tokenizer
from transformers import (
    Qwen2VLImageProcessorPil,
    Qwen3_5Config,
    Qwen3_5ForCausalLM,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForCausalLM,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
    Qwen3VLProcessor,
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

PIXELS, VIDEO_PIXELS = {"shortest_edge": 64, "longest_edge": 65536}, {"shortest_edge": 64, "longest_edge": 8192}
MEDIA = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
USER, ASSISTANT = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
# name -> (pictures, where a video is the word; text with the template's placeholders)
PICTURES: dict[str, tuple[tuple[Any, ...], str]] = {
    "one": ((0,), f"{IMAGE}What is this?"),
    "two": ((1, 0), f"Compare {IMAGE} with {IMAGE}"),
    "video": (("video",), f"{VIDEO}What happens?"),
    "both": ((1, "video"), f"Before {IMAGE} and after {VIDEO}: what changed?"),
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
def record_pictures(name: str, kind: Any, tokenizer: Tokenizer, cases: tuple[str, ...] = tuple(PICTURES)) -> None:
    """Add to a golden conversations with images and video, in pixels and in ids, and what comes of them."""
    folder = HERE / name
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    processor = Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, size=PIXELS, **half)
    write_json(folder / "preprocessor_config.json", {"size": PIXELS, **half})
    write_json(folder / "video_preprocessor_config.json", {"size": VIDEO_PIXELS, **half})
    dice, golden = np.random.default_rng(59), dict(np.load(folder / "golden.npz"))
    media = {
        f"image_{at}": dice.integers(0, 256, (*size, 3), dtype=np.uint8) for at, size in ((0, (24, 40)), (1, (16, 16)))
    }
    media["video"] = dice.integers(0, 256, (FRAMES, 24, 32, 3), dtype=np.uint8)
    golden |= media
    for case in cases:
        used, text = PICTURES[case]
        inputs: dict[str, torch.Tensor] = {}
        stills, videos = [media[f"image_{at}"] for at in used if at != "video"], []
        if stills:
            inputs |= dict(processor(images=stills, return_tensors="pt"))
        if "video" in used:
            inputs["pixel_values_videos"], grid = video_patches(media["video"])
            inputs["video_grid_thw"], videos = torch.tensor([grid]), [grid]
        grids = inputs["image_grid_thw"].tolist() if stills else []
        ids = tokenizer.encode(USER + expanded(text, grids, videos) + ASSISTANT).ids
        row = torch.tensor([ids])
        kinds = (row == model.config.image_token_id).int() + 2 * (row == model.config.video_token_id).int()
        hidden = model.model(input_ids=row, mm_token_type_ids=kinds, **inputs).last_hidden_state[0]
        places = (inputs.get("image_grid_thw"), inputs.get("video_grid_thw"))
        positions, delta = model.model.get_rope_index(row, kinds, *places)
        golden |= {
            f"pids_{case}": np.asarray(ids, np.int32),
            f"phidden_{case}": hidden.numpy(),
            f"plogits_{case}": model.lm_head(hidden[-1]).numpy(),
            f"positions_{case}": positions[:, 0].numpy().astype(np.int32),
            f"delta_{case}": np.asarray(int(delta.reshape(-1)[0])),
            f"pgreedy_{case}": greedy_from(model, row, kinds, inputs),
        }
    check_expansion()
    np.savez_compressed(folder / "golden.npz", **golden)
    print(f"{name}: {list(cases)} with images and video")


def check_expansion() -> None:
    """The text of a video's moments is what the family's own processor writes; raises where it is not."""
    metadata = SimpleNamespace(fps=FPS, frames_indices=list(range(FRAMES)))
    processor: Any = SimpleNamespace(
        video_processor=SimpleNamespace(merge_size=2, temporal_patch_size=2),
        vision_start_token=MEDIA[0],
        vision_end_token=MEDIA[1],
        video_token=MEDIA[3],
        _calculate_timestamps=partial(Qwen3VLProcessor._calculate_timestamps, None),
    )
    grid = np.array([[(FRAMES + 1) // 2, 6, 8]])
    found = Qwen3VLProcessor.replace_video_token(processor, {"video_grid_thw": grid, "video_metadata": [metadata]}, 0)
    own = expanded(MEDIA[3], [], grid.tolist())
    assert found == own, (found, own)


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


def record_seeing_experts(
    tokenizer: Tokenizer, common: dict[str, Any], rope: dict[str, Any], vision: dict[str, Any], tokens: dict[str, int]
) -> None:
    """Write qwen35-moe-wrapper: experts behind a vision tower."""
    text = {
        **common,
        **rope,
        **EXPERTS,
        "vocab_size": tokenizer.get_vocab_size(),
        "layer_types": LAYERS[:2],
        "num_hidden_layers": 2,
        "tie_word_embeddings": False,
    }
    config = Qwen3_5MoeConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **tokens)
    name, kind = "qwen35-moe-wrapper", Qwen3_5MoeForConditionalGeneration
    record_one(name, kind(config).eval(), tokenizer, 67)
    record_pictures(name, kind, tokenizer, ("one", "both"))


def record() -> None:
    """Write qwen35-text, qwen35-wrapper, qwen35-moe-wrapper, qwen35-moe, qwen3-next and qwen35-reranker."""
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
    seeing = train_tokenizer(append_endoftext=False)
    seeing.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in MEDIA])
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    tokens = {name: seeing.token_to_id(token) for name, token in zip(names, MEDIA, strict=True)}
    wrapper = Qwen3_5Config(
        text_config={
            **dense,
            "vocab_size": seeing.get_vocab_size(),
            "num_hidden_layers": 4,
            "tie_word_embeddings": True,
        },
        vision_config=vision,
        tie_word_embeddings=True,
        **tokens,
    )
    record_one("qwen35-wrapper", Qwen3_5ForConditionalGeneration(wrapper).eval(), seeing, 53)
    record_pictures("qwen35-wrapper", Qwen3_5ForConditionalGeneration, seeing)
    record_seeing_experts(seeing, common, rope, vision, tokens)
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
