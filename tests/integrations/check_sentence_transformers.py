"""archport.compat next to sentence-transformers: the same calls on the same weights, in one process."""

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import sentence_transformers
import torch

import archport
from archport import engine
from archport.compat import CrossEncoder, SentenceTransformer

GOLDENS = Path(__file__).parents[1] / "goldens"
TEXTS = ["The cat sleeps.", "Interest rates rose by a quarter of a point on Thursday.", "", "word " * 600, "naïve café"]
PAIRS = [("a cat", "The cat sleeps."), ("rates", "Interest rates rose."), ("a cat", "word " * 600)]


@pytest.fixture(scope="module")
def both():
    folder = engine.describe("all-MiniLM-L6-v2").checkpoint.folder
    prompts = {"query": "query: ", "document": "passage: ", "other": "other: "}
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu", prompts=prompts)
    return SentenceTransformer(str(folder), prompts=prompts), theirs


CALLS = {
    "plain": {},
    "batch": {"batch_size": 2, "show_progress_bar": False},
    "prompt": {"prompt": "say: "},
    "prompt_name": {"prompt_name": "other"},
    "normalized": {"normalize_embeddings": True},
    "truncated": {"truncate_dim": 64},
    "truncated, normalized": {"truncate_dim": 64, "normalize_embeddings": True},
    "tensor": {"convert_to_tensor": True},
    "list": {"convert_to_numpy": False},
    "ubinary": {"precision": "ubinary"},
    "int8": {"precision": "int8"},
    "float32": {"precision": "float32"},
}


@pytest.mark.parametrize("options", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("method", ["encode", "encode_query", "encode_document"])
@pytest.mark.parametrize("given", [TEXTS, TEXTS[0]], ids=["texts", "one"])
def test_vectors_equal_theirs(both, method, options, given):
    if options.get("precision", "float32") != "float32" and isinstance(given, str):
        pytest.skip("one text calibrates nothing")
    mine, other = (getattr(model, method)(given, **options) for model in both)
    assert type(mine) is type(other)
    mine, other = ([*map(np.asarray, vectors)] for vectors in (mine, other))
    mine, other = np.array(mine), np.array(other)
    assert (mine.shape, mine.dtype) == (other.shape, other.dtype)
    if mine.dtype == np.float32:
        assert np.abs(mine - other).max() <= 2e-6
    else:
        # A number on the border of two levels may round to either.
        bits = np.unpackbits(mine ^ other).sum() if options["precision"] == "ubinary" else (mine != other).sum()
        assert bits <= 0.02 * mine.size
        assert np.abs(mine.astype(int) - other).max() <= 1 or options["precision"] == "ubinary"


def test_token_vectors_equal_theirs(both):
    mine, other = (model.encode(TEXTS, output_value="token_embeddings") for model in both)
    for a, b in zip(mine, other, strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= 2e-5


def test_everything_of_a_text_equals_theirs(both):
    mine, other = (model.encode(TEXTS[:2], output_value=None) for model in both)
    for a, b in zip(mine, other, strict=True):
        for name in ("token_embeddings", "sentence_embedding"):
            rows = b[name][: len(a[name])]
            assert (a[name] - rows).abs().max() <= 2e-5


def test_nothing_is_of_their_shape(both):
    assert [model.encode([]).shape for model in both] == [(0,), (0,)]


def test_similarities_equal_theirs(both):
    vectors = both[1].encode(TEXTS)
    for name in ("cosine", "dot", "euclidean", "manhattan"):
        for model in both:
            model.similarity_fn_name = name
        mine, other = (model.similarity(vectors, torch.from_numpy(vectors[:2])) for model in both)
        assert torch.allclose(mine, other, atol=2e-3 if name == "euclidean" else 2e-5)
        mine, other = (model.similarity_pairwise(vectors[:2], vectors[1:3]) for model in both)
        assert torch.allclose(mine, other, atol=2e-5)
    for model in both:
        model.similarity_fn_name = "cosine"


def test_what_a_model_says_of_itself_equals_theirs(both):
    assert [model.get_embedding_dimension() for model in both] == [384, 384]
    assert [model.max_seq_length for model in both] == [256, 256]
    assert both[0].similarity_fn_name == both[1].similarity_fn_name
    assert both[0].prompts == both[1].prompts
    for model in both:
        with model.truncate_embeddings(32):
            assert model.encode(TEXTS).shape == (len(TEXTS), 32)


def test_a_lower_limit_cuts_as_theirs_does(both):
    try:
        for model in both:
            model.max_seq_length = 16
        mine, other = (model.encode(TEXTS) for model in both)
    finally:
        for model in both:
            model.max_seq_length = 256
    assert np.abs(mine - other).max() <= 2e-6


def test_copies_and_pickles_answer_alike(both):
    for other in (copy.deepcopy(both[0]), pickle.loads(pickle.dumps(both[0]))):
        assert np.array_equal(other.encode(TEXTS[:2]), both[0].encode(TEXTS[:2]))


def test_programs_that_ask_for_their_class_take_it(both):
    assert isinstance(both[0], sentence_transformers.SentenceTransformer)
    assert isinstance(both[0], SentenceTransformer)


def test_processes_answer_as_one_does(both):
    texts = TEXTS * 3
    alone = both[0].encode(texts)
    assert np.abs(both[0].encode(texts, device=["cpu", "cpu"], chunk_size=4) - alone).max() <= 2e-6
    pool = both[0].start_multi_process_pool(["cpu", "cpu"])
    try:
        assert np.abs(both[0].encode(texts, pool=pool) - alone).max() <= 2e-6
        assert np.abs(both[0].encode_query(texts, pool=pool) - both[0].encode_query(texts)).max() <= 2e-6
        with pytest.raises(archport.ArchportError, match="text 1"):
            both[0].encode(["a", 3], pool=pool, chunk_size=2)
    finally:
        both[0].stop_multi_process_pool(pool)


@pytest.mark.parametrize("folder", ["xlm-roberta-rerank", "bert-classify"])
def test_scores_of_pairs_equal_theirs(folder):
    mine, other = CrossEncoder(str(GOLDENS / folder)), sentence_transformers.CrossEncoder(str(GOLDENS / folder))
    assert mine.num_labels == other.num_labels
    for options in ({}, {"convert_to_tensor": True}, {"apply_softmax": True}, {"activation_fn": torch.nn.Tanh()}):
        a, b = (np.asarray(model.predict(PAIRS, **options)) for model in (mine, other))
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= 2e-6, options
    assert np.abs(mine.predict(PAIRS[0]) - other.predict(PAIRS[0])).max() <= 2e-6
    assert np.abs(mine.predict(PAIRS, prompt="say: ") - other.predict(PAIRS, prompt="say: ")).max() <= 2e-6
    if mine.num_labels == 1:
        documents = [document for _, document in PAIRS]
        a, b = (model.rank("a cat", documents, top_k=2, return_documents=True) for model in (mine, other))
        assert [row["corpus_id"] for row in a] == [row["corpus_id"] for row in b]
        assert [row["text"] for row in a] == [row["text"] for row in b]
        assert max(abs(x["score"] - y["score"]) for x, y in zip(a, b, strict=True)) <= 2e-6
