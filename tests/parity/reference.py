"""The reference's side: makes the checkpoint of every draw, and records what transformers and ST answer to it.

    PYTHONPATH=tests .venv-goldens/bin/python -m parity.reference FOLDER

FOLDER/draws.json lists the draws; each gets FOLDER/N with `checkpoint`, maybe `vectors` and `scores`, which are
pipelines, and `expected.npz`, or
`skipped.txt` where the reference itself refuses the draw. Every answer is recorded a second and third time with weights
that are off by one unit in the last place (`noise_...` is the larger difference), which is what rounding may change.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import traceback
import warnings
from functools import partial
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers  # noqa: E402

from . import pipelines  # noqa: E402
from .families import FAMILIES  # noqa: E402
from .options import DROP, VOCABULARY  # noqa: E402
from .space import Draw, config_of, lengths_of, word  # noqa: E402
from .values import patches, picture, rows, values  # noqa: E402

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
torch.set_num_threads(1)
TOKENS, PICTURES = 24, 2
# Names of an output head's matrix, where a checkpoint may have one of its own, and what it is tied to.
HEADS = {
    "lm_head.weight": "embed_tokens.weight",
    "lm_head.decoder.weight": "word_embeddings.weight",
    "cls.predictions.decoder.weight": "word_embeddings.weight",
    "decoder.weight": "tok_embeddings.weight",
    "vocab_projector.weight": "word_embeddings.weight",
    "generator_lm_head.weight": "word_embeddings.weight",
    "predictions.decoder.weight": "word_embeddings.weight",
}


def make(draw: Draw, folder: Path) -> Any:
    """Write the checkpoint of a draw, and return its model as the reference reads it back."""
    about = FAMILIES[draw.family]
    config, raw, how = config_of(draw)
    torch.manual_seed(0)
    cls = getattr(transformers, draw.architecture)
    model = cls(transformers.CONFIG_MAPPING[about.model_type](**config)).float().eval()
    model.save_pretrained(folder)
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    stored = load_file(folder / "model.safetensors")
    shapes = {name: tuple(tensor.shape) for name, tensor in stored.items()}
    for head, words in HEADS.items():
        matrix = next((name for name in shapes if name.endswith(words)), None)
        if how.get("head", "as saved") != "as saved" and head in names and head not in shapes and matrix:
            shapes[head] = shapes[matrix]
    found = {name: torch.from_numpy(np.asarray(each)) for name, each in
             values(shapes, draw.seed, zero_centred=about.zero_centred).items()}  # fmt: skip
    for head, words in HEADS.items():
        if how.get("head") == "a copy" and head in found and head not in stored:
            found[head] = found[next(name for name in found if name.endswith(words))].clone()
    dtype = getattr(torch, how.get("dtype", "float32"))
    save_file({name: each.to(dtype).contiguous() for name, each in found.items()}, folder / "model.safetensors")
    edit(folder / "config.json", raw)
    write_tokenizer(folder, about.model_type, config.get("pad_token_id"))
    if about.model_type == "clip":
        # As `pictures` are scaled.
        scaled = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        (folder / "preprocessor_config.json").write_text(json.dumps(scaled))
    model = cls.from_pretrained(folder, dtype=torch.float32).eval()
    # Every answer is one pass; recurrent layers alone can't count the tokens of a cache.
    model.config.use_cache = model.config.get_text_config().use_cache = False
    return model


def edit(path: Path, raw: dict[str, Any]) -> None:
    stated = json.loads(path.read_text())
    for key, value in raw.items():
        part, _, rest = key.rpartition(".")
        level = stated[f"{part}_config"] if part else stated
        if value == DROP:
            level.pop(rest, None)
        else:
            level[rest] = value
    path.write_text(json.dumps(stated))


def write_tokenizer(folder: Path, model_type: str, pad: int | None) -> None:
    """Words that are ids: the text "t07 t12" has the ids 7 and 12."""
    words = [word(index) for index in range(VOCABULARY)]
    if model_type.startswith(("qwen2", "qwen3_5")):
        # Whatever class is named, transformers makes a byte pair encoder of these; words that are added stay whole.
        tokenizer = Tokenizer(models.BPE({}, []))
        tokenizer.add_tokens([AddedToken(each, normalized=False) for each in words])
    else:
        vocabulary = {each: index for index, each in enumerate(words)}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=words[0]))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    said = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": words[0], "pad_token": words[pad or 1]}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))


@torch.no_grad()
def answers(draw: Draw, model: Any, ids: list[np.ndarray]) -> dict[str, np.ndarray]:
    """What the reference says to every row alone, and unpadded."""
    found: dict[str, np.ndarray] = {}
    tasks = FAMILIES[draw.family].tasks[draw.architecture]
    for index, row in enumerate(ids):
        given = torch.tensor(row[None].astype(np.int64))
        if "pictures" in tasks:
            found[f"text_{index}"] = model.get_text_features(given).pooler_output[0].numpy()
        elif "tags" in tasks:
            found[f"tags_{index}"] = model(input_ids=given).logits[0].numpy()
        elif "labels" in tasks:
            found[f"labels_{index}"] = model(input_ids=given).logits[0].numpy()
        else:
            said = model(input_ids=given, output_hidden_states=True)
            if "logits" in tasks:
                found[f"logits_{index}"] = said.logits[0].numpy()
            trunk = said.hidden_states[-1] if "logits" in tasks else said.last_hidden_state
            found[f"hidden_{index}"] = trunk[0].numpy()
    if "seen" in tasks:
        for index, each in enumerate(seen(draw, model)):
            found[f"seen_{index}"] = each.numpy()
    if "pictures" in tasks:
        pixels = torch.tensor(pictures(draw)).permute(0, 3, 1, 2).float() / 127.5 - 1
        found["pictures"] = model.get_image_features(pixels).pooler_output.numpy()
    return found


def seen(draw: Draw, model: Any) -> list[torch.Tensor]:
    """What the tower makes of one picture: features (tokens, D), and those of each tap."""
    vision = model.config.vision_config
    patch, merge, frames = vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
    pixels = picture(draw.seed, patch * merge * 2)
    given = torch.tensor(patches(pixels, patch, merge)).float() / 127.5 - 1
    # A still image is a film of equal frames.
    given = given.reshape(len(given), 3, 1, -1).expand(-1, -1, frames, -1).reshape(len(given), -1)
    grid = torch.tensor([[1, pixels.shape[0] // patch, pixels.shape[1] // patch]])
    said = model.get_image_features(pixel_values=given, image_grid_thw=grid)
    told = [said.pooler_output, *(getattr(said, "deepstack_features", None) or [])]
    # Parted by picture, of which there is one.
    return [each if isinstance(each, torch.Tensor) else torch.cat(list(each)) for each in told]


def pictures(draw: Draw) -> np.ndarray:
    """uint8 pixels (n, side, side, 3), of the size that the tower sees."""
    side = draw.options.get("vision.image_size", 16)
    return np.random.default_rng(draw.seed).integers(0, 256, size=(PICTURES, side, side, 3), dtype=np.uint8)


@torch.no_grad()
def greedy(model: Any, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Greedy tokens after a row by whole passes, and the gap between the best two of each."""
    found, gaps = ids.tolist(), []
    for _ in range(TOKENS):
        best = model(input_ids=torch.tensor([found])).logits[0, -1].topk(2)
        gaps.append(float(best.values[0] - best.values[1]))
        found.append(int(best.indices[0]))
    return np.array(found[len(ids) :], np.int32), np.array(gaps)


