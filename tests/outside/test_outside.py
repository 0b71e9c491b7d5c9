"""Outside plugins with attention that no shipped family has: against transformers, float64, and in memory of O(L)."""

from __future__ import annotations

import gc
import math
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from archport import engine
from archport.checkpoint import normalise_config
from archport.testing.finding import find
from archport.testing.measure import reference, visible
from archport.testing.writing import random_weights, write_checkpoint

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import spans  # noqa: E402

GOLDENS = HERE.parent / "goldens" / "outside"
RECORDED = {
    "gemma2": ("gemma2", "CONFIG"),
    "mpnet": ("encoders", "MPNET"),
    "llama4": ("decoders", "LLAMA4"),
    "deepseek": ("deepseek", "DEEPSEEK"),
    "deepseek_v3": ("deepseek", "DEEPSEEK_V3"),
    "gemma3": ("spans", "GEMMA3"),
    "prefix": ("spans", "PREFIX"),
    "nomic": ("nomic", "NOMIC"),
}
ALL = {**RECORDED, "alibi": ("encoders", "ALIBI"), "shared": ("decoders", "SHARED"), "pairs": ("decoders", "PAIRS")}
ENCODERS = ("mpnet", "nomic")
LIMIT = 1e-5


def plugin_of(name):
    """(the plugin's module, the config of an example of its)."""
    module, config = ALL[name]
    module = __import__(module)
    return module, dict(getattr(module, config))


def loaded(name, folder, **changes):
    """(A model of a plugin, its weights): the recorded ones where its shape is the recorded one, else random ones."""
    module, stated = plugin_of(name)
    config = {**stated, **changes}
    normal = normalise_config(config)
    spec = module.archport_claim(normal)
    if name in RECORDED and not changes:
        weights = mx.load(str(GOLDENS / name / "model.safetensors"))
    else:
        mx.random.seed(5)
        trunk = module.archport_build(spec, normal)
        (example,) = [each for each in module.archport_examples() if each.config == stated]
        weights = random_weights(trunk, example)
    write_checkpoint(folder, config, weights, spec)
    return engine.load(folder, plugins=(find(module),), dtype="float32", prefix_cache=0), weights


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return {name: loaded(name, tmp_path_factory.mktemp(name) / "model") for name in ALL}


@pytest.fixture(scope="module")
def models(made):
    return {name: model for name, (model, _) in made.items()}


def far(got, want):
    return np.abs(np.asarray(got, dtype=np.float64) - want).max() / np.abs(want).max()


@pytest.mark.parametrize("name", RECORDED)
def test_hidden_states_are_those_of_transformers(name, models):
    golden = np.load(GOLDENS / name / "golden.npz")
    for length in (1, 5, 33, 100, 200):
        hidden = models[name].forward(golden[f"ids_{length}"][None])[0]
        assert far(hidden, golden[f"hidden_{length}"]) <= LIMIT, length


@pytest.mark.parametrize("name", RECORDED)
def test_rows_of_a_ragged_batch_are_what_they_are_alone(name, models):
    golden = np.load(GOLDENS / name / "golden.npz")
    rows = [golden[f"ids_{length}"] for length in (200, 5, 100, 33)]
    ids, mask = np.zeros((4, 200), np.int32), np.zeros((4, 200), np.int32)
    for at, row in enumerate(rows):
        ids[at, : len(row)], mask[at, : len(row)] = row, 1
    hidden = models[name].forward(ids, mask)
    for at, row in enumerate(rows):
        assert far(hidden[at, : len(row)], golden[f"hidden_{len(row)}"]) <= LIMIT


@pytest.mark.parametrize("name", [name for name in RECORDED if name not in ENCODERS])
def test_greedy_tokens_are_those_of_transformers(name, models):
    golden = np.load(GOLDENS / name / "golden.npz")
    tokens = golden["tokens"]
    new = len(tokens) - 60
    # Beside a longer and a shorter row, so that columns in front of rows are hidden while decoding.
    others = [golden["ids_100"], golden["ids_33"]]
    answers = models[name].generate([tokens[:60].tolist(), *(row.tolist() for row in others)], max_tokens=new)
    assert list(answers[0].tokens) == tokens[60:].tolist()
    alone = models[name].generate([tokens[:60].tolist()], max_tokens=new)
    assert alone[0].tokens == answers[0].tokens


