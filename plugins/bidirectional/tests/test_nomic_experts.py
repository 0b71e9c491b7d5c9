"""NomicBert v2, its experts and biases, against a float64 reading of its published description.

transformers has no class for it: its own NomicBert drops experts and biases. The formulas are those of "Training Sparse
Mixture Of Experts Text Embedding Models" (arXiv:2502.07972, section 3) and of the code that nomic-embed-text-v2-moe's
config.json names (nomic-ai/nomic-bert-2048, modeling_hf_nomic_bert.py), as facts: post-norm blocks; q, k and v in one
matrix, one below the other; halves of heads that rotate; layers 1, 1 + n, 1 + 2 n .. have experts; their shares are the
softmax over all experts, of which the largest k count as they are; one bias per layer is added to their sum.
"""

import json
import logging
import math

import mlx.core as mx
import numpy as np
import pytest

from archport import engine
from archport.checkpoint import normalise_config
from archport.contract import SpecError
from archport.contract.errors import CheckpointError
from archport_bidirectional import archport_claim

# nomic-embed-text-v2-moe's config.json.
PUBLISHED = {
    "activation_function": "gelu",
    "add_pooling_layer": False,
    "architectures": ["NomicBertModel"],
    "attn_pdrop": 0.0,
    "causal": False,
    "dense_seq_output": True,
    "embd_pdrop": 0.1,
    "expert_choice_router": False,
    "ffn_div": 1,
    "fused_bias_fc": True,
    "fused_dropout_add_ln": True,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "max_trained_positions": 2048,
    "mlp_fc1_bias": True,
    "mlp_fc2_bias": True,
    "model_type": "nomic_bert",
    "moe_every_n_layers": 2,
    "moe_impl": "megablocks",
    "moe_normalize_expert_weights": False,
    "moe_resid_pdrop": 0.0,
    "moe_top_k": 2,
    "n_embd": 768,
    "n_head": 12,
    "n_inner": 3072,
    "n_layer": 12,
    "n_positions": 2048,
    "num_experts": 8,
    "num_shared_experts": 0,
    "pad_token_id": 1,
    "pad_vocab_size_multiple": 64,
    "parallel_block": False,
    "parallel_block_tied_norm": False,
    "prenorm": False,
    "qkv_proj_bias": True,
    "reorder_and_upcast_attn": False,
    "resid_pdrop": 0.0,
    "rotary_emb_base": 10000,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "rotary_scaling_factor": None,
    "router_aux_loss_coef": 0.1,
    "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "torch_dtype": "float32",
    "type_vocab_size": 1,
    "use_cache": True,
    "use_flash_attn": True,
    "use_rms_norm": None,
    "use_xentropy": True,
    "vocab_size": 250048,
}
SMALL = {**PUBLISHED, "n_embd": 48, "n_head": 4, "n_inner": 64, "n_layer": 4, "n_positions": 256, "vocab_size": 192}
GATES = {"swiglu": lambda x: x / (1 + np.exp(-x)), "geglu": lambda x: gelu(x), "glu": lambda x: 1 / (1 + np.exp(-x))}


def sparse(config, index):
    every = config["moe_every_n_layers"] or 0
    return every > 0 and index % every == 1


def shapes(config):
    """Name -> shape of every tensor that the repository's code would save."""
    D, W, E = config["n_embd"], config["n_inner"], config["num_experts"]
    found = {"embeddings.word_embeddings.weight": (config["vocab_size"], D)}
    if config["type_vocab_size"]:
        found["embeddings.token_type_embeddings.weight"] = (config["type_vocab_size"], D)
    found |= {"emb_ln.weight": (D,), "emb_ln.bias": (D,)}

    def linear(path, out, into, bias):
        return {f"{path}.weight": (out, into), **({f"{path}.bias": (out,)} if bias else {})}

    for index in range(config["n_layer"]):
        layer = f"encoder.layers.{index}"
        found |= linear(f"{layer}.attn.Wqkv", 3 * D, D, config["qkv_proj_bias"])
        found |= linear(f"{layer}.attn.out_proj", D, D, config["qkv_proj_bias"])
        found |= {f"{layer}.norm{n}.{leaf}": (D,) for n in (1, 2) for leaf in ("weight", "bias")}
        if sparse(config, index):
            found |= {f"{layer}.mlp.router.layer.weight": (E, D), f"{layer}.mlp.experts.bias": (D,)}
            found |= {f"{layer}.mlp.experts.mlp.{name}": (E * W, D) for name in ("w1", "w2")}
            continue
        for name in ("fc11", "fc12") if config["activation_function"] in GATES else ("fc1",):
            found |= linear(f"{layer}.mlp.{name}", W, D, config["mlp_fc1_bias"])
        found |= linear(f"{layer}.mlp.fc2", D, W, config["mlp_fc2_bias"])
    return found


