"""The recorded sample of `make test`: one or two draws per family, and what transformers said to them.

    PYTHONPATH=tests python -m parity.sample --reference .venv-goldens/bin/python

writes sample.json (configs, names and shapes of tensors) and sample.npz (answers) again. The tensors' values are made
from their names, so no weight is stored.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from .options import DROP, LAYERED
from .space import FAMILIES, Draw
from .values import values

HERE = Path(__file__).parent
SCALED = {"type": "linear", "factor": 2.0}
STRETCHED = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
OWN_HEAD = {"tie_word_embeddings": True, "make.head": "its own"}
UNTIED = {"tie_word_embeddings": False}
# Each holds several keys that were once ignored, misread or refused.
CASES: Sequence[tuple[str, str, dict[str, Any]]] = (
    ("qwen3", "Qwen3ForCausalLM",
     {"raw.rope_scaling": SCALED, "raw.rms_norm_eps": DROP, "raw.architectures": DROP, "raw.dtype": None, **OWN_HEAD}),
    ("qwen3", "Qwen3Model", {"raw.rope_scaling": STRETCHED, "max_position_embeddings": 40}),
    ("qwen3-moe", "Qwen3MoeForCausalLM", {"use_sliding_window": True, "sliding_window": 3, "hidden_act": "gelu"}),
    ("qwen3-next", "Qwen3NextForCausalLM", {"layer_types": ["full_attention"] * 2, "hidden_act": "gelu_new"}),
    ("qwen3.5", "Qwen3_5ForCausalLM", {"layer_types": ["linear_attention"] * 2, "hidden_act": "relu"}),
    ("qwen3.5", "Qwen3_5TextModel", {"linear_conv_kernel_dim": 1, "raw.rope_scaling": SCALED}),
    ("qwen3.5-moe", "Qwen3_5MoeForCausalLM", {"raw.norm_topk_prob": False, "hidden_act": "mish"}),
    ("qwen3.5-vl", "Qwen3_5ForConditionalGeneration", OWN_HEAD),
    ("qwen3-vl", "Qwen3VLForConditionalGeneration", {**OWN_HEAD, "text.hidden_act": "swish"}),
    ("qwen3-vl-moe", "Qwen3VLMoeForConditionalGeneration",
     {"raw.text.norm_topk_prob": False, "vision.num_position_embeddings": 20, "vision.hidden_act": "relu"}),
    ("bert", "BertForMaskedLM", {**UNTIED, "hidden_act": "gelu_python", "raw.layer_norm_eps": DROP}),
    ("roberta", "RobertaForMaskedLM", UNTIED),
    ("xlm-roberta", "XLMRobertaForMaskedLM", OWN_HEAD | {"hidden_act": "quick_gelu"}),
    ("modernbert", "ModernBertForMaskedLM", {**UNTIED, "rope_parameters": LAYERED[1]}),
    ("modernbert", "ModernBertForSequenceClassification", {"rope_parameters": LAYERED[2], "raw.architectures": DROP}),
    ("embeddinggemma", "Gemma3TextModel", {"rope_parameters": LAYERED[1], "raw.rope_scaling": SCALED}),
    ("llama-bidirec", "LlamaModel", {"raw.rope_scaling": {"type": "yarn", "factor": 2.0}, "mlp_bias": True}),
    ("llama-nemotron-vl", "LlamaModel", {"raw.rope_scaling": SCALED, "raw.rms_norm_eps": DROP}),
    ("qwen3-bidirectional", "Qwen3Model", {"hidden_act": "relu2", "raw.rope_theta": 300.0}),
    ("siglip", "SiglipModel", {"text.hidden_act": "quick_gelu", "raw.vision.layer_norm_eps": DROP}),
)  # fmt: skip
# Past the 40 positions that one of them states.
LONGEST = {1: 70}


def sampled() -> list[Draw]:
    return [
        Draw(family, architecture, 90 + index, options, LONGEST.get(index, 12))
        for index, (family, architecture, options) in enumerate(CASES)
    ]


def rebuild(index: int, folder: Path) -> dict[str, np.ndarray]:
    """Write the checkpoint of one recorded draw; returns what the reference said to it."""
    about, draw = json.loads((HERE / "sample.json").read_text())[index], sampled()[index]
    target = folder / "checkpoint"
    target.mkdir()
    for name, content in about["files"].items():
        (target / name).write_text(json.dumps(content))
    # A trunk that was put behind a tower afterwards was filled under its own names.
    inner = "language_model." if draw.family == "llama-nemotron-vl" else ""
    shapes = {name.removeprefix(inner): shape for name, shape in about["tensors"].items()}
    made = values(shapes, draw.seed, zero_centred=FAMILIES[draw.family].zero_centred)
    arrays = {name: mx.array(made[name.removeprefix(inner)]) for name in about["tensors"]}
    mx.save_safetensors(str(target / "model.safetensors"), arrays, {"format": "pt"})
    with np.load(HERE / "sample.npz") as stored:
        prefix = f"{index}/"
        return {name.removeprefix(prefix): stored[name] for name in stored if name.startswith(prefix)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", default=".venv-goldens/bin/python")
    reference = parser.parse_args().reference
    work = Path(tempfile.mkdtemp(prefix="parity-"))
    (work / "draws.json").write_text(json.dumps([asdict(draw) for draw in sampled()]))
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(HERE.parent)}
    subprocess.run([reference, "-m", "parity.reference", str(work)], check=True, env=environment)
    about, arrays = [], dict[str, np.ndarray]()
    for index in range(len(CASES)):
        folder = work / str(index) / "checkpoint"
        files = {path.name: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
        stored = mx.load(str(folder / "model.safetensors"))
        about.append({"files": files, "tensors": {name: list(each.shape) for name, each in sorted(stored.items())}})
        with np.load(work / str(index) / "expected.npz") as expected:
            # Logits say what hidden states say.
            left = [name for name in expected if "vectors" not in name]
            if any(name.startswith("logits_") for name in left):
                left = [name for name in left if "hidden_" not in name]
            arrays |= {f"{index}/{name}": expected[name] for name in left}
    (HERE / "sample.json").write_text(json.dumps(about) + "\n")
    np.savez_compressed(HERE / "sample.npz", **arrays)
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
