"""From a name nobody has on disk to vectors, over a loopback server and the real hub client."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from archport import engine
from archport.contract import ModelNotFound

GOLDENS = Path(__file__).parents[1] / "goldens"


def test_the_size_less_name_downloads_its_model_and_embeds(hub, tmp_path, caplog):
    folder = tmp_path / "published"
    shutil.copytree(GOLDENS / "qwen3-embed", folder)
    (folder / "modeling_evil.py").write_text("raise SystemExit('remote code was run')")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    hub.add("Qwen/Qwen3-Embedding-0.6B", folder)
    model = engine.load("Qwen/Qwen3-Embedding")
    vectors = model.embed(["a text", "another"])
    assert model.name == "Qwen/Qwen3-Embedding-0.6B"
    assert "'Qwen/Qwen3-Embedding' is loaded as 'Qwen/Qwen3-Embedding-0.6B'" in caplog.text
    assert vectors.shape == (2, 64)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-6)
    assert (vectors == engine.load(GOLDENS / "qwen3-embed").embed(["a text", "another"])).all()
    assert not any(name.endswith((".py", ".bin")) for name in hub.asked_for())


def test_sharded_weights_are_downloaded_whole(hub):
    hub.add("someone/sharded", GOLDENS / "qwen3-causal-sharded")
    model = engine.load("someone/sharded")
    local = engine.load(GOLDENS / "qwen3-causal-sharded")
    assert (model.embed("some text") == local.embed("some text")).all()


def test_a_misspelt_name_lists_near_matches(no_hub):
    with pytest.raises(ModelNotFound) as refused:
        engine.load("Qwen/Qwen3-Embeding")
    assert "Qwen/Qwen3-Embedding" in str(refused.value)
