"""archport in MTEB: its evaluation of small tasks, next to the same with sentence-transformers; prompts per task."""

import json
import subprocess
import sys
from pathlib import Path

import mteb
import pytest
import sentence_transformers
from mteb.models.models_protocols import CrossEncoderProtocol, EncoderProtocol

import archport  # noqa: F401
from archport import engine
from archport.evaluation.results import evaluated
from archport.integrations.mteb import ArchportCrossEncoder, ArchportEncoder, bundled_tasks

GOLDENS = Path(__file__).parents[1] / "goldens"
PROMPTS = {
    "query": "query: ",
    "document": "passage: ",
    "STS": "alike: ",
    "PairClassification": "same: ",
    "Retrieval-query": "find: ",
}


@pytest.fixture(scope="module")
def folder():
    return str(engine.describe("all-MiniLM-L6-v2").checkpoint.folder)


def scores(model, tasks):
    results = mteb.evaluate(model, tasks, cache=None, co2_tracker=False, show_progress_bar=False)
    return {
        (task.task_name, name): value
        for task in results.task_results
        for name, value in task.scores["test"][0].items()
        if isinstance(value, float)
    }


def apart(mine, other):
    assert mine.keys() == other.keys()
    assert len(mine) > 20
    return {name: (mine[name], other[name]) for name in mine if abs(mine[name] - other[name]) > 1e-4}


@pytest.mark.parametrize("prompts", [None, PROMPTS], ids=["plain", "prompts"])
def test_scores_equal_those_of_sentence_transformers(folder, prompts):
    tasks = bundled_tasks()
    theirs = sentence_transformers.SentenceTransformer(folder, device="cpu", prompts=prompts)
    mine = ArchportEncoder(folder, prompts=prompts)
    assert isinstance(mine, EncoderProtocol)
    result = scores(mine, tasks)
    assert apart(result, scores(theirs, tasks)) == {}
    assert result["ArchportRetrieval", "ndcg_at_10"] > 0.8


def test_archports_own_measures_equal_mtebs(folder):
    theirs = scores(ArchportEncoder(folder), bundled_tasks())
    model = engine.load(folder)
    told = {"retrieval": ("ArchportRetrieval", "ndcg_at_10"), "sts": ("ArchportSTS", "cosine_spearman"),
            "pairs": ("ArchportPairs", "cosine_ap")}  # fmt: skip
    for kind, name in told.items():
        assert evaluated(model, kind).score == pytest.approx(theirs[name], abs=1e-4)


def test_the_command_runs_a_task_of_mteb(folder):
    command = [sys.executable, "-c", "from archport.cli import main; main()", "eval", "-m", folder, "--json"]
    done = subprocess.run([*command, "-t", "mteb:ArchportSTS", "-t", "sts"], capture_output=True, text=True)
    own, other = json.loads(done.stdout.splitlines()[-1])["results"]
    assert other["score"] == pytest.approx(own["score"], abs=1e-4)
    done = subprocess.run([*command, "-t", "mteb:NoSuchTask"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "none of MTEB's" in done.stderr


def test_a_task_of_ones_own_has_a_prompt_and_its_name_is_told(folder):
    with pytest.warns(UserWarning, match="ArchportPairs: none of MTEB's"):
        model = ArchportEncoder(folder, prompts={"ArchportPairs": "xyzzy, plugh: "})
    (pairs,) = bundled_tasks()[3:]
    assert scores(model, [pairs]) != scores(ArchportEncoder(folder), [pairs])


def test_an_instruction_goes_in_front_of_all_but_documents(folder, monkeypatch):
    model, told = ArchportEncoder(folder, instruction_template="Instruct: {instruction}\nQuery:"), []
    embed = model.model._embed
    monkeypatch.setattr(
        model.model,
        "_embed",
        lambda texts, task, **options: told.append(options["prompt"]) or embed(texts, task, **options),
    )
    scores(model, bundled_tasks()[:1])
    assert "" in told
    assert any(prompt.startswith("Instruct: ") and prompt.endswith("\nQuery:") for prompt in told)


def test_scores_of_a_cross_encoder_equal_those_of_sentence_transformers():
    name, tasks = str(GOLDENS / "xlm-roberta-rerank"), bundled_tasks()[1:2]
    mine = ArchportCrossEncoder(name)
    assert isinstance(mine, CrossEncoderProtocol)
    assert apart(scores(mine, tasks), scores(sentence_transformers.CrossEncoder(name, device="cpu"), tasks)) == {}


def test_a_cross_encoder_has_a_prompt_per_task():
    name, tasks = str(GOLDENS / "qwen3-reranker"), bundled_tasks()[1:2]
    plain = scores(ArchportCrossEncoder(name), tasks)
    told = scores(ArchportCrossEncoder(name, prompts={"ArchportReranking": "Judge the colour"}), tasks)
    assert plain != told
