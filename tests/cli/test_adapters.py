"""`--adapter` as a user meets it: the commands' answers are the library's with the same adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from archport import engine
from archport.cli.commands import app

GOLDENS = Path(__file__).parents[1] / "goldens"
BASE, ADAPTER = str(GOLDENS / "bert-plain"), str(GOLDENS / "adapters" / "bert-patterns")
QWEN = ("-m", str(GOLDENS / "qwen3-4bit"), "--adapter", str(GOLDENS / "adapters" / "qwen3-4bit"))


def run(*arguments: str) -> Any:
    done = CliRunner().invoke(app, arguments)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def test_embed_has_the_adapter():
    done = run("embed", "a cat", "-m", BASE, "--adapter", ADAPTER, "--dtype", "float32", "--format", "jsonl")
    wanted = engine.load(BASE, adapter=ADAPTER, dtype="float32").embed("a cat")
    np.testing.assert_allclose(json.loads(done.stdout)["embedding"], wanted[0], atol=1e-6)


def test_plan_prices_what_the_adapter_makes_dense():
    plans = [json.loads(run("plan", *given, "--tokens", "8", "--dtype", "checkpoint", "--json").stdout)
             for given in (QWEN, QWEN[:2])]  # fmt: skip
    held = engine.load(QWEN[1], adapter=QWEN[3], dtype="checkpoint").memory().weights
    assert plans[0]["bytes"]["weights"] == held
    assert plans[0]["bytes"]["weights"] > plans[1]["bytes"]["weights"]


# Of both kinds of trunk, and a base that stays packed.
APART = [("bert-plain", "bert-patterns"), ("qwen3-causal-sharded", "qwen3"), ("qwen3-4bit", "qwen3-4bit")]


@pytest.mark.parametrize(("base", "name"), APART)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "checkpoint"])
def test_the_weights_of_a_plan_are_those_that_are_loaded_with_every_adapter(base: str, name: str, dtype: str):
    place = str(GOLDENS / "adapters" / name)
    given = ("plan", "-m", str(GOLDENS / base), "--tokens", "8", "--dtype", dtype, "--json")
    some = ("--adapters", f"one={place}", "--adapters", f"two={place}")
    planned, plain = (json.loads(run(*given, *more).stdout)["bytes"]["weights"] for more in (some, ()))
    model, alone = (
        engine.load(GOLDENS / base, dtype=dtype, adapters=adapters) for adapters in ({"one": place, "two": place}, None)
    )
    added = model.memory().weights - alone.memory().weights
    assert planned - plain == added == sum(_factors(task.encoder.trunk) for task in model._runtime.tasks.values()) > 0
    assert plain == alone.memory().weights


def _factors(trunk: Any) -> int:
    """Bytes of the terms in a task's trunk."""
    modules = dict(trunk.named_modules()).values()
    return sum(module[name].nbytes for module in modules for name in ("lora_down", "lora_up") if name in module)


def _added(dtype: str) -> int:
    model, alone = (engine.load(BASE, dtype=dtype, adapters=adapters) for adapters in ({"one": ADAPTER}, None))
    return model.memory().weights - alone.memory().weights


def test_what_fits_has_every_adapter_in_every_packing():
    given = ("plan", "-m", BASE, "--device", "m1-8gb", "--points", "-")
    plain, more = (json.loads(run(*given, *some).stdout) for some in ((), ("--adapters", f"one={ADAPTER}")))
    at = str(plain["components"].index("weights"))
    for without, form in zip(plain["forms"], more["forms"], strict=True):
        assert form["points"][0][1][at] - without["points"][0][1][at] == _added("float32")


def test_a_plan_of_adapters_has_the_temporaries_of_the_loaded_model():
    model = engine.load(BASE, adapters={"one": ADAPTER})
    told = json.loads(run("plan", "-m", BASE, "--adapters", f"one={ADAPTER}", "--tokens", "300", "--json").stdout)
    assert told["bytes"] == model.plan([300]).to_dict()["bytes"]


def test_info_names_the_adapters_that_are_kept_apart():
    (line,) = json.loads(run("info", "-m", BASE, "--adapters", f"one={ADAPTER}", "--json").stdout)["adapters"]
    assert line.startswith(f"one: {ADAPTER}, ")
    assert f" matrices, {_added('float32'):,} bytes (" in line


def test_info_names_the_adapter():
    facts = json.loads(run("info", *QWEN, "--json").stdout)
    assert facts["adapter"] == f"{QWEN[3]}, 9 matrices, 0 replaced"


def test_convert_writes_the_sums(tmp_path: Path):
    out = tmp_path / "out"
    run("convert", "-m", BASE, "--adapter", ADAPTER, "-o", str(out), "--no-measure")
    assert not (out / "adapter_config.json").exists()
    texts = ["A cat sat on the mat.", "to hack"]
    wanted = engine.load(BASE, adapter=ADAPTER, dtype="float32").embed(texts)
    np.testing.assert_allclose(engine.load(out, dtype="float32").embed(texts), wanted, atol=1e-5)
