"""Qwen3-Reranker against its recorded recipe: bytes, cuts, scores; and one shared prefix against none."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from archport import engine
from archport.answering import yes_no
from archport.contract import CheckpointError, ContextLengthExceeded, InputError, NonFiniteOutput

GOLDEN = Path(__file__).parents[3] / "tests" / "goldens" / "qwen3-reranker"
PAIRS = json.loads((GOLDEN / "pairs.json").read_text())
CALLS = {call["name"]: call for call in PAIRS["calls"]}
CUT = {"max_tokens": PAIRS["limit"], "overflow": "truncate"}


@pytest.fixture(scope="module")
def model():
    return engine.load(GOLDEN, dtype="float32")


def in_order(ranked):
    return np.array([each.score for each in sorted(ranked, key=lambda each: each.index)])


@pytest.mark.parametrize("name", CALLS)
def test_token_ids_are_the_published_prefix_body_and_suffix_with_only_the_body_cut(model, name):
    call, golden = CALLS[name], np.load(GOLDEN / "golden.npz")
    tokeniser = model._runtime.scorer().tokeniser
    rows = tokeniser(call["query"], call["documents"], instruction=call["instruction"], **CUT)
    for index, ids in enumerate(rows):
        assert (ids == golden[f"ids_{name}_{index}"]).all()


@pytest.fixture
def sharing(monkeypatch):
    """What all pairs begin with is run once wherever it can be, also where a tiny model gains nothing by it."""
    monkeypatch.setattr(yes_no, "sharing_pays", lambda first, rest, whole: True)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("name", CALLS)
def test_scores_equal_transformers_on_full_logits(model, sharing, name, share):
    call, golden = CALLS[name], np.load(GOLDEN / "golden.npz")
    options = {"instruction": call["instruction"], "share_prefix": share, **CUT}
    ranked = model.rerank(call["query"], call["documents"], **options)
    assert np.abs(in_order(ranked) - golden[f"scores_{name}"]).max() <= 1e-5
    raw = in_order(model.rerank(call["query"], call["documents"], raw_scores=True, **options))
    assert np.abs(raw - golden[f"raw_{name}"]).max() <= 1e-5 * np.abs(golden[f"raw_{name}"]).max()


def test_the_default_instruction_is_the_published_one(model):
    call = CALLS["default"]
    own = model.rerank(call["query"], call["documents"], instruction=call["instruction"], **CUT)
    assert model.rerank(call["query"], call["documents"], **CUT) == own


def test_documents_come_back_best_first_as_many_as_asked(model):
    call, golden = CALLS["default"], np.load(GOLDEN / "golden.npz")
    ranked = model.rerank(call["query"], call["documents"], top_k=3, return_documents=True, **CUT)
    assert [each.index for each in ranked] == np.argsort(-golden["scores_default"])[:3].tolist()
    assert [each.document for each in ranked] == [call["documents"][each.index] for each in ranked]
    assert model.rerank(call["query"], []) == []


def test_equal_documents_keep_their_order_and_scores(model):
    ranked = model.rerank("which word", ["the same text"] * 5)
    assert [each.index for each in ranked] == list(range(5))
    assert np.ptp([each.score for each in ranked]) <= 1e-6


def test_a_document_has_the_same_score_alone_and_in_any_batch(model):
    documents = [f"word {index} " * (1 + 7 * index % 23) for index in range(24)]
    together = in_order(model.rerank("which word", documents))
    alone = np.array([model.rerank("which word", [document])[0].score for document in documents])
    assert np.abs(together - alone).max() <= 1e-5


def test_progress_counts_every_document(model):
    from archport.answering.rerank import RerankRequest

    counts = []
    documents = [f"word {index} " * (1 + 40 * index % 90) for index in range(12)]
    model._runtime.scorer().scores("which word", documents, RerankRequest(scored=counts.append))
    assert sum(counts) == 12


def test_braces_in_a_document_are_text(model):
    ids = model._runtime.scorer().tokeniser("{document}", ["{query} {instruction}"])[0]
    text = model._runtime.tokeniser.tokenizer.decode(ids, skip_special_tokens=False)
    assert "<Query>: {document}\n<Document>: {query} {instruction}" in text


def test_what_all_pairs_begin_with_is_run_once(model, sharing):
    scorer = model._runtime.scorer()
    rows = scorer.tokeniser("a query", ["one text " * 20, "other words " * 20, "nothing " * 30])
    plan, shared = scorer._plan(rows, True)
    text = model._runtime.tokeniser.tokenizer.decode(rows[0][:shared], skip_special_tokens=False)
    assert text.endswith("<Document>:")
    assert all(batch.shape.S == shared for batch in plan.batches)
    assert scorer._plan(rows, False)[1] == 0


def test_plans_count_what_pairs_start_from_beside_the_batches_that_copy_it(model, sharing):
    scorer = model._runtime.scorer()
    rows = scorer.tokeniser("word " * 200, ["one", "two"])
    plan, shared = scorer._plan(rows, True)
    held = scorer._run_shared(rows[0][:shared]).bytes
    assert held > 0
    assert plan.batches[0].bytes["resident"] == scorer._first_plan(shared).batches[0].bytes["resident"] == held


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_batch_of_a_rerank_stays_within_its_plan(dtype, share, sharing, monkeypatch, caplog):
    monkeypatch.setenv("ARCHPORT_VERIFY_MEMORY", "1")
    documents = [f"{index}" for index in range(8)]
    engine.load(GOLDEN, dtype=dtype).rerank("word " * 220, documents, share_prefix=share)
    readings = [record.reading for record in caplog.records if hasattr(record, "reading")]
    # All documents, and what they begin with.
    assert sum(reading.rows for reading in readings) == len(documents) + share
    assert all(reading.holds for reading in readings), readings


def test_pairs_that_fit_only_without_what_they_share_beside_them_run_without(monkeypatch):
    from archport.contract import MemoryBudgetExceeded
    from archport.planning import Planner

    tight = engine.load(GOLDEN)
    documents = ["one text " * 20, "other words " * 20, "nothing " * 30]
    want = tight.rerank("a query", documents, share_prefix=False)
    planned = Planner.__call__

    def refusing(self, request):
        if any(request.cached):
            raise MemoryBudgetExceeded("no", requested=2, ceiling=1, max_tokens_that_fit=0, binding="memory")
        return planned(self, request)

    monkeypatch.setattr(Planner, "__call__", refusing)
    assert tight.rerank("a query", documents) == want


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("qwen3-causal-sharded", None),
        ("qwen3-reranker", None),
        ("qwen3-moe", None),
        ("qwen3-4bit", "checkpoint"),
        ("qwen3-moe-4bit", "checkpoint"),
        ("qwen3-nvfp4", "checkpoint"),
    ],
)
def test_two_rows_of_the_head_equal_the_full_head_tied_untied_and_packed(name, dtype):
    trunk = engine.load(GOLDEN.parent / name, dtype=dtype or "float32")._runtime.encoder.trunk
    rows = trunk.head_rows([5, 400])
    hidden = mx.array(np.random.default_rng(0).normal(size=(1, 3, 64))).astype(rows.dtype)
    full = np.array(trunk.logits(hidden).astype(mx.float32))[..., [5, 400]]
    two = np.array(hidden.astype(mx.float32) @ rows.astype(mx.float32).T)
    assert np.abs(full - two).max() <= (1e-5 if dtype is None else 2**-7) * np.abs(full).max()


def test_a_pair_over_the_limit_is_refused_with_its_document_and_both_numbers(model):
    with pytest.raises(ContextLengthExceeded, match=r"document 1 makes a pair of \d+ tokens; the limit is 400"):
        model.rerank("a", ["b", "long " * 300], max_tokens=400)


@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        ((None, ["a"]), {}, "query=None"),
        (("a", "b"), {}, "documents='b'"),
        (("a", ["b", None]), {}, "document 1"),
        (("a", ["b"]), {"top_k": 0}, "top_k=0"),
        (("a", ["b"]), {"max_tokens": 20}, "no room"),
        (("a", ["b"]), {"overflow": "cut"}, "overflow='cut'"),
    ],
)
def test_arguments_that_make_no_sense_are_named(model, arguments, options, said):
    with pytest.raises(InputError, match=said):
        model.rerank(*arguments, **options)


def test_a_reranker_says_that_it_makes_no_vectors_and_an_embedder_that_it_scores_no_pairs(model):
    with pytest.raises(InputError, match=r"makes no vectors of texts; use Model\.rerank"):
        model.embed("a")
    with pytest.raises(InputError, match="scores no pairs"):
        engine.load(GOLDEN.parent / "qwen3-embed").rerank("a", ["b"])


def test_a_score_that_is_not_finite_is_an_error():
    broken = engine.load(GOLDEN)
    norm = broken._runtime.encoder.trunk.model.norm
    norm.weight = mx.full(norm.weight.shape, mx.nan)
    with pytest.raises(NonFiniteOutput, match="document 0"):
        broken.rerank("a", ["b"])


@pytest.mark.parametrize(("yes", "no"), [(10**6, 6), (6, 10**6), (10**6, None)])
def test_answers_beyond_the_vocabulary_are_refused_when_the_model_is_loaded(tmp_path, yes, no):
    """Their rows of the head would be read out of bounds, which ends the process."""
    shutil.copytree(GOLDEN, tmp_path / "far")
    kinds = {"": "Transformer", "1_LogitScore": "LogitScore"}
    modules = [{"path": path, "type": f"sentence_transformers.{kind}"} for path, kind in kinds.items()]
    (tmp_path / "far" / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "far" / "1_LogitScore").mkdir()
    (tmp_path / "far" / "1_LogitScore" / "config.json").write_text(
        json.dumps({"true_token_id": yes, "false_token_id": no})
    )
    (tmp_path / "far" / "config_sentence_transformers.json").write_text('{"model_type": "CrossEncoder"}')
    with pytest.raises(CheckpointError, match=r"1_LogitScore/config\.json: .*vocabulary has"):
        engine.load(tmp_path / "far")
