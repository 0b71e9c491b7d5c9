"""Sparse vectors against sentence-transformers' SparseEncoder, recorded by tests/goldens/golden_splade.py."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tolerances import CPU

from archport import engine
from archport.answering.readers import SparseReader
from archport.answering.sparse_vectors import SparseVectors, is_sparse, sparse_similarity, taken_in
from archport.contract import CheckpointError, InputError, NonFiniteOutput
from archport.planning import readouts

SPLADE = Path(__file__).parents[3] / "tests" / "goldens" / "splade"
RECORDED = json.loads((SPLADE / "words.json").read_text(encoding="utf-8"))
TEXTS: list[str] = RECORDED["texts"]
GOLDEN = np.load(SPLADE / "golden.npz")
POOLING = {"max": ("max", "relu"), "sum": ("sum", "relu"), "twice": ("max", "log1p_relu")}


@pytest.fixture(scope="module")
def model() -> engine.Model:
    return engine.load(SPLADE)


def dense(vectors) -> np.ndarray:
    given = taken_in(vectors, "vectors")
    found = np.zeros(given.shape, np.float32)
    for at in range(len(given)):
        ids, weights = given.row(at)
        assert (np.diff(ids) > 0).all()
        assert (weights > 0).all()
        found[at, ids] = weights
    return found


def check(found, expected, largest=1e-5) -> None:
    assert np.abs(dense(found) - expected).max() <= largest * np.abs(expected).max()


def variant(folder: Path, *, pooling: str = "max", activation: str = "relu", **stated) -> Path:
    shutil.copytree(SPLADE, folder)
    settings = {"pooling_strategy": pooling, "activation_function": activation}
    (folder / "1_SpladePooling" / "config.json").write_text(json.dumps(settings))
    path = folder / "config_sentence_transformers.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **stated}))
    return folder


@pytest.mark.parametrize("name", POOLING)
def test_vectors_are_those_of_sparse_encoder(tmp_path: Path, name: str):
    pooling, activation = POOLING[name]
    changed = engine.load(variant(tmp_path / name, pooling=pooling, activation=activation))
    check(changed.embed(TEXTS, output="sparse", overflow="truncate"), GOLDEN[name])


def test_old_saves_with_an_mlm_transformer_and_no_settings_are_the_same_model(tmp_path: Path):
    old = variant(tmp_path / "old")
    modules = json.loads((old / "modules.json").read_text())
    modules[0]["type"] = "sentence_transformers.sparse_encoder.models.MLMTransformer"
    modules[1]["type"] = "sentence_transformers.sparse_encoder.models.SpladePooling"
    (old / "modules.json").write_text(json.dumps(modules))
    (old / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 64, "do_lower_case": False}))
    check(engine.load(old).embed(TEXTS, output="sparse", overflow="truncate"), GOLDEN["max"])


def test_a_masked_language_model_without_a_pipeline_is_taken_as_sparse_encoder_takes_it(tmp_path: Path):
    bare = variant(tmp_path / "bare")
    for name in ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"):
        (bare / name).unlink()
    check(engine.load(bare).embed(TEXTS, output="sparse", overflow="truncate"), GOLDEN["max"])


def test_queries_have_their_prompt(model):
    check(model.encode_query(TEXTS, output="sparse", overflow="truncate"), GOLDEN["query"])
    check(model.encode_document(TEXTS, output="sparse", overflow="truncate"), GOLDEN["max"])


def test_the_largest_weights_are_kept_by_the_call_or_by_the_files(model, tmp_path: Path):
    check(model.embed(TEXTS, output="sparse", overflow="truncate", top_k=RECORDED["top_k"]), GOLDEN["top_k"])
    stored = engine.load(variant(tmp_path / "stored", max_active_dims=RECORDED["top_k"]))
    check(stored.embed(TEXTS, output="sparse", overflow="truncate"), GOLDEN["top_k"])


def test_words_are_the_tokens_by_their_weight(model):
    vectors = model.embed(TEXTS, output="sparse", overflow="truncate")
    for got, want in zip(model.decode(vectors, RECORDED["top_k"]), RECORDED["words"], strict=True):
        assert [token for token, _ in got] == [token for token, _ in want]
        np.testing.assert_allclose([weight for _, weight in got], [weight for _, weight in want], rtol=1e-5)


def test_similarity_is_the_dot_product_of_the_files(model):
    vectors = model.embed(TEXTS, output="sparse", overflow="truncate")
    np.testing.assert_allclose(model.similarity(vectors, vectors), GOLDEN["similarity"], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", ["dot", "cosine", "euclidean", "manhattan"])
def test_sparse_vectors_compare_as_dense_ones(kind: str):
    from archport.answering.similarity import similarity

    dice = np.random.default_rng(3)
    a, b = (np.where(dice.random((n, 40)) < 0.2, dice.random((n, 40)), 0).astype(np.float32) for n in (5, 7))
    a[2], b[1] = 0, 0
    np.testing.assert_allclose(sparse_similarity(a, b, kind), similarity(a, b, kind), atol=2e-6)


@pytest.mark.parametrize("pooling", ["max", "sum"])
def test_logits_are_read_in_pieces_of_any_size(monkeypatch, tmp_path: Path, pooling: str):
    pooled = engine.load(variant(tmp_path / pooling, pooling=pooling))
    width, sizes = pooled.spec.vocab_size, []
    trunk = pooled._runtime.encoder.trunk
    logits = type(trunk).logits

    def counted(self, hidden):
        sizes.append(len(hidden))
        return logits(self, hidden)

    monkeypatch.setattr(type(trunk), "logits", counted)
    for tokens in (1, 2, 7, 40):
        sizes.clear()
        monkeypatch.setattr(readouts, "_PIECE", 4 * width * tokens)
        check(pooled.embed(TEXTS, output="sparse", overflow="truncate"), GOLDEN[pooling])
        assert max(sizes) <= tokens < sum(sizes)


def test_the_price_of_the_logits_does_not_grow_with_the_texts(model):
    size = model.spec.vocab_size
    most = model._runtime.sparse().reader.most
    few, many = (model.plan([64] * (count // 64)).batches[0].bytes["logits"] for count in (most, 8 * most))
    assert many <= few * 1.01
    assert few <= 2 * 4 * size * most


def test_a_model_of_a_large_vocabulary_keeps_to_its_plan(monkeypatch, tmp_path: Path, caplog):
    import mlx.core as mx

    large, size = variant(tmp_path / "large"), 20_000
    config = json.loads((large / "config.json").read_text())
    (large / "config.json").write_text(json.dumps({**config, "vocab_size": size}))
    weights = mx.load(str(large / "model.safetensors"))
    assert isinstance(weights, dict)
    for name, value in weights.items():
        if value.shape[0] == config["vocab_size"]:
            weights[name] = mx.random.normal((size, *value.shape[1:]), key=mx.random.key(7))
    mx.save_safetensors(str(large / "model.safetensors"), weights)
    monkeypatch.setenv("ARCHPORT_VERIFY_MEMORY", "1")
    engine.load(large).embed(["a cat", *TEXTS * 9], output="sparse", overflow="truncate")
    readings = [record.reading for record in caplog.records if hasattr(record, "reading")]  # pyright: ignore
    assert readings
    assert all(reading.holds for reading in readings)
    # Of so small a model the workspace that a plan keeps for a GPU is most; a batch of few tokens has room for a block
    # of logits that it does not fill.
    largest = max(readings, key=lambda reading: reading.rows * reading.tokens)
    assert not CPU or largest.measured >= largest.planned / 2


def test_a_bad_text_is_set_aside_and_the_others_have_vectors(model):
    made = model.embed([TEXTS[0], "word " * 100, TEXTS[1]], output="sparse", errors="collect")
    assert made.rows == (0, 2)
    assert list(made.errors) == [1]
    check(made.results, GOLDEN["max"][:2])


def test_a_stream_gives_the_same_vectors_window_by_window(model):
    found = list(model.stream(TEXTS, window=4, output="sparse", overflow="truncate"))
    assert [first for first, _ in found] == [0, 4, 8]
    assert np.abs(np.concatenate([dense(some) for _, some in found]) - GOLDEN["max"]).max() <= 1e-4


def test_without_scipy_there_are_the_same_arrays(model, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = model.embed(TEXTS, output="sparse", overflow="truncate")
    assert isinstance(found, SparseVectors)
    assert found.indptr.shape == (len(TEXTS) + 1,)
    assert is_sparse(found)
    check(found, GOLDEN["max"])


def test_with_scipy_it_is_a_csr_array(model):
    sparse = pytest.importorskip("scipy.sparse", reason="the extra `sparse`; the dev group brings it")
    found = model.embed(TEXTS, output="sparse", overflow="truncate")
    assert sparse.issparse(found)
    assert (found.format, found.shape, found.dtype) == ("csr", GOLDEN["max"].shape, np.float32)
    np.testing.assert_allclose(found.toarray(), GOLDEN["max"], rtol=1e-5, atol=1e-4)
    assert model.decode(found, 1) == model.decode(found.tocoo(), 1) == model.decode(found.toarray(), 1)


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path):
    import mlx.core as mx

    broken = variant(tmp_path / "broken")
    weights = mx.load(str(broken / "model.safetensors"))
    assert isinstance(weights, dict)
    name = next(name for name in weights if name.endswith("LayerNorm.bias"))
    weights[name] = mx.full(weights[name].shape, float("nan"))
    mx.save_safetensors(str(broken / "model.safetensors"), weights)
    with pytest.raises(NonFiniteOutput, match="text 0"):
        engine.load(broken).embed(TEXTS[:2], output="sparse")


def test_other_models_and_other_arguments_are_refused_in_words(model):
    with pytest.raises(InputError, match=r"embed\(output='sparse'\)"):
        model.embed(TEXTS)
    with pytest.raises(InputError, match="dimensions can't be chosen with output='sparse'"):
        model.embed(TEXTS, output="sparse", dimensions=3)
    with pytest.raises(InputError, match="top_k=0"):
        model.embed(TEXTS, output="sparse", top_k=0)
    with pytest.raises(InputError, match="width 3; expected 240"):
        model.decode(np.zeros((1, 3)))
    other = engine.load(SPLADE.parent / "bert-plain")
    with pytest.raises(InputError, match="no sparse vectors"):
        other.embed(TEXTS, output="sparse")
    with pytest.raises(InputError, match="top_k can't be chosen"):
        other.embed(TEXTS, top_k=3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pooling": "mean"}, "pooling_strategy='mean'"),
        ({"activation": "gelu"}, "activation_function='gelu'"),
        ({"max_active_dims": 0}, "max_active_dims=0"),
    ],
)
def test_settings_that_archport_does_not_know_are_refused(tmp_path: Path, change, words: str):
    with pytest.raises(CheckpointError, match=words):
        engine.load(variant(tmp_path / "changed", **change))


def test_hidden_states_in_place_of_logits_are_refused(tmp_path: Path):
    changed = variant(tmp_path / "changed")
    (changed / "sentence_bert_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="feature-extraction"):
        engine.load(changed)


def test_a_sparse_model_still_fills_masks(model):
    (((best, *_),),) = model.fill_mask(["the [MASK] sleeps"], top_k=2)
    assert 0 < best.score <= 1


def test_the_plan_of_the_reader_is_that_of_the_call(model):
    reader = model._runtime.sparse().reader
    assert isinstance(reader, SparseReader)
    model.embed([TEXTS[0]], output="sparse")
    (length,) = model.count_tokens(TEXTS[0])
    assert model.last_plan.peak == model.plan([int(length)]).peak
