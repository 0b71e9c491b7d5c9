"""jina-embeddings-v3 as its repository has it: the adapters of its tasks, against matrices that were added up by hand.

What a task adds is the published code's `lora_forward`: a matrix plus lora_B[task] lora_A[task] alpha / rank, a table
plus lora_A[task] lora_B[task] alpha / rank; its `encode` puts the task's instruction in front of the text.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import mlx.nn as nn
import numpy as np
import pytest
from typer.testing import CliRunner

from archport import engine
from archport.cli.commands import app
from archport.cli.described import described, planner_of
from archport.cli.plan import device_of
from archport.contract import CheckpointError, InputError
from archport.running.steps import parameter_bytes

D, INNER, WORDS, RANK, ALPHA = 64, 96, 199, 4, 2
TASKS = ["retrieval.query", "retrieval.passage", "separation"]
# Of its config.json, with small sizes.
HUB = {
    "architectures": ["XLMRobertaModel"],
    "attention_probs_dropout_prob": 0.1,
    "auto_map": {"AutoModel": "jinaai/xlm-roberta-flash-implementation--modeling_lora.XLMRobertaLoRA"},
    "hidden_act": "gelu",
    "hidden_size": D,
    "initializer_range": 0.02,
    "intermediate_size": INNER,
    "layer_norm_eps": 1e-05,
    "load_trained_adapters": True,
    "lora_adaptations": TASKS,
    "lora_alpha": ALPHA,
    "lora_dropout_p": 0.0,
    "lora_main_params_trainable": False,
    "lora_rank": RANK,
    "matryoshka_dimensions": [32, 64],
    "max_position_embeddings": 320,
    "model_type": "xlm-roberta",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "output_past": True,
    "pad_token_id": 1,
    "position_embedding_type": "rotary",
    "rotary_emb_base": 20000.0,
    "task_instructions": {"retrieval.query": "t007 t008 ", "retrieval.passage": "t009 ", "separation": ""},
    "torch_dtype": "float32",
    "truncate_dim": None,
    "type_vocab_size": 1,
    "use_cache": True,
    "use_flash_attn": True,
    "use_reentrant": False,
    "vocab_size": WORDS,
}
TEXTS = ["t012 t034 t056 t078", "t101", "t011 t022 t033 t044 t055 t066 t077 t088 t099 t110"]


def tensors() -> dict[str, np.ndarray]:
    """The repository's names and layout, random."""
    dice = np.random.default_rng(3)

    def draw(*shape: int) -> np.ndarray:
        return (dice.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    found: dict[str, np.ndarray] = {}

    def matrix(name: str, out: int, inner: int, *, table: bool = False) -> None:
        base = f"roberta.{name}.parametrizations.weight"
        found[f"{base}.original"] = draw(out, inner)
        count = len(TASKS)
        found[f"{base}.0.lora_A"] = draw(count, out, RANK) if table else draw(count, RANK, inner)
        found[f"{base}.0.lora_B"] = draw(count, RANK, inner) if table else draw(count, out, RANK)
        if not table:
            found[f"roberta.{name}.bias"] = draw(out)

    def norm(name: str) -> None:
        found[f"roberta.{name}.weight"], found[f"roberta.{name}.bias"] = 1 + draw(D), draw(D)

    matrix("embeddings.word_embeddings", WORDS, D, table=True)
    matrix("embeddings.token_type_embeddings", 1, D, table=True)
    norm("emb_ln")
    for layer in range(2):
        at = f"encoder.layers.{layer}"
        matrix(f"{at}.mixer.Wqkv", 3 * D, D)
        matrix(f"{at}.mixer.out_proj", D, D)
        matrix(f"{at}.mlp.fc1", INNER, D)
        matrix(f"{at}.mlp.fc2", D, INNER)
        norm(f"{at}.norm1")
        norm(f"{at}.norm2")
    matrix("pooler.dense", D, D)
    return found


def added_up(task: int | None) -> dict[str, np.ndarray]:
    """The tensors of one task, or of none, without adapters."""
    found, stored = {}, tensors()
    for name, value in stored.items():
        base, original, _ = name.partition(".original")
        if ".lora_" in name:
            continue
        if original and task is not None:
            a, b = stored[f"{base}.0.lora_A"][task], stored[f"{base}.0.lora_B"][task]
            value = value + (b @ a if a.shape[0] == RANK else a @ b) * np.float32(ALPHA / RANK)
        found[name.replace(".parametrizations.weight.original", ".weight")] = value
    return found


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, written: Callable[..., Path]) -> Path:
    return written(tmp_path_factory.mktemp("jina") / "published", HUB, tensors())


