"""Static embeddings against sentence-transformers and model2vec, recorded by tests/goldens/golden_static.py."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from archport import engine
from archport.contract import ArchSpec, CheckpointError, ContextLengthExceeded, SpecError

STATIC = Path(__file__).parents[3] / "tests" / "goldens" / "static"
TEXTS: list[str] = json.loads((STATIC / "texts.json").read_text(encoding="utf-8"))
LAYOUTS = ("pipeline", "shared", "own")


def golden(name: str) -> dict[str, np.ndarray]:
    return dict(np.load(STATIC / name / "golden.npz"))


@pytest.mark.parametrize("name", LAYOUTS)
def test_vectors_are_those_of_the_library_that_reads_the_layout(name: str):
    vectors = engine.load(STATIC / name).embed(TEXTS, overflow="truncate")
    np.testing.assert_allclose(vectors, golden(name)["plain"], rtol=0, atol=1e-6)


def test_a_table_in_a_folder_of_its_own_is_the_same(tmp_path: Path):
    moved = tmp_path / "moved"
    shutil.copytree(STATIC / "pipeline", moved)
    (moved / "0_StaticEmbedding").mkdir()
    for name in ("model.safetensors", "tokenizer.json"):
        (moved / name).rename(moved / "0_StaticEmbedding" / name)
    modules = json.loads((moved / "modules.json").read_text())
    modules[0]["path"] = "0_StaticEmbedding"
    (moved / "modules.json").write_text(json.dumps(modules))
    model = engine.load(moved)
    np.testing.assert_allclose(model.embed(TEXTS), golden("pipeline")["plain"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(model.encode_query(TEXTS), golden("pipeline")["query"], rtol=0, atol=1e-6)


def test_a_text_without_tokens_has_a_vector_and_its_neighbours_keep_theirs():
    model = engine.load(STATIC / "own")
    vectors = model.embed(["", "a", ""])
    assert not vectors[[0, 2]].any()
    np.testing.assert_allclose(vectors[1:2], model.embed("a"), rtol=0, atol=1e-6)


def test_unknown_tokens_count_for_sentence_transformers_and_not_for_model2vec():
    text = "a 日本"
    for name, counts in (("pipeline", True), ("own", False)):
        model = engine.load(STATIC / name)
        assert bool(model.count_tokens(text)[0] > model.count_tokens("a")[0]) is counts


def test_the_limit_is_what_the_tokenizer_keeps():
    model = engine.load(STATIC / "shared")
    assert model.max_tokens == 40
    with pytest.raises(ContextLengthExceeded, match="text 0 has"):
        model.embed(["cat " * 50])
    assert engine.load(STATIC / "pipeline").embed(["cat " * 5000]).shape == (1, 12)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_tables_in_fewer_bits_are_read(tmp_path: Path, dtype: str):
    small = tmp_path / dtype
    shutil.copytree(STATIC / "own", small)
    weights = mx.load(str(small / "model.safetensors"))
    assert isinstance(weights, dict)
    table = weights["embeddings"]
    scaled = mx.round(table * 25) if dtype == "int8" else table
    mx.save_safetensors(str(small / "model.safetensors"), {"embeddings": scaled.astype(getattr(mx, dtype))})
    expected = golden("own")["plain"] * (25 if dtype == "int8" else 1)
    np.testing.assert_allclose(engine.load(small).embed(TEXTS), expected, atol=0.6 if dtype == "int8" else 2e-3)


def test_the_plan_prices_the_rows_and_holds(monkeypatch, caplog):
    monkeypatch.setenv("ARCHPORT_VERIFY_MEMORY", "1")
    model = engine.load(STATIC / "pipeline")
    model.embed([TEXTS[-1] * 40] * 64)
    readings = [record.reading for record in caplog.records if hasattr(record, "reading")]  # pyright: ignore
    assert readings
    assert all(reading.holds for reading in readings)
    one, many = (model.plan([1000] * rows).peak for rows in (1, 2))
    assert one < many
    assert model.plan([5]).explain()


def test_only_a_table_may_have_no_layers():
    numbers = {"vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, "max_positions": 4, "dtype": "float32"}
    assert ArchSpec(arch="a", tasks=("embed",), layers=(), **numbers).semantics == "bidirectional"
    with pytest.raises(SpecError, match="layers is empty"):
        ArchSpec(arch="a", tasks=("embed", "rerank"), layers=(), **numbers)


def test_weights_that_hold_no_table_are_named(tmp_path: Path):
    broken = tmp_path / "broken"
    shutil.copytree(STATIC / "pipeline", broken)
    mx.save_safetensors(str(broken / "model.safetensors"), {"other": mx.zeros((2, 2))})
    with pytest.raises(CheckpointError, match=r"hold other; expected a matrix embedding\.weight"):
        engine.load(broken)
