"""The plugin against hidden states that transformers computed from the same tiny checkpoint."""

from pathlib import Path

import numpy as np
import pytest

from archport import engine

GOLDEN = Path(__file__).with_name("golden")
RECORDED = np.load(GOLDEN / "golden.npz")
ROWS = [(RECORDED[f"ids_{i}"], RECORDED[f"hidden_{i}"]) for i in range(len(RECORDED.files) // 2)]


def relative(got, want):
    return float(np.abs(np.array(got) - want).max() / np.abs(want).max())


@pytest.fixture(scope="module")
def model():
    return engine.load(GOLDEN, plugin="llama")


@pytest.mark.parametrize("row", range(len(ROWS)))
def test_hidden_states_equal_transformers(model, row):
    ids, want = ROWS[row]
    assert relative(model.forward(ids[None])[0], want) <= 1e-5


def test_an_installed_plugin_is_the_one_that_loaded_it(model):
    assert model.plugin.label == "llama (archport-llama 0.1.0)"


def test_without_pipeline_files_a_vector_is_the_mean_of_the_hidden_states(model):
    ids, want = ROWS[3]
    vector = model.embed(" ".join(f"w{each}" for each in ids), normalize=False)[0]
    assert relative(vector, want.mean(axis=0)) <= 1e-5


def test_a_bidirectional_llama_is_left_to_others():
    import archport_llama

    config = {"architectures": ["LlamaBidirectionalModel"], "causal": False}
    assert archport_llama.archport_claim(config) is None
