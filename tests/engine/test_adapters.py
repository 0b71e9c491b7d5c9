"""LoRA adapters through whole models: peft's numbers on every task, what plans and copies of a model know of them."""

from __future__ import annotations

import gc
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archport import engine
from archport.admission import bytes_of
from archport.bulk.identity import model_settings
from archport.checkpoint.sharing import count
from archport.contract import CheckpointError
from archport.loading import narrowed

GOLDENS = Path(__file__).parents[1] / "goldens"
ADAPTERS = GOLDENS / "adapters"


def golden(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(what was recorded of an adapter, its arrays)."""
    about = json.loads((ADAPTERS / name / "golden.json").read_text())
    with np.load(ADAPTERS / name / "golden.npz") as stored:
        return about, dict(stored)


def loaded(name: str, **options: Any) -> engine.Model:
    base = GOLDENS / golden(name)[0]["base"]
    return engine.load(base, adapter=ADAPTERS / name, **{"dtype": "float32", **options})


def gap(got: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("name", ["bert-patterns", "bert-lora-bias", "bert-biases"])
def test_hidden_states_are_peft_s(name: str):
    about, arrays = golden(name)
    model, base = loaded(name), engine.load(GOLDENS / about["base"], dtype="float32")
    for index in range(len(about["texts"])):
        ids, wanted = arrays[f"ids_{index}"][None], arrays[f"hidden_{index}"][None]
        assert gap(np.array(model.forward(ids)), wanted) < 1e-5
        assert gap(np.array(base.forward(ids)), wanted) > 1e-2


@pytest.mark.parametrize("name", ["bert-labels", "qwen3-labels"])
def test_an_adapter_brings_its_own_labels(name: str):
    about, arrays = golden(name)
    made = loaded(name).classify(about["texts"], raw_scores=True)
    wanted = [arrays[f"logits_{index}"] for index in range(len(about["texts"]))]
    assert gap(np.array([list(one.scores.values()) for one in made]), np.array(wanted)) < 1e-5


def test_an_adapter_brings_labels_of_tokens():
    about, arrays = golden("bert-tags")
    model = loaded("bert-tags")
    for index, spans in enumerate(model.tag(about["texts"])):
        # Between the special tokens; neighbours of one label are one span.
        likeliest = arrays[f"logits_{index}"][1:-1].argmax(-1)
        labels = [f"LABEL_{label}" for at, label in enumerate(likeliest) if at == 0 or label != likeliest[at - 1]]
        assert [span.label for span in spans] == labels


@pytest.mark.parametrize("name", ["qwen3", "qwen3-4bit"])
def test_generated_tokens_are_peft_s(name: str):
    _, arrays = golden(name)
    model = loaded(name)
    prompts = [arrays[f"ids_{index}"].tolist() for index in range(4)]
    wanted = [arrays[f"greedy_{index}"].tolist() for index in range(4)]
    made = model.generate(prompts, max_tokens=len(wanted[0]))
    lengths = [len(one.tokens) for one in made]
    assert min(lengths) > 0
    assert [list(one.tokens) for one in made] == [row[:length] for row, length in zip(wanted, lengths, strict=True)]


@pytest.mark.parametrize("name", ["qwen3", "qwen3-4bit", "qwen3-tied-embed_tokens", "qwen3-tied-lm_head"])
def test_logits_are_peft_s(name: str):
    _, arrays = golden(name)
    model = loaded(name)
    for index in range(3):
        rows = model.forward(arrays[f"ids_{index}"][None])
        logits = model._runtime.encoder.trunk.logits(rows)
        assert gap(np.array(logits)[0, -1], arrays[f"logits_{index}"]) < 1e-5


@pytest.mark.parametrize("role", ["query", "document"])
def test_a_pipeline_that_was_saved_with_an_adapter_is_loaded_with_its_base(tmp_path: Path, role: str):
    about, arrays = golden("qwen3-pipeline")
    folder = shutil.copytree(ADAPTERS / "qwen3-pipeline", tmp_path / "saved")
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(GOLDENS / "qwen3-embed")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    model = engine.load(folder, dtype="float32")
    assert gap(getattr(model, f"encode_{role}")(about["texts"]), arrays[role]) < 1e-5


def test_a_copy_in_another_process_has_the_adapter():
    about, _ = golden("bert-patterns")
    model = loaded("bert-patterns")
    other = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(other.embed(about["texts"]), model.embed(about["texts"]))


def test_weights_are_shared_with_the_same_adapter_only(tmp_path):
    # A folder that no other test loads, and no weights of theirs that go meanwhile.
    base = shutil.copytree(GOLDENS / "bert-plain", tmp_path / "base")
    gc.collect()
    before = count()
    first, again = (engine.load(base, adapter=ADAPTERS / "bert-patterns", dtype="float32") for _ in range(2))
    assert count() == before + 1
    others = [engine.load(base, dtype="float32"), engine.load(base, adapter=ADAPTERS / "bert-biases", dtype="float32")]
    assert count() == before + 3
    del first, again, others


def test_a_job_tells_adapters_apart():
    found = [model_settings(loaded(name)) for name in ("bert-patterns", "bert-biases")]
    found.append(model_settings(engine.load(GOLDENS / "bert-plain", dtype="float32")))
    assert len({settings["weights"] for settings in found}) == 3
    names = [Path(settings.get("adapter", "none")).name for settings in found]
    assert names == ["bert-patterns", "bert-biases", "none"]


@pytest.mark.parametrize("name", ["qwen3-4bit", "bert-labels", "qwen3"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "checkpoint"])
def test_the_plan_knows_the_weights_before_they_are_read(name: str, dtype: Any):
    about = engine.describe(GOLDENS / golden(name)[0]["base"], adapter=ADAPTERS / name)
    about = narrowed(about, about.hooks.head(about.spec, about.checkpoint))
    model = loaded(name, dtype=dtype)
    assert bytes_of(about)(dtype, model.dtype.dequantize) == model.memory().weights


def test_an_adapter_of_another_model_is_refused():
    with pytest.raises(CheckpointError, match=r"the adapter does not fit .*bert-plain"):
        engine.load(GOLDENS / "bert-plain", adapter=ADAPTERS / "qwen3")