def drawn(name, length, dice):
    """Random ids (length,); with pictures, or a prefix, where the model knows spans."""
    ids = dice.integers(8, 199, length).astype(np.int32)
    if name == "gemma3":
        for start in range(length // 20, length, max(40, length // 24)):
            ids[start : start + max(6, length // 64)] = spans.IMAGE
    elif name == "prefix":
        ids[length // 4] = spans.BREAK
    return ids


@pytest.mark.parametrize("name", ["gemma2", "llama4", "deepseek", "deepseek_v3", "shared", "pairs", "gemma3", "prefix"])
def test_a_prompt_in_steps_is_what_it_is_in_one(name, models):
    from archport.running.steps import batch_caches, run_steps
    from archport.testing.plans import planned

    model, row = models[name], drawn(name, 150, np.random.default_rng(1))
    planner, trunk = model._runtime.encoder.plan, model._runtime.encoder.trunk
    whole = np.array(model.forward(row[None])[0])
    rule = model._runtime.encoder.rule
    spans = [rule(row)] if rule else ()
    for chunk in (5, 7, 32, 50):
        plan = planned(planner, [len(row)], chunk=chunk, new_tokens=4, spans=spans)
        (batch,) = plan.batches
        caches = batch_caches(planner.spec, plan, batch)
        hidden = [np.array(step) for _, step in run_steps(trunk, plan, batch, [row], caches)]
        assert len(hidden) > 2
        assert far(np.concatenate(hidden, axis=1)[0, : len(row)], whole) <= LIMIT
        assert caches.bytes == batch.bytes["kv"]


@pytest.mark.parametrize("name", ["deepseek", "deepseek_v3"])
def test_a_latent_cache_holds_what_is_compressed_and_no_head(name, models):
    spec = models[name].spec
    plan = models[name].plan([100], new_tokens=28)
    (layer,) = set(spec.layers)
    assert layer.head_dim == 32 + 8
    assert plan.bytes["kv"] == len(spec.layers) * 256 * 40 * 4


def test_layers_that_read_others_keys_keep_none(models):
    plan = models["shared"].plan([100], new_tokens=28)
    assert plan.bytes["kv"] == 2 * 256 * 2 * (16 + 16) * 4
    assert plan.bytes["kv_shared"] > 0


def norm(x, weight, bias=None, eps=1e-5):
    if bias is None:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight + bias


def weights64(weights):
    return {name: np.array(value, dtype=np.float64) for name, value in weights.items()}


def split(x, heads):
    return x.reshape(len(x), heads, -1).transpose(1, 0, 2)[None]


def test_linear_biases_are_those_of_the_paper(made):
    (model, weights), erf, L = made["alibi"], np.vectorize(math.erf), 90
    w, ids = weights64(weights), np.random.default_rng(2).integers(0, 199, L).astype(np.int32)

    def normed(x, name):
        return norm(x, w[f"{name}.weight"], w[f"{name}.bias"], 1e-12)

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    x = normed(w["embeddings.word_embeddings.weight"][ids], "embeddings.LayerNorm")
    distance = np.abs(np.arange(L)[:, None] - np.arange(L)[None])
    # 6 heads: the slopes of 4, and every other one of 8.
    slopes = np.array([2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3])
    for at in (f"encoder.layer.{index}" for index in range(len(model.spec.layers))):
        q, k, v = (split(linear(x, f"{at}.attention.{part}_proj"), 6) for part in "qkv")
        scores = q @ k.swapaxes(-1, -2) * 8**-0.5 - slopes[:, None, None] * distance
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out = (weights / weights.sum(-1, keepdims=True) @ v)[0].transpose(1, 0, 2).reshape(L, -1)
        x = normed(x + linear(out, f"{at}.attention.o_proj"), f"{at}.attention_norm")
        inner = linear(x, f"{at}.mlp.up_proj")
        inner = inner * 0.5 * (1 + erf(inner / np.sqrt(2)))
        x = normed(x + linear(inner, f"{at}.mlp.down_proj"), f"{at}.output_norm")
    assert far(model.forward(ids[None])[0], x) <= LIMIT


@pytest.mark.parametrize("name", ["shared", "pairs"])
def test_layers_that_read_others_keys_compute_what_float64_does(name, made):
    (model, weights), L = made[name], 70
    w, spec = weights64(weights), model.spec
    ids = np.random.default_rng(3).integers(0, 199, L).astype(np.int32)
    # Rotation by halves, as its own definition says.
    angles = np.arange(L)[:, None] / 10_000.0 ** (np.arange(8) / 8)
    cos, sin = np.cos(angles), np.sin(angles)

    def turned(x):
        first, second = x[..., :8], x[..., 8:]
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    def linear(x, name):
        return x @ w[f"{name}.weight"].T

    x, kept = w["model.embed_tokens.weight"][ids], {}
    for index, layer in enumerate(spec.layers):
        at = f"model.layers.{index}"
        y = norm(x, w[f"{at}.input_layernorm.weight"])
        if layer.kv != "shared":
            q, k, v = (linear(y, f"{at}.self_attn.{part}_proj") for part in "qkv")
            kept[layer.kv_group] = turned(split(k, 2)), split(v, 2)
        else:
            q = linear(y, f"{at}.self_attn.q_proj")
        k, v = kept[layer.kv_group]
        out = reference(turned(split(q, 4)), k, v, 16**-0.5, visible(layer, L, L))
        x = x + linear(out[0].transpose(1, 0, 2).reshape(L, -1), f"{at}.self_attn.o_proj")
        y = norm(x, w[f"{at}.post_attention_layernorm.weight"])
        gate, up = linear(y, f"{at}.mlp.gate_proj"), linear(y, f"{at}.mlp.up_proj")
        x = x + linear(gate / (1 + np.exp(-gate)) * up, f"{at}.mlp.down_proj")
    assert far(model.forward(ids[None])[0], norm(x, w["model.norm.weight"])) <= LIMIT


@pytest.mark.truth
@pytest.mark.parametrize("name", ALL)
def test_16384_tokens_take_memory_that_grows_with_them_and_not_with_their_square(name, tmp_path):
    model, _ = loaded(name, tmp_path / "model", max_position_embeddings=16_400)
    peaks = {}
    for length in (4_096, 16_384):
        row = drawn(name, length, np.random.default_rng(4))
        plan = model._runtime.encoder.planned([row])
        # What earlier tests left behind would be freed while this is measured.
        gc.collect()
        mx.synchronize()
        mx.clear_cache()
        peaks[length] = 0
        # What is held at once depends on how the evaluator's threads meet: a short row's peaks differ by a fifth.
        for _ in range(5 if length == 4_096 else 1):
            before = mx.get_active_memory()
            mx.reset_peak_memory()
            mx.eval(model.forward(row[None]))
            mx.synchronize()
            peaks[length] = max(peaks[length], mx.get_peak_memory() - before)
        # The hidden states are the caller's, and what other tests hold is in no plan.
        assert peaks[length] + plan.bytes["weights"] <= plan.peak + 4 * length * model.spec.hidden_size
        del plan
    # One head's scores alone would be 1 GB.
    assert peaks[16_384] <= 4.6 * peaks[4_096]
    assert peaks[16_384] < 4 * 16_384**2 / 4


@pytest.mark.parametrize("name", ["gemma2", "llama4", "deepseek", "deepseek_v3", "shared", "pairs", "gemma3", "prefix"])
def test_tokens_decoded_behind_ragged_prompts_are_the_likeliest_of_a_pass_over_all_of_them(name, models):
    model, dice = models[name], np.random.default_rng(6)
    prompts = [drawn(name, length, dice).tolist() for length in (40, 9, 70)]
    trunk = model._runtime.encoder.trunk
    for prompt, answer in zip(prompts, model.generate(prompts, max_tokens=12), strict=True):
        row = [*prompt, *answer.tokens]
        hidden = model.forward(np.array([row], dtype=np.int32))
        logits = np.array(trunk.logits(hidden))[0, len(prompt) - 1 : -1]
        # The token itself may differ where two logits are as near as rounding.
        short = logits.max(axis=-1) - np.take_along_axis(logits, np.array(answer.tokens)[:, None], axis=-1)[:, 0]
        assert short.max() <= 1e-4 * np.abs(logits).max()


@pytest.mark.parametrize(("name", "chunk", "least"), [("gemma3", 5, 8), ("prefix", 5, 38), ("gemma3", 40, 8)])
def test_no_step_cuts_a_span_and_the_plan_says_so(name, chunk, least, models):
    encoder = models[name]._runtime.encoder
    rows = [drawn(name, length, np.random.default_rng(length)) for length in (150, 118)]
    found = [encoder.rule(row) for row in rows]
    plan = tiny_plan(encoder, [len(row) for row in rows], chunk=chunk, new_tokens=4, spans=found)
    (batch,) = plan.batches
    assert len(batch.steps) > 2
    edges = [step.start for step in batch.steps]
    assert not [edge for edge in edges for row in found for a, b in row if a < edge < b]
    assert max(step.tokens for step in batch.steps) <= max(chunk, least)
    assert "steps of a prefill end where spans do" in plan.explain()


def tiny_plan(encoder, lengths, **options):
    from archport.testing.plans import planned

    return planned(encoder.plan, lengths, **options)


def test_a_picture_is_taken_from_what_was_remembered_whole_or_not_at_all(tmp_path):
    dice = np.random.default_rng(8)
    # Without windows, so that what is remembered can be cut anywhere.
    model, _ = loaded("gemma3", tmp_path / "model", layer_types=["full_attention"] * 4)
    module, _ = plugin_of("gemma3")
    keeping = engine.load(tmp_path / "model", plugins=(find(module),), dtype="float32", prefix_cache=1 << 24)
    before, after = dice.integers(8, 199, 12).tolist(), dice.integers(8, 199, 9).tolist()
    large, small = [*before, *[spans.IMAGE] * 10, *after], [*before, *[spans.IMAGE] * 5, *after]
    cases = ((large, 0), (small, 12), (large, len(large) - 1), ([*large, *after], len(large)), (large[:18], 12))
    for prompt, cached in cases:
        (got,), (want,) = (each.generate([prompt], max_tokens=6) for each in (keeping, model))
        assert got.tokens == want.tokens
        assert got.usage.cached_tokens == cached


def test_rows_with_spans_are_embedded_as_they_are_alone(models):
    model, dice = models["prefix"], np.random.default_rng(9)
    rows = [drawn("prefix", length, dice) for length in (60, 21, 44, 44)]
    ids, mask = np.zeros((4, 60), np.int32), np.zeros((4, 60), np.int32)
    for at, row in enumerate(rows):
        ids[at, : len(row)], mask[at, : len(row)] = row, 1
    together = np.array(model.forward(ids, mask))
    for at, row in enumerate(rows):
        assert far(together[at, : len(row)], np.array(model.forward(row[None]))[0]) <= LIMIT