@pytest.fixture(scope="module")
def model(published: Path) -> engine.Model:
    return engine.load(published, dtype="float32")


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory, written: Callable[..., Path]) -> Callable[..., engine.Model]:
    """A model of one task's matrices, in transformers' own config."""
    config = {
        **{key: HUB[key] for key in ("hidden_act", "hidden_size", "intermediate_size", "layer_norm_eps", "vocab_size")},
        **{key: HUB[key] for key in ("max_position_embeddings", "num_attention_heads", "num_hidden_layers")},
        "architectures": ["JinaEmbeddingsV3Model"],
        "model_type": "jina_embeddings_v3",
        "type_vocab_size": 1,
        "pad_token_id": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 20000.0},
        "torch_dtype": "float32",
    }

    def load(task: int | None) -> engine.Model:
        folder = tmp_path_factory.mktemp("jina") / "one"
        return engine.load(written(folder, config, added_up(task)), dtype="float32")

    return load


def far(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.abs(got - want).max() / np.abs(want).max())


def test_its_tasks_are_those_of_its_config(model: engine.Model):
    assert model.tasks == tuple(TASKS)


@pytest.mark.parametrize("task", TASKS)
def test_a_task_runs_with_its_adapter_and_its_instruction(
    model: engine.Model, by_hand: Callable[..., engine.Model], task: str
):
    instruction = HUB["task_instructions"][task]
    wanted = by_hand(TASKS.index(task)).embed([instruction + text for text in TEXTS])
    assert far(model.embed(TEXTS, task=task), wanted) < 1e-5
    assert far(model.encode_query(TEXTS, task=task), wanted) < 1e-5


def test_without_a_task_no_adapter_runs(model: engine.Model, by_hand: Callable[..., engine.Model]):
    plain = by_hand(None).embed(TEXTS)
    assert far(model.embed(TEXTS), plain) < 1e-5
    assert far(model.embed(TEXTS, task="separation"), plain) > 1e-2


def test_a_prompt_takes_the_place_of_an_instruction(model: engine.Model, by_hand: Callable[..., engine.Model]):
    wanted = by_hand(0).embed(TEXTS, prompt="t055 ")
    assert far(model.embed(TEXTS, task="retrieval.query", prompt="t055 "), wanted) < 1e-5


def test_the_command_line_takes_a_task(model: engine.Model, published: Path):
    asked = ("embed", *TEXTS, "-m", str(published), "--task", "retrieval.query", "--dtype", "float32")
    done = CliRunner().invoke(app, [*asked, "--format", "json"])
    assert done.exit_code == 0, done.output
    assert far(np.array(json.loads(done.stdout)), model.embed(TEXTS, task=TASKS[0])) < 1e-5


def test_another_task_is_refused(model: engine.Model):
    with pytest.raises(
        InputError, match=r"task='classification'.*expected one of retrieval\.query, retrieval\.passage"
    ):
        model.embed(TEXTS, task="classification")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora_adaptations": ["one"]}, r"adapters of roberta\.embeddings.*for each of 1 tasks"),
        ({"lora_adaptations": None}, r"lora_adaptations=None; expected the names"),
        ({"lora_rank": 8}, r"expected a slice of rank 8"),
        ({"lora_rank": 0}, r"lora_rank=0; expected a number above 0"),
        ({"task_instructions": {"separation": 3}}, r"task_instructions="),
    ],
)
def test_stacks_that_do_not_fit_the_config_are_refused(
    tmp_path: Path, written: Callable[..., Path], change: dict[str, Any], message: str
):
    with pytest.raises(CheckpointError, match=message):
        engine.load(written(tmp_path / "model", {**HUB, **change}, tensors()))


def test_plans_hold_the_adapters_of_its_tasks_as_they_are_loaded(model: engine.Model, published: Path):
    runtime = model._runtime
    trunks = [cast(nn.Module, task.encoder.trunk) for task in runtime.tasks.values()]
    modules = [module for trunk in trunks for module in dict(trunk.named_modules()).values()]
    # The factor that three matrices cut from one share is in each of them.
    factors = sum(module[name].nbytes for module in modules for name in ("lora_down", "lora_up") if name in module)
    own = parameter_bytes(runtime.encoder.trunk)
    assert model.memory().weights == own + factors
    device = device_of(None)
    planner = planner_of(described(str(published), device), device, budget=None)
    assert planner.weights.total == own + factors
    assert planner.spec.layers == runtime.encoder.plan.spec.layers
