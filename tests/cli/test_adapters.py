"""`--adapter` as a user meets it: the commands' answers are the library's with the same adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from typer.testing import CliRunner

from archport import engine
from archport.checkpoint import weight_bytes
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
    about = engine.describe(QWEN[1], adapter=QWEN[3])
    assert plans[0]["bytes"]["weights"] == weight_bytes(about.checkpoint, dtype="checkpoint", dequantize=False)
    assert plans[0]["bytes"]["weights"] > plans[1]["bytes"]["weights"]


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
