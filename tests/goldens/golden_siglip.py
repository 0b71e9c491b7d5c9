"""Build a tiny SigLIP and record transformers' vectors of texts and images, and its processor's pixels."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden_encoders import begin, make_tokenizer, save_tokenizer
from golden_nemotron import pictures
from recording import randomise, versions, write_json
from safetensors.torch import load_file, save_file
from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel, SiglipTextModel, SiglipVisionModel

SPECIALS = ["<unk>", "</s>", "<pad>"]
POSITIONS, SIDE, PATCH = 24, 24, 4
TEXTS = ("a photo of a cat", "Two dogs, and a bird!", "a", "the quick chart")


def saved_alone(model: SiglipModel, which: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """The config of one tower saved alone; asserts that its tensors are the pair's, and so are its vectors."""
    half = getattr(model, f"{which}_model")
    kind = SiglipTextModel if which == "text" else SiglipVisionModel
    tower = kind(half.config).eval()
    prefix = f"{which}_model."
    own = {name.removeprefix(prefix): value for name, value in model.state_dict().items() if name.startswith(prefix)}
    with tempfile.TemporaryDirectory() as saved:
        tower.load_state_dict({name: own[name.removeprefix(prefix)] for name in tower.state_dict()})
        tower.save_pretrained(saved)
        stored = load_file(Path(saved) / "model.safetensors")
        assert set(stored) == {name for name in own if "position_ids" not in name}, stored.keys()
        config = json.loads((Path(saved) / "config.json").read_text())
        again = kind.from_pretrained(saved).eval()
    if which == "text":
        found = again(input_ids=torch.tensor(arrays["ids_0"][None].astype(np.int64))).pooler_output[0]
    else:
        found = again(pixel_values=torch.tensor(arrays["values_0"][None])).pooler_output[0]
    assert np.abs(found.numpy() - arrays[f"{'text' if which == 'text' else 'image'}_0"]).max() < 1e-6
    return config


@torch.no_grad()
def record() -> None:
    """Write siglip: both towers, texts filled up to all positions, images scaled to a square."""
    folder = begin("siglip")
    tokenizer = make_tokenizer(SPECIALS, "<unk>", "$A </s>", "$A </s> $B </s>")
    save_tokenizer(tokenizer, folder, POSITIONS, {"eos_token": "</s>", "pad_token": "</s>", "do_lower_case": True})
    half = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4}
    half |= {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
    raw: dict[str, Any] = {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "text_config": {**half, "vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": POSITIONS},
        "vision_config": {**half, "image_size": SIDE, "patch_size": PATCH},
        "torch_dtype": "float32",
    }
    write_json(folder / "config.json", raw)
    processor = SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    stated = json.loads(processor.to_json_string())
    write_json(folder / "preprocessor_config.json", {key: stated[key] for key in ("image_mean", "image_std", "size")})
    model = SiglipModel(SiglipConfig(text_config=raw["text_config"], vision_config=raw["vision_config"])).eval()
    randomise(model, 121, {"q_proj": 1.5, "k_proj": 1.5, "probe": 3.0})
    weights = {name: value.contiguous() for name, value in model.state_dict().items() if "position_ids" not in name}
    save_file(weights, folder / "model.safetensors")
    end, arrays = tokenizer.token_to_id("</s>"), {}
    for index, text in enumerate(TEXTS):
        ids = tokenizer.encode(text.lower()).ids
        ids += [end] * (POSITIONS - len(ids))
        vector = model.text_model(input_ids=torch.tensor([ids])).pooler_output[0]
        arrays |= {f"ids_{index}": np.asarray(ids, np.int32), f"text_{index}": vector.numpy()}
    for index, image in enumerate(pictures()):
        pixels = processor(image.convert("RGB"), return_tensors="pt")["pixel_values"]
        vector = model.vision_model(pixel_values=pixels).pooler_output[0]
        arrays |= {f"pixels_{index}": np.asarray(image), f"image_{index}": vector.numpy()}
        arrays[f"values_{index}"] = pixels[0].numpy()
    np.savez_compressed(folder / "golden.npz", **arrays)
    write_json(folder / "texts.json", {"texts": TEXTS})
    alone = {"text": saved_alone(model, "text", arrays), "vision": saved_alone(model, "vision", arrays)}
    write_json(folder / "golden.json", {"versions": versions(), "alone": alone})
    print(f"siglip: {sum(path.stat().st_size for path in folder.iterdir()) // 1024} KiB")
