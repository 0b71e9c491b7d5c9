"""On a GPU: 64 images of one megapixel with captions against transformers, and one of 16 megapixels within its plan.

    python benchmarks/qwen3_vl_gpu.py [--write]
    python benchmarks/qwen3_vl_gpu.py --tiny        # a quick look at small shapes; checks no bar, writes nothing

Random weights in the shape of Qwen3-VL-2B, bfloat16, saved once as a checkpoint that both load. archport runs in this
process; transformers (torch, sdpa) in one of its own, with `--python`. Both start from the same uint8 pixels and
captions and end with unit vectors on the host. transformers' image processor runs on the CPU; its seconds are listed
apart: "with" counts them, "without" hands torch its patches for free. The best of several batch sizes counts. Exits 1
when a bar is missed.
"""

from __future__ import annotations

import argparse
import inspect
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from archport.testing.plans import planned

# archport is imported where it is needed: the worker's Python has torch and not MLX.
REQUIRED_SPEEDUP = 1.5
REQUIRED_COSINE = 0.99
SPECIALS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)
TEXT: dict[str, Any] = {
    "model_type": "qwen3_vl_text",
    "hidden_size": 2048,
    "num_hidden_layers": 28,
    "intermediate_size": 6144,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 5000000,
    "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
    "vocab_size": 151936,
    "max_position_embeddings": 262144,
    "attention_bias": False,
    "hidden_act": "silu",
    "dtype": "bfloat16",
}
VISION: dict[str, Any] = {
    "model_type": "qwen3_vl",
    "depth": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_heads": 16,
    "in_channels": 3,
    "patch_size": 16,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "out_hidden_size": 2048,
    "num_position_embeddings": 2304,
    "deepstack_visual_indexes": [5, 11, 17],
    "hidden_act": "gelu_pytorch_tanh",
}


# --- the worker: transformers, in a process and a Python of its own ---


def work(folder: str, job: str, answer: str) -> None:
    """Embed the job's images with each batch size; write vectors, seconds and peaks."""
    import numpy as np
    import torch
    import transformers
    from tokenizers import Tokenizer
    from transformers import AutoConfig, Qwen3VLForConditionalGeneration

    settings, images = json.loads(Path(job).read_text()), np.load(job + ".npy")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = torch.bfloat16 if device == "cuda" else torch.float32
    config = AutoConfig.from_pretrained(folder)
    model = Qwen3VLForConditionalGeneration.from_pretrained(
        folder, config=config, dtype=kind, attn_implementation="sdpa"
    ).to(device)
    model = model.eval().model
    processor, which = image_processor(config.vision_config.patch_size)
    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    pad = config.image_token_id

    def patches(first: int, last: int) -> tuple[Any, Any]:
        found = processor(images=list(images[first:last]), return_tensors="pt")
        return found["pixel_values"], found["image_grid_thw"]

    def rows(first: int, grids: Any) -> tuple[Any, Any]:
        found = []
        for text, grid in zip(settings["prompts"][first : first + len(grids)], grids.tolist(), strict=True):
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            at, count = ids.index(pad), grid[1] * grid[2] // 4
            found.append([*ids[:at], *[pad] * count, *ids[at + 1 :]])
        longest = max(map(len, found))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in found])
        return ids, torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in found])

    @torch.no_grad()
    def vectors(first: int, pixels: Any, grids: Any) -> Any:
        ids, mask = (each.to(device) for each in rows(first, grids))
        extra = {}
        if "mm_token_type_ids" in inspect.signature(model.get_rope_index).parameters:
            extra["mm_token_type_ids"] = (ids == pad).int()
        out = model(
            input_ids=ids, attention_mask=mask, pixel_values=pixels.to(device, kind), image_grid_thw=grids.to(device),
            use_cache=False, **extra,
        )  # fmt: skip
        last = out.last_hidden_state[torch.arange(len(ids)), mask.sum(1) - 1].float()
        return torch.nn.functional.normalize(last, dim=-1).cpu()

    seconds: dict[str, Any] = {}
    found = None
    for size in settings["batch_sizes"]:
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        runs = []
        try:
            for _ in range(settings["runs"] + 1):
                parts, preparing, running = [], 0.0, 0.0
                for first in range(0, len(images), size):
                    started = time.perf_counter()
                    pixels, grids = patches(first, first + size)
                    preparing += time.perf_counter() - started
                    started = time.perf_counter()
                    parts.append(vectors(first, pixels, grids))
                    running += time.perf_counter() - started
                runs.append((preparing, running))
                found = torch.cat(parts).numpy()
        except torch.OutOfMemoryError:
            continue
        peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
        seconds[str(size)] = {"runs": runs[1:], "peak": peak}
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}, sdpa, {kind}, {which}"
    assert found is not None
    np.save(answer + ".npy", found)
    Path(answer).write_text(json.dumps({"seconds": seconds, "versions": versions}))