def tensors(config, seed):
    dice = np.random.default_rng(seed)

    def made(name, shape):
        noise = dice.standard_normal(shape)
        if len(shape) == 1:
            return (1.0 if ".weight" in name else 0.0) + 0.3 * noise
        # Attention far from uniform, and shares of experts far from equal.
        gain = 2.0 if "Wqkv" in name or "router" in name else 1.0
        return noise if "embeddings" in name else gain * noise / math.sqrt(shape[1])

    return {name: made(name, shape).astype(np.float32) for name, shape in shapes(config).items()}


def gelu(x):
    return x * (0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))).astype(x.dtype)


def reference(config, weights, ids, router=None, kind=np.float64):
    """Hidden states (L, D) of one row. `router` changes the shares, for tests of what the formula says."""
    w = {name: value.astype(kind) for name, value in weights.items()}
    H, eps, k = config["n_head"], config["layer_norm_epsilon"], config["moe_top_k"]

    def linear(path, x):
        return x @ w[f"{path}.weight"].T + w.get(f"{path}.bias", 0.0)

    def norm(path, x):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * w[f"{path}.weight"] + w[f"{path}.bias"]

    def softmax(x):
        x = np.exp(x - x.max(-1, keepdims=True))
        return x / x.sum(-1, keepdims=True)

    def turned(x):
        half = x.shape[-1] // 2
        speeds = float(config["rotary_emb_base"]) ** (-np.arange(half) / half)
        angle = (np.arange(x.shape[1])[:, None] * speeds).astype(kind)
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1)

    def attention(path, x):
        heads = linear(f"{path}.Wqkv", x).reshape(len(x), 3, H, -1).transpose(1, 2, 0, 3)
        q, k, v = turned(heads[0]), turned(heads[1]), heads[2]
        out = softmax(q @ k.swapaxes(1, 2) / math.sqrt(q.shape[-1])) @ v
        return linear(f"{path}.out_proj", out.swapaxes(0, 1).reshape(x.shape))

    def experts(path, x):
        E, D = w[f"{path}.router.layer.weight"].shape
        first, second = (w[f"{path}.experts.mlp.{name}"].reshape(E, -1, D) for name in ("w1", "w2"))
        shares = softmax(linear(f"{path}.router.layer", x))
        kept = np.where(shares >= np.sort(shares, -1)[:, -k, None], shares, 0.0)
        kept = kept if router is None else router(kept)
        every = np.stack([gelu(x @ first[index].T) @ second[index] for index in range(E)])
        return np.einsum("le,eld->ld", kept, every) + w[f"{path}.experts.bias"]

    def mlp(path, x):
        gate = GATES.get(config["activation_function"])
        if gate is None:
            return linear(f"{path}.fc2", gelu(linear(f"{path}.fc1", x)))
        return linear(f"{path}.fc2", linear(f"{path}.fc11", x) * gate(linear(f"{path}.fc12", x)))

    x = w["embeddings.word_embeddings.weight"][ids]
    if config["type_vocab_size"]:
        x = x + w["embeddings.token_type_embeddings.weight"][0]
    x = norm("emb_ln", x)
    for index in range(config["n_layer"]):
        layer = f"encoder.layers.{index}"
        x = norm(f"{layer}.norm1", x + attention(f"{layer}.attn", x))
        inside = experts if sparse(config, index) else mlp
        x = norm(f"{layer}.norm2", x + inside(f"{layer}.mlp", x))
    return x


def far(got, want):
    return np.abs(np.asarray(got, np.float64) - want).max() / np.abs(want).max()


def drawn(seed):
    """A legal config: experts or none in any rhythm, any of the biases, a gate where there are no experts."""
    dice = np.random.default_rng(seed)
    every = int(dice.choice([0, 0, 1, 2, 2, 3, 5]))
    layers = int(dice.integers(1, 6))
    has = every > 1 and layers > 1
    count = int(dice.integers(2, 9))
    return {
        **SMALL,
        "n_layer": layers,
        "n_inner": int(dice.choice([24, 64, 96])),
        "n_head": int(dice.choice([2, 4, 6])),
        "activation_function": "gelu" if has else str(dice.choice(["gelu", *GATES])),
        "moe_every_n_layers": every,
        "num_experts": count,
        "moe_top_k": int(dice.integers(1, count + 1)),
        "type_vocab_size": int(dice.choice([0, 1, 2])),
        "layer_norm_epsilon": float(dice.choice([1e-5, 1e-12])),
        "rotary_emb_base": int(dice.choice([1000, 10000])),
        **{key: bool(dice.random() < 0.7) for key in ("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias")},
    }


