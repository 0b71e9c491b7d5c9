"""Build a tiny llama_nemotron_vl by hand, as its published code puts it together, and record its vectors.

SiglipVisionModel, pixel shuffle, projector and a Llama without a causal mask come from transformers; the tiles are cut
here with Pillow alone.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden_encoders import begin, make_tokenizer, save_tokenizer
from PIL import Image
from recording import randomise, versions, write_json
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaModel, SiglipVisionConfig, SiglipVisionModel

SPECIALS = ["<pad>", "<eos>", "<bos>", "<unk>", "<img>", "</img>", "<IMG_CONTEXT>"]
SIDE, PATCH, TILES = 32, 4, 6
TOKENS = (SIDE // PATCH // 2) ** 2
# What the published code's loop meets, in its order.
GRIDS = [(1, 1), (1, 2), (2, 1), (3, 1), (1, 3), (4, 1), (1, 4), (2, 2), (1, 5), (5, 1), (6, 1), (2, 3), (1, 6), (3, 2)]


def grid_of(width: int, height: int) -> tuple[int, int]:
    """Return (columns, rows): the best share of area and aspect, the first of equals."""
    best, found = 0.0, (1, 1)
    for columns, rows in GRIDS:
        ratio, aspect = columns / rows, width / height
        area = min(columns * rows * SIDE * SIDE / (width * height), 0.6)
        score = area * min(ratio / aspect, aspect / ratio)
        if score > best:
            best, found = score, (columns, rows)
    return found


def tiles_of(image: Image.Image) -> torch.Tensor:
    """Return pixel values (tiles, 3, SIDE, SIDE)."""
    columns, rows = grid_of(*image.size)
    large = image.resize((columns * SIDE, rows * SIDE), Image.Resampling.BICUBIC)
    boxes = [(c * SIDE, r * SIDE, (c + 1) * SIDE, (r + 1) * SIDE) for r in range(rows) for c in range(columns)]
    tiles = [large.crop(box) for box in boxes]
    if len(tiles) > 1:
        tiles.append(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    values = np.stack([np.asarray(tile, np.float32).transpose(2, 0, 1) / 255 for tile in tiles])
    return torch.from_numpy((values - 0.5) / 0.5)


def pixel_shuffle(x: torch.Tensor, scale: float = 0.5) -> torch.Tensor:
    """(n, w, h, c) -> (n, w * scale, h * scale, c / scale^2), as the InternVL family does it."""
    n, w, h, c = x.size()
    x = x.view(n, w, int(h * scale), int(c / scale)).permute(0, 2, 1, 3).contiguous()
    x = x.view(n, int(h * scale), int(w * scale), int(c / (scale * scale)))
    return x.permute(0, 2, 1, 3).contiguous()


class Model(torch.nn.Module):
    def __init__(self, raw: dict[str, Any]) -> None:
        super().__init__()
        self.vision_model = SiglipVisionModel(SiglipVisionConfig(**raw["vision_config"]))
        width, text = raw["vision_config"]["hidden_size"], raw["llm_config"]
        self.language_model = LlamaModel(LlamaConfig(**text, is_causal=False))
        self.mlp1 = torch.nn.Sequential(
            torch.nn.LayerNorm(4 * width),
            torch.nn.Linear(4 * width, text["hidden_size"]),
            torch.nn.GELU(),
            torch.nn.Linear(text["hidden_size"], text["hidden_size"]),
        )

    @torch.no_grad()
    def embed(self, ids: list[int], image: Image.Image | None, context: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (hidden states (L, D), the unit vector of their mean) of one input alone."""
        x = self.language_model.get_input_embeddings()(torch.tensor([ids]))
        if image is not None:
            rows = self.vision_model(pixel_values=tiles_of(image)).last_hidden_state
            side = int(rows.shape[1] ** 0.5)
            merged = pixel_shuffle(rows.reshape(rows.shape[0], side, side, -1)).reshape(rows.shape[0], TOKENS, -1)
            x[torch.tensor([ids]) == context] = self.mlp1(merged).reshape(-1, x.shape[-1])
        hidden = self.language_model(inputs_embeds=x).last_hidden_state[0]
        return hidden.numpy(), torch.nn.functional.normalize(hidden.mean(dim=0), dim=0).numpy()


def pictures() -> list[Image.Image]:
    """Return images of several aspects: smooth enough to be scaled, different everywhere."""
    dice = np.random.default_rng(5)
    found = []
    for width, height in ((40, 40), (90, 31), (33, 120), (64, 60), (300, 40)):
        small = dice.integers(0, 256, (7, 7, 3), dtype=np.uint8)
        found.append(Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR))
    return found


def record() -> None:
    """Write llama-nemotron-vl: images of five aspects with and without text, and texts."""
    folder = begin("llama-nemotron-vl")
    tokenizer = make_tokenizer(SPECIALS, "<unk>", "<bos> $A", "<bos> $A $B")
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    save_tokenizer(tokenizer, folder, 512, names)
    context = tokenizer.token_to_id("<IMG_CONTEXT>")
    text = {
        "model_type": "llama",
        "hidden_size": 40,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 500000.0,
        "max_position_embeddings": 512,
        "vocab_size": tokenizer.get_vocab_size(),
    }
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 36,
        "intermediate_size": 52,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "image_size": SIDE,
        "patch_size": PATCH,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    }
    raw: dict[str, Any] = {
        "architectures": ["LlamaNemotronVLModel"],
        "model_type": "llama_nemotron_vl",
        "llm_config": text,
        "vision_config": vision,
        "downsample_ratio": 0.5,
        "img_context_token_id": context,
        "max_input_tiles": TILES,
        "pooling": "avg",
        "bidirectional_attention": False,
        "torch_dtype": "float32",
    }
    write_json(folder / "config.json", raw)
    model = Model(raw).eval()
    randomise(model, 111, {"q_proj": 1.5, "k_proj": 1.5})
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(
        {name: value for name, value in weights.items() if "position_ids" not in name}, folder / "model.safetensors"
    )
    arrays: dict[str, np.ndarray] = {}
    notes = []
    for index, image in enumerate(pictures()):
        words = ("", "a chart of the year", "")[index % 3]
        count = len(tiles_of(image))
        rendered = f"<bos>passage: <img>{'<IMG_CONTEXT>' * (TOKENS * count)}</img> {words}"
        ids = tokenizer.encode(rendered, add_special_tokens=False).ids
        _, vector = model.embed(ids, image, context)
        arrays |= {f"pixels_{index}": np.asarray(image), f"ids_{index}": np.asarray(ids, np.int32)}
        arrays |= {f"vector_{index}": vector, f"tiles_{index}": tiles_of(image).numpy()[[0, -1]]}
        notes.append({"size": image.size, "grid": grid_of(*image.size), "tiles": count, "text": words})
    texts = ["query: what is in the picture?", "passage: a chart of the year", "a text alone"]
    for index, each in enumerate(texts):
        ids = tokenizer.encode(f"<bos>{each}", add_special_tokens=False).ids
        arrays[f"text_{index}"] = model.embed(ids, None, context)[1]
    np.savez_compressed(folder / "golden.npz", **arrays)
    write_json(folder / "texts.json", {"images": notes, "texts": texts})
    write_json(folder / "golden.json", {"versions": versions(), "pillow": Image.__version__})
    print(f"llama-nemotron-vl: {sum(p.stat().st_size for p in Path(folder).iterdir()) // 1024} KiB, {notes}")
