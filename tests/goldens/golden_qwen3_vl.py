"""Build tiny Qwen3-VL checkpoints, dense and with experts, and record what transformers computes from them.

Pictures are stored as pixels, and patched by transformers' own PIL processor. Knows the classic Hub dialect; tests
derive the others, and what this script asserts about transformers' own saves is why they may.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden_qwen3 import ENDOFTEXT, IM_END, IM_START, SPLIT
from recording import HERE, randomise, read_corpus, relative_error, versions
from recording import write_json as write
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

sys.path.insert(0, str(HERE.parent / "media"))
from make_processor_goldens import picture

SPECIALS = (
    *(ENDOFTEXT, IM_START, IM_END, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
    *("yes", "no"),
)
IMAGE, VIDEO = "<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>"
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "attention_bias": False,
}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 20,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
}
VISION = {
    "depth": 3,
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_heads": 2,
    "in_channels": 3,
    "patch_size": 4,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "out_hidden_size": 32,
    "num_position_embeddings": 49,
    "deepstack_visual_indexes": [0, 1],
    "hidden_act": "gelu_pytorch_tanh",
    "initializer_range": 0.02,
}
SECTIONS, THETA = [4, 2, 2], 5_000_000
PIXELS = {"shortest_edge": 256, "longest_edge": 4096}
GAINS = {"q_norm": 1.7, "k_norm": 1.7, "embed_tokens": 0.1, "patch_embed": 0.1}
# Sizes (height, width) before resizing: some land on a multiple of 8, some do not, one is a sliver.
SIZES = ((24, 40), (33, 17), (61, 50), (12, 90), (40, 24))
SYSTEM = f"{IM_START}system\nRepresent the user's input.{IM_END}\n{IM_START}user\n"
END = f"{IM_END}\n{IM_START}assistant\n"
# name -> (prompt, indices of pictures; a video is the string "video")
CASES: dict[str, tuple[str, tuple[Any, ...]]] = {
    "text": ("What is a kluge, and who says so?", ()),
    "first": (f"{IMAGE}What is in this picture?", (0,)),
    "last": (f"Look at this: {IMAGE}", (1,)),
    "two": (f"{IMAGE} and {IMAGE} differ in what?", (2, 3)),
    "five": (f"{IMAGE}{IMAGE}a{IMAGE}b{IMAGE}{IMAGE}", (0, 1, 2, 3, 4)),
    "video": (f"{VIDEO}What happens?", ("video",)),
    "both": (f"Before {IMAGE} and after {VIDEO}: what changed?", (4, "video")),
}
FPS, FRAMES, FRAME_SIZE = 3.0, 5, (24, 32)


def train_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(read_corpus()[:200], trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS[:7]])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in SPECIALS[7:]])
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    return tokenizer


def hub_config(tokenizer: Tokenizer, *, experts: bool) -> dict[str, Any]:
    """config.json in the classic Hub dialect."""
    kind = "qwen3_vl_moe" if experts else "qwen3_vl"
    ids = {token: tokenizer.token_to_id(token) for token in SPECIALS}
    text = {
        **TEXT,
        **(EXPERTS if experts else {}),
        "model_type": f"{kind}_text",
        "vocab_size": tokenizer.get_vocab_size(),
        "rope_theta": THETA,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": SECTIONS, "rope_type": "default"},
        "bos_token_id": ids[ENDOFTEXT],
        "eos_token_id": ids[IM_END],
        "dtype": "bfloat16",
    }
    return {
        "architectures": ["Qwen3VLMoeForConditionalGeneration" if experts else "Qwen3VLForConditionalGeneration"],
        "model_type": kind,
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "text_config": text,
        "vision_config": {**VISION, "model_type": kind},
        "tie_word_embeddings": not experts,
        "transformers_version": "4.57.0",
    }


def build(raw: dict[str, Any], *, experts: bool, seed: int) -> Any:
    raw = json.loads(json.dumps(raw))
    # Built in float32, so that no buffer is ever rounded; the weights are, below.
    del raw["text_config"]["dtype"]
    config = (Qwen3VLMoeConfig if experts else Qwen3VLConfig)(**raw)
    assert config.text_config.rope_parameters["mrope_section"] == SECTIONS
    assert config.text_config.rope_parameters["rope_theta"] == THETA
    model = (Qwen3VLMoeForConditionalGeneration if experts else Qwen3VLForConditionalGeneration)(config).eval()
    randomise(model, seed, GAINS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16).float())
    return model


def stored(model: Any, *, experts: bool) -> dict[str, torch.Tensor]:
    """Tensors as the Hub has them; asserts that transformers' own save is what tests take it for."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        own = load_file(Path(folder) / "model.safetensors")
        saved = json.loads((Path(folder) / "config.json").read_text())
    assert "rope_parameters" in saved["text_config"], saved
    assert all(name.startswith(("model.language_model.", "model.visual.", "lm_head.")) for name in own), own.keys()
    assert ("lm_head.weight" in own) == experts
    hub = {}
    for name, value in own.items():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            # The save holds (experts, out, in); the Hub holds (experts, in, out).
            wide = 2 * EXPERTS["moe_intermediate_size"]
            expected = (wide, 32) if "gate_up" in name else (32, wide // 2)
            assert value.shape[1:] == expected, (name, value.shape)
            value = value.transpose(1, 2)
        hub[name] = value.to(torch.bfloat16).contiguous()
    return hub


def pictures() -> dict[str, np.ndarray]:
    arrays = {f"image_{at}": picture(height, width, at) for at, (height, width) in enumerate(SIZES)}
    return arrays | {"video": np.stack([picture(*FRAME_SIZE, 20 + at) for at in range(FRAMES)])}


def video_patches(frames: np.ndarray) -> tuple[torch.Tensor, list[int]]:
    """Frames, already of a fitting size, as the video processor cuts them: the last one repeated to an even count."""
    frames = np.concatenate([frames, frames[-1:]]) if len(frames) % 2 else frames
    pairs = []
    processor = Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, temporal_patch_size=1, do_resize=False,
                                         image_mean=[0.5] * 3, image_std=[0.5] * 3)  # fmt: skip
    for at in range(0, len(frames), 2):
        halves = [processor(images=[frame], size=PIXELS)["pixel_values"] for frame in frames[at : at + 2]]
        pairs.append(np.stack([half.reshape(len(half), 3, 16) for half in halves], axis=2).reshape(len(halves[0]), -1))
    height, width = frames.shape[1] // 4, frames.shape[2] // 4
    return torch.tensor(np.concatenate(pairs)), [len(frames) // 2, height, width]


def expanded(prompt: str, grids: list[list[int]], videos: list[list[int]]) -> str:
    """The prompt with every pad repeated, as the processor does; timestamps are means of a pair's two."""
    for grid in grids:
        prompt = prompt.replace("<|image_pad|>", "<|IMAGE|>" * (grid[1] * grid[2] // 4), 1)
    for t, h, w in videos:
        indices = [*range(FRAMES), FRAMES - 1][: 2 * t]
        blocks = ""
        for at in range(t):
            seconds = (indices[2 * at] + indices[2 * at + 1]) / 2 / FPS
            blocks += f"<{seconds:.1f} seconds><|vision_start|>{'<|VIDEO|>' * (h * w // 4)}<|vision_end|>"
        prompt = prompt.replace("<|video_pad|>", blocks, 1)
    return prompt.replace("<|IMAGE|>", "<|image_pad|>").replace("<|VIDEO|>", "<|video_pad|>")


@torch.no_grad()
def run_case(model: Any, tokenizer: Tokenizer, name: str, media: dict[str, np.ndarray]) -> dict[str, Any]:
    prompt, used = CASES[name]
    processor = Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, temporal_patch_size=2, size=PIXELS, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    stills = [media[f"image_{at}"] for at in used if at != "video"]
    inputs: dict[str, torch.Tensor] = {}
    grids, videos = [], []
    if stills:
        found = processor(images=stills)
        inputs["pixel_values"] = torch.tensor(found["pixel_values"])
        inputs["image_grid_thw"] = torch.tensor(found["image_grid_thw"])
        grids = found["image_grid_thw"].tolist()
    if "video" in used:
        patches, grid = video_patches(media["video"])
        inputs["pixel_values_videos"], inputs["video_grid_thw"] = patches, torch.tensor([grid])
        videos = [grid]
    ids = tokenizer.encode(SYSTEM + expanded(prompt, grids, videos) + END).ids
    row = torch.tensor([ids])
    kinds = (row == model.config.image_token_id).int() + 2 * (row == model.config.video_token_id).int()
    out = model.model(input_ids=row, mm_token_type_ids=kinds, **inputs)
    hidden = out.last_hidden_state[0]
    positions, delta = model.model.get_rope_index(
        row, kinds, inputs.get("image_grid_thw"), inputs.get("video_grid_thw")
    )
    arrays: dict[str, Any] = {
        f"ids_{name}": np.asarray(ids, np.int32),
        f"hidden_{name}": hidden.numpy(),
        f"positions_{name}": positions[:, 0].numpy().astype(np.int32),
        f"delta_{name}": np.asarray(int(delta.reshape(-1)[0])),
        f"logits_{name}": model.lm_head(hidden[-1]).numpy(),
    }
    if stills:
        seen = model.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
        arrays[f"features_{name}"] = np.stack([seen.pooler_output, *seen.deepstack_features])
    arrays[f"greedy_{name}"] = greedy(model, row, kinds, inputs)
    return arrays


@torch.no_grad()
def greedy(model: Any, row: torch.Tensor, kinds: torch.Tensor, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    """32 tokens, never the end: what matters is that they are the same."""
    out = model.generate(
        input_ids=row, mm_token_type_ids=kinds, attention_mask=torch.ones_like(row), **inputs,
        max_new_tokens=32, do_sample=False, eos_token_id=-1, pad_token_id=0,
    )  # fmt: skip
    return out[0, row.shape[1] :].numpy().astype(np.int32)


@torch.no_grad()
def check_it_bites(model: Any, tokenizer: Tokenizer, media: dict[str, np.ndarray]) -> dict[str, float]:
    """How far the golden moves when an engine gets one thing wrong; raises if any of it would pass unnoticed."""
    reference = run_case(model, tokenizer, "two", media)
    wrong: dict[str, float] = {}

    def compare(label: str) -> None:
        found = run_case(model, tokenizer, "two", media)
        wrong[label] = relative_error(found["hidden_two"], reference["hidden_two"])

    visual = model.model.visual
    blocks, merger = visual.blocks[0].mlp.act_fn, visual.merger.act_fn
    for block in visual.blocks:
        block.mlp.act_fn = merger
    compare("erf GELU in blocks")
    for block in visual.blocks:
        block.mlp.act_fn = blocks
    visual.interpolation_align_corners = False
    compare("positions not aligned at corners")
    visual.interpolation_align_corners = True
    kept = visual.deepstack_visual_indexes
    visual.deepstack_visual_indexes = [1, 2]
    compare("taps one block late")
    visual.deepstack_visual_indexes = kept
    # Frozen otherwise: it is a buffer.
    sections = model.model.language_model.rotary_emb.mrope_section
    model.model.language_model.rotary_emb.mrope_section = [8, 0, 0]
    compare("one axis of positions")
    model.model.language_model.rotary_emb.mrope_section = sections
    if min(wrong.values()) < 1e-4:
        raise AssertionError(f"this golden would not notice: {wrong}")
    return wrong


def record(name: str, *, experts: bool, seed: int) -> None:
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tokenizer = train_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    write(folder / "tokenizer_config.json", {"eos_token": IM_END, "pad_token": ENDOFTEXT, "bos_token": None})
    raw = hub_config(tokenizer, experts=experts)
    write(folder / "config.json", raw)
    common = {
        "patch_size": 4,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    write(folder / "preprocessor_config.json", {"size": PIXELS, **common})
    write(folder / "video_preprocessor_config.json", {"size": {"shortest_edge": 64, "longest_edge": 8192}, **common})
    model = build(raw, experts=experts, seed=seed)
    save_file(stored(model, experts=experts), folder / "model.safetensors", metadata={"format": "pt"})

    media = pictures()
    arrays: dict[str, Any] = dict(media)
    for case in CASES:
        arrays |= run_case(model, tokenizer, case, media)
    # The other kind of head, over the same trunk.
    other = torch.randn(model.lm_head.weight.shape, generator=torch.Generator().manual_seed(99))
    other = model.model.language_model.embed_tokens.weight if experts else other.to(torch.bfloat16).float()
    for case in CASES:
        arrays[f"other_logits_{case}"] = (torch.tensor(arrays[f"hidden_{case}"][-1]) @ other.T).detach().numpy()
    if not experts:
        arrays["other_head"] = other.numpy()
    np.savez_compressed(folder / "golden.npz", **arrays)
    notes = {
        "attention_implementation": model.config._attn_implementation,
        "cases": {case: [prompt, list(used)] for case, (prompt, used) in CASES.items()},
        "fps": FPS,
        "stored_dtype": "bfloat16, widened to float32 before the run",
        "wrong_engines": check_it_bites(model, tokenizer, media),
        "versions": versions(),
    }
    write(folder / "golden.json", notes)
    print(name, notes["wrong_engines"], {path.name: path.stat().st_size for path in folder.iterdir()})


def main() -> None:
    record("qwen3-vl", experts=False, seed=31)
    record("qwen3-vl-moe", experts=True, seed=32)


if __name__ == "__main__":
    main()
