"""NomicBert in the layout of its repository, against what transformers gave for the same tensors, and what it refuses.

The tensors and transformers' hidden states are those of tests/goldens/outside/nomic.
"""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from archport import engine
from archport.checkpoint import normalise_config
from archport.contract import SpecError
from archport_bidirectional import archport_claim

GOLDEN = Path(__file__).parents[3] / "tests" / "goldens" / "outside" / "nomic"
# Of nomic-embed-text-v1.5's config.json, with the sizes of the recorded checkpoint.
HUB = {
    "activation_function": "swiglu",
    "architectures": ["NomicBertModel"],
    "attn_pdrop": 0.0,
    "causal": False,
    "dense_seq_output": True,
    "fused_bias_fc": True,
    "fused_dropout_add_ln": True,
    "layer_norm_epsilon": 1e-12,
    "max_trained_positions": 2048,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "model_type": "nomic_bert",
    "n_embd": 64,
    "n_head": 4,
    "n_inner": 96,
    "n_layer": 3,
    "n_positions": 512,
    "pad_vocab_size_multiple": 1,
    "parallel_block": False,
    "parallel_block_tied_norm": False,
    "prenorm": False,
    "qkv_proj_bias": False,
    "rotary_emb_base": 1000,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "rotary_scaling_factor": None,
    "scale_attn_weights": True,
    "torch_dtype": "float32",
    "type_vocab_size": 2,
    "use_flash_attn": True,
    "use_rms_norm": False,
    "vocab_size": 199,
}


def far(got, want):
    return np.abs(np.asarray(got) - want).max() / np.abs(want).max()


def as_the_hub_has_them():
    """The recorded tensors under the repository's names."""
    found, stored = {}, mx.load(str(GOLDEN / "model.safetensors"))
    names = {"self_attn.o_proj": "attn.out_proj", "mlp.up_proj": "mlp.fc11", "mlp.gate_proj": "mlp.fc12"}
    names |= {"mlp.down_proj": "mlp.fc2", "post_attention_layernorm": "norm1", "post_mlp_layernorm": "norm2"}
    for name, value in stored.items():
        if "q_proj" in name:
            parts = [stored[name.replace("q_proj", f"{each}_proj")] for each in "qkv"]
            found[f"encoder.{name.replace('self_attn.q_proj', 'attn.Wqkv')}"] = mx.concatenate(parts)
        elif "k_proj" not in name and "v_proj" not in name:
            for old, new in names.items():
                name = name.replace(old, new)
            name = name.replace("embeddings.LayerNorm", "emb_ln")
            found[f"encoder.{name}" if name.startswith("layers.") else name] = value
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory, written):
    folder = written(tmp_path_factory.mktemp("nomic") / "nomic-embed-text-v1.5", HUB, as_the_hub_has_them())
    return engine.load(folder, dtype="float32")


@pytest.mark.parametrize("length", [1, 5, 33, 200])
def test_the_layout_of_its_repository_gives_what_transformers_does(model, length):
    golden = np.load(GOLDEN / "golden.npz")
    assert far(model.forward(golden[f"ids_{length}"][None])[0], golden[f"hidden_{length}"]) <= 1e-5


def test_rows_of_a_ragged_batch_are_what_they_are_alone(model):
    golden = np.load(GOLDEN / "golden.npz")
    rows = [golden[f"ids_{length}"] for length in (200, 5, 100, 33)]
    ids, mask = np.zeros((4, 200), np.int32), np.zeros((4, 200), np.int32)
    for at, row in enumerate(rows):
        ids[at, : len(row)], mask[at, : len(row)] = row, 1
    hidden = model.forward(ids, mask)
    for at, row in enumerate(rows):
        assert far(hidden[at, : len(row)], golden[f"hidden_{len(row)}"]) <= 1e-5


def test_the_card_s_prompts_stand_where_no_file_has_any(model):
    assert model.inputs.prompts["query"] == "search_query: "
    assert model.inputs.prompts["document"] == "search_document: "


def test_a_table_that_its_code_widened_is_read_whole():
    spec = archport_claim(normalise_config({**HUB, "vocab_size": 30522, "pad_vocab_size_multiple": 64}))
    assert spec is not None
    assert spec.vocab_size == 30528


@pytest.mark.parametrize(
    "change",
    [
        {"prenorm": True},
        {"use_rms_norm": True},
        {"parallel_block": True},
        {"rotary_emb_fraction": 0.5},
        {"rotary_emb_fraction": 0.0},
        {"rotary_emb_interleaved": True},
        {"rotary_scaling_factor": 2},
        {"rotary_emb_scale_base": 512},
        {"activation_function": "relu"},
        {"num_experts": 8, "moe_every_n_layers": 2},
    ],
    ids=json.dumps,
)
def test_a_key_that_changes_numbers_and_is_not_followed_is_refused_by_name(change):
    with pytest.raises(SpecError, match="|".join(change)):
        archport_claim(normalise_config({**HUB, **change}))


@pytest.mark.parametrize("key", ["rotary_emb_fraction", "rotary_emb_base", "n_positions", "activation_function"])
def test_a_key_whose_default_is_another_in_its_own_code_has_to_be_there(key):
    with pytest.raises(SpecError, match=key):
        archport_claim(normalise_config({name: value for name, value in HUB.items() if name != key}))


def test_a_causal_one_is_nobodys(model):
    assert archport_claim(normalise_config({**HUB, "causal": True})) is None
