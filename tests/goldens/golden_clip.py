"""Build a tiny CLIP with its own kind of tokenizer, and record what transformers makes of texts and images."""

import json
from typing import Any

import numpy as np
import torch
from golden_encoders import begin
from golden_nemotron import pictures
from recording import randomise, versions, write_json
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel

START, END = "<|startoftext|>", "<|endoftext|>"
POSITIONS, SIDE, PATCH = 24, 24, 4
TEXTS = ("a photo of a cat", "Two dogs,  and a BIRD!", "a", "it's 12 <|endoftext|> birds")


def words() -> Tokenizer:
    """Byte pairs whose words have an end of their own, with the end of a text as the last id."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=END))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=150, end_of_word_suffix="</w>", special_tokens=[])
    tokenizer.train_from_iterator([text.lower() for text in TEXTS[:3]] * 9, trainer)
    vocabulary = tokenizer.get_vocab()
    stored = json.loads(tokenizer.to_str())
    vocabulary |= {START: len(vocabulary), END: len(vocabulary) + 1}
    stored["model"]["vocab"] = vocabulary
    return Tokenizer.from_str(json.dumps(stored))


@torch.no_grad()
def record() -> None:
    """Write clip: both towers of widths of their own, texts of any length, images of five aspects."""
    folder = begin("clip")
    words().save(str(folder / "tokenizer.json"), pretty=False)
    names = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "CLIPTokenizer", **names})
    half = {"intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_act": "quick_gelu"}
    write_json(folder / "config.json", {"model_type": "clip"})
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    end = tokenizer.eos_token_id
    text = {**half, "hidden_size": 32, "vocab_size": len(tokenizer), "max_position_embeddings": POSITIONS}
    raw: dict[str, Any] = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": 32,
        "text_config": {**text, "eos_token_id": end, "bos_token_id": end - 1},
        "vision_config": {**half, "hidden_size": 24, "image_size": SIDE, "patch_size": PATCH},
        "torch_dtype": "float32",
    }
    write_json(folder / "config.json", raw)
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    stated = json.loads(processor.to_json_string())
    kept = ("crop_size", "do_center_crop", "do_resize", "image_mean", "image_std", "resample", "size")
    write_json(folder / "preprocessor_config.json", {key: stated[key] for key in kept})
    model = CLIPModel(CLIPConfig(text_config=raw["text_config"], vision_config=raw["vision_config"], projection_dim=32))
    # A scale of scores that no vector depends on, and that has no axis to be filled by.
    del model.logit_scale
    randomise(model.eval(), 131, {"q_proj": 1.5, "k_proj": 1.5})
    weights = {name: value.contiguous() for name, value in model.state_dict().items() if "position_ids" not in name}
    save_file(weights, folder / "model.safetensors")
    arrays: dict[str, np.ndarray] = {}
    for index, each in enumerate(TEXTS):
        ids = tokenizer(each)["input_ids"]
        vector = model.get_text_features(torch.tensor([ids])).pooler_output[0]
        arrays |= {f"ids_{index}": np.asarray(ids, np.int32), f"text_{index}": vector.numpy()}
    for index, image in enumerate(pictures()):
        pixels = processor(image.convert("RGB"), return_tensors="pt")["pixel_values"]
        vector = model.get_image_features(pixels).pooler_output[0]
        arrays |= {f"pixels_{index}": np.asarray(image), f"image_{index}": vector.numpy()}
        arrays[f"values_{index}"] = pixels[0].numpy()
    np.savez_compressed(folder / "golden.npz", **arrays)
    write_json(folder / "texts.json", {"texts": TEXTS})
    write_json(folder / "golden.json", {"versions": versions()})
    print(f"clip: {sum(path.stat().st_size for path in folder.iterdir()) // 1024} KiB")


if __name__ == "__main__":
    record()
