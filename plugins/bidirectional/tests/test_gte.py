"""GTE in the layout of its own code, against that code's description computed in numpy, and what it refuses."""

import mlx.core as mx
import numpy as np
import pytest

from archport import engine
from archport.checkpoint import normalise_config
from archport.contract import SpecError
from archport_bidirectional import archport_claim
from archport_bidirectional.gte import EXAMPLE

# Of gte-multilingual-base's config.json, shrunk.
CONFIG = {
    **EXAMPLE,
    "architectures": ["NewModel", "NewForTokenClassification"],
    "model_type": "new",
    "hidden_size": 32,
    "intermediate_size": 40,
    "classifier_dropout": 0.0,
    "layer_norm_type": "layer_norm",
    "logn_attention_clip1": False,
    "logn_attention_scale": False,
    "pack_qkv": True,
    "position_embedding_type": "rope",
    "rope_scaling": {"factor": 8.0, "type": "ntk"},
    "unpad_inputs": False,
    "use_memory_efficient_attention": False,
}
D, INNER, HEADS, VOCABULARY = 32, 40, 4, EXAMPLE["vocab_size"]


def tensors(config, labels=0, packed=True):
    """Random tensors under the names of GTE's own code."""
    dice = np.random.default_rng(0)

    def drawn(*shape):
        return dice.normal(size=shape).astype(np.float32) * (0.3 if len(shape) > 1 else 0.1)

    found = {"embeddings.word_embeddings.weight": drawn(VOCABULARY, D)}
    if config["type_vocab_size"]:
        found["embeddings.token_type_embeddings.weight"] = drawn(config["type_vocab_size"], D)
    norms = ["embeddings.LayerNorm"]
    for index in range(config["num_hidden_layers"]):
        block = f"encoder.layer.{index}"
        norms += [f"{block}.attn_ln", f"{block}.mlp_ln"]
        for name, width in {"qkv_proj": 3 * D, "o_proj": D}.items():
            found[f"{block}.attention.{name}.weight"] = drawn(width, D)
            found[f"{block}.attention.{name}.bias"] = drawn(width)
        found[f"{block}.mlp.up_gate_proj.weight"] = drawn(2 * INNER, D)
        found[f"{block}.mlp.down_proj.weight"] = drawn(D, INNER)
        found[f"{block}.mlp.down_proj.bias"] = drawn(D)
        if not packed:
            for leaf in ("weight", "bias"):
                whole = found.pop(f"{block}.attention.qkv_proj.{leaf}")
                for name, rows in zip("qkv", np.split(whole, 3), strict=True):
                    found[f"{block}.attention.{name}_proj.{leaf}"] = rows
    for norm in norms:
        found[f"{norm}.weight"], found[f"{norm}.bias"] = 1 + drawn(D), drawn(D)
    found = {f"new.{name}": value for name, value in found.items()}
    if labels:
        found["new.pooler.dense.weight"], found["new.pooler.dense.bias"] = drawn(D, D), drawn(D)
        found["classifier.weight"], found["classifier.bias"] = drawn(labels, D), drawn(labels)
    return found


def normed(x, weights, name):
    centred = x - x.mean(-1, keepdims=True)
    unit = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
    return unit * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def erf_gelu(x):
    return np.array(mx.array(x) * (1 + mx.erf(mx.array(x) / np.sqrt(2).astype(np.float32))) / 2)


