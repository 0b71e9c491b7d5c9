"""archport.compat without torch: what its calls make of a model's answers. Next to sentence-transformers itself it is
compared by tests/integrations/check_sentence_transformers.py."""

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest

from archport import engine
from archport.compat import CrossEncoder, SentenceTransformer, cross_encoder, loaded, tensors
from archport.contract import InputError

GOLDENS = Path(__file__).parents[1] / "goldens"
TEXTS = ["a cat", "interest rates rose", "word " * 90]


@pytest.fixture(scope="module")
def model():
    return SentenceTransformer(GOLDENS / "bert-plain", prompts={"query": "query: ", "other": "other: "})


@pytest.fixture
def no_torch(monkeypatch):
    for module in (tensors, cross_encoder, loaded):
        monkeypatch.setattr(module, "torch_is_there", lambda: False)


def direct(model, **options):
    return model.archport.embed(TEXTS, overflow="truncate", **options)


@pytest.mark.parametrize(
    ("method", "options", "prompt"),
    [
        ("encode", {}, ""),
        ("encode", {"prompt_name": "other"}, "other: "),
        ("encode", {"prompt": "say: ", "prompt_name": None}, "say: "),
        ("encode_query", {}, "query: "),
        ("encode_query", {"prompt_name": "other"}, "other: "),
        ("encode_query", {"prompt": ""}, ""),
        ("encode_document", {}, ""),
    ],
)
def test_prompts_go_in_front_as_their_names_say(model, method, options, prompt):
    assert np.array_equal(getattr(model, method)(TEXTS, **options), direct(model, prompt=prompt))


def test_a_truncated_vector_is_scaled_only_when_asked_for(model):
    whole = direct(model)
    assert np.array_equal(model.encode(TEXTS, truncate_dim=8), whole[:, :8])
    unit = model.encode(TEXTS, truncate_dim=8, normalize_embeddings=True)
    assert np.abs(np.linalg.norm(unit, axis=1) - 1).max() <= 1e-6
    with model.truncate_embeddings(8):
        assert model.get_embedding_dimension() == 8
        assert np.array_equal(model.encode(TEXTS), whole[:, :8])


def test_a_number_of_dimensions_of_the_files_does_not_scale(model, monkeypatch):
    from dataclasses import replace

    other = copy.copy(model.archport)
    other._runtime = replace(other._runtime, head=replace(other._runtime.head, dimensions=8, normalize=True))
    whole = model.encode(TEXTS, normalize_embeddings=True)
    assert np.abs(SentenceTransformer(other).encode(TEXTS) - whole[:, :8]).max() <= 1e-6


def test_one_text_gives_a_row_and_none_give_nothing(model):
    assert np.array_equal(model.encode(TEXTS[0]), model.encode(TEXTS[:1])[0])
    assert model.encode([]).shape == (0,)


def test_a_limit_cuts(model):
    other = copy.copy(model)
    other.max_seq_length = 8
    assert np.array_equal(other.encode(TEXTS), direct(model, max_tokens=8))
    assert model.max_seq_length == model.archport.max_tokens


def test_tokens_have_a_row_each(model, no_torch):
    rows = model.encode(TEXTS, output_value="token_embeddings")
    assert [len(row) for row in rows] == model.archport.count_tokens(TEXTS).tolist()


@pytest.mark.parametrize("options", [{"convert_to_tensor": True}, {"convert_to_numpy": False}])
def test_tensors_are_refused_where_torch_is_missing(model, no_torch, options):
    with pytest.raises(InputError, match="needs torch"):
        model.encode(TEXTS[:1], **options)


def test_similarities_are_arrays_where_torch_is_missing(model, no_torch):
    vectors = model.encode(TEXTS)
    assert np.abs(model.similarity(vectors, vectors) - model.archport.similarity(vectors, vectors)).max() <= 1e-6
    pairs = model.similarity_pairwise(vectors, vectors[::-1])
    assert np.abs(pairs - np.diag(model.similarity(vectors, vectors[::-1]))).max() <= 1e-6