def image_processor(patch: int) -> tuple[Any, str]:
    """transformers' processor: through torchvision where it is there, through Pillow where it is not."""
    import transformers

    options = {
        "patch_size": patch, "merge_size": 2, "temporal_patch_size": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
        "size": {"shortest_edge": 4096, "longest_edge": 1_843_200},
    }  # fmt: skip
    for name in ("Qwen2VLImageProcessorFast", "Qwen2VLImageProcessor", "Qwen2VLImageProcessorPil"):
        try:
            made = getattr(transformers, name)(**options)
            return made, type(made).__name__
        except Exception:
            continue
    raise SystemExit("this Python's transformers has no usable image processor for Qwen-VL")


# --- the driver ---


def write_checkpoint(folder: Path, text: dict[str, Any], vision: dict[str, Any]) -> None:
    """A checkpoint of random weights with a byte-level tokenizer."""
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    from archport.checkpoint import normalise_config
    from archport.contract.plugins import claim, discover
    from archport_qwen3_vl.model import Qwen3VL
    from archport_qwen3_vl.weights import published

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: at for at, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIALS])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "text_config": text,
        "vision_config": vision,
        "tie_word_embeddings": True,
        "image_token_id": tokenizer.token_to_id("<|image_pad|>"),
        "video_token_id": tokenizer.token_to_id("<|video_pad|>"),
        "vision_start_token_id": tokenizer.token_to_id("<|vision_start|>"),
        "vision_end_token_id": tokenizer.token_to_id("<|vision_end|>"),
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Qwen2Tokenizer"}))
    normal = normalise_config(config)
    _, spec = claim(normal, discover())
    mx.random.seed(0)
    weights: dict[str, Any] = {}
    for name, value in tree_flatten(Qwen3VL(spec, normal).parameters()):
        noise = 0.02 * mx.random.normal(value.shape)
        weights[name] = ((value if value.ndim == 1 else 0) + noise).astype(mx.bfloat16)
        mx.eval(weights[name])
    tensors = {name: mx.contiguous(value) for name, value in published(weights).items()}
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, metadata={"format": "pt"})


def captions(count: int) -> list[str]:
    import numpy as np

    rng = np.random.default_rng(2)
    letters = list("etaoinshrdlu ")
    return ["".join(rng.choice(letters, int(length))) for length in rng.integers(20, 120, count)]


def photographs(count: int, side: int) -> Any:
    """Smooth colours under noise, (count, side, side, 3) uint8."""
    import numpy as np

    rng = np.random.default_rng(3)
    rows, columns = np.mgrid[:side, :side]
    images = np.empty((count, side, side, 3), np.uint8)
    for at in range(count):
        for channel in range(3):
            wave = np.sin(rows / (20 + at) + channel) * np.cos(columns / (30 - channel) + at)
            images[at, ..., channel] = np.clip(128 + 80 * wave + rng.integers(-20, 20, wave.shape), 0, 255)
    return images