def rotated(x, config):
    """x (H, L, Dh) turned; of NTK scaling formula 6 of kexue.fm/archives/9706, as GTE's own code computes it."""
    _, length, width = x.shape
    theta, scaling = config["rope_theta"], config.get("rope_scaling")
    factor = scaling["factor"] if scaling else 1.0
    frequencies = 1.0 / (theta * factor) ** (np.arange(0, width, 2) / width) / factor ** (2 / width)
    angles = np.concatenate([np.arange(length)[:, None] * frequencies] * 2, axis=-1)
    half = np.concatenate([-x[..., width // 2 :], x[..., : width // 2]], axis=-1)
    return x * np.cos(angles) + half * np.sin(angles)


def computed(config, weights, ids):
    """Hidden states (L, D) of a row, by the description of GTE's own code."""
    weights = {name.removeprefix("new."): each.astype(np.float64) for name, each in weights.items()}
    x = weights["embeddings.word_embeddings.weight"][ids]
    if config["type_vocab_size"]:
        x = x + weights["embeddings.token_type_embeddings.weight"][0]
    x = normed(x, weights, "embeddings.LayerNorm")
    for index in range(config["num_hidden_layers"]):
        block = f"encoder.layer.{index}"
        qkv = x @ weights[f"{block}.attention.qkv_proj.weight"].T + weights[f"{block}.attention.qkv_proj.bias"]
        q, k, v = (each.reshape(len(ids), HEADS, -1).transpose(1, 0, 2) for each in np.split(qkv, 3, axis=-1))
        scores = rotated(q, config) @ rotated(k, config).transpose(0, 2, 1) / np.sqrt(D // HEADS)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        heads = (shares / shares.sum(-1, keepdims=True)) @ v
        out = heads.transpose(1, 0, 2).reshape(len(ids), D) @ weights[f"{block}.attention.o_proj.weight"].T
        x = normed(x + out + weights[f"{block}.attention.o_proj.bias"], weights, f"{block}.attn_ln")
        up, gate = np.split(x @ weights[f"{block}.mlp.up_gate_proj.weight"].T, 2, axis=-1)
        inner = (up * erf_gelu(gate)) @ weights[f"{block}.mlp.down_proj.weight"].T
        x = normed(x + inner + weights[f"{block}.mlp.down_proj.bias"], weights, f"{block}.mlp_ln")
    return x


def far(got, want):
    return np.abs(np.asarray(got) - want).max() / np.abs(want).max()


ROWS = [np.random.default_rng(length).integers(2, VOCABULARY, length) for length in (1, 7, 70)]


@pytest.mark.parametrize(
    ("change", "packed"),
    [({}, True), ({}, False), ({"rope_scaling": None}, True), ({"type_vocab_size": 0}, True)],
    ids=["as published", "q, k and v apart", "plain rope", "no token types"],
)
def test_the_layout_of_its_own_code_gives_what_its_description_does(tmp_path, written, change, packed):
    config = {**CONFIG, **change}
    model = engine.load(written(tmp_path / "gte", config, tensors(config, packed=packed)), dtype="float32")
    for ids in ROWS:
        assert far(model.forward(ids[None])[0], computed(config, tensors(config), ids)) <= 1e-5


def test_gtes_own_names_in_a_file_that_says_gte_are_read_too(tmp_path, written):
    # As snowflake-arctic-embed-m-v2.0 says it.
    config = {**CONFIG, "model_type": "gte", "architectures": ["GteModel"], "rope_scaling": None, "rope_theta": 160000}
    config |= {"unpad_inputs": "true", "use_memory_efficient_attention": "true"}
    weights = {name.removeprefix("new."): each for name, each in tensors(config).items()}
    model = engine.load(written(tmp_path / "gte", config, weights), dtype="float32")
    assert far(model.forward(ROWS[2][None])[0], computed(config, weights, ROWS[2])) <= 1e-5


def test_its_reranker_scores_the_pooled_first_token(tmp_path, written):
    config = {**CONFIG, "architectures": ["NewForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
    weights = tensors(config, labels=1)
    model = engine.load(written(tmp_path / "gte-reranker", config, weights), dtype="float32")
    texts = ["t007 t008 t009 t010", "t012", "t013 t009 t004 t005 t006"]
    for said, text in zip(model.classify(texts, raw_scores=True), texts, strict=True):
        first = computed(config, weights, np.array([int(word[1:]) for word in text.split()]))[0]
        pooled = np.tanh(weights["new.pooler.dense.weight"] @ first + weights["new.pooler.dense.bias"])
        want = weights["classifier.weight"] @ pooled + weights["classifier.bias"]
        assert far([*said.scores.values()], want) <= 1e-5


def test_without_pipeline_files_its_card_asks_for_the_first_token(tmp_path, written):
    weights = tensors(CONFIG)
    model = engine.load(written(tmp_path / "gte-multilingual-base", CONFIG, weights), dtype="float32")
    first = computed(CONFIG, weights, np.array([7, 8, 9]))[0]
    assert far(model.embed("t007 t008 t009")[0], first / np.linalg.norm(first)) <= 1e-5


@pytest.mark.parametrize(
    "change",
    [
        {"position_embedding_type": "absolute"},
        {"layer_norm_type": "rms_norm"},
        {"logn_attention_scale": True},
        {"logn_attention_clip1": True},
        {"rope_scaling": {"type": "ntk", "factor": 8.0, "mixed_b": 0.6}},
        {"rope_scaling": {"type": "ntk"}},
    ],
)
def test_a_key_that_changes_numbers_and_is_not_followed_is_refused(change):
    with pytest.raises(SpecError, match=r"position_embedding_type|layer_norm_type|logn_attention|ntk"):
        archport_claim(normalise_config({**CONFIG, **change}))
