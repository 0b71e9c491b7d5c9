"""DeBERTa-v2's terms by distance: their table against the published formula, short and long texts, what is refused."""

import json
import math

import mlx.core as mx
import mlx.utils
import numpy as np
import pytest

from archport import engine
from archport.checkpoint import normalise_config
from archport.contract import SpecError
from archport_bidirectional import archport_build, archport_claim
from archport_bidirectional.deberta import EXAMPLE
from archport_bidirectional.deberta.model import NAMES, _rows

# Of deberta-v3-base's config.json, shrunk.
HUB = {
    **EXAMPLE,
    "architectures": ["DebertaV2ForSequenceClassification"],
    "attention_probs_dropout_prob": 0.1,
    "id2label": {"0": "contradiction", "1": "neutral", "2": "entailment"},
    "initializer_range": 0.02,
    "pooler_dropout": 0,
    "pooler_hidden_act": "gelu",
    "pooler_hidden_size": 64,
}
IDS = np.random.default_rng(5).integers(2, 199, 150)


def module(config):
    """A module with random weights, and its tensors under published names."""
    normal = normalise_config(config)
    spec, dice = archport_claim(normal), np.random.default_rng(3)
    built = archport_build(spec, normal)
    found = {}
    for name, value in mlx.utils.tree_flatten(built.parameters()):
        noise = dice.normal(size=value.shape).astype(np.float32)
        found[name] = mx.array(1 + 0.3 * noise if value.ndim == 1 else 0.3 * noise)
    built.update(mlx.utils.tree_unflatten(list(found.items())))
    return built, NAMES.published(found)


def bucket(before, buckets, span):
    """Bucket of a distance, as section A.5 of arXiv 2111.09543 spreads them: near ones alone, far ones by logarithm."""
    middle = buckets // 2
    if abs(before) <= middle:
        return before
    far = math.ceil(math.log(abs(before) / middle) / math.log((span - 1) / middle) * (middle - 1)) + middle
    return far if before > 0 else -far


@pytest.mark.parametrize(("positions", "buckets", "span"), [(512, 256, 512), (320, 32, 320), (128, 24, 40)])
def test_the_rows_of_distances_are_those_of_the_published_formula(positions, buckets, span):
    rows = _rows(positions, buckets, buckets, span)
    # A logarithm on the very edge of a bucket may fall on either side.
    want = [np.clip(bucket(-d, buckets, span) + buckets, 0, 2 * buckets - 1) for d in range(1 - positions, positions)]
    assert np.mean(rows != np.array(want)) <= 0.01
    assert np.abs(rows - np.array(want)).max() <= 1


@pytest.mark.parametrize("shared", [True, False])
def test_vectors_of_few_distances_are_those_of_the_whole_table(shared):
    attention = module({**HUB, "share_att_key": shared})[0].encoder.layer[0].attention
    every = attention._vectors(mx.arange(-200, 201, dtype=mx.int32))
    some = attention._vectors(mx.arange(-20, 21, dtype=mx.int32))
    for whole, part in ((every.queries, some.queries), (every.keys, some.keys)):
        assert np.abs(np.array(whole)[:, 180:221] - np.array(part)).max() <= 1e-5


def test_labels_of_a_pair_are_those_of_the_pair_alone_in_a_ragged_batch(tmp_path, written):
    model = engine.load(written(tmp_path / "nli", HUB, module(HUB)[1]), dtype="float32")
    assert model.head.labels == ("contradiction", "neutral", "entailment")
    pairs = [("t007 " * n, "t012 t013 " * m) for n, m in ((1, 1), (40, 3), (3, 60), (9, 9))]
    together = model.classify(pairs, raw_scores=True)
    for pair, among in zip(pairs, together, strict=True):
        (alone,) = model.classify([pair], raw_scores=True)
        got, want = (np.array(list(each.scores.values())) for each in (among, alone))
        assert np.abs(got - want).max() <= 1e-5 * max(1, np.abs(want).max())


def test_positions_that_a_config_leaves_out_are_left_out(tmp_path, written):
    weights = module(HUB)[1]
    plain = engine.load(written(tmp_path / "plain", HUB, weights), dtype="float32").forward(IDS[None])
    weights |= {
        "deberta.embeddings.position_embeddings.weight": mx.ones((320, 64)),
        "mask_predictions.bias": mx.ones(3),
    }
    model = engine.load(written(tmp_path / "more", HUB, weights), dtype="float32")
    assert (np.array(model.forward(IDS[None])) == np.array(plain)).all()


@pytest.mark.parametrize("legacy", [True, False])
def test_a_file_without_architectures_has_the_head_that_transformers_would_read(tmp_path, written, legacy):
    # As microsoft's own files are, which hold a head that transformers reads by this key alone.
    config = {key: value for key, value in HUB.items() if key not in ("architectures", "id2label")} | {"legacy": legacy}
    masked = module({**config, "architectures": ["DebertaV2ForMaskedLM"]})[1]
    names = {"cls.predictions.transform.": "lm_predictions.lm_head.", "cls.predictions.": "lm_predictions.lm_head."}
    weights = {}
    for name, value in masked.items():
        for old, new in names.items():
            name = name.replace(old, new)
        weights[name] = value
    model = engine.load(written(tmp_path / "base", config, weights), dtype="float32")
    assert ("fill_mask" in model.spec.tasks) is not legacy


def test_no_buffer_of_all_pairs_and_heads_is_planned(tmp_path, written):
    config = {**HUB, "max_position_embeddings": 16384, "position_buckets": 256}
    model = engine.load(written(tmp_path / "long", config, module(config)[1]), dtype="float32")
    short, long = (model.plan([tokens]) for tokens in (4096, 16384))
    held = [plan.peak - plan.bytes["weights"] for plan in (short, long)]
    assert held[1] <= 5 * held[0]
    # One head's scores of 16,384 tokens are 1 GiB; a GPU with much memory takes half of one for four heads.
    assert long.largest_buffer.bytes < (1 << 28 if long.device.kind == "cpu" else 1 << 30)


@pytest.mark.parametrize(
    "change",
    [
        {"conv_kernel_size": 3},
        {"embedding_size": 32},
        {"attention_head_size": 8},
        {"pooler_hidden_size": 32},
        {"pos_att_type": ["p2p"]},
        {"position_buckets": 64, "max_relative_positions": 20},
    ],
    ids=json.dumps,
)
def test_a_key_that_changes_numbers_and_is_not_followed_is_refused_by_name(change):
    with pytest.raises(SpecError, match="|".join(change)):
        archport_claim(normalise_config({**HUB, **change}))
