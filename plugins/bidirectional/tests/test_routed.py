"""Inference-free SPLADE by a Router, against what sentence-transformers' SparseEncoder gave for the same files."""

import asyncio
import json
import pickle
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from archport import engine
from archport.answering.sparse_vectors import taken_in
from archport.checkpoint.files import weights_needed
from archport.contract import ContextLengthExceeded, InputError
from archport.contract.errors import CheckpointError

GOLDEN = Path(__file__).parents[3] / "tests" / "goldens" / "routed"
STATED = json.loads((GOLDEN / "routes.json").read_text(encoding="utf-8"))
TEXTS = STATED["texts"]
RECORDED = np.load(GOLDEN / "golden.npz")


def dense(vectors):
    given = taken_in(vectors, "vectors")
    found = np.zeros(given.shape, np.float32)
    for at in range(len(given)):
        ids, weights = given.row(at)
        found[at, ids] = weights
    return found


def far(got, want):
    return np.abs(np.asarray(got) - want).max() / np.abs(want).max()


def copied(folder, parameters=None, **files):
    """The golden checkpoint with other parameters of its router, and other files."""
    shutil.copytree(GOLDEN, folder, dirs_exist_ok=True)
    path = folder / "router_config.json"
    stated = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**stated, "parameters": {**stated["parameters"], **(parameters or {})}}))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def model():
    return engine.load(GOLDEN, dtype="float32")


@pytest.mark.parametrize(
    ("call", "options", "recorded"),
    [
        ("encode_query", {}, "query"),
        ("encode_query", {"prompt": ""}, "bare_query"),
        ("encode_query", {"top_k": STATED["top_k"]}, "top_query"),
        ("encode_document", {"overflow": "truncate"}, "document"),
        ("embed", {"overflow": "truncate"}, "plain"),
    ],
)
def test_each_role_is_what_sentence_transformers_makes_of_it(model, call, options, recorded):
    options = {"overflow": "truncate", **options}
    got = getattr(model, call)(TEXTS, output="sparse", **options)
    assert far(dense(got), RECORDED[recorded]) <= 1e-5


def test_dense_vectors_with_weights_below_zero_are_taken_as_they_are(model):
    sparse = model.encode_query(TEXTS, output="sparse", overflow="truncate")
    assert (dense(sparse) < 0).any()
    assert np.array_equal(model.similarity(dense(sparse), sparse), model.similarity(sparse, sparse))


def test_queries_and_documents_compare_as_there(model):
    options = {"output": "sparse", "overflow": "truncate"}
    got = model.similarity(model.encode_query(TEXTS, **options), model.encode_document(TEXTS, **options))
    assert far(got, RECORDED["similarity"]) <= 1e-5


def test_words_of_a_query_have_their_own_weights(model):
    (words,) = model.decode(model.encode_query(["the cat"], output="sparse", prompt=""))
    table = np.array(mx.load(str(GOLDEN / "query_0_SparseStaticEmbedding" / "model.safetensors"))["weight"])
    assert words
    assert all(table[model.tokenizer.token_to_id(word)] == pytest.approx(weight) for word, weight in words)


def test_a_call_of_asyncio_takes_its_role_s_route(model):
    got = asyncio.run(model.aencode_query(TEXTS, output="sparse", overflow="truncate"))
    assert far(dense(got), RECORDED["query"]) <= 1e-5


def test_another_process_loads_the_same_routes(model):
    again = pickle.loads(pickle.dumps(model))
    assert far(dense(again.encode_query(TEXTS, output="sparse", overflow="truncate")), RECORDED["query"]) <= 1e-5


def test_texts_without_a_role_take_the_first_route_where_no_default_is_stated(tmp_path, model):
    other = engine.load(copied(tmp_path / "first", {"default_route": None}), dtype="float32")
    options = {"output": "sparse", "overflow": "truncate"}
    # Without a prompt, as `plain`, and by the table.
    assert far(dense(other.embed(TEXTS, **options)), RECORDED["bare_query"]) <= 1e-5
    assert far(dense(other.encode_document(TEXTS, **options)), RECORDED["document"]) <= 1e-5


def test_a_role_without_a_route_is_refused_with_what_there_is(tmp_path):
    none = {"default_route": None, "allow_empty_key": False}
    other = engine.load(copied(tmp_path / "none", none), dtype="float32")
    with pytest.raises(InputError, match="no route for texts without a role; its routes are query, document"):
        other.embed(["a"], output="sparse")


def test_a_rule_may_lead_queries_to_the_transformer(tmp_path):
    rules = {"route_mappings": {"('query', 'text')": "document"}}
    other = engine.load(copied(tmp_path / "rule", rules), dtype="float32")
    got = other.encode_query(TEXTS, output="sparse", overflow="truncate", prompt="the ")
    assert far(dense(got), RECORDED["document"]) <= 1e-5


def test_a_query_that_can_t_be_read_is_named_or_set_aside(model):
    with pytest.raises(InputError, match="text 1"):
        model.encode_query(["a", None], output="sparse")
    with pytest.raises(ContextLengthExceeded, match="text 0"):
        model.encode_query(["cat " * 500], output="sparse")
    made = model.encode_query(["a", None, "b"], output="sparse", errors="collect")
    assert list(made.rows) == [0, 2]
    assert list(made.errors) == [1]


@pytest.mark.parametrize(
    ("options", "says"),
    [({}, "output='sparse'"), ({"output": "sparse", "dimensions": 8}, "dimensions"), ({"top_k": 0}, "output=")],
)
def test_what_a_table_does_not_make_is_refused(model, options, says):
    with pytest.raises(InputError, match=says):
        model.encode_query(["a"], **options)


def test_a_closed_model_answers_nobody():
    other = engine.load(GOLDEN, dtype="float32")
    other.close()
    for call in (other.embed, other.encode_query, other.encode_document):
        with pytest.raises(InputError, match="was closed"):
            call(["a"], output="sparse")


def test_the_hub_is_asked_for_the_table_as_well():
    names = [str(path.relative_to(GOLDEN)) for path in GOLDEN.rglob("*") if path.is_file()]

    def read(name):
        return json.loads((GOLDEN / name).read_text(encoding="utf-8")) if (GOLDEN / name).is_file() else None

    needed = weights_needed(names, read, "routed")
    assert needed == [f"{folder}/model.safetensors" for folder in ("document_0_Transformer", STATIC)]


STATIC = "query_0_SparseStaticEmbedding"


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ({"weight": mx.zeros((7,))}, "has 7 weights"),
        ({"weight": mx.zeros((7, 2))}, "expected a vector `weight`"),
        ({"weight": mx.full((250,), mx.nan)}, "NaN or infinity"),
    ],
    ids=["too few", "a matrix", "no numbers"],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path, weights, says):
    folder = copied(tmp_path / "odd")
    mx.save_safetensors(str(folder / STATIC / "model.safetensors"), weights)
    with pytest.raises(CheckpointError, match=says):
        engine.load(folder)


def test_a_table_that_is_named_by_a_path_is_refused(tmp_path):
    folder = copied(tmp_path / "path")
    (folder / STATIC / "config.json").write_text(json.dumps({"frozen": True, "path": "idf.json"}))
    with pytest.raises(CheckpointError, match=r"path='idf\.json'"):
        engine.load(folder)
