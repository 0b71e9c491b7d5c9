"""Conversions with an adapter: the sums that loading makes, of every kind of tensor, with the files of both."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from archport import engine
from archport.contract import InputError
from archport.conversion import convert, measure_loss, settings_of, writing

GOLDENS = Path(__file__).parents[1] / "goldens"
ADAPTERS = GOLDENS / "adapters"
TEXTS = ["A cat sat on the mat.", "to hack"]


def parameters(model: engine.Model) -> dict[str, mx.array]:
    from mlx.utils import tree_flatten

    return dict(tree_flatten(model._runtime.encoder.trunk.parameters()))


@pytest.mark.parametrize(
    ("base", "name"),
    [
        ("bert-plain", "bert-patterns"),
        ("bert-plain", "bert-lora-bias"),
        ("bert-plain", "bert-biases"),
        ("bert-prefixed", "bert-labels"),
        ("qwen3-causal-sharded", "qwen3"),
        ("qwen3-tied", "qwen3-tied-embed_tokens"),
        ("qwen3-tied", "qwen3-tied-lm_head"),
    ],
)
def test_the_output_is_what_loading_makes(base: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # A few rows at a time.
    monkeypatch.setattr(writing, "CHUNK", 4096)
    convert(GOLDENS / base, tmp_path / "out", settings_of(merge=True), adapter=ADAPTERS / name)
    made = parameters(engine.load(tmp_path / "out", dtype="checkpoint"))
    wanted = parameters(engine.load(GOLDENS / base, adapter=ADAPTERS / name, dtype="checkpoint"))
    assert made.keys() == wanted.keys()
    for path, array in wanted.items():
        rounding = 2e-6 if array.dtype == mx.float32 else 1e-2
        got, want = np.array(made[path].astype(mx.float32)), np.array(array.astype(mx.float32))
        assert np.abs(got - want).max() <= rounding * max(1.0, float(np.abs(want).max())), path


def test_sums_are_quantised_and_measured(tmp_path: Path):
    base, adapter = GOLDENS / "qwen3-causal-sharded", ADAPTERS / "qwen3"
    convert(base, tmp_path / "out", settings_of(bits=8, group_size=32), adapter=adapter)
    loss = measure_loss(base, tmp_path / "out", TEXTS, adapter=adapter)
    assert abs(loss.after / loss.before - 1) < 0.05


def test_an_adapter_with_a_pipeline_of_its_own_brings_it(tmp_path: Path):
    folder = shutil.copytree(ADAPTERS / "qwen3-pipeline", tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(GOLDENS / "qwen3-embed")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    convert(folder, tmp_path / "out", settings_of(dtype="float32"))
    wanted = engine.load(folder, dtype="float32").encode_query(TEXTS)
    np.testing.assert_allclose(engine.load(tmp_path / "out").encode_query(TEXTS), wanted, atol=1e-5)


def test_without_an_adapter_something_has_to_be_asked_for():
    with pytest.raises(InputError, match="nothing to convert"):
        settings_of()
