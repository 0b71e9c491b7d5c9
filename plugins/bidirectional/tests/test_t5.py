"""T5 encoders as they lie on the hub, with what encoders do not read next to them, and what is refused."""

import json

import mlx.core as mx
import mlx.utils
import numpy as np
import pytest

from archport import engine
from archport.checkpoint import normalise_config
from archport.contract import SpecError
from archport_bidirectional import archport_build, archport_claim
from archport_bidirectional.t5 import EXAMPLE
from archport_bidirectional.t5.model import published

# Of sentence-t5-base's config.json, shrunk.
HUB = {
    **EXAMPLE,
    "decoder_start_token_id": 0,
    "dropout_rate": 0.1,
    "n_positions": 512,
    "num_decoder_layers": 2,
    "task_specific_params": {"summarization": {"num_beams": 4}},
    "use_cache": True,
}
IDS = np.random.default_rng(5).integers(2, 199, 150)


def tensors(config):
    """Random tensors under published names."""
    normal = normalise_config(config)
    dice = np.random.default_rng(3)
    found = {}
    for name, value in mlx.utils.tree_flatten(archport_build(archport_claim(normal), normal).parameters()):
        noise = dice.normal(size=value.shape).astype(np.float32)
        found[name] = mx.array(1 + 0.3 * noise if value.ndim == 1 else 0.3 * noise)
    return published(found)


@pytest.fixture(scope="module")
def plain(tmp_path_factory, written):
    model = engine.load(written(tmp_path_factory.mktemp("t5") / "t5", HUB, tensors(HUB)), dtype="float32")
    return np.array(model.forward(IDS[None]))


def test_a_decoder_in_the_file_and_a_second_copy_of_the_embeddings_change_nothing(tmp_path, written, plain):
    weights = tensors(HUB)
    decoder = {
        name.replace("encoder.", "decoder."): value for name, value in weights.items() if name.startswith("encoder.")
    }
    # The copy that nobody reads is another one, so that reading it would show.
    weights |= {**decoder, "lm_head.weight": weights["shared.weight"]}
    weights["encoder.embed_tokens.weight"] = weights["shared.weight"] + 1
    model = engine.load(written(tmp_path / "t5", HUB, weights), dtype="float32")
    assert (np.array(model.forward(IDS[None])) == plain).all()


def test_embeddings_under_their_second_name_alone_are_read(tmp_path, written, plain):
    weights = tensors(HUB)
    weights["encoder.embed_tokens.weight"] = weights.pop("shared.weight")
    model = engine.load(written(tmp_path / "t5", HUB, weights), dtype="float32")
    assert (np.array(model.forward(IDS[None])) == plain).all()


def test_tokens_are_told_apart_by_their_distances_alone(plain, tmp_path, written):
    weights = tensors(HUB)
    table = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    weights[table] = mx.zeros_like(weights[table])
    model = engine.load(written(tmp_path / "t5", HUB, weights), dtype="float32")
    hidden, turned = (np.array(model.forward(ids[None]))[0] for ids in (IDS, IDS[::-1].copy()))
    assert np.abs(hidden - turned[::-1]).max() <= 1e-5 * np.abs(hidden).max()
    assert np.abs(hidden - plain[0]).max() > 1e-2 * np.abs(hidden).max()


def test_float16_is_promoted_where_transformers_cuts_what_overflows(tmp_path, written):
    weights = {name: value.astype(mx.float16) for name, value in tensors(HUB).items()}
    model = engine.load(written(tmp_path / "t5", {**HUB, "torch_dtype": "float16"}, weights))
    assert model.dtype.dtype == "float32"
    assert "promoted from float16" in model.dtype.why


@pytest.mark.parametrize(
    ("stated", "kind"),
    [
        ({"feed_forward_proj": "gated-gelu"}, ("gelu_new", True)),
        ({"feed_forward_proj": "gated-silu"}, ("silu", True)),
        ({"feed_forward_proj": "relu", "dense_act_fn": "gelu_new"}, ("gelu_new", False)),
        ({"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu", "is_gated_act": True}, ("gelu", True)),
    ],
    ids=json.dumps,
)
def test_the_activation_is_the_one_that_a_file_spells_out_else_that_of_its_short_name(stated, kind):
    from archport_bidirectional.t5 import activation_of

    config = normalise_config({**HUB, **stated})
    assert activation_of(config) == kind
    assert archport_claim(config).gated_mlp is kind[1]


@pytest.mark.parametrize(
    "change", [{"feed_forward_proj": "swish-gelu"}, {"feed_forward_proj": "gated-gelu-new"}], ids=json.dumps
)
def test_a_key_that_no_class_reads_so_is_refused_by_name(change):
    with pytest.raises(SpecError, match="feed_forward_proj"):
        archport_claim(normalise_config({**HUB, **change}))
