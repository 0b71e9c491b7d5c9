"""bge-m3's vectors, weights of words and vectors of tokens of one pass, against the published formulas in numpy.

Source: Chen et al. 2024, "M3-Embedding: Multi-Linguality, Multi-Functionality, Multi-Granularity Text Embeddings
Through Self-Knowledge Distillation", section 3.2. Dense: the first hidden state, of unit length. Lexical: relu(W h + b)
of each token, and of a word that comes several times the largest; those of <s>, </s>, <pad> and <unk> are none, as in
its authors' code (FlagEmbedding). Multi-vector: W h + b of each token after the first, of unit length.
"""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from archport import engine
from archport.answering.sparse_vectors import taken_in
from archport.contract import InputError

GOLDENS = Path(__file__).parents[3] / "tests" / "goldens"
TEXTS = ["a cat sleeps, and a cat purrs", "the software", "x", "日本 <unk> 日本"]
WIDTH = 24


def stand_in(folder: Path, *, suffix: str = ".safetensors", pipeline: bool = True) -> Path:
    """A tiny checkpoint in the layout of BAAI/bge-m3, its heads converted."""
    shutil.copytree(GOLDENS / "xlm-roberta", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["XLMRobertaModel"]}))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**tokenizer, "unk_token": "<unk>"}))
    dice, D = np.random.default_rng(8), config["hidden_size"]
    for name, out in (("sparse_linear", 1), ("colbert_linear", WIDTH)):
        weight, bias = dice.normal(0, D**-0.5, (out, D)), 0.5 + dice.normal(0, 0.3, out)
        arrays = {"weight": mx.array(weight.astype(np.float32)), "bias": mx.array(bias.astype(np.float32))}
        mx.save_safetensors(str(folder / f"{name}.safetensors"), arrays)
        (folder / f"{name}.safetensors").rename(folder / f"{name}{suffix}")
    if pipeline:
        kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
        modules = [{"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{kind}"}
                   for at, (path, kind) in enumerate(kinds)]  # fmt: skip
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "1_Pooling").mkdir()
        pooling = {"word_embedding_dimension": D, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return stand_in(tmp_path_factory.mktemp("m3") / "model")


@pytest.fixture(scope="module")
def model(folder: Path) -> engine.Model:
    return engine.load(folder)


def reference(model: engine.Model, folder: Path, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(dense, lexical weights (V,), vectors of tokens) of a text by the formulas, in float64."""
    ids = model.tokenizer.encode(text).ids
    hidden = np.array(model.forward([ids]))[0].astype(np.float64)

    def linear(name: str) -> np.ndarray:
        arrays = mx.load(str(folder / f"{name}.safetensors"))
        assert isinstance(arrays, dict)
        return hidden @ np.array(arrays["weight"]).T + np.array(arrays["bias"])

    weights = np.maximum(linear("sparse_linear")[:, 0], 0)
    lexical = np.zeros(model.spec.vocab_size)
    for id, weight in zip(ids, weights, strict=True):
        lexical[id] = max(lexical[id], weight)
    lexical[[model.tokenizer.token_to_id(token) for token in ("<s>", "</s>", "<pad>", "<unk>")]] = 0
    vectors = linear("colbert_linear")[1:]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return hidden[0] / np.linalg.norm(hidden[0]), lexical, unit


def dense(vectors) -> np.ndarray:
    given = taken_in(vectors, "vectors")
    found = np.zeros(given.shape)
    for at in range(len(given)):
        ids, weights = given.row(at)
        found[at, ids] = weights
    return found


def test_three_outputs_of_one_pass_are_those_of_the_formulas(model, folder, monkeypatch):
    passes = []
    trunk = type(model._runtime.encoder.trunk)
    call = trunk.__call__
    monkeypatch.setattr(trunk, "__call__", lambda self, *given: passes.append(1) or call(self, *given))
    found = model.embed(TEXTS, output=("vectors", "sparse", "tokens"))
    ran = len(passes)
    assert list(found) == ["vectors", "sparse", "tokens"]
    passes.clear()
    model.embed(TEXTS, output="tokens")
    assert ran == len(passes)
    weights = dense(found["sparse"])
    for at, text in enumerate(TEXTS):
        vector, lexical, tokens = reference(model, folder, text)
        np.testing.assert_allclose(found["vectors"][at], vector, atol=1e-5)
        np.testing.assert_allclose(weights[at], lexical, atol=1e-5)
        assert found["tokens"][at].shape == tokens.shape == (len(model.tokenizer.encode(text).ids) - 1, WIDTH)
        np.testing.assert_allclose(found["tokens"][at], tokens, atol=1e-5)
    assert (weights > 0).sum() > 5


@pytest.mark.parametrize("output", ["vectors", "sparse", "tokens"])
def test_an_output_alone_is_the_same(model, output: str):
    several = model.embed(TEXTS, output=["tokens", "vectors", "sparse"])[output]
    alone = model.embed(TEXTS, output=output)
    if output == "sparse":
        several, alone = [dense(several)], [dense(alone)]
    for one, other in zip(several, alone, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)


def test_options_reach_the_outputs_that_they_are_for(model):
    found = model.embed(TEXTS, output=("vectors", "sparse"), top_k=2, dimensions=8, normalize=False)
    assert found["vectors"].shape == (len(TEXTS), 8)
    np.testing.assert_allclose(found["vectors"], model.embed(TEXTS, dimensions=8, normalize=False), atol=2e-6)
    assert (np.diff(taken_in(found["sparse"], "vectors").indptr) <= 2).all()
    with pytest.raises(InputError, match="dimensions can't be chosen"):
        model.embed(TEXTS, output=("tokens", "sparse"), dimensions=8)
    with pytest.raises(InputError, match="top_k can't be chosen"):
        model.embed(TEXTS, output=("tokens", "vectors"), top_k=8)
    with pytest.raises(InputError, match="each once"):
        model.embed(TEXTS, output=("tokens", "tokens"))
    with pytest.raises(InputError, match="expected 1 to 48"):
        model.embed(TEXTS, output=("tokens", "vectors"), dimensions=900)


def test_bad_texts_are_set_aside_of_all_outputs(model):
    made = model.embed(["a", 3, "b"], output=("vectors", "tokens"), errors="collect")
    assert (made.rows, list(made.errors)) == ((0, 2), [1])
    assert len(made.results["vectors"]) == len(made.results["tokens"]) == 2
    nothing = model.embed([], output=("vectors", "sparse", "tokens"))
    assert nothing["vectors"].shape == (0, 48)
    assert nothing["sparse"].shape == (0, model.spec.vocab_size)


def test_words_and_late_interaction_are_those_of_its_heads(model, folder):
    sparse = model.embed(TEXTS, output="sparse")
    _, lexical, _ = reference(model, folder, TEXTS[0])
    ((word, weight), *_), *_ = model.decode(sparse, 1)
    assert word == model.tokenizer.id_to_token(int(lexical.argmax()))
    assert weight == pytest.approx(lexical.max(), abs=1e-5)
    np.testing.assert_allclose(model.similarity(sparse, sparse), dense(sparse) @ dense(sparse).T, atol=1e-5)
    query, document = (reference(model, folder, text)[2] for text in TEXTS[:2])
    assert model.maxsim(TEXTS[0], [TEXTS[1]])[0] == pytest.approx((query @ document.T).max(axis=1).sum(), abs=1e-4)


def test_heads_that_are_only_pickles_are_refused_with_the_conversion_and_the_vectors_stay(tmp_path: Path, model):
    published = engine.load(stand_in(tmp_path / "published", suffix=".pt"))
    np.testing.assert_allclose(published.embed(TEXTS), model.embed(TEXTS), atol=2e-6)
    for output, name in (("sparse", "sparse_linear"), ("tokens", "colbert_linear")):
        for asked in (output, ("vectors", output)):
            with pytest.raises(InputError, match=rf"save_file\(torch.load\('{name}.pt', weights_only=True\)"):
                published.embed(TEXTS, output=asked)


def test_without_a_pipeline_the_name_says_how_its_vectors_are_made(tmp_path: Path, model):
    bare = engine.load(stand_in(tmp_path / "bge-m3", pipeline=False))
    found, want = (each.embed(TEXTS, output=("vectors", "sparse")) for each in (bare, model))
    np.testing.assert_allclose(found["vectors"], want["vectors"], atol=2e-6)
    np.testing.assert_allclose(dense(found["sparse"]), dense(want["sparse"]), atol=2e-6)


def test_converted_heads_are_fetched_and_kept_and_are_no_model(tmp_path: Path):
    from archport.checkpoint.files import weights_needed
    from archport.contract import CheckpointError
    from archport.conversion.folder import copy_files

    names = ["config.json", "model.safetensors", "sparse_linear.safetensors", "colbert_linear.safetensors"]
    assert weights_needed(names, lambda _: None, "here") == names[1:]
    folder = stand_in(tmp_path / "model")
    (tmp_path / "copy").mkdir()
    assert {"sparse_linear.safetensors", "colbert_linear.safetensors"} <= set(
        copy_files(engine.describe(folder).checkpoint, tmp_path / "copy")
    )
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="formats that can run code"):
        engine.load(folder)


def test_the_plan_holds_for_all_outputs_together(folder, monkeypatch, caplog):
    monkeypatch.setenv("ARCHPORT_VERIFY_MEMORY", "1")
    engine.load(folder).embed([" ".join(TEXTS) * 3] * 40, output=("vectors", "sparse", "tokens"))
    readings = [record.reading for record in caplog.records if hasattr(record, "reading")]  # pyright: ignore
    assert readings
    assert all(reading.holds for reading in readings)
