"""Ray Data, Dask and Spark: the vectors of `embed`, also where the run was killed and begun again."""

from __future__ import annotations

import archport  # noqa: F401

# isort: split
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from archport.bulk.extras import arrow, parquet
from archport.bulk.ray import EmbedBatch
from archport.contract import InputError

from .conftest import GOLDENS, TEXTS, close

pytestmark = pytest.mark.needs("pyarrow")

BERT = str(GOLDENS / "bert-plain")
JOB = Path(__file__).with_name("engine_job.py")
ROWS = 8000


@pytest.fixture(scope="module")
def embed() -> EmbedBatch:
    return EmbedBatch(BERT)


def vectors_of(column) -> np.ndarray:
    return np.stack([np.asarray(value, np.float32) for value in column.to_pylist()])


def test_a_table_gets_lists_of_a_fixed_size_and_errors(embed, model):
    table = arrow().table({"text": [*TEXTS, None], "other": range(len(TEXTS) + 1)})
    made = embed(table)
    assert made.column_names == ["text", "other", "embedding", "error"]
    assert made.schema.field("embedding").type == arrow().list_(arrow().float32(), 48)
    close(vectors_of(made.column("embedding")[:-1]), model.embed(TEXTS))
    assert made.column("embedding")[-1].as_py() is None
    assert made.column("error").to_pylist() == [None] * len(TEXTS) + ["the text is None; expected a str"]
    assert embed(table.slice(0, 0)).schema == made.schema


def test_batches_and_iterators_of_them_are_answered_in_kind(embed, model):
    batches = arrow().table({"text": TEXTS}).to_batches(max_chunksize=20)
    made = list(embed(iter(batches)))
    assert [batch.num_rows for batch in made] == [20, 20, 10]
    close(np.concatenate([vectors_of(batch.column("embedding")) for batch in made]), model.embed(TEXTS))
    assert embed(batches[0]).column("embedding").type == arrow().list_(arrow().float32(), 48)
    assert made[0].column("embedding").type == arrow().list_(arrow().float32())


def test_it_pickles_without_its_model(embed):
    embed(arrow().table({"text": ["one"]}))
    assert embed._model is not None
    again = pickle.loads(pickle.dumps(embed))
    assert again._model is None
    assert len(pickle.dumps(embed)) < 2000
    assert again(arrow().table({"text": ["one"]})).equals(embed(arrow().table({"text": ["one"]})))


def test_a_block_that_was_stored_is_read_and_a_damaged_one_made_anew(monkeypatch, tmp_path: Path):
    embed, table = EmbedBatch(BERT, store=str(tmp_path)), arrow().table({"text": [*TEXTS, None]})
    made = embed(table)
    (kept,) = tmp_path.iterdir()
    again = EmbedBatch(BERT, store=str(tmp_path))
    assert again(table).equals(made)
    assert again._model is None
    kept.write_bytes(kept.read_bytes()[:1000])
    assert EmbedBatch(BERT, store=str(tmp_path))(table).equals(made)
    # Another setting, or another text, is another block.
    EmbedBatch(BERT, store=str(tmp_path), dimensions=8)(table)
    EmbedBatch(BERT, store=str(tmp_path))(table.slice(1))
    assert len(list(tmp_path.iterdir())) == 3


def test_what_a_block_can_t_have_is_refused(embed):
    with pytest.raises(InputError, match="measured over all rows"):
        EmbedBatch(BERT, precision="int8")
    with pytest.raises(InputError, match="there is no column 'text' among a, b"):
        embed(arrow().table({"a": [1], "b": [2]}))
    with pytest.raises(InputError, match="a block is a dict"):
        embed({"text": ["one"]})
    with pytest.raises(InputError, match="text 1 is None"):
        EmbedBatch(BERT, errors="raise")(arrow().table({"text": ["one", None]}))


@pytest.mark.bulk
def test_a_pandas_block_keeps_its_index_and_gets_columns_of_arrow_s_types(embed, model):
    import pandas

    frame = pandas.DataFrame({"text": [*TEXTS, None]}, index=range(100, 151))
    made = embed(frame)
    assert list(made.index) == list(frame.index)
    assert str(made.dtypes["embedding"]).startswith("fixed_size_list")
    close(np.stack(list(made["embedding"][:-1])), model.embed(TEXTS))


def source(folder: Path) -> tuple[Path, dict[str, str]]:
    """A parquet file, and its rows."""
    texts = {f"d{index}": f"text number {index} " * (1 + index % 9) for index in range(ROWS)}
    table = arrow().table({"id": list(texts), "text": list(texts.values())})
    parquet().write_table(table, folder / "rows.parquet", row_group_size=250)
    return folder / "rows.parquet", texts


def begin(engine: str, *arguments: object) -> subprocess.Popen:
    line = [sys.executable, str(JOB), engine, *map(str, arguments)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def check_rows(out: Path, texts: dict[str, str], model) -> None:
    import pyarrow.dataset

    table = pyarrow.dataset.dataset(sorted(map(str, out.glob("*.parquet")))).to_table()
    found = dict(zip(table.column("id").to_pylist(), table.column("embedding").to_pylist(), strict=True))
    assert table.num_rows == len(texts)
    assert set(found) == set(texts)
    close([found[id] for id in texts], model.embed(list(texts.values())))


@pytest.mark.bulk
@pytest.mark.parametrize(
    "engine",
    ["ray", "dask", pytest.param("spark", marks=pytest.mark.skipif(shutil.which("java") is None, reason="needs Java"))],
)
def test_a_run_that_is_killed_is_begun_again_and_reads_what_it_had(tmp_path: Path, model, engine: str):
    path, texts = source(tmp_path)
    store, out = tmp_path / "store", tmp_path / "out"
    first = begin(engine, path, tmp_path / "lost", BERT, store)
    while first.poll() is None and len(list(store.glob("block-*"))) < 6:
        time.sleep(0.02)
    assert first.poll() is None, first.communicate()[0][-3000:]
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    kept = {each.name: each.stat().st_mtime_ns for each in store.glob("block-*")}
    assert 6 <= len(kept) < ROWS / 250
    started = time.monotonic()
    second = begin(engine, path, out, BERT, store)
    said = second.communicate(timeout=400)[0]
    assert second.returncode == 0, said[-3000:]
    check_rows(out, texts, model)
    assert {name: (store / name).stat().st_mtime_ns for name in kept} == kept
    made = len(list(store.glob("block-*"))) - len(kept)
    print(
        f"{engine}: {ROWS} rows in blocks of 250; killed with {len(kept)} blocks kept; begun again it made {made} in "
        f"{time.monotonic() - started:.0f} s; every row once, vectors within 1e-5 of embed's"
    )
    if engine != "spark":
        # Blocks are the same again, so none was made twice. Spark may cut them otherwise.
        assert len(list(store.glob("block-*"))) == ROWS / 250
