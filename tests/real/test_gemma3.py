"""Gemma 3 270M with its real weights, by the outside plugin archport-decoders, against transformers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from archport import engine
from archport.testing.finding import find
from real import packages

EXAMPLE = Path(__file__).parents[2] / "examples" / "third_party" / "archport-decoders"
NEW = 24
PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n    ",
)
# Of the first, by the notes on what packages carry.
PARIS = (
    " the capital of the country of France. It is the largest city in France and the second largest city in Europe. It"
)
REFERENCE = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, prompts, new, target = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(folder)
found = []
for prompt in json.loads(prompts):
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    made = model.generate(ids, max_new_tokens=int(new), do_sample=False, eos_token_id=None)
    found.append({"prompt": ids[0].tolist(), "tokens": made[0, ids.shape[1]:].tolist()})
json.dump(found, open(target, "w"))
"""

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def folder() -> Path:
    return packages.gemma3()


@pytest.fixture(scope="module")
def model(folder: Path) -> engine.Model:
    sys.path.insert(0, str(EXAMPLE))
    import archport_decoders

    return engine.load(folder, dtype="float32", plugins=(find(archport_decoders),))


@pytest.fixture(scope="module")
def expected(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[int]]]:
    target = tmp_path_factory.mktemp("gemma3") / "tokens.json"
    packages.refer(REFERENCE, folder, json.dumps(PROMPTS), NEW, target)
    return json.loads(target.read_text())


def test_prompts_have_the_ids_of_transformers(model: engine.Model, expected: list[dict[str, list[int]]]):
    answers = model.generate(list(PROMPTS), max_tokens=1)
    assert [answer.usage.prompt_tokens for answer in answers] == [len(each["prompt"]) for each in expected]
    tokenizer = model.tokenizer
    assert [tokenizer.encode(prompt).ids for prompt in PROMPTS] == [each["prompt"] for each in expected]


@pytest.mark.parametrize("together", [False, True])
def test_greedy_tokens_are_those_of_transformers(
    model: engine.Model, expected: list[dict[str, list[int]]], together: bool
):
    prompts = list(PROMPTS)
    answers = (
        model.generate(prompts, max_tokens=NEW)
        if together
        else [model.generate(prompt, max_tokens=NEW) for prompt in prompts]
    )
    assert [list(answer.tokens) for answer in answers] == [each["tokens"] for each in expected]
    assert answers[0].text == PARIS
