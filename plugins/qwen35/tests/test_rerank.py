"""Hybrids that rerank, against the recorded recipe: bytes, scores, two rows of the head, and one shared prefix."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from archport import engine
from archport.answering import yes_no
from archport.contract import CheckpointError, InputError

GOLDENS = Path(__file__).parents[3] / "tests" / "goldens"
FOLDER = GOLDENS / "qwen35-reranker"
PAIRS = json.loads((FOLDER / "pairs.json").read_text())
CALLS = {call["name"]: call for call in PAIRS["calls"]}
CUT = {"max_tokens": PAIRS["limit"], "overflow": "truncate"}
DOCUMENTS = [f"word {index} " * (1 + 7 * index % 23) for index in range(12)]


@pytest.fixture(scope="module")
def golden():
    return np.load(FOLDER / "golden.npz")


@pytest.fixture(scope="module")
def model():
    return engine.load(FOLDER, dtype="float32")


def in_order(ranked):
    return np.array([each.score for each in sorted(ranked, key=lambda each: each.index)])


@pytest.mark.parametrize("name", CALLS)
def test_token_ids_are_the_published_prefix_body_and_suffix_with_only_the_body_cut(model, golden, name):
    call = CALLS[name]
    rows = model._runtime.scorer().tokeniser(call["query"], call["documents"], instruction=call["instruction"], **CUT)
    for index, ids in enumerate(rows):
        assert ids.tolist() == golden[f"ids_{name}_{index}"].tolist()


@pytest.fixture
def sharing(monkeypatch):
    """What all pairs begin with is run once wherever it can be, also where a tiny model gains nothing by it."""
    monkeypatch.setattr(yes_no, "sharing_pays", lambda first, rest, whole: True)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("name", CALLS)
def test_scores_equal_transformers_on_full_logits(model, sharing, golden, name, share):
    call = CALLS[name]
    options = {"instruction": call["instruction"], "share_prefix": share, **CUT}
    found = in_order(model.rerank(call["query"], call["documents"], **options))
    assert np.abs(found - golden[f"scores_{name}"]).max() <= 1e-5
    raw = in_order(model.rerank(call["query"], call["documents"], raw_scores=True, **options))
    assert np.abs(raw - golden[f"raw_{name}"]).max() <= 1e-5 * np.abs(golden[f"raw_{name}"]).max()


@pytest.mark.parametrize("share", [True, False])
def test_a_pair_has_the_same_score_alone_and_in_a_batch(model, share):
    together = in_order(model.rerank("which word", DOCUMENTS, share_prefix=share))
    alone = np.array([model.rerank("which word", [document])[0].score for document in DOCUMENTS])
    assert np.abs(together - alone).max() <= 1e-5
    assert np.ptp(alone) > 1e-3


def test_what_all_pairs_begin_with_is_run_once_and_its_state_given_to_every_row(model, sharing):
    scorer = model._runtime.scorer()
    rows = scorer.tokeniser("which word", DOCUMENTS)
    plan, shared = scorer._plan(rows, True)
    text = model._runtime.tokeniser.tokenizer.decode(rows[0][:shared], skip_special_tokens=False)
    assert "<Document>:" in text
    assert all(batch.shape.S == shared for batch in plan.batches)
    assert max(batch.shape.B for batch in plan.batches) > 1
    apart, together = (in_order(model.rerank("which word", DOCUMENTS, share_prefix=share)) for share in (False, True))
    assert np.abs(apart - together).max() <= 1e-5


@pytest.mark.parametrize("name", ["qwen35-reranker", "qwen35-wrapper", "qwen35-moe", "qwen3-next"])
def test_two_rows_of_the_head_equal_the_full_head(name):
    trunk = engine.load(GOLDENS / name, dtype="float32")._runtime.encoder.trunk
    hidden = mx.array(np.random.default_rng(0).normal(size=(1, 3, 32)).astype(np.float32))
    full = np.array(trunk.logits(hidden))[..., [5, 400]]
    assert np.abs(full - np.array(hidden @ trunk.head_rows([5, 400]).T)).max() <= 1e-5 * np.abs(full).max()


def test_a_reranker_says_that_it_makes_no_vectors_and_a_generator_that_it_scores_no_pairs(model):
    assert model.spec.tasks == ("rerank", "generate")
    with pytest.raises(InputError, match=r"makes no vectors of texts; use Model\.rerank"):
        model.embed("a")
    generator = engine.load(GOLDENS / "qwen35-text")
    assert "rerank" not in generator.spec.tasks
    with pytest.raises(InputError, match="scores no pairs; load a reranker"):
        generator.rerank("a", ["b"])


def test_a_reranker_without_the_tokens_of_the_recipe_is_refused_by_their_names(tmp_path):
    folder = tmp_path / "qwen35-text-reranker"
    shutil.copytree(GOLDENS / "qwen35-text", folder)
    with pytest.raises(CheckpointError, match=r"has no token yes, no, <think>, </think>"):
        engine.load(folder)


def test_a_vision_checkpoint_that_reranks_scores_texts_and_refuses_pictures(tmp_path):
    folder = tmp_path / "qwen35-wrapper-reranker"
    shutil.copytree(GOLDENS / "qwen35-wrapper", folder)
    # Its tokenizer lacks the answers and thoughts: spell them with entries that the tiny vocabulary does not use.
    stored = json.loads((folder / "tokenizer.json").read_text())
    vocabulary, unused = stored["model"]["vocab"], iter(range(400, 404))
    by_id = {at: token for token, at in vocabulary.items()}
    for word in ("yes", "no", "<think>", "</think>"):
        at = next(unused)
        gone = by_id[at]
        del vocabulary[gone]
        stored["model"]["merges"] = [
            merge for merge in stored["model"]["merges"] if gone not in (*merge, "".join(merge))
        ]
        vocabulary[word] = at
        stored["added_tokens"].append(
            {
                "id": at,
                "content": word,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": False,
            }
        )
    (folder / "tokenizer.json").write_text(json.dumps(stored))
    loaded = engine.load(folder)
    together = in_order(loaded.rerank("a", ["b", "words of it " * 5]))
    alone = [loaded.rerank("a", [text])[0].score for text in ("b", "words of it " * 5)]
    assert np.abs(together - alone).max() <= 1e-5
    with pytest.raises(InputError, match="document 0"):
        loaded.rerank("a", [{"text": "b"}])