def against_transformers(folder: Path, arguments: argparse.Namespace, side: int) -> tuple[list[str], list[str]]:
    """(lines, missed bars) of the images against transformers."""
    import mlx.core as mx
    import numpy as np

    from archport import engine

    images, texts = photographs(arguments.images, side), captions(arguments.images)
    system = "<|im_start|>system\nRepresent the user's input.<|im_end|>\n<|im_start|>user\n"
    middle, end = "<|vision_start|><|image_pad|><|vision_end|>", "<|im_end|>\n<|im_start|>assistant\n"
    job, answer = folder.parent / "job.json", folder.parent / "answer.json"
    settings = {"prompts": [system + middle + text + end for text in texts], "runs": arguments.runs}
    job.write_text(json.dumps({**settings, "batch_sizes": arguments.batch_sizes}))
    np.save(str(job) + ".npy", images)
    command = [arguments.python, str(Path(__file__).resolve()), "--worker", str(folder), str(job), str(answer)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise SystemExit(f"transformers failed:\n{ran.stdout[-2000:]}{ran.stderr[-4000:]}")
    peer, vectors = json.loads(answer.read_text()), np.load(str(answer) + ".npy")

    model = engine.load(folder)
    inputs = [{"image": image, "text": text} for image, text in zip(images, texts, strict=True)]
    tokens = model._runtime.tokeniser(inputs)
    plan = planned(model._runtime.encoder.plan, tokens.lengths, images=tokens.images)
    seconds: list[float] = []
    ours, peak = np.zeros(0), 0
    for _ in range(arguments.runs + 1):
        mx.synchronize()
        mx.clear_cache()
        mx.reset_peak_memory()
        started = time.perf_counter()
        ours = model.embed(inputs)
        seconds.append(time.perf_counter() - started)
        peak = max(peak, mx.get_peak_memory())
    best = statistics.median(seconds[1:])
    count = len(images)
    lines = [
        f"{count} images of {side} x {side} with captions, {sum(tokens.lengths):,} tokens; {peer['versions']}",
        f"  archport: {best:.3f} s, {count / best:.1f} images/s; peak {peak:,} bytes (predicted {plan.peak:,}); runs "
        + ", ".join(f"{each:.3f}" for each in seconds[1:]),
        f"  planned: {len(plan.batches)} batches of {[len(batch.rows) for batch in plan.batches]} rows padded to "
        f"{[batch.shape.L for batch in plan.batches]}, "
        f"{sum(len(batch.quote.vision) for batch in plan.batches)} tower passes by "
        + ", ".join(
            sorted({path.backend.name for b in plan.batches for s in b.quote.vision for path in s.paths if path})
        ),
    ]
    whole, bare = 0.0, 0.0
    for size, each in peer["seconds"].items():
        preparing, running = (statistics.median(part) for part in zip(*each["runs"], strict=True))
        whole, bare = max(whole, count / (preparing + running)), max(bare, count / running)
        lines.append(
            f"  transformers, batches of {size}: with its processor {preparing + running:.3f} s, "
            f"{count / (preparing + running):.1f} images/s; without {running:.3f} s, {count / running:.1f} images/s; "
            f"peak {each['peak']:,} bytes"
        )
    ratio = count / best / whole
    cosine = float((ours * vectors).sum(axis=1).min())
    lines.append(
        f"  archport / transformers: {ratio:.2f}x with its processor, {count / best / bare:.2f}x without; least cosine "
        f"{cosine:.5f}"
    )
    missed = [f"{ratio:.2f}x < {REQUIRED_SPEEDUP}x"] * (ratio < REQUIRED_SPEEDUP)
    missed += [f"cosine {cosine:.4f}"] * (not cosine >= REQUIRED_COSINE)
    missed += [f"peak {peak:,} above the planned {plan.peak:,}"] * (peak > plan.peak)
    return lines, missed


def large(folder: Path, sides: list[int]) -> tuple[list[str], list[str]]:
    """(lines, missed bars) of single images up to 16 megapixels: measured within predicted, and no more than linear."""
    import mlx.core as mx

    from archport import engine

    lines: list[str] = []
    missed: list[str] = []
    model = engine.load(folder, max_context=32_768)
    base = model._runtime.encoder.plan.weights.total
    before: tuple[int, int] | None = None
    for side in sides:
        item = {"image": photographs(1, side)[0], "max_pixels": 2**25}
        tokens = model._runtime.tokeniser([item])
        plan = planned(model._runtime.encoder.plan, tokens.lengths, images=tokens.images)
        (batch,) = plan.batches
        model.embed([item])
        mx.synchronize()
        mx.clear_cache()
        mx.reset_peak_memory()
        started = time.perf_counter()
        model.embed([item])
        seconds = time.perf_counter() - started
        peak, patches = mx.get_peak_memory(), tokens.images[0][0]
        path = batch.quote.vision[0].paths[0]
        assert path is not None
        lines.append(
            f"one image of {side} x {side}, {patches:,} patches: peak {peak:,} bytes (predicted {plan.peak:,}), "
            f"{seconds:.2f} s; {path.backend.name}, pieces of {batch.quote.vision[0].piece:,}; largest stretch "
            f"{plan.work.seconds:.3f} s by plan"
        )
        if peak > plan.peak:
            missed.append(f"{side} x {side} above its plan")
        if before is not None:
            growth, linear = (peak - base) / (before[1] - base), patches / before[0]
            if growth > 1.1 * linear:
                missed.append(f"{side} x {side} grew {growth:.1f} times for {linear:.1f} times the patches")
        before = patches, peak
    return lines, missed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the output to benchmarks/results too")
    parser.add_argument("--tiny", action="store_true", help="small shapes, to try the script")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--python", default="python3", help="a Python with torch and transformers")
    parser.add_argument("--only", choices=("speed", "large"), help="one part")
    parser.add_argument("--worker", nargs=3, metavar=("FOLDER", "JOB", "ANSWER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(*arguments.worker)
        return
    import archport
    from archport.device.facts import this_device

    device = this_device()
    text, vision = dict(TEXT), dict(VISION)
    if arguments.tiny:
        text |= {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96, "num_attention_heads": 2}
        text |= {"num_key_value_heads": 1, "vocab_size": 300}
        vision |= {"depth": 2, "hidden_size": 64, "intermediate_size": 96, "num_heads": 2, "out_hidden_size": 64}
        vision |= {"deepstack_visual_indexes": [0]}
    lines = [
        f"archport {archport.__version__}, mlx {device.mlx_version}, python {platform.python_version()}, {device.name}"
    ]
    missed: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "Random-VL-Embedding"
        folder.mkdir()
        write_checkpoint(folder, text, vision)
        if arguments.only != "large":
            found = against_transformers(folder, arguments, 128 if arguments.tiny else 1024)
            print(*found[0], sep="\n", flush=True)
            lines, missed = lines + found[0], missed + found[1]
        if arguments.only != "speed":
            found = large(folder, [128, 256] if arguments.tiny else [512, 1024, 2048, 4096])
            print(*found[0], sep="\n", flush=True)
            lines, missed = lines + found[0], missed + found[1]
    lines.append("all bars met" if not missed else "MISSED: " + "; ".join(missed))
    print(lines[0], lines[-1], sep="\n")
    if arguments.tiny:
        return
    if arguments.write:
        (Path(__file__).parent / "results" / f"qwen3_vl_{device.kind}.txt").write_text("\n".join(lines) + "\n")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