def test_copies_and_pickles_keep_prompts_and_limits(model):
    model = copy.deepcopy(model)
    model.max_seq_length = 8
    other = pickle.loads(pickle.dumps(model))
    assert (other.prompts, other.max_seq_length) == (model.prompts, 8)
    assert np.array_equal(other.encode_query(TEXTS), model.encode_query(TEXTS))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cache_folder": "here"}, "HF_HUB_CACHE"),
        ({"token": "secret"}, "HF_TOKEN"),
        ({"backend": "onnx"}, "backend"),
        ({"config_kwargs": {"hidden_size": 3}}, "config_kwargs"),
        ({"model_kwargs": {"quantization_config": 4}}, "quantization_config"),
        ({"processor_kwargs": {"do_lower_case": True}}, "do_lower_case"),
        ({"default_prompt_name": "none"}, "none of the prompts"),
        ({"similarity_fn_name": "maxsim"}, "similarity_fn_name"),
    ],
)
def test_an_argument_that_is_not_obeyed_is_refused(options, words):
    with pytest.raises(InputError, match=words):
        SentenceTransformer(GOLDENS / "bert-plain", **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"precision": "int4"}, "precision"),
        ({"output_value": "all"}, "output_value"),
        ({"prompt_name": "none"}, "prompt_name"),
        ({"task": "topic"}, "task"),
    ],
)
def test_a_wrong_argument_of_a_call_is_refused(model, options, words):
    with pytest.raises(InputError, match=words):
        model.encode(TEXTS, **options)


def test_arguments_of_loading_are_obeyed():
    model = SentenceTransformer(
        str(GOLDENS / "bert-plain"),
        model_kwargs={"torch_dtype": "float16", "attn_implementation": "sdpa"},
        tokenizer_kwargs={"model_max_length": 8},
        local_files_only=True,
    )
    assert str(model.archport.dtype.dtype) == "float16"
    assert model.max_seq_length == 8


def test_what_needs_modules_of_torch_says_so(model):
    with pytest.raises(AttributeError, match="neither trains nor saves"):
        model.fit()
    assert not hasattr(model, "parameters")


def test_pairs_are_scored_in_their_order():
    model = CrossEncoder(GOLDENS / "qwen3-reranker")
    pairs = [("a cat", "one"), ("rates", "two"), ("a cat", "three"), ("rates", "one")]
    scores = model.predict(pairs)
    for query in ("a cat", "rates"):
        rows = [at for at, pair in enumerate(pairs) if pair[0] == query]
        ranked = engine.load(GOLDENS / "qwen3-reranker").rerank(query, [pairs[at][1] for at in rows])
        assert np.abs(scores[[rows[row.index] for row in ranked]] - [row.score for row in ranked]).max() <= 1e-6
    assert model.predict(pairs[0]) == pytest.approx(scores[0], abs=1e-6)
    told = model.predict(pairs, prompt="Judge the colour")
    assert np.abs(told - scores).max() > 1e-6


def test_a_ranking_is_that_of_rerank():
    model, documents = CrossEncoder(GOLDENS / "xlm-roberta-rerank"), ["one", "two words", "three"]
    ranked = model.rank("words", documents, top_k=2, return_documents=True)
    expected = model.archport.rerank("words", documents, top_k=2)
    assert [row["corpus_id"] for row in ranked] == [row.index for row in expected]
    assert [row["text"] for row in ranked] == [documents[row.index] for row in expected]
    assert np.abs(np.array([row["score"] for row in ranked]) - [row.score for row in expected]).max() <= 1e-6


def test_several_labels_are_raw_unless_a_softmax_is_asked_for(no_torch):
    model = CrossEncoder(GOLDENS / "bert-classify")
    pairs = [("a", "b"), ("c", "d e")]
    expected = model.archport.classify(pairs, raw_scores=True)
    raw = model.predict(pairs)
    assert np.abs(raw - [list(row.scores.values()) for row in expected]).max() <= 1e-6
    assert np.abs(model.predict(pairs, apply_softmax=True).sum(axis=1) - 1).max() <= 1e-6
    assert np.array_equal(model.predict(pairs, activation_fn=np.negative), -raw)
    assert len(model.predict([])) == 0


@pytest.mark.parametrize("pairs", [[("a",)], [("a", "b", "c")], ["a", "b", "c"], ["text"]])
def test_what_is_no_pair_is_refused(pairs):
    with pytest.raises(InputError, match="pair 0"):
        CrossEncoder(GOLDENS / "xlm-roberta-rerank").predict(pairs)


def test_an_embedder_is_no_cross_encoder():
    with pytest.raises(InputError, match="scores no pairs"):
        CrossEncoder(GOLDENS / "bert-plain")


@pytest.mark.truth
def test_spawned_processes_answer_as_this_one(model):
    texts = TEXTS * 4
    assert np.abs(model.encode(texts, device=["cpu", "cpu"], chunk_size=5) - model.encode(texts)).max() <= 1e-6
    scorer = CrossEncoder(GOLDENS / "xlm-roberta-rerank")
    pairs = [("a", text) for text in texts]
    assert np.abs(scorer.predict(pairs, device=["cpu"]) - scorer.predict(pairs)).max() <= 1e-6
