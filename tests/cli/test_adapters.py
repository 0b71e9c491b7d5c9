"""`--adapter` as a user meets it: the commands' answers are the library's with the same adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from archport import engine
from archport.checkpoint import weight_bytes
from archport.cli.commands import app
from archport.contract import CheckpointError

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


def test_convert_does_not_lose_an_adapter(tmp_path: Path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / file).write_bytes((Path(ADAPTER) / file).read_bytes())
    config = json.loads((folder / "adapter_config.json").read_text()) | {"base_model_name_or_path": BASE}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="has an adapter"):
        run("convert", "-m", str(folder), "-o", str(tmp_path / "out"), "--bits", "8")
