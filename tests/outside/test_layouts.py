"""Outside plugins by every layout in which their models are published, and as sentence-transformers has them."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from tokenizers import Tokenizer, models, pre_tokenizers

from archport import engine
from archport.checkpoint import normalise_config
from archport.testing.finding import find
from archport.testing.writing import write_checkpoint, write_pipeline

HERE = Path(__file__).parent
GOLDENS = HERE.parent / "goldens" / "outside"
LIMIT = 1e-5


@pytest.fixture
def plugin(monkeypatch):
    """The plugin in this folder of a name."""

    def load(name):
        monkeypatch.syspath_prepend(str(HERE))
        return __import__(name)

    return load


def far(got, want):
    return np.abs(np.asarray(got, dtype=np.float64) - want).max() / np.abs(want).max()


def spelled(folder, names):
    """A tokenizer of whole words, one for each id."""
    words = Tokenizer(models.WordLevel({f"w{index}": index for index in range(names)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(folder / "tokenizer.json"))


def test_nomic_as_the_hub_has_it_equals_transformers(plugin, tmp_path):
    nomic, golden = plugin("nomic"), np.load(GOLDENS / "nomic" / "golden.npz")
    config = {**nomic.HUB, "rotary_emb_base": 1000}
    spec = nomic.archport_claim(normalise_config(config))
    trunk = nomic.archport_build(spec, normalise_config(config))
    weights = nomic.hub(trunk.sanitize(mx.load(str(GOLDENS / "nomic" / "model.safetensors"))))
    assert {"emb_ln.weight", "encoder.layers.0.attn.Wqkv.weight", "encoder.layers.2.mlp.fc11.weight"} <= set(weights)
    write_checkpoint(tmp_path / "model", config, weights, spec)
    model = engine.load(tmp_path / "model", plugins=(find(nomic),))
    for length in (1, 33, 200):
        hidden = model.forward(golden[f"ids_{length}"][None])[0]
        assert far(hidden, golden[f"hidden_{length}"]) <= LIMIT, length


def test_nomic_embeds_the_unit_mean_of_what_transformers_computes(plugin, tmp_path):
    nomic, golden = plugin("nomic"), np.load(GOLDENS / "nomic" / "golden.npz")
    spec = nomic.archport_claim(normalise_config(nomic.NOMIC))
    weights = mx.load(str(GOLDENS / "nomic" / "model.safetensors"))
    write_checkpoint(tmp_path / "model", nomic.NOMIC, weights, spec)
    # A prompt is a word of this vocabulary.
    write_pipeline(tmp_path / "model", spec, "mean", {"word": "w7 "})
    spelled(tmp_path / "model", spec.vocab_size)
    model = engine.load(tmp_path / "model", plugins=(find(nomic),))
    lengths = (100, 5, 33)
    vectors = model.embed([" ".join(f"w{each}" for each in golden[f"ids_{length}"]) for length in lengths])
    for vector, length in zip(vectors, lengths, strict=True):
        mean = golden[f"hidden_{length}"].mean(axis=0)
        assert far(vector, mean / np.linalg.norm(mean)) <= LIMIT
    prompted = model.embed("w11 w12", prompt_name="word")
    assert far(prompted, model.embed("w7 w11 w12")) <= LIMIT


@pytest.mark.parametrize("change", [{"prenorm": True}, {"qkv_proj_bias": True}, {"rotary_emb_fraction": 0.5}])
def test_a_nomic_that_is_built_otherwise_is_left_to_others(plugin, change):
    nomic = plugin("nomic")
    assert nomic.archport_claim(normalise_config({**nomic.HUB, **change})) is None


def test_deepseek_as_the_hub_has_it_equals_transformers(plugin, tmp_path):
    deepseek, golden = plugin("deepseek"), np.load(GOLDENS / "deepseek_v3" / "golden.npz")
    # Another layer drafts tokens, behind the last.
    config = {**deepseek.DEEPSEEK_V3, "num_nextn_predict_layers": 1}
    spec = deepseek.archport_claim(normalise_config(config))
    trunk = deepseek.archport_build(spec, normalise_config(config))
    weights = deepseek.publish(trunk.sanitize(mx.load(str(GOLDENS / "deepseek_v3" / "model.safetensors"))))
    assert {"model.layers.1.mlp.experts.7.gate_proj.weight", "model.layers.2.mlp.gate.e_score_correction_bias"} <= set(
        weights
    )
    draft = {"model.layers.3.eh_proj.weight": mx.zeros((48, 96))}
    write_checkpoint(tmp_path / "model", config, {**weights, **draft}, spec)
    model = engine.load(tmp_path / "model", plugins=(find(deepseek),))
    for length in (1, 33, 200):
        hidden = model.forward(golden[f"ids_{length}"][None])[0]
        assert far(hidden, golden[f"hidden_{length}"]) <= LIMIT, length


def test_a_latent_layer_s_matrices_weigh_what_is_declared(plugin):
    deepseek = plugin("deepseek")
    for config in (deepseek.DEEPSEEK, deepseek.DEEPSEEK_V3):
        normal = normalise_config(config)
        spec = deepseek.archport_claim(normal)
        attention = deepseek.archport_build(spec, normal).model.layers[0].self_attn
        matrices = [array for _, array in tree_flatten(attention.parameters()) if array.ndim == 2]
        assert sum(array.size for array in matrices) == spec.layers[0].footprint.matrices
