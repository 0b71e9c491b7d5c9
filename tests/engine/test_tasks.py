"""Adapters that are kept apart from one base: each call runs its own, the base stays as it is, and plans hold all."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from archport import engine
from archport.contract import CheckpointError, InputError
from archport.tasks import chosen

GOLDENS = Path(__file__).parents[1] / "goldens"
ADAPTERS = GOLDENS / "adapters"
BERT, QWEN = str(GOLDENS / "bert-plain"), str(GOLDENS / "qwen3-causal-sharded")
TEXTS = ["A cat sat on the mat.", "to hack", "The server blew past the 5K reserve buffer, and nobody noticed."]


@cache
def arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(ADAPTERS / name / "golden.npz") as stored:
        return dict(stored)


@cache
def kept(base: str, *names: str, **options: Any) -> engine.Model:
    """A base with adapters of the goldens under their own names."""
    adapters = {name: ADAPTERS / name for name in names}
    return engine.load(base, adapters=adapters, **{"dtype": "float32", **options})


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of Qwen3 that adds twice as much as the golden's."""
    folder = tmp_path_factory.mktemp("adapters") / "second"
    folder.mkdir()
    config = json.loads((ADAPTERS / "qwen3" / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 2 * config["lora_alpha"]}))
    weights = (ADAPTERS / "qwen3" / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(weights)
    return folder


def gap(got: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


def prompts() -> list[list[int]]:
    return [arrays("qwen3")[f"ids_{index}"].tolist() for index in range(4)]


def tokens(model: engine.Model, **options: Any) -> list[list[int]]:
    return [list(one.tokens) for one in model.generate(prompts()[:2], max_tokens=8, **options)]


def test_hidden_states_of_a_task_are_peft_s():
    model = kept(BERT, "bert-patterns")
    for index in range(3):
        ids, wanted = (arrays("bert-patterns")[f"{name}_{index}"] for name in ("ids", "hidden"))
        rows = chosen(model._runtime, "bert-patterns").encoder.forward(ids[None])
        assert gap(np.array(rows)[0], wanted) < 1e-5


def test_tokens_of_a_task_are_peft_s():
    wanted = [arrays("qwen3")[f"greedy_{index}"].tolist()[:8] for index in range(2)]
    assert tokens(kept(QWEN, "qwen3"), task="qwen3") == wanted


def test_tasks_and_the_base_do_not_mix(second: Path):
    model = engine.load(QWEN, adapters={"one": ADAPTERS / "qwen3", "two": second}, dtype="float32")
    apart = {task: tokens(engine.load(QWEN, adapter=place, dtype="float32"))
             for task, place in (("one", ADAPTERS / "qwen3"), ("two", second), (None, None))}  # fmt: skip
    assert apart["one"] != apart["two"] != apart[None]
    # Each prompt again, so that what is kept of it could be another task's.
    for task in ("one", "two", None, "one", None, "two"):
        assert tokens(model, task=task) == apart[task]


def test_a_base_without_a_task_is_the_base():
    plain = engine.load(BERT, dtype="float32")
    assert gap(kept(BERT, "bert-patterns").embed(TEXTS), plain.embed(TEXTS)) < 1e-6


@pytest.mark.parametrize("call", ["embed", "encode_query", "encode_document"])
def test_every_way_to_ask_for_vectors_takes_a_task(call: str):
    model = kept(BERT, "bert-patterns")
    wanted = engine.load(BERT, adapter=ADAPTERS / "bert-patterns", dtype="float32").embed(TEXTS)
    assert gap(getattr(model, call)(TEXTS, task="bert-patterns"), wanted) < 1e-5


def test_a_window_of_a_stream_takes_a_task():
    model = kept(BERT, "bert-patterns")
    found = np.concatenate([rows for _, rows in model.stream(TEXTS, window=2, task="bert-patterns")])
    assert gap(found, model.embed(TEXTS, task="bert-patterns")) < 1e-6


@pytest.mark.only_on("cpu", reason="matrices of one group a row are unpacked on CUDA, which this tiny base is full of")
def test_a_quantised_base_stays_packed():
    model = kept(str(GOLDENS / "qwen3-4bit"), "qwen3-4bit", dtype="checkpoint")
    merged = engine.load(GOLDENS / "qwen3-4bit", adapter=ADAPTERS / "qwen3-4bit", dtype="checkpoint")
    assert model.memory().weights < 0.7 * merged.memory().weights
    ids = arrays("qwen3-4bit")["ids_2"].tolist()
    both = [one.generate(ids, max_tokens=1, logprobs=5, **options).logprobs[0]
            for one, options in ((model, {"task": "qwen3-4bit"}), (merged, {}))]  # fmt: skip
    # In bfloat16.
    assert abs(both[0].logprob - both[1].logprob) < 0.1


@pytest.mark.parametrize("rows", [[300] * 3, [40] * 32, [511]])
@pytest.mark.parametrize(("base", "name"), [(BERT, "bert-patterns"), (QWEN, "qwen3")])
def test_the_plan_holds_what_a_task_adds(base: str, name: str, rows: list[int]):
    model = kept(base, name)
    texts = ["a b c d e f g " * (count // 8) for count in rows]

    def measured() -> int:
        mx.clear_cache()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        model.embed(texts, overflow="truncate", task=name)
        return mx.get_peak_memory() - before

    measured()
    found, plan = measured(), model.last_plan
    assert plan is not None
    assert found <= plan.peak - model.memory().weights


def test_the_weights_of_a_plan_hold_every_task():
    one, two = kept(BERT, "bert-patterns"), engine.load(
        BERT, adapters={"a": ADAPTERS / "bert-patterns", "b": ADAPTERS / "bert-patterns"}, dtype="float32"
    )  # fmt: skip
    plain = engine.load(BERT, dtype="float32").memory().weights
    added = one.memory().weights - plain
    factors = sum(array.nbytes for array in mx.load(str(ADAPTERS / "bert-patterns/adapter_model.safetensors")).values())
    assert added == factors
    assert two.memory().weights == plain + 2 * added


def test_a_copy_in_another_process_has_the_tasks():
    model = kept(BERT, "bert-patterns")
    other = pickle.loads(pickle.dumps(model))
    assert other.tasks == ("bert-patterns",)
    np.testing.assert_array_equal(other.embed(TEXTS, task="bert-patterns"), model.embed(TEXTS, task="bert-patterns"))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: kept(BERT, "bert-patterns"), r"task='no' of .*bert-plain; expected one of bert-patterns"),
        (lambda: engine.load(BERT), r"task='no' of .*bert-plain; it has none"),
    ],
)
def test_a_task_that_there_is_not_is_refused(model: Callable[[], engine.Model], message: str):
    with pytest.raises(InputError, match=message):
        model().embed("a", task="no")


@pytest.mark.parametrize(
    ("base", "adapters", "error", "message"),
    [
        ("bert-prefixed", {"a": ADAPTERS / "bert-labels"}, CheckpointError, r"changes classifier\.bias, classifier"),
        ("bert-plain", {"a": ADAPTERS / "bert-lora-bias"}, CheckpointError, r"changes encoder\.layer\.0.*\.bias"),
        ("bert-plain", {"a": ADAPTERS / "qwen3"}, CheckpointError, "does not fit"),
        ("bert-plain", {"": ADAPTERS / "bert-patterns"}, InputError, "expected names"),
        ("bert-plain", {"a": GOLDENS / "bert-plain"}, CheckpointError, "is not an adapter"),
    ],
)
def test_what_can_t_be_kept_apart_is_refused(base: str, adapters: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        engine.load(GOLDENS / base, adapters=adapters)
