"""Record LoRA adapters that peft made and applied, on checkpoints of the other goldens.

peft names and stores the tensors and computes with them unmerged, so that nothing of it is archport's.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from golden_quantised import dequantise
from golden_qwen3 import greedy, last_logits, rows_for
from peft import LoraConfig, PeftModel, get_peft_model
from recording import HERE, randomise, versions, write_json
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    Qwen3Config,
    Qwen3ForCausalLM,
)

TEXTS = [
    "A cat sat on the mat.",
    "to hack",
    "The server blew past the 5K reserve buffer, and nobody noticed for a week.",
]
FOLDER = HERE / "adapters"


def adapted(base: torch.nn.Module, seed: int, **settings: Any) -> PeftModel:
    """Return a model with an adapter of random weights, those of saved modules and biases included."""
    model = get_peft_model(base, LoraConfig(init_lora_weights=False, **settings)).eval()
    randomise(_Trained(model), seed, {"lora_": 0.6, "classifier": 2.0, "score": 2.0})
    return model


class _Trained(torch.nn.Module):
    """The parameters that training would change."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def named_parameters(self, *args: Any, **more: Any) -> Any:
        found = self.model.named_parameters(*args, **more)
        return ((name, value) for name, value in found if value.requires_grad)


def save(model: PeftModel, name: str, base: str, arrays: dict[str, np.ndarray], **notes: Any) -> None:
    """Write an adapter as peft saves it, its base by the name of a golden, and what it computes."""
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as place:
        # Else the whole table comes along.
        model.save_pretrained(place, save_embedding_layers=False)
        folder.mkdir(parents=True)
        shutil.copy(Path(place) / "adapter_model.safetensors", folder)
        config = json.loads((Path(place) / "adapter_config.json").read_text())
    write_json(folder / "adapter_config.json", config | settled(config, base))
    finish(folder, base, arrays, **notes)


def settled(config: dict[str, Any], base: str) -> dict[str, Any]:
    """Return what two runs would write otherwise: the base's place, and names that peft keeps as a set."""
    targets = config["target_modules"]
    return {"base_model_name_or_path": base, "target_modules": targets if isinstance(targets, str) else sorted(targets)}


def finish(folder: Path, base: str, arrays: dict[str, np.ndarray], **notes: Any) -> None:
    """Write golden.npz and golden.json."""
    np.savez_compressed(folder / "golden.npz", **arrays)
    made = {"base": base, "texts": TEXTS, "dtype": "float32", "versions": {**versions(), "peft": peft.__version__}}
    write_json(folder / "golden.json", made | notes)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder.name}: {size:,} bytes")


def ids_of(base: str, text: str) -> torch.Tensor:
    tokenizer = Tokenizer.from_file(str(HERE / base / "tokenizer.json"))
    return torch.tensor([tokenizer.encode(text).ids])


@torch.no_grad()
def hidden(model: torch.nn.Module, base: str) -> dict[str, np.ndarray]:
    """Return the final hidden states of every text."""
    rows = {}
    for index, text in enumerate(TEXTS):
        out = model(input_ids=ids_of(base, text), output_hidden_states=True)
        rows[f"hidden_{index}"] = out.hidden_states[-1][0].numpy()
        rows[f"ids_{index}"] = ids_of(base, text)[0].numpy().astype(np.int32)
    return rows


@torch.no_grad()
def logits(model: torch.nn.Module, base: str) -> dict[str, np.ndarray]:
    return {f"logits_{i}": model(input_ids=ids_of(base, text)).logits[0].numpy() for i, text in enumerate(TEXTS)}


def logits_of_last(model: torch.nn.Module, base: str) -> dict[str, np.ndarray]:
    rows = [{"ids": ids_of(base, text)[0].tolist()} for text in TEXTS]
    arrays = {f"logits_{i}": array for i, array in enumerate(last_logits(model, rows))}
    return arrays | {f"ids_{i}": np.asarray(row["ids"], np.int32) for i, row in enumerate(rows)}


