"""Classifiers and rerankers of Qwen2 and Qwen3 blocks: against transformers and published recipes."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from archport import engine
from archport.contract import ClaimError, ContextLengthExceeded, PairText, SpecError
from archport.contract.plugins import claim, discover

GOLDENS = Path(__file__).parents[3] / "tests" / "goldens"
LABELLED = ("qwen2-labels", "qwen3-labels")
MXBAI = GOLDENS / "mxbai-rerank-v2"


def relative(got, want):
    return float(np.abs(np.array(got) - want).max() / np.abs(want).max())


def raw(answers):
    return np.array([list(each.scores.values()) for each in answers])


@pytest.fixture(scope="module")
def models():
    return {name: engine.load(GOLDENS / name, dtype="float32") for name in (*LABELLED, MXBAI.name)}


@pytest.mark.parametrize("what", ["texts", "pairs"])
@pytest.mark.parametrize("name", LABELLED)
def test_the_last_token_that_is_not_padding_is_scored_as_in_transformers(models, name, what):
    stored, golden = json.loads((GOLDENS / name / "texts.json").read_text()), np.load(GOLDENS / name / "golden.npz")
    items = [tuple(item) if what == "pairs" else item for item in stored[what]]
    assert relative(raw(models[name].classify(items, raw_scores=True)), golden[what]) <= 1e-5
    alone = [raw(models[name].classify([item], raw_scores=True))[0] for item in items]
    assert relative(alone, golden[what]) <= 1e-5


def test_one_label_ranks_documents_by_its_score(models):
    stored, golden = (GOLDENS / LABELLED[0] / "texts.json").read_text(), np.load(GOLDENS / LABELLED[0] / "golden.npz")
    for index, (query, document) in enumerate(json.loads(stored)["pairs"]):
        (answer,) = models[LABELLED[0]].rerank(query, [document])
        assert abs(answer.score - 1 / (1 + np.exp(-golden["pairs"][index, 0]))) <= 1e-5


@pytest.mark.parametrize("name", LABELLED)
def test_a_trunk_saved_bare_and_a_config_without_architectures_score_the_same(models, name, tmp_path):
    shutil.copytree(GOLDENS / name, tmp_path / "bare")
    config = json.loads((tmp_path / "bare" / "config.json").read_text())
    del config["architectures"]
    (tmp_path / "bare" / "config.json").write_text(json.dumps(config))
    stored = mx.load(str(tmp_path / "bare" / "model.safetensors"))
    bare = {each.removeprefix("model."): value for each, value in stored.items()}
    mx.save_safetensors(str(tmp_path / "bare" / "model.safetensors"), bare, metadata={"format": "pt"})
    texts = ["a kluge", "one more"]
    again = engine.load(tmp_path / "bare", dtype="float32").classify(texts, raw_scores=True)
    assert (raw(again) == raw(models[name].classify(texts, raw_scores=True))).all()


def test_mxbai_rerank_joins_its_pieces_and_scores_as_published(models):
    model, golden = models[MXBAI.name], np.load(MXBAI / "golden.npz")
    stored = json.loads((MXBAI / "pairs.json").read_text())
    for call, (query, instruction) in enumerate(stored["calls"]):
        rows = model._runtime.scorer().tokeniser(query, stored["documents"], instruction=instruction)
        for index, row in enumerate(rows):
            assert row.tolist() == golden[f"ids_{call}_{index}"].tolist()
        answers = model.rerank(query, stored["documents"], instruction=instruction, raw_scores=True)
        scores = [each.score for each in sorted(answers, key=lambda each: each.index)]
        assert relative(scores, golden[f"raw_{call}"]) <= 1e-5


def test_a_document_that_is_a_part_of_its_own_is_cut_and_refused_whole(models):
    model = models[MXBAI.name]
    tokeniser, long = model._runtime.scorer().tokeniser, "word " * 3000
    (whole,) = tokeniser("a query", ["word " * 60])
    (cut,) = tokeniser("a query", [long], max_tokens=len(whole) - 20, overflow="truncate")
    suffix = tokeniser._ends[1]
    assert cut.tolist() == [*whole.tolist()[: len(whole) - 20 - len(suffix)], *suffix]
    with pytest.raises(ContextLengthExceeded, match=r"document 0 makes a pair of at least \d+ tokens"):
        tokeniser("a query", [long], max_tokens=300)
    with pytest.raises(ContextLengthExceeded, match="document 0 makes a pair"):
        tokeniser(long, ["a"], max_tokens=300)


@pytest.mark.parametrize(
    "places",
    [
        {"body": "{query}", "document": "none"},
        {"body": "{query} {document}", "document": "{document}"},
        {"body": "{query} {document}", "instructed": "{instruction} {query}"},
        {"body": "{document}"},
    ],
)
def test_a_pair_text_that_loses_or_repeats_a_place_is_refused(places):
    with pytest.raises(SpecError, match="once"):
        PairText("", suffix="", **places)


def test_a_listwise_reranker_is_refused_by_its_name():
    with pytest.raises(ClaimError, match=r"jina-reranker-v3.*one prompt"):
        claim({"architectures": ["JinaForRanking"], "model_type": "qwen3", "causal": True}, discover())