@torch.no_grad()
def perturb(model: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Move every weight by one unit in the last place, up or down; returns what they were."""
    dice = torch.Generator().manual_seed(seed)
    kept = {name: each.clone() for name, each in model.state_dict().items()}
    for parameter in model.parameters():
        signs = torch.randint(0, 2, parameter.shape, generator=dice) * 2 - 1
        parameter.mul_(1 + signs * 2.0**-23)
    return kept


def positions(config: Any) -> int:
    """Positions that a config's rope reaches: yarn adds some. Distances alone have no end."""
    rope = getattr(config, "rope_parameters", None) or {}
    if not hasattr(config, "max_position_embeddings"):
        return sys.maxsize
    if rope.get("rope_type") != "yarn":
        return config.max_position_embeddings
    return max(config.max_position_embeddings, int(rope["original_max_position_embeddings"] * rope["factor"]))


def record(draw: Draw, folder: Path) -> None:
    model = make(draw, folder / "checkpoint")
    about = FAMILIES[draw.family]
    tasks = about.tasks[draw.architecture]
    if "tags" in tasks and draw.options.get("raw.architectures") == DROP:
        raise ValueError(
            "no file says whether its classifier is one of tokens; the reference leaves that to its caller"
        )
    config = model.config.get_text_config()
    longest = min(draw.longest, positions(config) - TOKENS - 6)
    lengths = [config.max_position_embeddings] * 3 if "pictures" in tasks else None
    ids = rows(lengths or lengths_of(draw.seed, longest), VOCABULARY, draw.seed)
    for row in ids if about.model_type == "clip" else ():
        # A text is read at its largest id.
        row[-1] = VOCABULARY - 1
    arrays = {f"ids_{index}": row for index, row in enumerate(ids)}
    # What answers, and what is asked of it once and under noise.
    asked = {model: (partial(answers, draw, model, ids),) * 2}
    for kind in ("vectors", "scores"):
        # A CrossEncoder takes a classifier that names no architecture for one of a single label.
        unnamed = kind == "scores" and draw.options.get("raw.architectures") == DROP and "labels" in tasks
        if kind in tasks and not unnamed:
            made = pipelines.save(draw, folder / "checkpoint", folder / kind, scores=kind == "scores")
            whole = partial(getattr(pipelines, kind), made, ids)
            asked[made] = (whole, partial(whole, roles=False) if kind == "vectors" else whole)
    if "tokens" in tasks:
        arrays["tokens"], arrays["gaps"] = greedy(model, ids[1])
    told = {name: each for ask, _ in asked.values() for name, each in ask().items()}
    noise = dict.fromkeys(told, 0.0)
    for turn in range(2):
        for module, (_, ask) in asked.items():
            kept = perturb(module, turn)
            for name, other in ask().items():
                noise[name] = max(noise[name], float(np.abs(other - told[name]).max()))
            module.load_state_dict(kept)
    if "vectors" in noise:
        noise["query"] = noise["document"] = noise["vectors"]
    arrays |= told | {f"noise_{name}": np.float64(each) for name, each in noise.items()}
    if about.claimed:
        claim = {"model_type": about.claimed[0], "architectures": [about.claimed[1]], "is_causal": DROP}
        for path in folder.rglob("config.json"):
            if "model_type" in json.loads(path.read_text()):
                edit(path, claim)
        if "nemotron" in about.claimed[0]:
            put_behind_a_tower(folder / "checkpoint", draw)
    np.savez(folder / "expected.npz", **arrays)


def put_behind_a_tower(folder: Path, draw: Draw) -> None:
    """Make a trunk's checkpoint that of llama_nemotron_vl, whose classes are not part of transformers."""
    text = json.loads((folder / "config.json").read_text())
    named = {key: text.pop(key) for key in ("model_type", "architectures")}
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 16, "patch_size": 4}
    tower = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**vision, vision_use_head=False))
    shapes = {f"vision_model.{name}": tuple(each.shape) for name, each in tower.state_dict().items()}
    shapes |= {"mlp1.0.weight": (64,), "mlp1.0.bias": (64,), "mlp1.1.weight": (32, 64), "mlp1.1.bias": (32,)}
    shapes |= {"mlp1.3.weight": (32, 32), "mlp1.3.bias": (32,)}
    stored = {f"language_model.{name}": each for name, each in load_file(folder / "model.safetensors").items()}
    made = values(shapes, draw.seed, zero_centred=False)
    save_file(stored | {name: torch.from_numpy(each) for name, each in made.items()}, folder / "model.safetensors")
    config = {**named, "llm_config": {**text, "model_type": "llama"}, "vision_config": vision, "pooling": "avg"}
    config |= {"downsample_ratio": 0.5, "img_context_token_id": 95, "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))


def main(target: Path) -> None:
    for index, each in enumerate(json.loads((target / "draws.json").read_text())):
        draw, folder = Draw(**each), target / str(index)
        if folder.exists():
            continue
        folder.mkdir()
        try:
            record(draw, folder)
        except Exception:
            shutil.rmtree(folder / "checkpoint", ignore_errors=True)
            (folder / "skipped.txt").write_text(traceback.format_exc())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