def record_bert() -> None:
    """Record BERT: patterns of ranks and alphas, the root of the rank, a table, filters of biases, new heads."""
    base = AutoModel.from_pretrained(HERE / "bert-plain", add_pooling_layer=False)
    model = adapted(
        base, 301, r=4, lora_alpha=8, use_rslora=True,
        target_modules=["query", "value", "dense", "word_embeddings"],
        rank_pattern={"layer.0.attention.self.query": 2, r".*\.1\.output\.dense": 3},
        alpha_pattern={"value": 16, r".*layer\.1\..*dense": 3, "attention.self.query": 5},
    )  # fmt: skip
    save(model, "bert-patterns", "bert-plain", hidden(model, "bert-plain"))

    base = AutoModel.from_pretrained(HERE / "bert-plain", add_pooling_layer=False)
    model = adapted(
        base, 302, r=2, lora_alpha=3, target_modules=r".*layer\.\d\.attention\.self\.(query|key)", lora_bias=True,
        layers_to_transform=None,
    )  # fmt: skip
    save(model, "bert-lora-bias", "bert-plain", hidden(model, "bert-plain"))

    base = AutoModel.from_pretrained(HERE / "bert-plain", add_pooling_layer=False)
    model = adapted(base, 303, r=2, target_modules=["query"], bias="all", layers_to_transform=[1])
    save(model, "bert-biases", "bert-plain", hidden(model, "bert-plain"))

    base = AutoModelForSequenceClassification.from_pretrained(HERE / "bert-prefixed", num_labels=3)
    model = adapted(base, 304, r=4, task_type="SEQ_CLS", target_modules=["query", "value"])
    save(model, "bert-labels", "bert-prefixed", logits(model, "bert-prefixed"))

    base = AutoModelForTokenClassification.from_pretrained(HERE / "bert-plain", num_labels=5)
    model = adapted(base, 305, r=4, task_type="TOKEN_CLS", target_modules=["query", "value"])
    save(model, "bert-tags", "bert-plain", logits(model, "bert-plain"))


def record_qwen3() -> None:
    """Record Qwen3: tokens that it generates, labels, a pipeline of sentence-transformers', a quantised base."""
    every = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    base = AutoModelForCausalLM.from_pretrained(HERE / "qwen3-causal-sharded", dtype=torch.float32)
    model = adapted(base, 311, r=2, lora_alpha=4, task_type="CAUSAL_LM", target_modules=every)
    save(model, "qwen3", "qwen3-causal-sharded", _generated(model, "qwen3-causal-sharded"))

    base = AutoModelForSequenceClassification.from_pretrained(
        HERE / "qwen3-causal-sharded", num_labels=4, dtype=torch.float32
    )
    model = adapted(base, 312, r=2, task_type="SEQ_CLS", target_modules=["q_proj", "down_proj"])
    save(model, "qwen3-labels", "qwen3-causal-sharded", logits(model, "qwen3-causal-sharded"))

    for seed, name in ((315, "embed_tokens"), (316, "lm_head")):
        base = AutoModelForCausalLM.from_pretrained(HERE / "qwen3-tied", dtype=torch.float32)
        model = adapted(base, seed, r=1, target_modules=[name])
        save(model, f"qwen3-tied-{name}", "qwen3-tied", logits_of_last(model, "qwen3-tied"))

    folder = HERE / "qwen3-4bit"
    config = json.loads((folder / "config.json").read_text())
    settings = config.pop("quantization")
    config.pop("quantization_config")
    unpacked = Qwen3ForCausalLM(Qwen3Config(**config)).eval()
    unpacked.load_state_dict(dequantise(load_file(folder / "model.safetensors"), settings), strict=False)
    unpacked.tie_weights()
    model = adapted(
        unpacked, 313, r=2, lora_alpha=4, task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj", "up_proj"]
    )
    save(model, "qwen3-4bit", "qwen3-4bit", _generated(model, "qwen3-4bit"))

    model = SentenceTransformer(str(HERE / "qwen3-embed"), model_kwargs={"dtype": torch.float32})
    model.add_adapter(LoraConfig(r=2, lora_alpha=6, target_modules=every, init_lora_weights=False))
    randomise(_Trained(model), 314, {"lora_": 0.6})
    vectors = {role: getattr(model, f"encode_{role}")(TEXTS) for role in ("query", "document")}
    out = FOLDER / "qwen3-pipeline"
    shutil.rmtree(out, ignore_errors=True)
    with tempfile.TemporaryDirectory() as place:
        model.save_pretrained(place)
        shutil.copytree(place, out, ignore=shutil.ignore_patterns("README.md"))
    config = json.loads((out / "adapter_config.json").read_text())
    write_json(out / "adapter_config.json", config | settled(config, "qwen3-embed"))
    finish(out, "qwen3-embed", vectors)


def _generated(model: PeftModel, base: str) -> dict[str, np.ndarray]:
    rows = rows_for(Tokenizer.from_file(str(HERE / base / "tokenizer.json")), (2, 31, 100))
    made = [greedy(model, row["ids"]) for row in rows]
    print("narrowest gaps", [gap for _, gap in made])
    arrays = {f"ids_{i}": np.asarray(row["ids"], np.int32) for i, row in enumerate(rows)}
    arrays |= {f"greedy_{i}": np.asarray(tokens, np.int32) for i, (tokens, _) in enumerate(made)}
    return arrays | {f"logits_{i}": array for i, array in enumerate(last_logits(model, rows))}


def record() -> None:
    """Record all of them."""
    record_bert()
    record_qwen3()