def verify(folder, written, seed):
    """One drawn checkpoint: rows alone, and in a ragged batch, are the reference's."""
    config, dice = drawn(seed), np.random.default_rng(seed)
    weights = tensors(config, seed)
    model = engine.load(written(folder, config, {name: mx.array(value) for name, value in weights.items()}))
    rows = [dice.integers(3, config["vocab_size"], int(length)) for length in dice.integers(1, 60, 4)]
    ids, mask = np.zeros((4, 60), np.int32), np.zeros((4, 60), np.int32)
    for at, row in enumerate(rows):
        ids[at, : len(row)], mask[at, : len(row)] = row, 1
    together = model.forward(ids, mask)
    for at, row in enumerate(rows):
        want = reference(config, weights, row)
        # Sharp attention and tied experts: float32 itself is as far in a few draws.
        limit = max(1e-5, 2 * far(reference(config, weights, row, kind=np.float32), want))
        assert limit <= 1e-4, (config, len(row))
        assert far(model.forward(row[None].astype(np.int32))[0], want) <= limit, (config, len(row))
        assert far(together[at, : len(row)], want) <= limit, (config, len(row))


@pytest.mark.parametrize("seed", range(4))
def test_drawn_checkpoints_are_what_the_description_says(tmp_path, written, seed):
    verify(tmp_path / "drawn", written, seed)


@pytest.mark.truth
def test_sixty_drawn_checkpoints_are_what_the_description_says(tmp_path, written):
    for seed in range(100, 160):
        verify(tmp_path / str(seed), written, seed)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, written):
    weights = tensors(SMALL, 7)
    folder = tmp_path_factory.mktemp("nomic") / "nomic-embed-text-v2-moe"
    return written(folder, SMALL, {name: mx.array(value) for name, value in weights.items()}), weights


def test_the_shares_of_a_token_s_experts_are_not_scaled_to_sum_to_one(checkpoint):
    folder, weights = checkpoint
    ids = np.arange(3, 40)
    got = engine.load(folder).forward(ids[None].astype(np.int32))[0]
    scaled = reference(SMALL, weights, ids, router=lambda kept: kept / kept.sum(-1, keepdims=True))
    assert far(got, reference(SMALL, weights, ids)) <= 1e-5
    assert far(got, scaled) >= 1e-2


def test_16_bits_stay_close_to_float32(checkpoint):
    folder, weights = checkpoint
    ids = np.arange(3, 40)
    got = engine.load(folder, dtype="bfloat16").forward(ids[None].astype(np.int32))[0].astype(mx.float32)
    got, want = np.array(got), reference(SMALL, weights, ids)
    cosines = (got * want).sum(-1) / np.linalg.norm(got, axis=-1) / np.linalg.norm(want, axis=-1)
    # A token of nearly tied experts may visit another one.
    assert np.median(cosines) >= 0.999


def test_the_card_s_prompts_stand_where_no_file_has_any(checkpoint):
    prompts = engine.load(checkpoint[0]).inputs.prompts
    assert (prompts["query"], prompts["document"]) == ("search_query: ", "search_document: ")


def test_the_published_file_is_claimed_whole_and_without_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        spec = archport_claim(normalise_config(PUBLISHED))
    assert spec is not None
    assert caplog.records == []
    assert (spec.experts.count, spec.experts.per_token, spec.experts.intermediate_size) == (8, 2, 3072)
    assert spec.experts.layers == (1, 3, 5, 7, 9, 11)
    assert not spec.gated_mlp


def test_a_plan_weighs_the_published_model_as_its_files_do():
    from archport.planning.costs import estimate_weights

    spec = archport_claim(normalise_config(PUBLISHED))
    # 475,292,928 numbers of four bytes.
    assert estimate_weights(spec, "float32").total == pytest.approx(4 * 475_292_928, rel=1e-3)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"moe_normalize_expert_weights": True}, "moe_normalize_expert_weights"),
        ({"expert_choice_router": True}, "expert_choice_router"),
        ({"num_shared_experts": 1}, "num_shared_experts"),
        ({"ffn_div": 2}, "ffn_div"),
        ({"num_experts": None}, "num_experts=None"),
        ({"moe_top_k": 0}, "moe_top_k=0"),
        ({"moe_top_k": 9}, "per_token=9 exceeds count=8"),
        ({"activation_function": "swiglu"}, "no gate"),
        ({"activation_function": "gelu_new"}, "activation_function='gelu_new'"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else None,
)
def test_experts_that_are_otherwise_are_refused_by_name(change, says):
    with pytest.raises(SpecError, match=says):
        archport_claim(normalise_config({**PUBLISHED, **change}))


def test_biases_in_transformers_words_are_refused_whose_class_has_none():
    saved = {"architectures": ["NomicBertModel"], "model_type": "nomic_bert", "hidden_size": 64}
    with pytest.raises(SpecError, match="qkv_proj_bias=True"):
        archport_claim(normalise_config({**saved, "qkv_proj_bias": True}))


def test_a_matrix_of_experts_with_a_row_too_few_is_refused_by_name(tmp_path, written):
    weights = {name: mx.array(value) for name, value in tensors(SMALL, 1).items()}
    name = "encoder.layers.1.mlp.experts.mlp.w2"
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp"):
        engine.load(written(tmp_path / "cut", SMALL, {**weights, name: weights[name][:-1]}))
