"""Quantised conversions of vision checkpoints as mlx-vlm writes them: own names, and overrides under those names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
import pytest
from tolerances import tolerance

from archport import engine
from archport.loading import describe
from archport_qwen35.weights import PATCH, renamed

GOLDENS = Path(__file__).parents[3] / "tests" / "goldens"
PROMPT = [1, 2, 3, 4, 9, 17]
EIGHT = {"bits": 8, "group_size": 32}
# How mlx-vlm calls the trunk and the tower.
PREFIXES = {"model.": "language_model.model.", "lm_head.": "language_model.lm_head.", "visual.": "vision_tower."}


def quantised(name: str, value: mx.array, settings: dict) -> dict[str, mx.array]:
    parts = mx.quantize(value, **settings)
    leaves = zip(("weight", "scales", "biases"), parts, strict=False)
    return {f"{name}.{leaf}": part for leaf, part in leaves if part is not None}


@pytest.fixture
def convert(tmp_path: Path):
    """`convert(golden, settings)`: a golden as a quantised conversion, routers in 8 bits as mlx-vlm keeps them."""

    def made(golden: str, settings: dict) -> Path:
        folder = tmp_path / golden
        shutil.copytree(GOLDENS / golden, folder)
        spec = describe(GOLDENS / golden).spec
        weights = renamed(mx.load(str(folder / "model.safetensors")), spec)
        stated, stored = dict(settings), {}
        for name, value in weights.items():
            path, _, leaf = name.rpartition(".")
            published = next(new + name.removeprefix(old) for old, new in PREFIXES.items() if name.startswith(old))
            published = published.rpartition(".")[0]
            eight = path.endswith(("mlp.gate", "shared_expert_gate"))
            packed = leaf == "weight" and value.ndim > 1 and value.shape[-1] % 32 == 0 and "conv1d" not in name
            if not packed or name == PATCH or "pos_embed" in name:
                stored[f"{published}.{leaf}"] = value
                continue
            if eight:
                stated[published] = EIGHT
            stored |= quantised(published, value.astype(mx.float32), EIGHT if eight else settings)
        mx.save_safetensors(str(folder / "model.safetensors"), stored, {"format": "mlx"})
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "quantization": stated}))
        return folder

    return made


MX4, MX8 = {"bits": 4, "group_size": 32, "mode": "mxfp4"}, {"bits": 8, "group_size": 32, "mode": "mxfp8"}
NV4, AFFINE = {"bits": 4, "group_size": 16, "mode": "nvfp4"}, {"bits": 4, "group_size": 32, "mode": "affine"}
SPARSE, DENSE = "qwen35-moe-wrapper", "qwen35-wrapper"


@pytest.mark.parametrize(
    ("golden", "settings"),
    [(SPARSE, MX4), (SPARSE, MX8), (SPARSE, NV4), (SPARSE, AFFINE), (DENSE, MX4)],
    ids=["mxfp4", "mxfp8", "nvfp4", "affine", "dense mxfp4"],
)
def test_a_conversion_kept_quantised_says_what_it_says_unpacked(convert, golden: str, settings: dict):
    folder = convert(golden, settings)
    told = [
        engine.load(folder, dtype=dtype).generate(PROMPT, max_tokens=4, logprobs=1)
        for dtype in ("float32", "checkpoint")
    ]
    first, second = ([each.logprob for each in said.logprobs] for said in told)
    assert told[0].tokens == told[1].tokens
    assert max(abs(a - b) for a, b in zip(first, second, strict=True)) < tolerance("quantised", "bfloat16")
